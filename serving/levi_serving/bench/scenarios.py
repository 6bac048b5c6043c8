"""How a model is measured: one query after another, or all rows at once. Knows no model but its three verbs.

Definitions follow MLPerf inference (SingleStream, Offline) and perf_analyzer's stability rule. Several
targets are measured side by side: the same query goes to each, the order rotating, so that whatever else
the machine does hits all alike.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import numpy as np

from levi_serving.batching import padded_tokens, plan
from levi_serving.bench.stats import minimum_queries, stable
from levi_serving.errors import LeviError
from levi_serving.preprocess import Row

__all__ = ["Clock", "Measurement", "Series", "Target", "Trial", "Workload", "budget", "offline", "single", "warm"]

Clock = Callable[[], int]

_WARM_UP = 3
_SHORT_S, _FEW = 5.0, 50  # perf_analyzer's windows: of time, or of requests where they are slow


class Target(Protocol):
    """A model to measure."""

    name: str

    def prepare(self, rows: Sequence[Row]) -> Any:
        """Tokenise."""
        ...

    def run(self, prepared: Any) -> Any:
        """The model itself."""
        ...

    def finish(self, outputs: Any) -> Any:
        """Arrays to predictions."""
        ...

    def describe(self) -> dict[str, object]:
        """What it is and what it runs on."""
        ...


@dataclass(frozen=True)
class Workload:
    """Batches of rows; a batch is a query.

    Attributes:
        batches: what is asked, over and over.
        batch_size: rows in a query.
        length: tokens in every row, or None for the rows' own lengths.
    """

    batches: Sequence[Sequence[Row]]
    batch_size: int
    length: int | None = None

    @property
    def name(self) -> str:
        """As tables call it."""
        return f"batch {self.batch_size}, " + (f"{self.length} tokens" if self.length else "real lengths")

    @property
    def rows(self) -> list[Row]:
        """All of them, in order."""
        return [row for batch in self.batches for row in batch]

    @property
    def digest(self) -> str:
        """SHA-256 of what is asked; two reports are about the same rows when it is the same."""
        return hashlib.sha256(repr(self.batches).encode()).hexdigest()


@dataclass
class Series:
    """One target's queries, in order; all times in seconds. A query that failed is counted, and nothing else.

    Attributes:
        prepare_s: tokenising.
        run_s: the model.
        finish_s: arrays to predictions.
        ended_s: when each query was complete, from the start of measuring.
        queue_s: waiting, from when a query was due; only where queries wait.
        rows: that were answered.
        failed: queries that raised an error.
        failure: what the first of them said.
        padding: the share of token positions computed that were padding; None where the target does not say.
        joules: the processor's, while it worked on these; None where the machine does not say.
    """

    prepare_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    finish_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    rows: int = 0
    failed: int = 0
    failure: str = ""
    padding: float | None = None
    joules: float | None = None

    @property
    def parts(self) -> dict[str, list[float]]:
        """Where each query's time went."""
        waiting = {"queue": self.queue_s} if self.queue_s else {}
        return waiting | {"tokenise": self.prepare_s, "run": self.run_s, "finish": self.finish_s}

    @property
    def latency_s(self) -> list[float]:
        """From when a query was due until its answer was complete."""
        return [sum(parts) for parts in zip(*self.parts.values(), strict=True)]

    def fail(self, error: Exception) -> None:
        """Count a query that failed."""
        self.failed += 1
        self.failure = self.failure or str(error)

    @property
    def reasons(self) -> list[str]:
        """Why it does not count, of failures."""
        if not self.failed:
            return []
        asked = self.failed + len(self.ended_s)
        return [f"{self.failed} of {asked} queries failed, the first with: {self.failure}"]


@dataclass(frozen=True)
class Trial:
    """A run at one rate, and what it was held to.

    Attributes:
        qps: queries a second that were scheduled.
        bound_s: the most that the percentile of the latency may be.
        percentile: which.
        late: the share of queries that the generator handed over late.
        rows_per_batch: mean, as the micro-batcher cut them.
        busy: the share of the time in which the model worked.
    """

    qps: float
    bound_s: float
    percentile: float
    late: float = 0.0
    rows_per_batch: float = 0.0
    busy: float = 0.0


@dataclass(frozen=True)
class Measurement:
    """What was measured on one workload.

    Attributes:
        scenario: single, offline or server.
        workload: on what.
        series: by target name; the first is ours, the others are what it is compared with.
        targets: what each is and runs on.
        duration_s: from the first query to the end.
        reasons: why it does not count; empty when valid.
        trial: of the server scenario.
        tried: of a search for the peak, every run in it; this measurement is the best valid one.
    """

    scenario: str
    workload: Workload
    series: dict[str, Series]
    targets: Mapping[str, Mapping[str, object]]
    duration_s: float
    reasons: list[str]
    trial: Trial | None = None
    tried: Sequence[Measurement] = ()

    @property
    def threads(self) -> object:
        """Of the first target, and so of all; None where it does not say."""
        first: dict[str, Any] = dict(next(iter(self.targets.values())))
        return first["threads"] * first.get("workers", 1) if "threads" in first else None

    @property
    def name(self) -> str:
        """As tables and reasons call it."""
        length = f"{self.workload.length} tokens" if self.workload.length else "real lengths"
        if self.trial is not None:
            return f"{self.trial.qps:.4g} queries/s x {length}"
        if self.scenario == "offline":
            return f"offline, {len(self.workload.rows)} rows" + (f" x {length}" if self.workload.length else "")
        return f"batch {self.workload.batch_size} x {length}"


