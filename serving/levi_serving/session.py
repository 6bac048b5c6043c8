"""One onnxruntime session whose provider is the one asked for. The only file that knows onnxruntime.

It knows graph files, devices and threads; it knows no bundle, no rows and no task.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from levi_serving.errors import BundleError, LeviError, MissingExtraError, ProviderError, UsageError
from levi_serving.machine import usable_cores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["OPTIMIZED", "Device", "Session", "providers"]

Device = Literal["auto", "cpu", "cuda"]

OPTIMIZED = "optimized.onnx"
"""The graph as onnxruntime runs it, in the folder of a trace."""

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


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


class Session:
    """A loaded graph. Safe to run from several threads at once.

    Args:
        model: the graph's file; its weights lie beside it and are memory-mapped.
        device: ``auto`` is ``cuda`` where the installed onnxruntime is the GPU build, else ``cpu``.
        threads: of one run; the usable cores when None.
        trace: a folder for the times of every node and the optimised graph; see ``end_trace``.

    Raises:
        UsageError: there is no such device.
        ProviderError: the device's provider is not there or did not start. There is no quiet fall-back.
        BundleError: the file is no graph that this onnxruntime loads.
    """

    def __init__(
        self, model: Path, *, device: Device = "auto", threads: int | None = None, trace: Path | None = None
    ) -> None:
        if device not in get_args(Device):
            raise UsageError(f"The device is {device!r}; expected {', '.join(get_args(Device))}.")
        there = providers()
        import onnxruntime

        if device == "auto":
            device = "cuda" if _PROVIDERS["cuda"] in there else "cpu"
        wanted = _PROVIDERS[device]
        if wanted not in there:
            raise ProviderError(
                f"The device {device!r} needs {wanted}, but {_distribution()} {_version(_distribution())} has only "
                f"{', '.join(there)}. Install it with: pip uninstall -y onnxruntime && "
                "pip install 'levi-deploy[gpu]'; or use the device 'cpu'."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cores()
        options.log_severity_level = 3  # errors; warnings of a failed provider become the error below
        options.enable_cpu_mem_arena = False  # the arena keeps its peak for good and saves no time here
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle costs no CPU
        if trace is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(trace / "trace")
            options.optimized_model_filepath = str(trace / OPTIMIZED)
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        if device == "cuda":
            onnxruntime.preload_dlls()
        try:
            session = onnxruntime.InferenceSession(
                str(model),
                options,
                # The CPU provider stands behind another for the few shape nodes onnxruntime puts there.
                providers=list(dict.fromkeys([wanted, _PROVIDERS["cpu"]])),
                # Exact, but its CPU kernel is slower than the Add and LayerNormalization it replaces.
                disabled_optimizers=["SkipLayerNormFusion"] if device == "cpu" else [],
            )
        except Exception as error:  # onnxruntime's exceptions share no public base
            raise BundleError(
                f"onnxruntime {_version(_distribution())} cannot load {model}: {error}. "
                "Export again, or install an onnxruntime that knows this graph's opset."
            ) from error
        session.disable_fallback()
        self.provider: str = session.get_providers()[0]
        if self.provider != wanted:
            raise ProviderError(
                f"The device {device!r} was asked for, but the session runs on {self.provider}: {wanted} did not "
                "start. Check the driver with nvidia-smi and the CUDA libraries with 'levi doctor', or use the "
                "device 'cpu'."
            )
        self.device: Device = device
        self.threads: int = options.intra_op_num_threads
        self.version = onnxruntime.__version__
        self.inputs: dict[str, tuple[Any, ...]] = {i.name: tuple(i.shape) for i in session.get_inputs()}
        self.outputs: dict[str, tuple[Any, ...]] = {o.name: tuple(o.shape) for o in session.get_outputs()}
        self._session = session

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Run one batch; inputs that the graph does not declare are left out.

        Raises:
            LeviError: onnxruntime failed; its message is passed on.
        """
        names = list(self.outputs)
        try:
            answers = self._session.run(names, {name: feeds[name] for name in self.inputs})
        except Exception as error:  # as above
            shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise LeviError(f"onnxruntime failed on a batch of {shapes}: {error}") from error
        return dict(zip(names, answers, strict=True))

    def end_trace(self) -> Path:
        """Stop tracing and return the file with the times of every run's nodes, in Chrome's trace format."""
        return Path(self._session.end_profiling())
