"""Rows prepared once serve every method; full fine-tuning ends as a run like any other, and resumes like any other."""

from __future__ import annotations

import csv
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from levi_deploy.evaluation import evaluate
from levi_deploy.methods import METHODS, branch_alone, full_fine_tuning, linear_probe
from levi_deploy.methods.weights import average_outputs, average_weights, greedy_soup, validation_loss
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


@pytest.fixture(scope="module")
def probe(prepared, config, cache, tmp_path_factory):
    """A linear probe, and the models that were fine-tuned from it at two rates."""
    asked = replace(config, model=linear_probe(config.model, 4))
    return train(prepared, tmp_path_factory.mktemp("probe") / "run", asked, cache=cache)


@pytest.fixture(scope="module")
def descended(prepared, tuning, probe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("descended")
    return [
        train(
            prepared, folder / str(rate),
            replace(tuning, training=replace(tuning.training, epochs=2, learning_rate=rate)), start=probe,
        )
        for rate in (1e-3, 3e-3)
    ]  # fmt: skip


def test_training_starts_from_a_run(prepared, config, tuning, probe, run, tmp_path):
    """At a rate of almost nothing the probe's head comes out as it went in; its temperature is fitted anew."""
    still = replace(tuning, training=replace(tuning.training, epochs=1, learning_rate=1e-12))
    made, alone = (train(prepared, tmp_path / name, still, start=start) for name, start in (("a", probe), ("b", None)))
    for name in ("heads.0.net.weight", "heads.0.norm.weight"):
        np.testing.assert_allclose(weights(made)[name], weights(probe)[name], atol=1e-6)
    assert not np.allclose(weights(alone)["heads.0.net.weight"], weights(probe)["heads.0.net.weight"], atol=1e-2)
    assert made.record["temperature"] == pytest.approx(probe.record["temperature"], rel=1e-3)
    assert made.record["origin"] == {"start": probe.fingerprint}
    with pytest.raises(UsageError, match="a run of another model or on another backbone"):
        train(prepared, tmp_path / "c", still, start=run)
    chosen = replace(config, training=replace(config.training, select=True))
    with pytest.raises(UsageError, match="`select` is set, which chooses the model, and `start` has one already"):
        train(prepared, tmp_path / "d", chosen, start=run)


def test_a_mean_of_weights_is_a_run(prepared, tuning, probe, descended, table, tmp_path):
    """Between probe and fine-tuned model lies WiSE-FT: each weight is there, it exports, is proven and serves."""
    made = average_weights([probe, descended[0]], [0.25, 0.75], prepared, tmp_path / "run", tuning)
    parts = [probe.levi().state_dict(), descended[0].levi().state_dict()]
    for name, tensor in Run.open(made.folder).levi().state_dict().items():
        if tensor.is_floating_point() and not re.match(r"ensemble\.(temperature|weights|novelty)", name):
            np.testing.assert_allclose(tensor, 0.25 * parts[0][name] + 0.75 * parts[1][name], atol=1e-6)
    assert made.backbone.fine_tuned
    assert made.backbone.name == probe.backbone.name
    assert made.record["origin"] == {"mean_of": [probe.fingerprint, descended[0].fingerprint], "shares": [0.25, 0.75]}
    found = evaluate(made.reference(), table, target="label", splits=["id_val"])["splits"]["id_val"]["all"]
    assert found["log_loss"] == pytest.approx(made.record["validation"]["log_loss"], abs=1e-4)
    bundle = export(made.folder, tmp_path / "bundle")
    assert verify(bundle.folder)["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4


def test_runs_of_different_models_have_no_mean(prepared, tuning, probe, run, tmp_path):
    with pytest.raises(UsageError, match="are not those of a model as in .* Give runs of one model"):
        average_weights([probe, run], [0.5, 0.5], prepared, tmp_path / "run", tuning)


def test_a_greedy_soup_lets_in_what_helps(prepared, tuning, descended, tmp_path):
    """The ruined run is left out; the soup is no worse than its best ingredient."""
    from safetensors.numpy import save_file

    ruined = Path(shutil.copytree(descended[1].folder, tmp_path / "ruined"))
    file = ruined / "weights.safetensors"
    save_file(
        {name: -9 * array if name == "heads.0.net.weight" else array for name, array in load_file(file).items()}, file
    )
    runs = [*descended, Run.open(ruined)]
    made = greedy_soup(runs, prepared, tmp_path / "soup", tuning)
    best = min(descended, key=validation_loss)
    used = made.record["origin"]["mean_of"]
    assert used[0] == best.fingerprint
    assert validation_loss(made) <= validation_loss(best) + 1e-6
    assert made.record["origin"]["shares"] == [1 / len(used)] * len(used)
    lone = greedy_soup([best, Run.open(ruined)], prepared, tmp_path / "lone", tuning)
    assert lone.record["origin"] == {"mean_of": [best.fingerprint], "shares": [1.0]}
    uniform = average_weights([best, Run.open(ruined)], [0.5, 0.5], prepared, tmp_path / "uniform", tuning)
    assert validation_loss(uniform) > validation_loss(lone)


def test_a_mean_of_outputs_is_a_run(prepared, config, tuned, table, cache, tmp_path):
    """Of the fine-tuned model and the branches alone, to the last digit; and it exports."""
    branches = train(prepared, tmp_path / "scratch", METHODS["scratch"].configure(config, 4), cache=cache)
    asked = METHODS["output-ensemble"].configure(config, 4)
    made = average_outputs(tuned, branches, prepared, tmp_path / "run", asked)
    rows = list(csv.DictReader(table.read_text().splitlines()))[::9]
    found, *parts = (
        reference.run(reference.prepare(rows)) for reference in (run.reference() for run in (made, tuned, branches))
    )
    for k, part in enumerate(parts):
        np.testing.assert_allclose(found.head_logits[:, k], part.head_logits[:, 0], atol=1e-5)
    mean = (parts[0].head_logits[:, 0] + parts[1].head_logits[:, 0]) / 2
    np.testing.assert_allclose(found.logits * float(made.ensemble().temperature), mean, atol=1e-5)
    assert made.record["origin"] == {"outputs_of": [tuned.fingerprint, branches.fingerprint]}
    assert [(head["tap"], head["stages"], head["hidden"]) for head in made.record["model"]["heads"]] == [
        (4, [None], 0), (None, [2], 128),
    ]  # fmt: skip
    bundle = export(made.folder, tmp_path / "bundle")
    assert verify(bundle.folder)["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4


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
