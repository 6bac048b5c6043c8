"""Latency and throughput of any predictor, and whether they count.

``workloads`` makes requests of rows; ``Benchmark`` measures targets on them in a scenario (``scenarios`` the closed
loop, ``open_loop`` the server); ``Report`` judges what was measured, for people and as JSON; ``baseline`` compares it
with an earlier report. ``bench.breakdown`` says where a request's time goes, ``bench.tune`` which layout is fastest.

A request is what MLPerf's loadgen calls a query: a batch of rows that is sent together and answered together.
"""

from levi_serving.bench.benchmark import Benchmark
from levi_serving.bench.energy import Meter
from levi_serving.bench.measurement import Measurement, Target, Workload
from levi_serving.bench.open_loop import find_peak, server
from levi_serving.bench.report import DURATIONS, Preset, Report, in_words
from levi_serving.bench.scenarios import offline, single
from levi_serving.bench.workloads import fixed, real, workloads

__all__ = [
    "DURATIONS",
    "Benchmark",
    "Measurement",
    "Meter",
    "Preset",
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