def single(
    targets: Sequence[Target],
    workload: Workload,
    *,
    duration_s: float,
    clock: Clock = time.perf_counter_ns,
    meter: Callable[[], float] | None = None,
) -> Measurement:
    """One query outstanding at a time (MLPerf SingleStream).

    Args:
        targets: measured side by side.
        workload: its batches are asked in turn.
        duration_s: how long to measure, at least, times the number of targets, which share it.
        clock: nanoseconds.
        meter: joules so far.
    """
    return _measure("single", targets, workload.batches, workload, duration_s, minimum_queries(0.9), clock, meter)


def offline(
    targets: Sequence[Target],
    workload: Workload,
    *,
    duration_s: float,
    clock: Clock = time.perf_counter_ns,
    meter: Callable[[], float] | None = None,
) -> Measurement:
    """All rows handed over at once (MLPerf Offline), again and again; each pass is a query.

    Args:
        targets: measured side by side.
        workload: its batches are joined; the target cuts its own.
        duration_s: how long to measure, at least, times the number of targets, which share it.
        clock: nanoseconds.
        meter: joules so far.
    """
    return _measure("offline", targets, [workload.rows], workload, duration_s, 3, clock, meter)


def budget(target: Target) -> tuple[int, int]:
    """The most padded tokens and the most rows that a target puts in one batch; the runner's where it does not say."""
    about = target.describe()
    return int(str(about.get("max_batch_tokens", 1024))), int(str(about.get("max_batch_rows", 128)))


def warm(
    target: Target, queries: Sequence[Sequence[Row]], *, clock: Clock = time.perf_counter_ns
) -> tuple[float, float | None]:
    """Ask every query once, untimed as far as a report goes.

    Returns:
        The median seconds a query took, and the share of token positions that were padding (None where what
        the target prepares has no lengths).
    """
    taken, real, padded = [], 0, 0
    tokens, rows = budget(target)
    for query in queries:
        began = clock()
        prepared = target.prepare(query)
        target.finish(target.run(prepared))
        taken.append((clock() - began) / 1e9)
        lengths = np.asarray(getattr(prepared, "lengths", []), dtype=np.int64)
        real += int(lengths.sum())
        padded += padded_tokens(lengths, plan(lengths, max_tokens=tokens, max_rows=rows))
    return median(taken), 1 - real / padded if padded else None


def _measure(
    scenario: str,
    targets: Sequence[Target],
    queries: Sequence[Sequence[Row]],
    workload: Workload,
    duration_s: float,
    fewest: int,
    clock: Clock,
    meter: Callable[[], float] | None,
) -> Measurement:
    again = itertools.islice(itertools.cycle(queries), _WARM_UP if scenario == "single" else 0)
    once = [*queries, *again]
    series = {}
    for target in targets:
        _, padding = warm(target, once, clock=clock)
        series[target.name] = Series(padding=padding, joules=None if meter is None else 0.0)
    start = clock()
    asked = 0
    while asked < fewest or (clock() - start) / 1e9 < duration_s * len(targets):
        turn = asked % len(targets)
        for target in (*targets[turn:], *targets[:turn]):
            _ask(target, queries[asked % len(queries)], series[target.name], start, clock, meter)
        asked += 1
    taken = (clock() - start) / 1e9
    reasons = [f"{name}: {reason}" for name, one in series.items() for reason in one.reasons]
    if unsteady := [name for name, one in series.items() if not one.failed and not _steady(one, taken)]:
        reasons.append(
            f"the last three windows of {', '.join(unsteady)} differ by more than 10 % in latency or throughput: "
            "quieten the machine or measure longer"
        )
    about = {target.name: target.describe() for target in targets}
    return Measurement(scenario, workload, series, about, taken, reasons)


def _ask(
    target: Target, rows: Sequence[Row], series: Series, start: int, clock: Clock, meter: Callable[[], float] | None
) -> None:
    before = meter() if meter else 0.0
    due = clock()
    try:
        prepared = target.prepare(rows)
        tokenised = clock()
        outputs = target.run(prepared)
        ran = clock()
        target.finish(outputs)
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


def _steady(series: Series, taken: float) -> bool:
    """Mean latency and throughput over the last three windows: of 5 s or 50 queries, at most a third of the run."""
    if len(series.ended_s) <= 8:  # a few long passes: each is a window
        return stable(series.latency_s)
    window_s = min(max(_SHORT_S, _FEW * taken / len(series.ended_s)), taken / 3)
    windows: list[list[float]] = [[] for _ in range(int(taken / window_s + 1e-9))]
    for ended, latency in zip(series.ended_s, series.latency_s, strict=True):
        place = int((taken - ended) / window_s)  # counted from the end, so that the last window is whole
        if place < len(windows):
            windows[-1 - place].append(latency)
    if any(not window for window in windows[-3:]):
        return False
    return stable([sum(window) / len(window) for window in windows]) and stable([float(len(w)) for w in windows])
