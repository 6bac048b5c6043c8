"""The paths of a GPU, without one: a stand-in for onnxruntime's GPU build that computes with the real CPU session.

Its "device" buffers are copies, and a captured graph replays the buffers that it was recorded with, whatever is
bound later, as CUDA graphs do.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import onnxruntime as real
import pytest
from fakes import watch
from hypothesis import given
from hypothesis import strategies as st

from levi_serving import Runner
from levi_serving.engine import session
from levi_serving.engine.gpu import GpuSettings, bucket, provider_options
from levi_serving.errors import ProviderError

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"


class Buffer:
    """Memory of the device: nothing reaches it but by a copy of its own shape and type."""

    def __init__(self, array):
        self.array = array.copy()

    def update_inplace(self, array):
        assert (array.shape, array.dtype) == (self.array.shape, self.array.dtype)
        self.array[...] = array

    def numpy(self):
        return self.array.copy()


class Binding:
    def __init__(self):
        self.inputs, self.outputs = {}, {}

    def bind_ortvalue_input(self, name, value):
        self.inputs[name] = value

    def bind_ortvalue_output(self, name, value):
        self.outputs[name] = value


class Gpu:
    """onnxruntime as the GPU build has it; ``log`` has what was recorded, replayed and run plainly."""

    __version__ = "1.31.0"
    SessionOptions, GraphOptimizationLevel = real.SessionOptions, real.GraphOptimizationLevel
    OrtDeviceMemoryType = SimpleNamespace(HOST_ACCESSIBLE="pinned")

    def __init__(self, stray=()):
        self.log, self.providers, self.stray, self.pinned, self.running = [], None, stray, 0, 0
        gpu = self

        class RunOptions(dict):
            def add_run_config_entry(self, key, value):
                self[key] = value

        class OrtValue:
            @staticmethod
            def ortvalue_from_numpy(array, device, number):
                assert (device, number) == ("cuda", 0)
                return Buffer(array)

            @staticmethod
            def ortvalue_from_shape_and_type(shape, dtype, device="cpu", number=0, memory_info=None):
                if memory_info is None:
                    return Buffer(np.full(shape, np.nan, dtype))
                gpu.pinned += 1
                array = np.empty(shape, dtype)
                return SimpleNamespace(numpy=lambda: array)

        class InferenceSession:
            def __init__(self, path, options, *, providers, disabled_optimizers=()):
                gpu.providers = providers
                self.inner = real.InferenceSession(path, options, providers=[CPU])
                self.recorded = {}

            def __getattr__(self, name):
                return getattr(self.inner, name)

            def get_providers(self):
                return [name for name, _ in gpu.providers]

            def get_provider_graph_assignment_info(self):
                kinds = {CUDA: ["MatMul", "Gemm"], CPU: ["Shape", *gpu.stray]}
                return [
                    SimpleNamespace(ep_name=name, get_nodes=lambda ops=ops: [SimpleNamespace(op_type=o) for o in ops])
                    for name, ops in kinds.items()
                ]

            def io_binding(self):
                return Binding()

            def run(self, names, feeds, options=None):
                assert options is None or options["gpu_graph_id"] == "-1"
                gpu.log.append("plain")
                return self.inner.run(names, feeds)

            def run_with_iobinding(self, binding, options):
                assert gpu.running == 0, "two replays at once"
                gpu.running += 1
                number = options["gpu_graph_id"]
                gpu.log.append(("replay" if number in self.recorded else "record", number))
                inputs, outputs = self.recorded.setdefault(number, (dict(binding.inputs), dict(binding.outputs)))
                names = list(outputs)
                answers = self.inner.run(names, {name: value.array for name, value in inputs.items()})
                for name, answer in zip(names, answers, strict=True):
                    outputs[name].update_inplace(answer)
                gpu.running -= 1

        self.RunOptions, self.OrtValue, self.InferenceSession = RunOptions, OrtValue, InferenceSession

    def get_available_providers(self):
        return [TENSORRT, CUDA, CPU]

    def preload_dlls(self):
        pass

    def get_ep_devices(self):
        return [SimpleNamespace(ep_name=CUDA, memory_info=lambda kind: kind)]


@pytest.fixture
def gpu(monkeypatch):
    def installed(**further):
        fake = Gpu(**further)
        monkeypatch.setitem(sys.modules, "onnxruntime", fake)
        monkeypatch.setattr(session, "_version", lambda name: "1.31.0" if name == "onnxruntime-gpu" else None)
        return fake

    return installed


def test_captured_graphs_answer_as_the_cpu_does(gpu, runner, bundle, texts):
    expected = [runner.predict(texts[n : n + 1 + n % 5]).logits for n in range(40)]
    fake = gpu()
    captured = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=512))
    for _ in range(2):
        for n, logits in enumerate(expected):
            np.testing.assert_allclose(captured.predict(texts[n : n + 1 + n % 5]).logits, logits, atol=1e-5)
    kinds = [entry[0] for entry in fake.log]
    recorded = kinds.count("record")
    assert "plain" not in fake.log
    assert len({number for kind, number in fake.log if kind == "record"}) == recorded
    assert kinds.count("replay") > 4 * recorded  # shapes are few: batches are filled up to buckets
    assert fake.pinned == 2 * recorded  # ids and mask of each shape are staged in memory that the GPU reads directly


def test_shapes_are_bounded_and_large_batches_run_without(gpu, runner, bundle, texts):
    expected = runner.predict(texts[:60]).logits
    fake = gpu()
    few = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=64, most_captures=3))
    np.testing.assert_allclose(few.predict(texts[:60]).logits, expected, atol=1e-5)
    for n in range(20):
        few.predict(texts[n : n + 2])
    assert sum(entry[0] == "record" for entry in fake.log) == 3
    assert "plain" in fake.log


def test_threads_share_captured_buffers_in_turn(gpu, runner, bundle, texts):
    expected = [runner.predict([text]).logits for text in texts[:30]]
    gpu()
    captured = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=512))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: captured.predict([text]).logits, texts[:30]))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_without_captures_batches_keep_their_shape(gpu, bundle, texts):
    fake = gpu()
    plain = Runner(bundle, device="cuda")
    plain.predict(texts[:3])
    assert set(fake.log) == {"plain"}
    assert plain.session.padded(5, 37) == (5, 37)
    assert dict(fake.providers)[CUDA]["enable_cuda_graph"] == "0"


def test_what_a_bucket_adds_is_padding_too(gpu, bundle, texts, monkeypatch):
    gpu()
    captured = Runner(bundle, device="cuda", gpu=GpuSettings(capture_tokens=512))
    prepared = captured.prepare(texts[:5])
    shapes = watch(monkeypatch, captured.session)
    padded = captured.run(prepared).padded_tokens
    assert shapes == [(6, bucket(int(prepared.costs.max()), most=48))]
    assert padded == shapes[0][0] * shapes[0][1] > 5 * prepared.costs.max()


def test_arithmetic_left_to_the_cpu_is_refused(gpu, bundle):
    gpu(stray=["MatMulInteger"])
    with pytest.raises(ProviderError, match=r"leaves MatMulInteger of model.onnx to the CPU. Choose a precision"):
        Runner(bundle, device="cuda")


def test_cuda_options(tmp_path):
    settings = GpuSettings(number=1, memory_gib=2, capture_tokens=64)
    providers = provider_options("cuda", settings, model=tmp_path, precision="fp32", inputs={}, most={}, version="1")
    assert [name for name, _ in providers] == [CUDA, CPU]
    options = providers[0][1]
    assert (options["device_id"], options["gpu_mem_limit"], options["enable_cuda_graph"]) == ("1", str(2**31), "1")
    assert (options["use_tf32"], options["arena_extend_strategy"]) == ("0", "kSameAsRequested")


def test_tensorrt_has_a_profile_over_every_shape_and_engines_of_its_own(gpu, bundle, tmp_path):
    fake = gpu()
    Runner(bundle, device="tensorrt", max_batch_rows=64, gpu=GpuSettings(engines=tmp_path))
    (name, options), (second, _), (third, _) = fake.providers
    assert (name, second, third) == (TENSORRT, CUDA, CPU)
    assert options["trt_profile_min_shapes"] == "input_ids:1x1,attention_mask:1x1"
    assert options["trt_profile_opt_shapes"] == "input_ids:16x12,attention_mask:16x12"
    assert options["trt_profile_max_shapes"] == "input_ids:64x48,attention_mask:64x48"
    assert options["trt_fp16_enable"] == "0"
    first = options["trt_engine_cache_path"]
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another graph")
    settings = GpuSettings(engines=tmp_path)
    again = provider_options("tensorrt", settings, model=other, precision="fp16", inputs={}, most={}, version="1.31.0")
    assert again[0][1]["trt_engine_cache_path"] != first
    assert again[0][1]["trt_fp16_enable"] == "1"


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_buckets(size, most):
    size = min(size, most)
    found = bucket(size, most=most)
    assert size <= found <= most
    assert found < 1.5 * size or size == 1
    assert bucket(found, most=most) == found


def test_buckets_are_few():
    assert sorted({bucket(size, most=512) for size in range(1, 513)}) == [
        1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512,
    ]  # fmt: skip
