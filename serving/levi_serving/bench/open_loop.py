"""The open loop: requests of one row arrive at a rate, whether or not the model keeps up.

MLPerf inference, Server: Poisson arrivals, no limit on what is outstanding, latency from the moment
a request was *due*. So a model that stalls is charged for every request that piled up meanwhile (a generator
that waited for it would hide them: coordinated omission). Knows no model but the three verbs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from levi_serving.bench.measurement import Measurement, Series, ServerRun, Target, Workload
from levi_serving.bench.scenarios import Clock, warm
from levi_serving.bench.stats import minimum_requests, tolerated
from levi_serving.engine.microbatch import Answer, Batch, MicroBatcher
from levi_serving.engine.predictor import Predictor
from levi_serving.rows.preprocess import Row

__all__ = ["RESOLUTION", "Service", "arrivals", "find_peak", "server"]

RESOLUTION = 1.05
"""Of a peak: the search ends when the ratio of an invalid rate to a valid one is at most this."""

_LATE = 0.1  # a request is late when it is sent later than due by more than this share of the bound
_LATE_REQUESTS = 0.01  # the largest share of late requests in a valid run, as perf_analyzer
_SIZES = (1, 2, 4, 8, 16, 32)  # batches to warm up with
_FURTHEST = 1024.0  # the search gives up at its first rate divided by this


class Service(Protocol):
    """What answers while further requests arrive; ``MicroBatcher`` does."""

    def submit(self, row: Row) -> Future[Answer]:
        """Send one row and do not wait."""
        ...

    def close(self, *, cancel: bool = False) -> None:
        """Answer or cancel what waits, and return when that is done."""
        ...


def arrivals(qps: float, *, duration_s: float, fewest: int, seed: int) -> NDArray[np.float64]:
    """When requests are due, in seconds from the start: a Poisson process of ``qps`` a second.

    It lasts ``duration_s``, and longer until there are ``fewest``. The same seed gives the same process,
    stretched when the rate is another.
    """
    draw = np.random.default_rng(seed)
    due = np.empty(0)
    while len(due) < fewest or due[-1] < duration_s:
        gaps = draw.exponential(size=1024) / qps
        due = np.concatenate([due, (due[-1] if len(due) else 0.0) + np.cumsum(gaps)])
    return due[: max(fewest, int(np.searchsorted(due, duration_s)))]


def server(
    target: Target,
    workload: Workload,
    *,
    qps: float,
    bound_s: float,
    percentile: float = 0.99,
    duration_s: float,
    seed: int = 0,
    service: Callable[[Predictor], Service] | None = None,
    clock: Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
    meter: Callable[[], float] | None = None,
) -> Measurement:
    """Send requests of one row at a Poisson rate.

    The run is valid when the percentile of the latency is below the bound with 99 % confidence (early stopping),
    no request failed, and at most 1 % of the requests were sent late by more than a tenth of the bound.
    A run that can no longer be valid is stopped.

    Args:
        target: what answers.
        workload: its rows are drawn with replacement.
        qps: requests a second.
        bound_s: on the latency's percentile.
        percentile: which, as 0.99.
        duration_s: how long requests arrive, at least; longer where so few would say nothing of the percentile.
        seed: of arrivals and rows, so that they repeat.
        service: what answers for the target; the micro-batcher, with the predictor's own limits, when None.
        clock: nanoseconds.
        sleep: seconds.
        meter: joules so far.
    """
    rows = workload.rows
    warm(target, [rows[:size] for size in _SIZES] + [[row] for row in rows[: _SIZES[-1]]], clock=clock)
    fewest = minimum_requests(percentile)
    due = arrivals(qps, duration_s=duration_s, fewest=fewest, seed=seed)
    chosen = np.random.default_rng([seed, 1]).integers(len(rows), size=len(due))
    serving = service(target.predictor) if service else MicroBatcher(target.predictor, clock=clock)
    log = _Log(clock, due, bound_s, allowed=tolerated(len(due), percentile) - 1)  # early stopping's estimate is below
    before = meter() if meter else 0.0
    for n, choice in enumerate(chosen):
        while (wait := due[n] - log.now()) > 0:
            sleep(wait)
        if log.hopeless:
            break
        log.sent.append(log.now())
        serving.submit(rows[choice]).add_done_callback(partial(log.done, n))
    serving.close(cancel=log.hopeless)
    elapsed = log.now()
    series = log.series()
    if meter:
        series.joules = meter() - before
    busy = log.busy_s / elapsed
    run = ServerRun(qps, bound_s, percentile, late=log.late, rows_per_batch=log.rows_per_batch, busy=busy)
    reasons = [f"{target.name}: {reason}" for reason in (*series.reasons, *_broken(log, run))]
    about = {target.name: target.predictor.describe()}
    threads = target.predictor.threads
    return Measurement("server", workload, {target.name: series}, about, threads, elapsed, reasons, run)


def find_peak(measure: Callable[[float], Measurement], *, start: float) -> Measurement:
    """The highest rate at which a measurement is valid: doubled (or halved) from ``start``, then bisected.

    Args:
        measure: a server measurement at a rate.
        start: the first rate to try, in requests a second.

    Returns:
        The valid measurement of the highest scheduled rate, at most 5 % below an invalid one; with every
        run in ``tried``. When no rate was valid, the last one tried, with its reasons.
    """
    tried: list[Measurement] = []

    def holds(qps: float) -> bool:
        tried.append(measure(qps))
        return not tried[-1].reasons

    low = high = start
    if holds(start):
        while holds(high := 2 * low):
            low = high
    else:
        while not holds(low := high / 2):
            if low < start / _FURTHEST:
                return replace(tried[-1], tried=tried)
            high = low
    while high / low > RESOLUTION:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if holds(middle) else (low, middle)
    return replace(max((one for one in tried if not one.reasons), key=_qps), tried=tried)


def _qps(measurement: Measurement) -> float:
    return measurement.server.qps if measurement.server else 0.0


class _Log:
    """What happens to the requests of one run. ``done`` is called by the service's own thread."""

    def __init__(self, clock: Clock, due: NDArray[np.float64], bound_s: float, *, allowed: int) -> None:
        self._clock, self._start = clock, clock()
        self._due, self._bound_s = due, bound_s
        self.allowed, self.planned, self.over = allowed, len(due), 0
        self.sent: list[float] = []
        self._answers: list[tuple[int, float, Batch]] = []
        self._failures: list[Exception] = []

    def now(self) -> float:
        """Seconds since the start."""
        return (self._clock() - self._start) / 1e9

    def done(self, n: int, answer: Future[Answer]) -> None:
        """Request n has its answer."""
        ended = self.now()
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, Exception):
            self._failures.append(error)
            return
        self.over += bool(ended - self._due[n] > self._bound_s)
        self._answers.append((n, ended, answer.result().batch))

    @property
    def hopeless(self) -> bool:
        """Whether so many requests were over the bound that the run can no longer be valid."""
        return self.over > self.allowed

    @property
    def late(self) -> float:
        """The share of requests sent late."""
        lateness = np.asarray(self.sent) - self._due[: len(self.sent)]
        return float((lateness > _LATE * self._bound_s).mean())

    @property
    def _batches(self) -> list[Batch]:
        return list({id(batch): batch for _, _, batch in self._answers}.values())

    @property
    def rows_per_batch(self) -> float:
        """Mean."""
        return len(self._answers) / max(1, len(self._batches))

    @property
    def busy_s(self) -> float:
        """Seconds in which the model worked."""
        return sum(batch.run_s + batch.finish_s for batch in self._batches)

    def series(self) -> Series:
        """The requests that were answered, in the order in which they were due."""
        series = Series(rows=len(self._answers))
        for error in self._failures:
            series.fail(error)
        for n, ended, batch in sorted(self._answers, key=lambda answer: answer[0]):
            working = batch.prepare_s + batch.run_s + batch.finish_s
            series.queue_s.append(max(0.0, float(ended - self._due[n]) - working))
            series.prepare_s.append(batch.prepare_s)
            series.run_s.append(batch.run_s)
            series.finish_s.append(batch.finish_s)
            series.ended_s.append(ended)
        for batch in self._batches:
            if batch.padded_tokens is not None:
                series.tokens += batch.tokens
                series.padded_tokens += batch.padded_tokens
        return series


def _broken(log: _Log, run: ServerRun) -> list[str]:
    """The rules of validity that a run broke."""
    reasons = []
    if log.hopeless:
        reasons.append(
            f"{log.over} of the first {len(log.sent)} requests at {run.qps:.4g}/s took longer than "
            f"{1e3 * run.bound_s:g} ms; p{100 * run.percentile:g} is below that with 99 % confidence if at most "
            f"{log.allowed} of all {log.planned} do. Lower `qps`, raise `bound_s`, or search with `find_peak`."
        )
    if run.late > _LATE_REQUESTS:
        reasons.append(
            f"the generator sent {100 * run.late:.2g} % of the requests late, by more than a tenth of the bound; "
            "at most 1 % may be. Stop other work on the machine, leave a core to the generator, or lower `qps`."
        )
    return reasons
