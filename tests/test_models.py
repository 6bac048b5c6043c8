"""A folder that holds a model, run or bundle, opens as one thing: what answers, and the column it was trained on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from levi_deploy.models import kind, load
from levi_serving import Bundle
from levi_serving.errors import BundleError, RunError, UsageError


def test_what_a_folder_holds(run, bundle, tmp_path):
    assert (kind(run.folder), kind(bundle)) == ("run", "bundle")
    assert kind(tmp_path) == kind(tmp_path / "nowhere") == "run", "opening it says what is wrong"


def test_a_run_and_its_bundle_answer_alike(run, bundle, texts):
    torch, graph = load(run.folder), load(bundle, device="cpu")
    assert torch.target == graph.target == "label"
    assert torch.predictor.task == graph.predictor.task == run.task
    assert torch.predictor.fingerprint == run.fingerprint
    assert graph.predictor.fingerprint == Bundle.read(bundle).manifest.digest
    assert torch.predictor.preprocessor.settings == graph.predictor.preprocessor.settings
    assert torch.predictor.answer_columns(with_heads=True) == graph.predictor.answer_columns(with_heads=True)
    expected, found = (
        model.predictor.finish(model.predictor.run(model.predictor.prepare(texts[:20]))) for model in (torch, graph)
    )
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-4 * expected.logits.std())
    assert graph.predictor.table(found)["prediction"] == torch.predictor.table(expected)["prediction"]


def test_the_target_is_the_column_it_was_trained_on(bundle_copy):
    manifest = Bundle.open(bundle_copy).manifest
    Bundle.write(bundle_copy, replace(manifest, provenance={**manifest.provenance, "target": "verdict"}))
    assert load(bundle_copy).target == "verdict"


def test_what_cannot_be_opened(run, bundle_copy, tmp_path):
    with pytest.raises(RunError, match="is not a finished training run: there is no run.json in it"):
        load(tmp_path)
    with pytest.raises(UsageError, match="nowhere"):
        load(run.folder, backbone=str(tmp_path / "nowhere"))
    (bundle_copy / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="model.onnx is damaged"):
        load(bundle_copy)
