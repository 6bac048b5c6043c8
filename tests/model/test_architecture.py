"""What a model is made of: counted on its own weights, and the same in the run and in the bundle."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from levi_deploy.model.architecture import count_stages
from levi_deploy.model.build import build
from levi_serving import Bundle
from levi_serving.errors import UsageError
from levi_serving.predictions import Task


def test_a_run_says_what_it_is_made_of(run, backbone):
    """Two taps of 4 layers, 2 queries each, an mlp of 2 stages; counts by hand."""
    model, counts = run.record["model"], run.record["parameters"]
    assert model["backbone"]["layers"] == 4
    assert list(model["backbone"]["widths"]) == [32] * 5
    levi = run.levi()
    assert model["backbone"]["frozen"] == sum(p.numel() for p in levi.backbone.parameters())
    tap = {"width": 32, "pooling": "attention", "queries": 2, "pooled": 96, "trained": 2 * 32, "frozen": 0}
    assert model["taps"] == [{"depth": 1, **tap}, {"depth": 3, **tap}]
    vocabulary = run.backbone.vocabulary
    (branch,) = model["branches"]
    assert branch["trained"] == vocabulary * 64 + 2 * (64 * 64 + 64)
    assert (branch["name"], branch["stages"], branch["width"]) == ("mlp", 2, 64)
    width = 96 + 64
    for head, tap, stage in zip(model["heads"], (1, 3), (1, 2), strict=True):
        trained = 2 * 96 + width * 128 + 128 + 128 * 2 + 2
        expected = {
            "tap": tap,
            "stages": [stage],
            "hidden": 128,
            "outputs": 2,
            "weight": 0.5,
            "trained": trained,
            "frozen": 0,
        }
        assert head == expected
    assert counts["trained"] == sum(p.numel() for p in levi.ensemble.parameters())
    assert counts["frozen"] == model["backbone"]["frozen"]
    assert counts["full_fine_tuning"] == run.backbone.parameters + 32 * 2 + 2


def test_the_bundle_says_the_same(run, bundle):
    manifest = Bundle.open(bundle).manifest
    parts = {name: manifest.model[name] for name in ("taps", "branches", "heads", "average")}
    assert parts == {name: _as_json(run.record["model"][name]) for name in parts}
    assert manifest.model["backbone"]["digest"] == run.backbone.digest
    assert manifest.model["parameters"] == run.record["parameters"]
    assert "model" not in manifest.provenance
    assert manifest.task == run.task
    assert manifest.task.abstain_above > 0


def _as_json(value):
    import json

    return json.loads(json.dumps(value))


class Outside(nn.Module):
    """A branch that gives what the test says."""

    inputs = ("input_ids",)
    width = 3
    shapes = ((2, 3),)

    def __init__(self, facts, config):
        super().__init__()

    def stages(self, inputs):
        return [torch.zeros(shape) for shape in self.shapes]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shapes": ((2, 4),)}, r"gives stages of the shapes \(2, 4\) for 2 rows; expected one or more of \(2, 3\)"),
        ({"shapes": ((2, 3), (3,))}, r"shapes \(2, 3\), \(3,\) for 2 rows"),
        ({"shapes": ()}, "shapes none for 2 rows"),
        ({"inputs": ("pixel_values",)}, "reads pixel_values, and rows have input_ids, attention_mask"),
    ],
)
def test_a_branch_that_gives_something_else_is_refused(run, monkeypatch, changes, says):
    monkeypatch.setitem(sys.modules, "elsewhere", sys.modules[__name__])
    for name, value in changes.items():
        monkeypatch.setattr(Outside, name, value)
    config = replace(run.config.model, branches=("elsewhere:Outside",))
    task = Task(kind="classification", labels=("a", "b"))
    ensemble = build(config, run.backbone, run.preprocessing, run.taps, task=task)
    with pytest.raises(UsageError, match=says):
        count_stages(ensemble, run.preprocessing)
