"""Rows prepared once serve every method; full fine-tuning ends as a run like any other, and resumes like any other."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file

from levi_deploy.evaluation import evaluate
from levi_deploy.methods import branch_alone, full_fine_tuning, linear_probe
from levi_deploy.model import Backbone
from levi_deploy.run import Run
from levi_deploy.training import prepare, train
from levi_deploy.training.fit import cosine, linear
from levi_export import export
from levi_serving import Runner, verify
from levi_serving.errors import UsageError

pytestmark = pytest.mark.slow


def weights(run):
    return load_file(run.folder / "weights.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def prepared(table, config):
    return prepare(table, config)


@pytest.fixture(scope="module")
def tuning(config):
    """Full fine-tuning, fast enough for a test."""
    asked = full_fine_tuning(replace(config, training=replace(config.training, fine_tune_rate=1e-3, epochs=3)))
    return replace(asked, training=replace(asked.training, batch_size=64))


@pytest.fixture(scope="module")
def tuned(prepared, tuning, tmp_path_factory):
    return train(prepared, tmp_path_factory.mktemp("tuned") / "run", tuning)


def test_rows_prepared_once_serve_every_method(prepared, run, config, cache, tmp_path, monkeypatch):
    """The table is neither read nor tokenised again, and what comes of it is the same to the bit."""
    import sys

    def refuse(*_, **__):
        raise AssertionError("prepared rows are prepared again")

    module = sys.modules["levi_deploy.training.train"]
    monkeypatch.setattr(module, "load", refuse)
    monkeypatch.setattr(module, "encode", refuse)
    again = train(prepared, tmp_path / "levi", config, cache=cache)
    assert same(weights(again), weights(run))
    assert (tmp_path / "levi/tokenizer.json").read_bytes() == (run.folder / "tokenizer.json").read_bytes()
    for name, model in (("probe", linear_probe(config.model, 4)), ("alone", branch_alone(config.model))):
        made = train(prepared, tmp_path / name, replace(config, model=model), cache=cache)
        assert made.record["data"] == run.record["data"]
        assert made.record["validation"]["accuracy"] > 0.5


def test_rows_of_another_backbone_are_refused(prepared, config, tmp_path, backbone):
    from transformers import AutoModel

    other = tmp_path / "other"
    model = AutoModel.from_pretrained(backbone)
    model.encoder.layer[0].output.dense.weight.data += 1
    model.save_pretrained(other)
    asked = replace(config, model=replace(config.model, backbone=str(other)))
    with pytest.raises(UsageError, match=r"The rows were prepared for the backbone .* Prepare them again"):
        train(prepared, tmp_path / "run", asked)
    assert not (tmp_path / "run").exists()


def test_full_fine_tuning_is_a_run(tuned, run, table, tmp_path):
    """It opens, evaluates, exports, is proven and serves, with the head that was fine-tuned."""
    opened = Run.open(tuned.folder)
    assert opened.backbone.fine_tuned
    assert opened.backbone.title == f"{run.backbone.name}, fine-tuned"
    assert opened.backbone.digest not in (run.backbone.digest, "")
    assert (opened.taps, opened.record["parameters"]["frozen"]) == ((4,), 0)
    # LayerNorm before the linear head beside what the field calls full fine-tuning
    assert opened.record["parameters"]["trained"] == opened.record["parameters"]["full_fine_tuning"] + 2 * 32
    found = evaluate(opened.reference(), table, target="label", splits=["id_val", "ood_test"])
    assert found["splits"]["id_val"]["all"]["accuracy"] == opened.record["validation"]["accuracy"] > 0.7
    bundle = export(tuned.folder, tmp_path / "bundle")
    rows = list(csv.DictReader(table.read_text().splitlines()))[::9]
    reference = opened.reference()
    expected = reference.run(reference.prepare(rows)).logits
    np.testing.assert_allclose(Runner(bundle.folder).predict(rows).logits, expected, atol=1e-4 * expected.std())
    assert verify(bundle.folder)["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4


def test_full_fine_tuning_moves_every_layer_and_its_head(tuned, backbone):
    """Each matrix that reaches the last layer differs from the pre-trained one."""
    before = Backbone.load(str(backbone), lambda depth: (depth,)).model.state_dict()
    after = tuned.levi().backbone.model.state_dict()
    still = [name for name in before if before[name].dim() > 1 and bool((before[name] == after[name]).all())]
    assert [name for name in still if "pooler" not in name] == []


class Stop(BaseException):
    pass


def interrupt_after(steps):
    """A progress callback that stops training in the middle of an epoch, as a kill would."""
    seen = 0

    def progress(what, done, total):
        nonlocal seen
        seen += "epoch" in what
        if seen == steps:
            raise Stop

    return progress


@pytest.mark.parametrize("way", ["the method", "before LEVI"])
def test_fine_tuning_resumes_to_the_same_bits(prepared, config, tuning, tmp_path, way):
    asked = tuning
    if way == "before LEVI":
        settings = replace(config.training, fine_tune=3, fine_tune_rate=1e-3, epochs=2, batch_size=64)
        asked = replace(config, training=settings)
    whole = train(prepared, tmp_path / "whole", asked, cache=tmp_path / "cache")
    with pytest.raises(Stop):  # in the third of three epochs of four steps
        train(prepared, tmp_path / "run", asked, cache=tmp_path / "cache", progress=interrupt_after(10))
    epochs = []
    resumed = train(
        prepared, tmp_path / "run", asked, cache=tmp_path / "cache", resume=True,
        progress=lambda what, done, total: epochs.append(what) if done == total else None,
    )  # fmt: skip
    assert same(weights(whole), weights(resumed))
    assert whole.backbone == resumed.backbone
    expected = {"the method": ["epoch 3"], "before LEVI": ["fine-tuning, epoch 3", "epoch 1", "epoch 2"]}
    assert [what for what in epochs if "epoch" in what] == expected[way], "finished epochs are not repeated"
    left = {path.name for path in resumed.folder.iterdir()}
    assert left == {path.name for path in whole.folder.iterdir()}
    assert not [name for name in left if "state" in name or "fine_tune" in name or "aside" in name]


def test_one_way_to_train_the_backbone(config):
    for other in ({"training": {"fine_tune": 1}}, {"model": {"lora": 2}}):
        model = replace(config.model, **other.get("model", {}))
        training = replace(config.training, train_backbone=True, **other.get("training", {}))
        with pytest.raises(UsageError, match="different ways to train the backbone. Give one of them"):
            replace(config, model=model, training=training)
    with pytest.raises(UsageError, match="`train_backbone` is given, but there are no taps"):
        replace(config, model=branch_alone(config.model), training=replace(config.training, train_backbone=True))


def test_the_last_layer_must_be_tapped_where_the_backbone_trains(prepared, config, tmp_path):
    asked = replace(config, training=replace(config.training, train_backbone=True))
    with pytest.raises(UsageError, match=r"the taps \[1, 3\] leave out the last layer 4, which would be cut off"):
        train(prepared, tmp_path / "run", asked)


def test_schedules():
    assert [cosine(share) for share in (0.025, 0.05, 1.0)] == pytest.approx([0.5, 1.0, 0.1])
    assert [linear(share) for share in (0.025, 0.05, 0.5, 1.0)] == pytest.approx([0.4875, 0.95, 0.5, 0.0])
