"""The closed loop: one request after another, or all rows at once. Knows no model but its three verbs.

Definitions follow MLPerf inference (SingleStream, Offline) and perf_analyzer's stability rule. Several
targets are measured in turns: each request goes to all of them, in rotating order, so that other work on the
machine slows all alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from statistics import median

from levi_serving.bench.measurement import Measurement, Series, Target, Workload
from levi_serving.bench.stats import minimum_requests, stable
from levi_serving.errors import LeviError
from levi_serving.rows.preprocess import Row

__all__ = ["Clock", "offline", "single", "warm"]

Clock = Callable[[], int]
"""Nanoseconds."""

_WARM_UP = 3  # further requests, in the single scenario
_WINDOW_S, _WINDOW_REQUESTS = 5.0, 50  # perf_analyzer's windows: of time, or of requests where they are slow


def single(
    targets: Sequence[Target],
    workload: Workload,
    *,
    duration_s: float,
    clock: Clock = time.perf_counter_ns,
    meter: Callable[[], float] | None = None,
) -> Measurement:
    """One request outstanding at a time (MLPerf SingleStream).

    Args:
        targets: measured in turns.
        workload: its batches, one after another.
        duration_s: how long to measure, at least, times the number of targets, which share it.
        clock: nanoseconds.
        meter: joules so far.
    """
    return _measure("single", targets, workload.batches, workload, duration_s, minimum_requests(0.9), clock, meter)


def offline(
    targets: Sequence[Target],
    workload: Workload,
    *,
    duration_s: float,
    clock: Clock = time.perf_counter_ns,
    meter: Callable[[], float] | None = None,
) -> Measurement:
    """All rows sent at once (MLPerf Offline), again and again; each pass is a request.

    Args:
        targets: measured in turns.
        workload: its batches are joined; the target cuts its own.
        duration_s: how long to measure, at least, times the number of targets, which share it.
        clock: nanoseconds.
        meter: joules so far.
    """
    return _measure("offline", targets, [workload.rows], workload, duration_s, 3, clock, meter)


def warm(target: Target, requests: Sequence[Sequence[Row]], *, clock: Clock = time.perf_counter_ns) -> float:
    """Send every request once, before measuring, and return the median seconds of one."""
    took = []
    for rows in requests:
        began = clock()
        target.predictor.finish(target.predictor.run(target.predictor.prepare(rows)))
        took.append((clock() - began) / 1e9)
    return median(took)


def _measure(
    scenario: str,
    targets: Sequence[Target],
    requests: Sequence[Sequence[Row]],
    workload: Workload,
    duration_s: float,
    fewest: int,
    clock: Clock,
    meter: Callable[[], float] | None,
) -> Measurement:
    further = itertools.islice(itertools.cycle(requests), _WARM_UP if scenario == "single" else 0)
    untimed = [*requests, *further]
    for target in targets:
        warm(target, untimed, clock=clock)
    series = {target.name: Series(joules=None if meter is None else 0.0) for target in targets}
    start = clock()
    sent = 0
    while sent < fewest or (clock() - start) / 1e9 < duration_s * len(targets):
        turn = sent % len(targets)
        for target in (*targets[turn:], *targets[:turn]):
            _request(target, requests[sent % len(requests)], series[target.name], start, clock, meter)
        sent += 1
    elapsed = (clock() - start) / 1e9
    reasons = [f"{name}: {reason}" for name, one in series.items() for reason in one.reasons]
    if unsteady := [name for name, one in series.items() if not one.failed and not _steady(one, elapsed)]:
        reasons.append(
            f"the last three windows of {', '.join(unsteady)} differ by more than 10 % in latency or throughput: "
            "stop other work on the machine or measure longer"
        )
    about = {target.name: target.predictor.describe() for target in targets}
    return Measurement(scenario, workload, series, about, targets[0].predictor.threads, elapsed, reasons)


def _request(
    target: Target, rows: Sequence[Row], series: Series, start: int, clock: Clock, meter: Callable[[], float] | None
) -> None:
    """Send one request and add its times to the series."""
    before = meter() if meter else 0.0
    due = clock()
    try:
        prepared = target.predictor.prepare(rows)
        tokenised = clock()
        outputs = target.predictor.run(prepared)
        ran = clock()
        target.predictor.finish(outputs)
        done = clock()
    except LeviError as error:
        series.fail(error)
        return
    if meter and series.joules is not None:
        series.joules += meter() - before
    series.prepare_s.append((tokenised - due) / 1e9)
    series.run_s.append((ran - tokenised) / 1e9)
    series.finish_s.append((done - ran) / 1e9)
    series.ended_s.append((done - start) / 1e9)
    series.rows += len(rows)
    if outputs.padded_tokens is not None:
        series.tokens += int(prepared.costs.sum())
        series.padded_tokens += outputs.padded_tokens


def _steady(series: Series, elapsed: float) -> bool:
    """Mean latency and throughput over the last three windows: of 5 s or 50 requests, at most a third of the run."""
    if len(series.ended_s) <= 8:  # a few long passes: each is a window
        return stable(series.latency_s)
    window_s = min(max(_WINDOW_S, _WINDOW_REQUESTS * elapsed / len(series.ended_s)), elapsed / 3)
    windows: list[list[float]] = [[] for _ in range(int(elapsed / window_s + 1e-9))]
    for ended, latency in zip(series.ended_s, series.latency_s, strict=True):
        place = int((elapsed - ended) / window_s)  # counted from the end, so that the last window is whole
        if place < len(windows):
            windows[-1 - place].append(latency)
    if any(not window for window in windows[-3:]):
        return False
    return stable([sum(window) / len(window) for window in windows]) and stable([float(len(w)) for w in windows])
