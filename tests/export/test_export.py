"""``export`` writes a proven bundle or nothing; every task and pooling; the certificate catches what is swapped."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from transformers import BertModel

from levi_deploy.methods import branch_alone, linear_probe
from levi_deploy.run import Run
from levi_deploy.training import train
from levi_export import export, pipeline
from levi_serving import Bundle, Runner, verify
from levi_serving.bundle import Manifest, read_certificate
from levi_serving.errors import ParityError, UsageError
from levi_serving.rows.preprocess import Encoded

pytestmark = pytest.mark.slow


def answers(run: Run, bundle: Bundle, table) -> np.ndarray:
    """Rows of the table through the runner, less the torch model's answers, in shares of their spread."""
    read = list(csv.DictReader(table.read_text().splitlines()))[::7]
    reference = run.reference()
    expected = reference.run(reference.prepare(read)).logits
    return (Runner(bundle.folder).predict(read).logits - expected) / expected.std()


def agrees_with_torch(run: Run, bundle: Bundle, shapes=((1, 1), (1, 16), (3, 37), (7, 2), (16, 48))):
    """At shapes that the export never saw, with random tokens and random padding."""
    reference, runner = run.reference(), Runner(bundle.folder)
    rng = np.random.default_rng(0)
    spread = None
    for rows, tokens in shapes:
        ids = rng.integers(0, 60, (rows, tokens))
        lengths = rng.integers(1, tokens + 1, rows)
        lengths[0] = tokens
        feeds = {"input_ids": ids, "attention_mask": (np.arange(tokens) < lengths[:, None]).astype(np.int64)}
        feeds["token_type_ids"] = ids % 2
        further = Encoded.blank(run.preprocessing, rows=rows).arrays
        feeds |= {name: rng.integers(0, 3, array.shape).astype(array.dtype) for name, array in further.items()}
        feeds = {tensor.name: feeds[tensor.name] for tensor in bundle.manifest.inputs}
        expected, found = reference.answer(feeds), runner.session.run(feeds)
        spread = spread or max(expected.head_logits.std(), 1e-3)
        np.testing.assert_allclose(found["logits"], expected.logits, atol=1e-4 * spread, rtol=1e-4)
        np.testing.assert_allclose(found["head_logits"], expected.head_logits, atol=1e-4 * spread, rtol=1e-4)


def test_the_graph_is_the_torch_model(run, bundle):
    agrees_with_torch(run, Bundle.open(bundle))


VARIANTS = {
    "mean pooling, embeddings tapped": {"model": {"pooling": "mean", "taps": (0, 4)}},
    "first token, probabilities": {"model": {"pooling": "first", "average_of": "probabilities", "branches": ()}},
    "tokens read one by one": {"model": {"pooling": "tokens", "side_width": 16}},
    "a ladder": {
        "model": {"pooling": "ladder", "side_width": 16, "average": "weighed", "members": 2},
        "training": {"ema_decay": 0.9},
    },
    "last token, linear heads": {"model": {"pooling": "last", "head_hidden": 0}},
    "multilabel": {
        "data": {"target": "topics", "task": "multilabel"},
        "model": {"average_of": "probabilities"},
        "training": {"class_weights": "balanced"},
    },
    "multilabel, weighed": {
        "data": {"target": "topics", "task": "multilabel"},
        "model": {"average": "weighed", "average_of": "probabilities", "pooling": "mean", "members": 2},
    },
    "all taps, weighted heads": {
        "model": {"taps": "all", "pooling": "mean", "head_hidden": 0},
        "training": {"head_weights": (0.5, 1, 1, 2, 2)},
    },
    "regression": {"data": {"target": "score"}},
    "regression, weighed": {"data": {"target": "score"}, "model": {"average": "weighed", "pooling": "mean"}},
    "convolutions, outputs alone averaged": {"model": {"branches": ("cnn",), "fusion": "outputs"}},
    "recurrent, a number of taps": {"model": {"branches": ("gru",), "pooling": "mean", "taps": 2}},
    "self-attention": {"model": {"branches": ("transformer",), "pooling": "mean"}},
    "text and columns": {"data": {"numeric": ("price",), "categorical": ("shop", "item")}},
    "a graph": {"model": {"branches": ("graph",), "pooling": "mean"}, "data": {"nodes": ("user", "item")}},
    "pairs": {"data": {"text_pair": "topics"}, "training": {"calibrate": False, "class_weights": "balanced"}},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name, table, config, cache, tmp_path):
    sections = {section: replace(getattr(config, section), **c) for section, c in VARIANTS[name].items()}
    run = train(table, tmp_path / "run", replace(config, **sections), cache=cache)
    bundle = export(run.folder, tmp_path / "bundle")
    agrees_with_torch(run, bundle, shapes=((1, 1), (3, 37)))
    np.testing.assert_allclose(answers(run, bundle, table), 0, atol=1e-4)
    certificate = verify(bundle.folder)["graphs"]["model.onnx"]
    assert certificate["worst_scaled_error"] < 1e-4
    assert certificate["alone_against_batched"]["max_scaled_error"] < 1e-4


@pytest.mark.parametrize("baseline", ["linear probe", "branch alone"])
def test_baselines_are_exported_too(baseline, table, config, cache, tmp_path):
    model = linear_probe(config.model, 4) if baseline == "linear probe" else branch_alone(config.model)
    run = train(table, tmp_path / "run", replace(config, model=model), cache=cache)
    bundle = export(run.folder, tmp_path / "bundle")
    agrees_with_torch(run, bundle, shapes=((1, 1), (3, 37)))
    if baseline == "branch alone":
        graph = onnx.load(bundle.folder / "model.onnx")
        assert not [node.name for node in graph.graph.node if node.name.startswith("backbone")]


