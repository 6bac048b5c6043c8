"""How a model is measured: one query after another, or all rows at once. Knows no model but its three verbs.

Definitions follow MLPerf inference (SingleStream, Offline) and perf_analyzer's stability rule. Several
targets are measured side by side: the same query goes to each, the order rotating, so that whatever else
the machine does hits all alike.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from levi_serving.bench.stats import minimum_queries, stable
from levi_serving.preprocess import Row

__all__ = ["Measurement", "Series", "Target", "Workload", "offline", "single"]

Clock = Callable[[], int]

_WARM_UP = 3
_SHORT_S = 5.0  # perf_analyzer's window


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


@dataclass
class Series:
    """One target's queries, in order; all times in seconds.

    Attributes:
        prepare_s: tokenising.
        run_s: the model.
        finish_s: arrays to predictions.
        ended_s: when each query was complete, from the start of measuring.
    """

    prepare_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    finish_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)

    @property
    def latency_s(self) -> list[float]:
        """From when a query was due until its answer was complete."""
        return [sum(parts) for parts in zip(self.prepare_s, self.run_s, self.finish_s, strict=True)]


@dataclass(frozen=True)
class Measurement:
    """What was measured on one workload.

    Attributes:
        scenario: single or offline.
        workload: on what.
        series: by target name.
        duration_s: from the first query to the end.
        reasons: why it does not count; empty when valid.
    """

    scenario: str
    workload: Workload
    series: dict[str, Series]
    duration_s: float
    reasons: list[str]


def single(
    targets: Sequence[Target],
    workload: Workload,
    *,
    duration_s: float,
    clock: Clock = time.perf_counter_ns,
) -> Measurement:
    """One query outstanding at a time (MLPerf SingleStream).

    Args:
        targets: measured side by side.
        workload: its batches are asked in turn.
        duration_s: how long to measure, at least, for each target.
        clock: nanoseconds.
    """
    return _measure("single", targets, workload.batches, workload, duration_s, minimum_queries(0.9), clock)


def offline(
    targets: Sequence[Target],
    workload: Workload,
    *,
    duration_s: float,
    clock: Clock = time.perf_counter_ns,
) -> Measurement:
    """All rows handed over at once (MLPerf Offline), again and again; each pass is a query.

    Args:
        targets: measured side by side.
        workload: its batches are joined; the target cuts its own.
        duration_s: how long to measure, at least, for each target.
        clock: nanoseconds.
    """
    rows = [row for batch in workload.batches for row in batch]
    return _measure("offline", targets, [rows], workload, duration_s, 3, clock)


def _measure(
    scenario: str,
    targets: Sequence[Target],
    queries: Sequence[Sequence[Row]],
    workload: Workload,
    duration_s: float,
    fewest: int,
    clock: Clock,
) -> Measurement:
    for target in targets:  # untimed; covers every shape
        for rows in (
            *queries,
            *itertools.islice(itertools.cycle(queries), _WARM_UP if scenario == "single" else 0),
        ):
            target.finish(target.run(target.prepare(rows)))
    series = {target.name: Series() for target in targets}
    start = clock()
    asked = 0
    while asked < fewest or (clock() - start) / 1e9 < duration_s * len(targets):
        turn = asked % len(targets)
        for target in (*targets[turn:], *targets[:turn]):
            _ask(target, queries[asked % len(queries)], series[target.name], start, clock)
        asked += 1
    taken = (clock() - start) / 1e9
    reasons = []
    for name, one in series.items():
        if not _steady(one, taken):
            reasons.append(
                f"{name}: the last three windows differ by more than 10 % in latency or throughput. "
                "Quieten the machine, or measure longer with --duration."
            )
    return Measurement(scenario, workload, series, taken, reasons)


def _ask(target: Target, rows: Sequence[Row], series: Series, start: int, clock: Clock) -> None:
    due = clock()
    prepared = target.prepare(rows)
    tokenised = clock()
    outputs = target.run(prepared)
    ran = clock()
    target.finish(outputs)
    done = clock()
    series.prepare_s.append((tokenised - due) / 1e9)
    series.run_s.append((ran - tokenised) / 1e9)
    series.finish_s.append((done - ran) / 1e9)
    series.ended_s.append((done - start) / 1e9)


def _steady(series: Series, taken: float) -> bool:
    """Mean latency and throughput over the last three windows, of 5 s or a third of a shorter run."""
    if len(series.ended_s) <= 8:  # a few long passes: each is a window
        return stable(series.latency_s)
    window_s = min(_SHORT_S, taken / 3)
    windows: list[list[float]] = [[] for _ in range(int(taken / window_s + 1e-9))]
    for ended, latency in zip(series.ended_s, series.latency_s, strict=True):
        place = int((taken - ended) / window_s)  # counted from the end, so that the last window is whole
        if place < len(windows):
            windows[-1 - place].append(latency)
    if any(not window for window in windows[-3:]):
        return False
    return stable([sum(window) / len(window) for window in windows]) and stable([float(len(w)) for w in windows])
