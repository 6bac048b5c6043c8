"""The paper's variants: adapters in the backbone, and LEVI on a fine-tuned one. Both export to a plain graph."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from safetensors.numpy import load_file

from levi_deploy.config import ModelConfig
from levi_deploy.model import Backbone
from levi_deploy.training import train
from levi_export import export
from levi_serving import Runner, verify
from levi_serving.errors import UsageError

pytestmark = pytest.mark.slow


def answers_match(run, bundle, table):
    rows = list(csv.DictReader(table.read_text().splitlines()))[::9]
    reference = run.reference()
    expected = reference.run(reference.prepare(rows)).logits
    found = Runner(bundle.folder).predict(rows).logits
    np.testing.assert_allclose(found, expected, atol=1e-4 * expected.std())
    assert verify(bundle.folder)["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4


def test_adapters_train_with_the_rest_and_are_merged(table, config, cache, tmp_path):
    asked = replace(
        config,
        model=replace(config.model, lora=2, branches=()),
        training=replace(config.training, epochs=2, batch_size=64),
    )
    run = train(table, tmp_path / "run", asked, cache=cache)
    adapters = load_file(run.folder / "adapters.safetensors")
    assert all("lora_" in name for name in adapters)
    assert any(tensor.any() for name, tensor in adapters.items() if "lora_B" in name), "they start at zero"
    own = load_file(run.folder / "weights.safetensors")
    fitted = ("shift", "scale", "weights", "temperature", "novelty.")
    trained = sum(w.size for name, w in own.items() if not name.startswith(fitted))
    trained += sum(a.size for a in adapters.values())
    assert run.record["parameters"]["trained"] == trained
    assert run.record["model"]["backbone"]["trained"] == sum(a.size for a in adapters.values())
    assert run.record["parameters"]["frozen"] == run.record["model"]["backbone"]["frozen"] > 0
    bundle = export(run.folder, tmp_path / "bundle")
    graph = onnx.load(bundle.folder / "model.onnx", load_external_data=False).graph
    assert not [n.name for n in [*graph.node, *graph.initializer] if "lora" in n.name]
    answers_match(run, bundle, table)
    again = train(table, tmp_path / "again", asked, cache=cache)
    same = load_file(again.folder / "adapters.safetensors")
    assert all(np.array_equal(adapters[name], same[name]) for name in adapters), "the same seed, the same bits"


def test_adapters_change_nothing_before_they_have_learned(backbone):
    given = {"input_ids": torch.randint(5, 40, (2, 6)), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    plain, adapted = (Backbone.load(str(backbone), lambda _: (1, 3)) for _ in range(2))
    adapted.add_adapters(4)
    assert {name for name, p in adapted.named_parameters() if p.requires_grad} == {
        name for name, _ in adapted.named_parameters() if "lora_" in name
    }
    with torch.no_grad():
        for a, b in zip(plain(given), adapted(given), strict=True):
            torch.testing.assert_close(a, b)
        weights = {name: torch.randn_like(tensor) for name, tensor in adapted.adapters().items()}
        adapted.model.load_state_dict(weights, strict=False)
        beside = adapted(given)
        adapted.merge(weights)
        assert not adapted.adapters()
        for a, b, c in zip(beside, adapted(given), plain(given), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            assert not torch.allclose(a, c, atol=1e-2)


def test_levi_on_a_fine_tuned_backbone(run, table, config, cache, tmp_path):
    asked = replace(
        config, training=replace(config.training, fine_tune=1, fine_tune_rate=1e-3, epochs=2), model=config.model
    )
    tuned = train(table, tmp_path / "run", asked, cache=cache)
    assert tuned.backbone.digest != run.backbone.digest
    assert tuned.backbone.title == "backbone0, fine-tuned"
    assert tuned.record["parameters"]["trained"] > run.record["parameters"]["trained"] + run.backbone.parameters - 1
    assert tuned.record["parameters"]["frozen"] == 0
    bundle = export(tuned.folder, tmp_path / "bundle")
    answers_match(tuned, bundle, table)


def test_what_cannot_be():
    with pytest.raises(UsageError, match="`lora` is 4; expected a rank from 1, with taps to train for"):
        ModelConfig(lora=4, taps=())
