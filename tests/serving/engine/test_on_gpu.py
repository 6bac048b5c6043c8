"""The same paths on a real GPU, where onnxruntime-gpu finds one; elsewhere every test here is skipped."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest

from levi_serving import Runner
from levi_serving.engine.gpu import GpuSettings
from levi_serving.engine.session import Session, settle
from levi_serving.errors import ProviderError

pytestmark = pytest.mark.skipif(
    "CUDAExecutionProvider" not in onnxruntime.get_available_providers() or shutil.which("nvidia-smi") is None,
    reason="no NVIDIA GPU with onnxruntime-gpu",
)

TOLERANCE = 1e-4  # of fp32 logits, as in the certificate


@pytest.fixture(scope="module")
def expected(bundle, texts):
    return Runner(bundle, device="cpu").predict(texts)


@pytest.fixture(scope="module")
def half(tmp_path_factory, run):
    from levi_export import export

    return export(run.folder, tmp_path_factory.mktemp("half") / "bundle", precisions=("fp32", "fp16", "int8")).folder


def test_auto_is_the_gpu_and_it_runs_all_arithmetic(bundle):
    assert settle("auto") == "cuda"
    runner = Runner(bundle)
    assert runner.describe()["provider"] == "CUDAExecutionProvider"
    assert runner.session.nodes["CUDAExecutionProvider"] > runner.session.nodes.get("CPUExecutionProvider", 0)


def test_fp32_answers_as_on_a_cpu(bundle, texts, expected):
    found = Runner(bundle, device="cuda").predict(texts)
    np.testing.assert_allclose(found.logits, expected.logits, atol=TOLERANCE)
    np.testing.assert_allclose(found.head_logits, expected.head_logits, atol=TOLERANCE)
    assert found.labels.tolist() == expected.labels.tolist()


def test_half_precision_agrees(half, texts, expected):
    found = Runner(half, device="cuda", precision="fp16").predict(texts)
    assert np.mean(found.labels == expected.labels) > 0.98
    assert np.abs(found.logits - expected.logits).max() < 0.1


def test_int8_is_refused(half):
    from levi_serving import Bundle

    with pytest.raises(ProviderError, match="leaves"):
        Session(half / Bundle.read(half).graph("int8", device="cpu").file, device="cuda", precision="int8")


def test_captured_graphs_answer_as_plain_runs_do(bundle, texts):
    plain = Runner(bundle, device="cuda")
    captured = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=512))
    for _ in range(3):  # recorded, replayed, replayed again with other rows between
        for n in range(0, 60, 7):
            rows = texts[n : n + 1 + n % 9]
            np.testing.assert_allclose(captured.predict(rows).logits, plain.predict(rows).logits, atol=TOLERANCE)
    assert len(captured.session._captures) > 3


def test_captured_graphs_answer_many_threads(bundle, texts):
    expected = Runner(bundle, device="cuda").predict(texts).logits
    captured = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=512))

    def ask(n):
        return captured.predict(texts[n : n + 1]).logits[0]

    with ThreadPoolExecutor(8) as pool:
        found = np.stack(list(pool.map(ask, range(len(texts)))))
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_shapes_beyond_the_most_captures_run_plainly(bundle, texts, expected):
    runner = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=512, most_captures=2))
    found = np.concatenate([runner.predict(texts[n : n + 1 + n % 3]).logits[:1] for n in range(40)])
    np.testing.assert_allclose(found, expected.logits[:40], atol=TOLERANCE)
    assert len(runner.session._captures) == 2


def test_the_arena_can_be_bounded(bundle, texts, expected):
    runner = Runner(bundle, device="cuda", gpu=GpuSettings(memory_gib=0.5))
    np.testing.assert_allclose(runner.predict(texts).logits, expected.logits, atol=TOLERANCE)


def test_a_gpu_that_is_not_there_is_one_clear_error(bundle):
    with pytest.raises(ProviderError):
        Runner(bundle, device="cuda", gpu=GpuSettings(number=99))
