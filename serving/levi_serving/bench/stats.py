"""The numbers of a benchmark: percentiles, early stopping, stability, ratios."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

__all__ = [
    "PERCENTILE",
    "early_stopping",
    "minimum_requests",
    "percentile",
    "ratio",
    "shift",
    "stable",
    "summary",
    "tolerated",
    "windows",
]

PERCENTILE = "sorted[floor(n*p)], as MLPerf loadgen"
CONFIDENCE = 0.99
_LISTED = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)


def percentile(values: Sequence[float], p: float) -> float:
    """The p-quantile, 0 < p < 1, by MLPerf loadgen's definition: ``sorted[floor(n * p)]``."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(len(ordered) * p))]


def tolerated(n: int, p: float) -> int:
    """The most slow requests among n for which the p-quantile is below the bound with 99 % confidence.

    That is the largest t with P(X <= t) <= 0.01 for X binomial with n trials of probability 1 - p
    (MLPerf loadgen's early stopping with tolerance 0); -1 when there is none.
    """
    log_q, log_p = math.log1p(-p), math.log(p)
    total = 0.0
    for t in range(n + 1):
        log_choices = math.lgamma(n + 1) - math.lgamma(t + 1) - math.lgamma(n - t + 1)
        total += math.exp(log_choices + t * log_q + (n - t) * log_p)
        if total > 1 - CONFIDENCE:
            return t - 1
    return n


def minimum_requests(p: float, *, slow: int = 1) -> int:
    """The fewest requests that say anything of the p-quantile with ``slow`` requests above it."""
    low, high = slow, slow + 1
    while tolerated(high, p) < slow:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if tolerated(middle, p) >= slow else (middle, high)
    return high


def early_stopping(values: Sequence[float], p: float) -> float | None:
    """MLPerf's early-stopping estimate: a value that the true p-quantile is below, with 99 % confidence.

    The slowest t - 1 are left out and the slowest of the rest is the estimate, t being the most slow
    requests that n requests tolerate. None when there are fewer than ``minimum_requests(p)``.
    """
    slow = tolerated(len(values), p)
    return sorted(values)[len(values) - slow] if slow >= 1 else None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, extremes, and each percentile that this many values support."""
    result = {"mean": math.fsum(values) / len(values), "min": min(values), "max": max(values)}
    for p in _LISTED:
        if p == 0.5 or len(values) >= minimum_requests(p):
            result[f"p{100 * p:g}"] = percentile(values, p)
    return result


def stable(values: Sequence[float]) -> bool:
    """perf_analyzer's rule: the last three windows lie within 10 % of each other."""
    last = values[-3:]
    return len(last) == 3 and min(last) > 0 and max(last) / min(last) <= 1.10


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times longer theirs takes than ours, from pairs measured in turns.

    Returns:
        ``median`` of theirs/ours over the pairs, and ``low`` and ``high``, its 95 % interval by order
        statistics: ranks k and n + 1 - k with the largest k for which P(X < k) <= 0.025, X binomial
        with n trials of one half (Conover 1999, §3.2). No distribution is assumed.
    """
    ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    n = len(ratios)
    rank, total = 0, 0.0
    while rank < n // 2:
        total += math.exp(math.lgamma(n + 1) - math.lgamma(rank + 1) - math.lgamma(n - rank + 1) - n * math.log(2))
        if total > 0.025:
            break
        rank += 1
    middle = float(np.median(ratios))
    low = ratios[max(0, rank - 1)]
    return {"median": middle, "low": low, "high": ratios[min(n - 1, n - max(1, rank))], "pairs": n}


def windows(values: Sequence[float], *, most: int = 20) -> list[float]:
    """The medians of consecutive stretches of a series, at most so many.

    Neighbouring requests are alike (the machine is busy or it is not), so thousands of them say less than
    as many independent ones would. Stretches long enough to have little to do with each other are nearly
    independent: the method of batch means (Law, Simulation Modeling and Analysis, §9.5.3), with medians.
    """
    return [float(np.median(part)) for part in np.array_split(np.asarray(values), min(most, len(values)))]


def shift(old: Sequence[float], new: Sequence[float]) -> dict[str, float]:
    """How many times as long ``new`` takes as ``old``, from two series measured separately, all above 0.

    Returns:
        ``ratio``, the median of new/old over all pairs (Hodges and Lehmann 1963), and ``low`` and ``high``,
        its 95 % interval: the pairs' ratios of rank k and m n + 1 - k for the largest k with
        P(U < k) <= 0.025, U being Mann and Whitney's statistic (Moses' interval; Hollander and Wolfe,
        §4.3). No distribution is assumed, only that each side's values are
        independent. The interval is 0 … infinity when there are too few values for 95 %: below four on each side.
    """
    pairs = np.sort((np.asarray(new)[None, :] / np.asarray(old)[:, None]).ravel())
    m, n = len(old), len(new)
    ways = np.zeros(m * n + 1)  # in how many orders of the values U is 0 … m n: the Gaussian binomial coefficients
    ways[0] = 1
    for k in range(1, m + 1):  # times (1 - q^(n + k)) / (1 - q^k)
        shifted = ways.copy()
        shifted[n + k :] -= ways[: max(0, m * n + 1 - n - k)]
        for u in range(k, m * n + 1):
            shifted[u] += shifted[u - k]
        ways = shifted
    chance = np.cumsum(ways) / math.comb(m + n, m)
    rank = int(np.searchsorted(chance, 0.025, side="right"))
    low, high = (pairs[rank - 1], pairs[m * n - rank]) if rank else (0.0, math.inf)
    return {"ratio": float(np.median(pairs)), "low": float(low), "high": float(high)}
