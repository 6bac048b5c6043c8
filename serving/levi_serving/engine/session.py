"""One onnxruntime session whose provider is the one requested. The only file that imports onnxruntime.

It knows graph files, devices and threads; it knows no bundle, no rows and no task. What is particular to a kind of
device is in ``cpu`` and ``gpu``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from levi_serving.engine import cpu
from levi_serving.engine.gpu import ARITHMETIC, Captures, GpuSettings, bucket, provider_options
from levi_serving.environment import usable_cores
from levi_serving.errors import BundleError, LeviError, MissingExtraError, ProviderError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OPTIMIZED", "Device", "Session", "providers", "settle"]

Device = Literal["auto", "cpu", "cuda", "tensorrt"]

OPTIMIZED = "optimized.onnx"
"""The graph as onnxruntime runs it, in the folder of a trace."""

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


def _distribution() -> str:
    """The one onnxruntime distribution that is installed.

    Both install into the same folder and the last one wins without a word, so two are an error.
    """
    found = [name for name in ("onnxruntime", "onnxruntime-gpu") if _version(name)]
    if not found:
        raise MissingExtraError("onnxruntime", "cpu", "Running a bundle")
    if len(found) == 2:
        raise ProviderError(
            "Both onnxruntime and onnxruntime-gpu are installed; they overwrite each other's files. Keep one: "
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'levi-deploy[cpu]' (or [gpu])."
        )
    return found[0]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def providers() -> list[str]:
    """The execution providers this machine's onnxruntime was built with.

    Raises:
        MissingExtraError: no onnxruntime is installed.
        ProviderError: both its builds are installed.
    """
    _distribution()
    import onnxruntime

    return cast("list[str]", onnxruntime.get_available_providers())


def settle(device: Device) -> Literal["cpu", "cuda", "tensorrt"]:
    """The device to use: ``auto`` is ``cuda`` where the installed onnxruntime is the GPU build, else ``cpu``.

    Raises:
        UsageError: there is no such device.
        ProviderError: this onnxruntime was not built for it.
    """
    if device not in get_args(Device):
        raise UsageError(f"`device` is {device!r}; expected {', '.join(get_args(Device))}.")
    available = providers()
    if device == "auto":
        return "cuda" if _PROVIDERS["cuda"] in available else "cpu"
    if _PROVIDERS[device] not in available:
        raise ProviderError(
            f"The device {device!r} needs {_PROVIDERS[device]}, but {_distribution()} {_version(_distribution())} has "
            f"only {', '.join(available)}. Install it with: pip uninstall -y onnxruntime && "
            "pip install 'levi-deploy[gpu]'; or use the device 'cpu'."
        )
    return device


class Session:
    """A loaded graph. Safe to run from several threads at once.

    Args:
        model: the graph's file; its weights lie beside it and are memory-mapped.
        device: ``auto`` is ``cuda`` where the installed onnxruntime is the GPU build, else ``cpu``.
        threads: of one run on a CPU; the usable cores when None.
        precision: of the graph; TensorRT builds its engine for it.
        most: the largest value of each symbolic dimension, for TensorRT's engines and the buckets of CUDA graphs.
        gpu: what a GPU session may use.
        trace: a folder for the times of every node and the optimised graph; see ``end_trace``.

    Attributes:
        device: the one in use.
        provider: onnxruntime's, which the nodes with arithmetic run on.
        nodes: how many nodes of the graph run on each provider, by name.

    Raises:
        UsageError: there is no such device.
        ProviderError: the device's provider is not installed, did not start, or does not run the whole graph. There
            is no silent fallback.
        BundleError: the file is no graph that this onnxruntime loads.
    """

    def __init__(
        self,
        model: Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        precision: str = "fp32",
        most: Mapping[str, int] | None = None,
        gpu: GpuSettings | None = None,
        trace: Path | None = None,
    ) -> None:
        device = settle(device)
        wanted = _PROVIDERS[device]
        import onnxruntime

        gpu, self._most = gpu or GpuSettings(), dict(most or {})
        options = cpu.options(onnxruntime, threads=threads or usable_cores())
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")  # for _attested
        if trace is not None:
            _trace(options, trace)
        providers: list[Any] = [wanted]
        if device != "cpu":
            onnxruntime.preload_dlls()
            providers = provider_options(
                device,
                gpu,
                model=model,
                precision=precision,
                inputs=_shapes(model, onnxruntime) if device == "tensorrt" else {},
                most=self._most,
                version=onnxruntime.__version__,
            )
        disabled = list(cpu.SLOWER) if device == "cpu" else []
        try:
            session = onnxruntime.InferenceSession(
                str(model), options, providers=providers, disabled_optimizers=disabled
            )
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise BundleError(
                f"onnxruntime {_version(_distribution())} cannot load {model}: {error}. "
                "Export again, or install an onnxruntime that knows this graph's opset."
            ) from error
        session.disable_fallback()
        self.nodes = _attested(session, device, model)
        self.provider = wanted
        self.device: Device = device
        self.threads: int = options.intra_op_num_threads
        self.version = onnxruntime.__version__
        self.inputs: dict[str, tuple[Any, ...]] = {i.name: tuple(i.shape) for i in session.get_inputs()}
        self.outputs: dict[str, tuple[Any, ...]] = {o.name: tuple(o.shape) for o in session.get_outputs()}
        self._session = session
        self._shrinking = cpu.shrinking(onnxruntime)
        self._captures = None
        if device == "cuda" and gpu.capture_tokens:
            self._captures = Captures(onnxruntime, session, gpu, self.outputs)

    def padded(self, rows: int, tokens: int) -> tuple[int, int]:
        """The rows and tokens that a batch is best padded to: its own, or a bucket's where CUDA graphs are replayed."""
        if self._captures is None:
            return rows, tokens
        most = {"batch": rows, "sequence": tokens} | self._most
        return bucket(rows, most=most["batch"]), bucket(tokens, most=most["sequence"])

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run one batch; inputs that the graph does not declare are left out.

        Raises:
            LeviError: onnxruntime failed; its message is passed on.
        """
        names = list(self.outputs)
        declared = {name: feeds[name] for name in self.inputs}
        try:
            tokens = max(_tokens(array.shape) for array in declared.values())
            if self._captures is not None:
                return self._captures.run(declared, tokens=tokens)
            large = self.device == "cpu" and tokens > cpu.KEPT_TOKENS
            answers = self._session.run(names, declared, self._shrinking if large else None)
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise LeviError(f"onnxruntime failed on a batch of {shapes}: {error}") from error
        return dict(zip(names, answers, strict=True))

    def end_trace(self) -> Path:
        """Stop tracing and return the file with the times of every run's nodes, in Chrome's trace format."""
        return Path(self._session.end_profiling())


def _trace(options: Any, folder: Path) -> None:
    """Have a session write the times of every node, and its optimised graph, into a folder."""
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    options.optimized_model_filepath = str(folder / OPTIMIZED)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")


def _tokens(shape: tuple[int, ...]) -> int:
    """How large an input is: its padded tokens (B, T), or its images' patches of 16 x 16 pixels, as B x T tokens."""
    return math.prod(shape) if len(shape) < 4 else shape[0] * shape[2] * shape[3] // 16**2


