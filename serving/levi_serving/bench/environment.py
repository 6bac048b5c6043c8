"""What a number was measured on: machine and software. Standard library only; loads nothing it names."""

from __future__ import annotations

import os
import platform
import resource
from importlib import metadata
from pathlib import Path

from levi_serving.machine import usable_cores

__all__ = ["PRELOADED", "allocator", "environment", "peak_memory"]

PRELOADED = ("mimalloc", "tcmalloc", "jemalloc")
"""Allocators that may stand in for the C library's."""

_PACKAGES = (
    "levi-deploy", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "torch",
    "transformers", "pyarrow",
)  # fmt: skip
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES")


def environment() -> dict[str, object]:
    """Machine, system, versions and settings, as plain values for a report."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "usable_cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": _instruction_sets(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "allocator": allocator(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "load_average": round(os.getloadavg()[0], 2),
    }


def allocator(maps: Path = Path("/proc/self/maps")) -> str:
    """Where this process's memory comes from: a preloaded mimalloc, tcmalloc or jemalloc, else the C library.

    It decides where onnxruntime's buffers begin (docs/allocators.md).

    Args:
        maps: the files that are mapped into the process.
    """
    loaded = [Path(line.split()[-1]).name for line in (_read(str(maps)) or "").splitlines() if ".so" in line]
    preloaded = (name for name in PRELOADED if any(file.startswith(f"lib{name}") for file in loaded))
    return next(preloaded, platform.libc_ver()[0] or platform.system())


def peak_memory() -> int:
    """The most memory this process has held, in bytes."""
    if held := _field("/proc/self/status", "VmHWM"):  # getrusage counts what the parent held before exec
        return int(held.split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


def _field(path: str, name: str) -> str | None:
    for line in (_read(path) or "").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return None


def _instruction_sets() -> list[str]:
    """Those that decide how fast matrix products are."""
    flags = set((_field("/proc/cpuinfo", "flags") or "").split())
    return [
        name
        for name in ("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")
        if name in flags
    ]