def test_the_certificate_covers_what_it_says(bundle):
    certificate = read_certificate(bundle, "model.onnx")
    shapes = {(s["batch"], s["length"], s["padded"]) for s in certificate["shapes"]}
    for batch in (1, 2, 7, 32):
        for length in (2, 6, 24, 48):
            assert {(batch, length, True), (batch, length, False)} <= shapes
        assert (batch, 1, False) in shapes
    assert certificate["rows"]["agreement"] == 1
    assert 0 <= certificate["worst_scaled_error"] < 1e-5
    assert certificate["rows"]["count"] == 64


def test_a_wrong_graph_is_not_kept(run, tmp_path, monkeypatch):
    """The averaging is damaged between torch's answers and the trace: nothing may be left."""
    convert = pipeline.convert

    def damaged(levi, rows):
        with torch.no_grad():
            levi.ensemble.heads[0].net[0].bias += 0.01
        return convert(levi, rows)

    monkeypatch.setattr(pipeline, "convert", damaged)
    (tmp_path / "bundle").mkdir()
    with pytest.raises(ParityError, match="does not answer as its model does") as caught:
        export(run.folder, tmp_path / "bundle")
    assert caught.value.exit_code == 3
    assert list((tmp_path / "bundle").iterdir()) == []
    assert list(tmp_path.iterdir()) == [tmp_path / "bundle"]


def test_a_failure_leaves_the_old_bundle(run, bundle_copy, monkeypatch):
    before = {path.name: path.read_bytes() for path in bundle_copy.iterdir()}
    monkeypatch.setattr(pipeline, "prove", lambda *_, **__: (_ for _ in ()).throw(ParityError("not equal")))
    with pytest.raises(UsageError, match=r"exists and is not empty\. Choose another folder, or set `overwrite`\."):
        export(run.folder, bundle_copy)
    with pytest.raises(ParityError):
        export(run.folder, bundle_copy, overwrite=True)
    assert {path.name: path.read_bytes() for path in bundle_copy.iterdir()} == before


def reseal(folder, **changes):
    """Sign a tampered bundle anew, as someone would who means well."""
    manifest = Manifest.from_json((folder / "levi.json").read_text(), name="levi.json")
    Bundle.write(folder, replace(manifest, **changes))


def scaled_weight(folder):
    """In the file that both graphs read."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    weight = next(i for i in model.graph.initializer if "heads.1" in i.name and len(i.dims) == 2)
    place = {entry.key: entry.value for entry in weight.external_data}
    data = np.memmap(
        folder / place["location"], np.float32, mode="r+", offset=int(place["offset"]), shape=tuple(weight.dims)
    )
    data *= np.float32(1.01)
    data.flush()
    reseal(folder)


def swapped_tokenizer(folder):
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text())
    vocabulary = document["model"]["vocab"]
    vocabulary["good"], vocabulary["bad"] = vocabulary["bad"], vocabulary["good"]
    path.write_text(json.dumps(document))
    reseal(folder)


def swapped_labels(folder):
    manifest = Manifest.from_json((folder / "levi.json").read_text(), name="levi.json")
    reseal(folder, task=replace(manifest.task, labels=("positive", "negative")))


def shorter(folder):
    manifest = Manifest.from_json((folder / "levi.json").read_text(), name="levi.json")
    rows = manifest.preprocessing
    reseal(folder, preprocessing=replace(rows, text=replace(rows.text, max_length=9)))


@pytest.mark.parametrize(
    ("tamper", "says"),
    [
        (scaled_weight, "largest error .* of the logits' standard deviation, allowed 1e-04"),
        (swapped_tokenizer, "the tokenizer gives other token ids for"),
        (swapped_labels, "predictions have another name: golden row 0 is"),
        (shorter, "the tokenizer gives other token ids for"),
    ],
)
def test_verify_catches_what_digests_cannot(bundle_copy, tamper, says):
    assert all(graph["worst_scaled_error"] < 1e-5 for graph in verify(bundle_copy)["graphs"].values())
    tamper(bundle_copy)
    with pytest.raises(ParityError, match=says):
        verify(bundle_copy)


def test_a_backbone_in_half_precision_is_served_in_float32(table, config, cache, backbone, tmp_path, monkeypatch):
    """Trained on its own bfloat16, as a large one is; the graph runs on CPUs, which have no bfloat16 operators."""
    monkeypatch.setattr("levi_deploy.model.backbone._LARGE", 0)
    half = Path(shutil.copytree(backbone, tmp_path / "half"))
    BertModel.from_pretrained(backbone).to(torch.bfloat16).save_pretrained(half)
    large = replace(config, model=replace(config.model, backbone=str(half)))
    bundle = export(train(table, tmp_path / "run", large, cache=cache).folder, tmp_path / "bundle")
    weights = onnx.load(bundle.folder / "model.onnx", load_external_data=False).graph.initializer
    assert onnx.TensorProto.BFLOAT16 not in {weight.data_type for weight in weights}
    assert verify(bundle.folder)["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4


def test_a_backbone_may_have_moved(run, backbone, tmp_path, monkeypatch):
    elsewhere = shutil.copytree(backbone, tmp_path / "elsewhere")
    document = json.loads((run.folder / "run.json").read_text())
    document["config"]["model"]["backbone"] = str(tmp_path / "gone")
    moved = shutil.copytree(run.folder, tmp_path / "run")
    (moved / "run.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="cannot be loaded"):
        export(moved, tmp_path / "bundle")
    assert export(moved, tmp_path / "bundle", backbone=str(elsewhere)).manifest.task.kind == "classification"
