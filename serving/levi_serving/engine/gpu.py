"""How a graph runs on an NVIDIA GPU: the providers' options, shape buckets, and captured CUDA graphs.

It knows onnxruntime's options and bindings by name; it knows no bundle, no rows and no task. Nothing here is
reached on a machine without a GPU; what it does was taken from onnxruntime's documentation:
https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html and …/TensorRT-ExecutionProvider.html
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from levi_serving.environment import cache_folder

__all__ = ["ARITHMETIC", "Captures", "GpuSettings", "bucket", "provider_options"]

ARITHMETIC = frozenset({
    "Attention", "Conv", "ConvInteger", "FusedMatMul", "Gemm", "MatMul", "MatMulInteger", "MatMulNBits",
    "MultiHeadAttention", "QAttention", "QLinearMatMul",
})  # fmt: skip
"""Operators that a GPU's session must not leave to the CPU."""

Shape = tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class GpuSettings:
    """What a GPU session may use.

    Attributes:
        number: the GPU's number.
        memory_gib: the most that the CUDA provider's arena takes; the GPU's own limit when None.
        capture_tokens: batches of at most so many padded tokens are replayed as CUDA graphs, padded to a bucket;
            0 captures none. A captured graph saves the launch of each kernel, which is what a small batch waits for.
        most_captures: shapes that are captured before further ones run without; each holds memory of its own.
        engines: where TensorRT keeps its engines between processes.
    """

    number: int = 0
    memory_gib: float | None = None
    capture_tokens: int = 0
    most_captures: int = 32
    engines: Path = field(default_factory=lambda: cache_folder() / "tensorrt")


