"""A scenario with its settings: one value that measures every target on every workload in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from levi_serving.bench.measurement import Measurement, Target, Workload
from levi_serving.bench.open_loop import find_peak, server
from levi_serving.bench.scenarios import offline, single, warm
from levi_serving.errors import UsageError

__all__ = ["Benchmark"]

_FIRST = 0.5  # the first rate that a search tries, as a share of the rate of one row after another
_ROWS = 32  # sent to measure that rate


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A scenario and its settings.

    Attributes:
        scenario: single, offline or server.
        duration_s: for each workload and target, at least.
        qps: server: requests a second; with ``find_peak`` where the search starts.
        find_peak: server: search for the highest valid rate.
        bound_s: server: the most that the percentile of the latency may be.
        percentile: server: which, as 0.99.
        seed: server: of arrivals and rows.
        meter: joules so far; None where the machine does not say.

    Raises:
        UsageError: there is no such scenario, or the settings are not its own.
    """

    scenario: str
    duration_s: float
    qps: float | None = None
    find_peak: bool = False
    bound_s: float = 0.05
    percentile: float = 0.99
    seed: int = 0
    meter: Callable[[], float] | None = None

    def __post_init__(self) -> None:
        if self.scenario not in ("single", "offline", "server"):
            raise UsageError(f"`scenario` is {self.scenario!r}; expected single, offline or server.")
        if self.scenario == "server" and self.qps is None and not self.find_peak:
            raise UsageError("The server scenario needs a rate. Give `qps`, or `find_peak` to search for the highest.")
        if self.scenario != "server" and (self.qps is not None or self.find_peak):
            raise UsageError(
                f"`qps` and `find_peak` are settings of the server scenario, but `scenario` is {self.scenario!r}. "
                "Leave them out."
            )

    def measure(self, targets: Sequence[Target], workload: Workload) -> list[Measurement]:
        """Measure targets on a workload: in turns in one measurement; in the server scenario each in its own."""
        if self.scenario == "server":
            return [self._server(target, workload) for target in targets]
        scenario = single if self.scenario == "single" else offline
        return [scenario(targets, workload, duration_s=self.duration_s, meter=self.meter)]

    def _server(self, target: Target, workload: Workload) -> Measurement:
        at = partial(
            server,
            target,
            workload,
            bound_s=self.bound_s,
            percentile=self.percentile,
            duration_s=self.duration_s,
            seed=self.seed,
            meter=self.meter,
        )
        if not self.find_peak:
            return at(qps=self.qps or 1.0)
        start = self.qps
        if start is None:
            single_rows = [[row] for row in workload.rows[:_ROWS]]
            warm(target, single_rows)
            start = _FIRST / warm(target, single_rows)
        return find_peak(lambda qps: at(qps=qps), start=start)
