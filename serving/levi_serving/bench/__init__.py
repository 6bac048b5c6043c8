"""Latency and throughput of anything with the runner's three verbs."""

from levi_serving.bench.energy import Meter
from levi_serving.bench.open_loop import find_peak, server
from levi_serving.bench.plan import Plan
from levi_serving.bench.report import DURATIONS, Profile, Report, in_words
from levi_serving.bench.scenarios import Measurement, Target, Workload, offline, single
from levi_serving.bench.workloads import fixed, real, workloads

__all__ = [
    "DURATIONS",
    "Measurement",
    "Meter",
    "Plan",
    "Profile",
    "Report",
    "Target",
    "Workload",
    "find_peak",
    "fixed",
    "in_words",
    "offline",
    "real",
    "server",
    "single",
    "workloads",
]
