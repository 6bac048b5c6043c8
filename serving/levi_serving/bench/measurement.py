"""What is measured and what comes out: targets, workloads, and the times of their requests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from levi_serving.engine.predictor import Predictor
from levi_serving.rows.preprocess import Row

__all__ = ["Measurement", "Series", "ServerRun", "Target", "Workload"]


@dataclass(frozen=True)
class Target:
    """A predictor to measure, and its name in tables."""

    name: str
    predictor: Predictor


@dataclass(frozen=True)
class Workload:
    """Batches of rows; each batch is a request.

    Attributes:
        batches: the requests, repeated in this order.
        batch_size: rows of a request.
        length: tokens of every row, or None for the rows' own lengths.
    """

    batches: Sequence[Sequence[Row]]
    batch_size: int
    length: int | None = None

    @property
    def lengths(self) -> str:
        """How long its rows are, in words."""
        return f"{self.length} tokens" if self.length else "real lengths"

    @property
    def name(self) -> str:
        """As in tables."""
        return f"batch {self.batch_size} x {self.lengths}"

    @property
    def rows(self) -> list[Row]:
        """All of them, in order."""
        return [row for batch in self.batches for row in batch]

    @property
    def digest(self) -> str:
        """SHA-256 of the rows; two reports are about the same rows when it is the same."""
        return hashlib.sha256(repr(self.batches).encode()).hexdigest()


@dataclass
class Series:
    """One target's requests, in order; all times in seconds. A request that failed is counted, and nothing else.

    Attributes:
        prepare_s: tokenising.
        run_s: the model.
        finish_s: arrays to predictions.
        ended_s: when each request was complete, from the start of measuring.
        queue_s: waiting, from when a request was due; only where requests wait.
        rows: that were answered.
        tokens: in those rows, see ``Encoded.costs``, where the target says what it padded.
        padded_tokens: token positions computed for them, padding included.
        failed: requests that raised an error.
        failure: what the first of them said.
        joules: the processor's, while it worked on these; None where the machine does not say.
    """

    prepare_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    finish_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    rows: int = 0
    tokens: int = 0
    padded_tokens: int = 0
    failed: int = 0
    failure: str = ""
    joules: float | None = None

    @property
    def padding(self) -> float | None:
        """The share of the computed token positions that were padding; None where the target does not say."""
        return 1 - self.tokens / self.padded_tokens if self.padded_tokens else None

    @property
    def split(self) -> dict[str, list[float]]:
        """Where each request's time went."""
        waiting = {"queue": self.queue_s} if self.queue_s else {}
        return waiting | {"tokenise": self.prepare_s, "run": self.run_s, "finish": self.finish_s}

    @property
    def latency_s(self) -> list[float]:
        """From when a request was due until its answer was complete."""
        return [sum(times) for times in zip(*self.split.values(), strict=True)]

    def fail(self, error: Exception) -> None:
        """Count a request that failed."""
        self.failed += 1
        self.failure = self.failure or str(error)

    @property
    def reasons(self) -> list[str]:
        """Why it does not count: its failures."""
        if not self.failed:
            return []
        sent = self.failed + len(self.ended_s)
        return [f"{self.failed} of {sent} requests failed, the first with: {self.failure}"]


@dataclass(frozen=True)
class ServerRun:
    """A run of the server scenario at one rate, and the bound that it was held to.

    Attributes:
        qps: requests a second that were scheduled.
        bound_s: the most that the percentile of the latency may be.
        percentile: which, as 0.99.
        late: the share of requests that the generator sent late.
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
        workload: the requests.
        series: by target name; the first is ours, the others are compared with it.
        targets: what each is and runs on.
        threads: that the first target computes on, and so all; None where it does not say.
        duration_s: from the first request to the end.
        reasons: why it does not count; empty when valid.
        server: of the server scenario, its rate and bound.
        tried: of a search for the peak, every run in it; this measurement is the best valid one.
    """

    scenario: str
    workload: Workload
    series: dict[str, Series]
    targets: Mapping[str, Mapping[str, object]]
    threads: int | None
    duration_s: float
    reasons: list[str]
    server: ServerRun | None = None
    tried: Sequence[Measurement] = ()

    @property
    def name(self) -> str:
        """As in tables and reasons."""
        if self.server is not None:
            return f"{self.server.qps:.4g} requests/s x {self.workload.lengths}"
        if self.scenario == "offline":
            exact = f" x {self.workload.lengths}" if self.workload.length else ""
            return f"offline, {len(self.workload.rows)} rows{exact}"
        return self.workload.name
