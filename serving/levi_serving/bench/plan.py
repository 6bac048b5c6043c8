"""How everything on a bench is measured: the scenario and its settings, one value for all targets and workloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from levi_serving.bench.open_loop import find_peak, server
from levi_serving.bench.scenarios import Measurement, Target, Workload, offline, single, warm
from levi_serving.errors import UsageError

__all__ = ["Plan"]

_FIRST = 0.5  # the first rate a search tries, as a share of what one row after another gives
_ROWS = 32  # asked to find that


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A scenario and its settings.

    Attributes:
        scenario: single, offline or server.
        duration_s: for each workload and target, at least.
        qps: server: queries a second; with ``find_peak`` where the search starts.
        find_peak: server: search the highest valid rate.
        bound_s: server: the most that the percentile of the latency may be.
        percentile: server: which, as 0.99.
        seed: server: of arrivals and rows.
        meter: joules so far; None where the machine does not say.

    Raises:
        UsageError: there is no such scenario, or it takes other settings.
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
            raise UsageError(f"--scenario is {self.scenario!r}; expected single, offline or server.")
        if self.scenario == "server" and self.qps is None and not self.find_peak:
            raise UsageError("--scenario server needs a rate: give --qps RATE, or --find-peak to search the highest.")
        if self.scenario != "server" and (self.qps is not None or self.find_peak):
            raise UsageError(f"--qps and --find-peak are of --scenario server; it is {self.scenario}.")

    def measure(self, targets: Sequence[Target], workload: Workload) -> list[Measurement]:
        """Measure targets on a workload: side by side in one measurement; in the server scenario one by one."""
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
            alone = [[row] for row in workload.rows[:_ROWS]]
            warm(target, alone)
            start = _FIRST / warm(target, alone)[0]
        return find_peak(lambda qps: at(qps=qps), start=start)
