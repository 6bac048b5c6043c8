"""Find how a bundle runs best on this machine: threads x workers x token budget, measured in turns.

It knows layouts and rows; what it finds is kept in the cache, see ``engine/tuning.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from levi_serving.bench.stats import ratio
from levi_serving.engine.predictor import Predictor
from levi_serving.engine.runner import Runner, Scenario
from levi_serving.engine.tuning import Layout, Tuning
from levi_serving.environment import usable_cores
from levi_serving.rows.preprocess import Row

__all__ = ["Attempt", "candidates", "tune", "tune_runner"]

_BUDGETS = (256, 512, 1024, 2048)
_TOO_SLOW = 1.10  # a candidate this much slower than the best is dropped
_BEFORE_DROPPING = 3  # rounds

Clock = Callable[[], float]


@dataclass(frozen=True)
class Attempt:
    """One layout and what was measured of it.

    Attributes:
        layout: the layout.
        seconds: of each round.
        gain: how many times faster than the default it is, see ``stats.ratio``.
    """

    layout: Layout
    seconds: Sequence[float]
    gain: dict[str, float]


def candidates(*, scenario: str, cores: int) -> list[Layout]:
    """The layouts to try, the default first.

    ``single``: one request at a time, so threads alone: 1, 2, 4, … and all cores. ``offline``: every even split of
    the cores between workers, times four token budgets.
    """
    counts = sorted({cores, *(2**n for n in range(cores.bit_length()) if 2**n <= cores)}, reverse=True)
    if scenario == "single":
        return [Layout(threads=threads, workers=1, max_batch_tokens=1024) for threads in counts]
    budgets = sorted(_BUDGETS, key=lambda budget: budget != 1024)
    layouts = [(cores // workers, workers) for workers in counts]
    return [
        Layout(threads=threads, workers=workers, max_batch_tokens=budget)
        for threads, workers in layouts
        for budget in budgets
    ]


def tune(
    make: Callable[[Layout], Predictor],
    rows: Sequence[Row],
    *,
    layouts: Sequence[Layout],
    rounds: int = 9,
    row_by_row: bool = False,
    clock: Clock = time.perf_counter,
) -> tuple[Layout, list[Attempt]]:
    """Measure every layout on the same rows, in turns, and choose one.

    A layout other than the default is chosen only where its gain is beyond the noise: the lower end of the 95 %
    interval of the paired ratios lies above 1.

    Args:
        make: gives a predictor in a layout.
        rows: the workload.
        layouts: the layouts, the default first.
        rounds: passes over the layouts; one clearly slower than the best is dropped after three.
        row_by_row: each row is a request, as in ``single``; else all rows are one.
        clock: seconds.

    Returns:
        The layout chosen, and an attempt for each.
    """
    runners = {layout: make(layout) for layout in layouts}
    prepared = {
        layout: [runner.prepare([row]) for row in rows] if row_by_row else [runner.prepare(rows)]
        for layout, runner in runners.items()
    }
    seconds: dict[Layout, list[float]] = {layout: [] for layout in layouts}
    for layout, runner in runners.items():  # untimed: a shape's first run allocates
        for request in prepared[layout]:
            runner.run(request)
    racing = list(layouts)
    for turn in range(rounds):
        for layout in (*racing[turn % len(racing) :], *racing[: turn % len(racing)]):
            started = clock()
            for request in prepared[layout]:
                runners[layout].run(request)
            seconds[layout].append(clock() - started)
        if turn + 1 == _BEFORE_DROPPING:
            best = min(median(seconds[layout]) for layout in racing)
            racing = [one for one in racing if one == layouts[0] or median(seconds[one]) <= _TOO_SLOW * best]
    default = seconds[layouts[0]]
    attempts = [Attempt(one, found, ratio(found, default[: len(found)])) for one, found in seconds.items()]
    better = [attempt for attempt in attempts if len(attempt.seconds) == rounds and attempt.gain["low"] > 1]
    best_attempt = max(better, key=lambda attempt: attempt.gain["median"], default=attempts[0])
    return best_attempt.layout, attempts


def tune_runner(runner: Runner, rows: Sequence[Row], *, scenario: Scenario, rounds: int = 9) -> dict[str, Any]:
    """Find the best layout of a runner's graph on its device, and keep it in the cache.

    Returns:
        The layout, ``file`` where it is kept, and every attempt, for a report.
    """
    folder, graph, device = runner.bundle.folder, runner.graph, runner.session.device

    def make(layout: Layout) -> Runner:
        return Runner(
            folder,
            device=device,
            scenario=scenario,
            graph=graph,
            threads=layout.threads,
            workers=layout.workers,
            max_batch_tokens=layout.max_batch_tokens,
        )

    layouts = candidates(scenario=scenario, cores=usable_cores())
    chosen, attempts = tune(make, rows, layouts=layouts, rounds=rounds, row_by_row=scenario == "single")
    tuning = Tuning.read(runner.fingerprint)
    tuning.put(chosen, scenario=scenario, device=device, graph=graph.file)
    return {
        "graph": graph.file,
        "device": device,
        **asdict(chosen),
        "file": str(tuning.file),
        "attempts": [
            {
                **asdict(attempt.layout),
                "median_s": median(attempt.seconds),
                "rounds": len(attempt.seconds),
                "gain": f"{attempt.gain['median']:.3f} [{attempt.gain['low']:.3f}, {attempt.gain['high']:.3f}]",
            }
            for attempt in attempts
        ],
    }