def _shapes(model: Path, runtime: Any) -> dict[str, tuple[Any, ...]]:
    """A graph's input shapes, before TensorRT's engine is built for them."""
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = runtime.InferenceSession(str(model), options, providers=[_PROVIDERS["cpu"]])
    return {i.name: tuple(i.shape) for i in session.get_inputs()}


def _attested(session: Any, device: str, model: Path) -> dict[str, int]:
    """How many nodes run on each provider, by the session's own account.

    Raises:
        ProviderError: the device's provider did not start, or it leaves matrix products to the CPU.
    """
    wanted, found = _PROVIDERS[device], session.get_providers()[0]
    if found != wanted:
        raise ProviderError(
            f"The device {device!r} was requested, but the session runs on {found}: {wanted} did not start. "
            "Check the driver with nvidia-smi and the CUDA libraries with 'levi doctor', or use the device 'cpu'."
        )
    nodes: dict[str, int] = {}
    strayed: set[str] = set()
    for part in session.get_provider_graph_assignment_info():
        own = part.get_nodes()
        nodes[part.ep_name] = nodes.get(part.ep_name, 0) + len(own)
        if part.ep_name == _PROVIDERS["cpu"] and device != "cpu":
            strayed |= {node.op_type for node in own} & ARITHMETIC
    if strayed:
        raise ProviderError(
            f"The device {device!r} was requested, but {wanted} leaves {', '.join(sorted(strayed))} of {model.name} "
            "to the CPU. Choose a precision that is made for it (fp32, fp16 or bf16), or use the device 'cpu'."
        )
    return nodes
