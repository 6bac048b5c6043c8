"""Bundles that earlier versions wrote still open, still hold their proof and still give the same answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from levi_serving import Bundle, Runner, verify
from levi_serving.bundle import GOLDEN
from levi_serving.errors import BundleError
from levi_serving.parity import Golden

FROZEN = Path(__file__).parent / "frozen"
GRAPHS = ["model.cpu.onnx", "model.onnx", "model.int8.onnx"]


@pytest.fixture
def format_1(tmp_path) -> Path:
    """A copy: the frozen files themselves are never written to."""
    return Path(shutil.copytree(FROZEN / "format_1", tmp_path / "bundle"))


def test_format_1_opens_and_says_what_it_is(format_1):
    manifest = Bundle.open(format_1).manifest
    assert json.loads((format_1 / "levi.json").read_text())["format_version"] == 1
    assert [graph.file for graph in manifest.graphs] == GRAPHS
    assert [graph.precision for graph in manifest.graphs] == ["fp32", "fp32", "int8"]
    assert (manifest.task.kind, manifest.task.labels) == ("classification", ("negative", "positive"))
    assert manifest.task.abstain_above == pytest.approx(0.00298, abs=1e-5)
    assert manifest.digest == json.loads((format_1 / "levi.json").read_text())["digest"]


def test_format_1_holds_its_proof(format_1):
    found = verify(format_1)
    assert (list(found["graphs"]), found["not_run"]) == (GRAPHS, {})
    stated = json.loads((format_1 / "parity.json").read_text())
    for file, certificate in found["graphs"].items():
        assert certificate.keys() == stated[file].keys() - {"metric"}  # which needs the targets, and so the run
        assert certificate["standard"] == stated[file]["standard"]
        assert certificate["spread"] == stated[file]["spread"]


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_format_1_gives_the_golden_answers(format_1, precision):
    runner = Runner(format_1, device="cpu", precision=precision)
    golden = Golden.load(format_1 / GOLDEN, runner.preprocessor.settings)
    predictions = runner.predict(golden.rows)
    assert predictions.labels.tolist() == list(golden.predictions)
    assert set(golden.predictions) == {"negative", "positive"}
    tolerance = {"fp32": 1e-5, "int8": 1e-2}[precision] * golden.reference.logits.std()
    np.testing.assert_allclose(predictions.logits, golden.reference.logits, rtol=0, atol=tolerance)
    np.testing.assert_allclose(predictions.head_logits, golden.reference.head_logits, rtol=0, atol=tolerance)


@pytest.mark.parametrize("file", sorted(path.name for path in (FROZEN / "format_1").iterdir()))
def test_a_changed_byte_of_format_1_is_found(format_1, file):
    content = bytearray((format_1 / file).read_bytes())
    content[len(content) // 2] ^= 1
    (format_1 / file).write_bytes(content)
    with pytest.raises(BundleError):
        Bundle.open(format_1)