def bucket(size: int, *, most: int) -> int:
    """The size that ``size`` is padded to: the next of 1, 2, 3, 4, 6, 8, 12, 16, … and at most ``most``.

    A batch grows by less than a half, and the shapes up to n are at most 2 · log2(n).
    """
    step = 1
    while step < size:
        if step + step // 2 >= size and step > 1:
            return min(most, step + step // 2)
        step *= 2
    return min(most, step)


def provider_options(
    device: Literal["cuda", "tensorrt"],
    settings: GpuSettings,
    *,
    model: Path,
    precision: str,
    inputs: Mapping[str, Shape],
    most: Mapping[str, int],
    version: str,
) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session with their options, the wanted one first.

    Args:
        device: cuda or tensorrt.
        settings: what it may use.
        model: the graph's file; it keys TensorRT's engines.
        precision: of the graph.
        inputs: each input's shape; a symbolic dimension is its name.
        most: the largest value of each symbolic dimension.
        version: onnxruntime's, which engines do not outlive.
    """
    cuda = {
        "device_id": str(settings.number),
        # Grow by what a new shape needs, not to the next power of two.
        "arena_extend_strategy": "kSameAsRequested",
        # The exhaustive search would run again at every new batch size.
        "cudnn_conv_algo_search": "HEURISTIC",
        # TF32 keeps ten bits of a factor: fp32 answers would miss their tolerance.
        "use_tf32": "0",
        "enable_cuda_graph": str(int(device == "cuda" and settings.capture_tokens > 0)),
    }
    if settings.memory_gib is not None:
        cuda["gpu_mem_limit"] = str(int(settings.memory_gib * 2**30))
    providers = [("CUDAExecutionProvider", cuda)]
    if device == "tensorrt":
        key = hashlib.sha256(model.read_bytes() + version.encode()).hexdigest()[:16]
        folder = settings.engines / key
        folder.mkdir(parents=True, exist_ok=True)
        options = {
            "device_id": str(settings.number),
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(folder),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(settings.engines),
            "trt_fp16_enable": str(int(precision == "fp16")),
            "trt_bf16_enable": str(int(precision == "bf16")),
        }
        # One profile over every shape that can come: without all three, an engine is built again for each new one.
        for name, sizes in (("min", dict.fromkeys(most, 1)), ("opt", _usual(most)), ("max", most)):
            options[f"trt_profile_{name}_shapes"] = ",".join(
                f"{tensor}:" + "x".join(str(dim if isinstance(dim, int) else sizes[dim]) for dim in shape)
                for tensor, shape in inputs.items()
            )
        providers.insert(0, ("TensorrtExecutionProvider", options))
    return [*providers, ("CPUExecutionProvider", {})]  # for the few shape nodes that onnxruntime puts there


def _usual(most: Mapping[str, int]) -> dict[str, int]:
    """The shape that TensorRT's kernels are chosen for: a quarter of the most in each dimension."""
    return {name: max(1, size // 4) for name, size in most.items()}


class _Capture:
    """One shape's buffers on the GPU, at the addresses that its CUDA graph was recorded with."""

    def __init__(
        self, runtime: Any, session: Any, number: int, gpu: int, feeds: Mapping[str, NDArray[Any]], shapes: Any
    ) -> None:
        self._session = session
        self._binding = session.io_binding()
        self._inputs: dict[str, Any] = {}
        self._staged: dict[str, tuple[NDArray[Any], Any]] = {}
        for name, array in feeds.items():
            self._inputs[name] = runtime.OrtValue.ortvalue_from_numpy(array, "cuda", gpu)
            self._staged[name] = _pinned(runtime, array)
            self._binding.bind_ortvalue_input(name, self._inputs[name])
        self._outputs = {
            name: runtime.OrtValue.ortvalue_from_shape_and_type(list(shape), np.float32, "cuda", gpu)
            for name, shape in shapes.items()
        }
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = runtime.RunOptions()
        self._options.add_run_config_entry("gpu_graph_id", str(number))

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Copy in, replay (the first time: record), copy out."""
        for name, array in feeds.items():
            staged, _ = self._staged[name]
            np.copyto(staged, array)
            self._inputs[name].update_inplace(staged)
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: value.numpy() for name, value in self._outputs.items()}


def _pinned(runtime: Any, like: NDArray[Any]) -> tuple[NDArray[Any], Any]:
    """A host array that the GPU copies from without a detour, where this onnxruntime gives one, and its owner."""
    kind = getattr(getattr(runtime, "OrtDeviceMemoryType", None), "HOST_ACCESSIBLE", None)
    for device in runtime.get_ep_devices() if kind is not None else ():
        if device.ep_name == "CUDAExecutionProvider" and (memory := device.memory_info(kind)) is not None:
            value = runtime.OrtValue.ortvalue_from_shape_and_type(list(like.shape), like.dtype, memory_info=memory)
            return value.numpy(), value
    return np.empty_like(like), None


class Captures:
    """CUDA graphs of a session, one a bucket of shapes. One replay at a time: their buffers are fixed.

    Args:
        runtime: the onnxruntime module.
        session: made with ``enable_cuda_graph``.
        settings: how many, and of which batches.
        outputs: each output's shape; ``batch`` is the rows of the inputs.
    """

    def __init__(self, runtime: Any, session: Any, settings: GpuSettings, outputs: Mapping[str, Shape]) -> None:
        self._runtime, self._session, self._settings, self._outputs = runtime, session, settings, outputs
        self._made: dict[tuple[tuple[int, ...], ...], _Capture] = {}
        self._lock = threading.Lock()
        self._plain = runtime.RunOptions()
        self._plain.add_run_config_entry("gpu_graph_id", "-1")  # neither record nor replay

    def __len__(self) -> int:
        return len(self._made)

    def run(self, feeds: Mapping[str, NDArray[Any]], *, tokens: int) -> dict[str, NDArray[np.float32]]:
        """Run one batch of ``tokens`` padded tokens; without a graph when it is too large or its shape one too many."""
        key = tuple(array.shape for array in feeds.values())
        with self._lock:
            found = self._made.get(key)
            if found is None and (
                tokens > self._settings.capture_tokens or len(self._made) == self._settings.most_captures
            ):
                names = list(self._outputs)
                return dict(zip(names, self._session.run(names, dict(feeds), self._plain), strict=True))
            if found is None:
                rows = len(next(iter(feeds.values())))
                shapes = {
                    name: tuple(rows if dim == "batch" else dim for dim in shape)
                    for name, shape in self._outputs.items()
                }
                found = _Capture(self._runtime, self._session, len(self._made), self._settings.number, feeds, shapes)
                self._made[key] = found
            return found.run(feeds)
