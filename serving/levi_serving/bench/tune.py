"""Find how a bundle runs best on this machine: threads x workers x token budget, measured in turns.

It knows the runner's layout and the workload's rows; what it finds goes to ``tuning.json``, see ``tuning.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

from levi_serving.bench.stats import ratio
from levi_serving.machine import usable_cores
from levi_serving.preprocess import Row
from levi_serving.runner import Runner, Scenario
from levi_serving.tuning import Setting, Tuning

__all__ = ["Trial", "candidates", "tune", "tune_runner"]

_BUDGETS = (256, 512, 1024, 2048)
_WORTH = 1.10  # a candidate this much slower than the best is not measured further
_LOOK = 3  # rounds before any candidate is left out

Clock = Callable[[], float]


class Laid(Protocol):
    """A runner in one layout."""

    def prepare(self, rows: Sequence[Row]) -> Any:
        """Rows to arrays."""
        ...

    def run(self, prepared: Any) -> Any:
        """Arrays to arrays."""
        ...


@dataclass(frozen=True)
class Trial:
    """One layout, the seconds of each round, and how many times faster than the default that is.

    ``gain`` has the ``median`` of the paired ratios and its 95 % interval, ``low`` and ``high``.
    """

    setting: Setting
    seconds: Sequence[float]
    gain: dict[str, float]


def candidates(*, scenario: str, cores: int) -> list[Setting]:
    """The layouts that are tried, the default first.

    ``single``: one query at a time, so threads alone: 1, 2, 4, … and all cores. ``offline``: every way to share
    the cores out evenly between workers, times four token budgets.
    """
    counts = sorted({cores, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)}, reverse=True)
    if scenario == "single":
        return [Setting(threads=threads, workers=1, max_batch_tokens=1024) for threads in counts]
    budgets = sorted(_BUDGETS, key=lambda budget: budget != 1024)
    layouts = [(cores // workers, workers) for workers in counts]
    return [
        Setting(threads=threads, workers=workers, max_batch_tokens=budget)
        for threads, workers in layouts
        for budget in budgets
    ]


def tune(
    make: Callable[[Setting], Laid],
    rows: Sequence[Row],
    *,
    settings: Sequence[Setting],
    rounds: int = 9,
    queries: bool = False,
    clock: Clock = time.perf_counter,
    tell: Callable[[int, int], None] | None = None,
) -> tuple[Setting, list[Trial]]:
    """Measure every layout on the same rows, in turns, and choose one.

    A layout other than the default is chosen only where its gain is beyond the noise: the lower end of the 95 %
    interval of the paired ratios lies above 1.

    Args:
        make: a runner in a layout.
        rows: the workload.
        settings: the layouts, the default first.
        rounds: passes over the layouts; one clearly behind is left out after three.
        queries: ask row by row, as ``single`` does, and not all at once.
        clock: seconds.
        tell: told passes done and all.

    Returns:
        The layout chosen, and a trial for each.
    """
    runners = {setting: make(setting) for setting in settings}
    prepared = {
        setting: [runner.prepare([row]) for row in rows] if queries else [runner.prepare(rows)]
        for setting, runner in runners.items()
    }
    seconds: dict[Setting, list[float]] = {setting: [] for setting in settings}
    for setting, runner in runners.items():  # untimed: every shape has been seen
        for part in prepared[setting]:
            runner.run(part)
    racing = list(settings)
    for turn in range(rounds):
        for setting in (*racing[turn % len(racing) :], *racing[: turn % len(racing)]):
            started = clock()
            for part in prepared[setting]:
                runners[setting].run(part)
            seconds[setting].append(clock() - started)
        if turn + 1 == _LOOK:
            best = min(median(seconds[setting]) for setting in racing)
            racing = [s for s in racing if s == settings[0] or median(seconds[s]) <= _WORTH * best]
        if tell is not None:
            tell(turn + 1, rounds)
    default = seconds[settings[0]]
    trials = [Trial(s, found, ratio(found, default[: len(found)])) for s, found in seconds.items()]
    better = [trial for trial in trials if len(trial.seconds) == rounds and trial.gain["low"] > 1]
    best_trial = max(better, key=lambda trial: trial.gain["median"], default=trials[0])
    return best_trial.setting, trials


def tune_runner(runner: Runner, rows: Sequence[Row], *, scenario: Scenario, rounds: int = 9) -> dict[str, Any]:
    """Find the best layout of a runner's graph on its device, and keep it in the bundle's folder.

    Returns:
        The layout, ``file`` where it is kept, and every trial, for a report.
    """
    folder, graph, device = runner.bundle.folder, runner.graph, runner.session.device

    def make(setting: Setting) -> Runner:
        return Runner(
            folder,
            device=device,
            scenario=scenario,
            graph=graph,
            threads=setting.threads,
            workers=setting.workers,
            max_batch_tokens=setting.max_batch_tokens,
        )

    settings = candidates(scenario=scenario, cores=usable_cores())
    chosen, trials = tune(make, rows, settings=settings, rounds=rounds, queries=scenario == "single")
    file = Tuning.read(folder).put(chosen, scenario=scenario, device=device, graph=graph.file).write(folder)
    return {
        "graph": graph.file,
        "device": device,
        **asdict(chosen),
        "file": str(file),
        "trials": [
            {
                **asdict(trial.setting),
                "median_s": median(trial.seconds),
                "rounds": len(trial.seconds),
                "gain": f"{trial.gain['median']:.3f} [{trial.gain['low']:.3f}, {trial.gain['high']:.3f}]",
            }
            for trial in trials
        ],
    }
