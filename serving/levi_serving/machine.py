"""How much of this machine the process may use. Standard library only; knows no model and no session."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

__all__ = ["processor", "usable_cores"]


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


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    except OSError:
        lines = []
    named = (value.strip() for key, _, value in lines if key.strip() == "model name")
    return next(named, "") or platform.processor() or platform.machine()
