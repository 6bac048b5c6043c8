"""Intervals of a metric and of differences, by bootstrap over rows; which methods lie on a Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from levi_serving.predictions import TaskKind

__all__ = ["RESAMPLES", "interval", "paired_difference", "pareto"]

RESAMPLES = 2000
_CHUNK = 200  # resamples at a time: (200, N) counts


def paired_difference(
    one: NDArray[np.float64], other: NDArray[np.float64], *, kind: TaskKind
) -> tuple[float, float, float]:
    """One method's first metric less another's on the same rows, with a bootstrap interval (Efron 1979).

    Args:
        one: a score a row, the mean over seeds, (N,): see ``Measured.scores``.
        other: likewise.
        kind: regression compares root mean squares, the others means.

    Returns:
        The difference, and the 2.5th and 97.5th percentile of it over 2,000 resamples of the rows, which both share.
    """
    return _bootstrap(np.stack([one, other], axis=1), kind, lambda values: values[..., 0] - values[..., 1])


def interval(scores: NDArray[np.float64], *, kind: TaskKind) -> tuple[float, float, float]:
    """A method's first metric, with a bootstrap interval; arguments and result as for ``paired_difference``."""
    return _bootstrap(scores[:, None], kind, lambda values: values[..., 0])


def _bootstrap(
    scores: NDArray[np.float64], kind: TaskKind, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> tuple[float, float, float]:
    draw, rows = np.random.default_rng(0), len(scores)

    def value(means: NDArray[np.float64]) -> NDArray[np.float64]:
        return statistic(np.sqrt(means) if kind == "regression" else means)

    parts = []
    for _ in range(0, RESAMPLES, _CHUNK):
        counts = draw.multinomial(rows, np.full(rows, 1 / rows), size=_CHUNK)
        parts.append(value(counts @ scores / rows))
    low, high = np.percentile(np.concatenate(parts), [2.5, 97.5])
    return float(value(scores.mean(axis=0))), float(low), float(high)


def pareto(points: Mapping[str, tuple[float, float]], *, lower_is_better: bool) -> list[str]:
    """The names that no other beats in both, cheapest first.

    Args:
        points: by name, what it costs and how good it is.
        lower_is_better: whether a low metric is good, as an error is. Costs always are.
    """
    sign = 1 if lower_is_better else -1
    front: list[str] = []
    best = float("inf")
    for name in sorted(points, key=lambda name: (points[name][0], sign * points[name][1])):
        if sign * points[name][1] < best:
            front.append(name)
            best = sign * points[name][1]
    return front
