"""The bundle's graph in OpenVINO answers as the runner does."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from levi_serving import Runner
from levi_serving.bench import Report, Target, real, single
from levi_serving.bench.openvino import OpenVino
from levi_serving.errors import MissingExtraError, UsageError

pytestmark = pytest.mark.slow


def test_a_missing_openvino_names_its_extra(runner, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'levi-deploy\[openvino\]'"):
        OpenVino(runner)


def test_it_refuses_to_abort_under_another_allocator(runner, monkeypatch):
    monkeypatch.setattr("levi_serving.bench.openvino.allocator", lambda: "mimalloc")
    with pytest.raises(UsageError, match="mimalloc is preloaded"):
        OpenVino(runner)


@pytest.fixture
def openvino():
    return pytest.importorskip("openvino", reason="openvino is not installed: pip install 'levi-deploy[openvino]'")


def test_it_answers_as_the_runner_does(openvino, bundle, texts):
    runner = Runner(bundle, threads=1, max_batch_tokens=100)
    peer = OpenVino(runner)
    encoded = peer.prepare(texts[:30])
    ours, theirs = runner.run(encoded), peer.run(encoded)
    np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-4)
    np.testing.assert_allclose(theirs.head_logits, ours.head_logits, atol=1e-4)
    assert peer.finish(theirs).labels.tolist() == runner.finish(ours).labels.tolist()
    about = peer.describe()
    assert (about["threads"], about["precision"], about["max_batch_tokens"]) == (1, "f32", 100)


def test_no_rows_have_no_answers(openvino, runner):
    peer = OpenVino(runner)
    outputs = peer.run(peer.prepare([]))
    assert outputs.logits.shape == (0, runner.task.outputs)
    assert outputs.head_logits.shape == (0, runner.heads, runner.task.outputs)
    assert outputs.padded_tokens == 0
    assert len(peer.finish(outputs)) == 0


def test_its_own_default_is_another_target(openvino, runner, texts):
    predictors = {
        "onnxruntime": runner, "openvino": OpenVino(runner), "openvino-default": OpenVino(runner, exact=False),
    }  # fmt: skip
    targets = [Target(name, predictor) for name, predictor in predictors.items()]
    (workload,) = real(texts[:8], batch_sizes=[4])
    document = Report([single(targets, workload, duration_s=0.1)], preset="quick").to_dict()
    results = document["workloads"][0]["results"]
    assert list(results) == ["onnxruntime", "openvino", "openvino-default"]
    assert {result["about"]["threads"] for result in results.values()} == {runner.session.threads}
