"""Latency and throughput of anything with the runner's three verbs."""

from levi_serving.bench.report import Report
from levi_serving.bench.scenarios import Measurement, Target, Workload, offline, single
from levi_serving.bench.workloads import fixed, real

__all__ = ["Measurement", "Report", "Target", "Workload", "fixed", "offline", "real", "single"]
