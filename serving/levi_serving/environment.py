"""What this machine is, and how much of it the process may use. Standard library only; loads nothing it names.

Linux says everything; macOS and Windows say less, and what they do not say is None or empty.
"""

from __future__ import annotations

import importlib
import math
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

__all__ = [
    "PRELOADED",
    "allocator",
    "cache_folder",
    "environment",
    "machine",
    "peak_memory",
    "usable_cores",
    "versions",
]

PRELOADED = ("mimalloc", "tcmalloc", "jemalloc")
"""Allocators that may stand in for the C library's."""

_PACKAGES = (
    "levi-deploy", "numpy", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino", "torch",
    "transformers", "pyarrow",
)  # fmt: skip
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "TOKENIZERS_PARALLELISM", "CUDA_VISIBLE_DEVICES")


def cache_folder() -> Path:
    """Where what can be computed again is kept: ``LEVI_CACHE``, or ``levi-deploy`` in the user's cache folder."""
    if folder := os.environ.get("LEVI_CACHE"):
        return Path(folder)
    if platform.system() == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "levi-deploy"
    if platform.system() == "Darwin" and "XDG_CACHE_HOME" not in os.environ:
        return Path.home() / "Library" / "Caches" / "levi-deploy"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "levi-deploy"


def machine() -> dict[str, object]:
    """What decides how fast this machine is. Two measurements are of one machine when these are equal."""
    return {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "usable_cores": usable_cores(),
        "memory_gib": _memory_gib(),
        "instruction_sets": _instruction_sets(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


def environment() -> dict[str, object]:
    """Machine, system, versions and settings, as plain values for a report."""
    return {
        **machine(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions(_PACKAGES),
        "allocator": allocator(),
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those of some packages that are installed, by name."""
    found = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores this process may use: its CPU affinity, cut to its container's quota, at least 1.

    Host core counts mislead in a container: a pool of 64 threads under a quota of 2 cores stalls.

    Args:
        cgroup: where the control groups are mounted; version 2 (``cpu.max``) and version 1
            (``cpu/cpu.cfs_quota_us``) are read.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for quota_file, period_file in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (cgroup / quota_file).read_text().split()
            words += (cgroup / period_file).read_text().split() if period_file else []
            quota, period = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):
            continue  # no such file, or the quota is "max"
        if quota > 0 and period > 0:
            cores = min(cores, max(1, math.floor(quota / period)))
    return max(1, cores)


def allocator(maps: Path = Path("/proc/self/maps")) -> str:
    """Where this process's memory comes from: a preloaded mimalloc, tcmalloc or jemalloc, else the C library.

    It decides where onnxruntime's buffers begin (docs/allocators.md).

    Args:
        maps: the files that are mapped into the process.
    """
    loaded = [Path(line.split()[-1]).name for line in (_read(str(maps)) or "").splitlines() if ".so" in line]
    preloaded = (name for name in PRELOADED if any(file.startswith(f"lib{name}") for file in loaded))
    return next(preloaded, platform.libc_ver()[0] or platform.system())


def peak_memory() -> int | None:
    """The most memory this process has held, in bytes; None where the system does not say."""
    if held := _field("/proc/self/status", "VmHWM"):  # getrusage counts what the parent held before exec
        return int(held.split()[0]) * 1024
    try:
        resource = importlib.import_module("resource")
    except ModuleNotFoundError:  # Windows
        return None
    peak = int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return peak if platform.system() == "Darwin" else peak * 1024


def _memory_gib() -> float | None:
    if not hasattr(os, "sysconf"):  # Windows
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
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
