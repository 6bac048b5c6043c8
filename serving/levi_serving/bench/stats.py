"""The numbers of a benchmark: percentiles, early stopping, stability, ratios. Knows no clock and no model."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = [
    "PERCENTILE",
    "early_stopping",
    "minimum_queries",
    "percentile",
    "ratio",
    "stable",
    "summary",
]

PERCENTILE = "sorted[floor(n*p)], as MLPerf loadgen"
CONFIDENCE = 0.99
_LISTED = (0.5, 0.9, 0.95, 0.97, 0.99, 0.999)


def percentile(values: Sequence[float], p: float) -> float:
    """The p-quantile, 0 < p < 1, by MLPerf loadgen's definition: ``sorted[floor(n * p)]``."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(len(ordered) * p))]


def _tolerated(n: int, p: float) -> int:
    """The most slow queries among n for which the p-quantile is below the bound with 99 % confidence.

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


def minimum_queries(p: float, *, slow: int = 1) -> int:
    """The fewest queries that say anything of the p-quantile with ``slow`` queries above it."""
    low, high = slow, slow + 1
    while _tolerated(high, p) < slow:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _tolerated(middle, p) >= slow else (middle, high)
    return high


def early_stopping(values: Sequence[float], p: float) -> float | None:
    """MLPerf's early-stopping estimate: a value that the true p-quantile is below, with 99 % confidence.

    The slowest t - 1 are set aside and the slowest of the rest is reported, t being the most slow
    queries that n queries tolerate. None when there are fewer than ``minimum_queries(p)``.
    """
    slow = _tolerated(len(values), p)
    return sorted(values)[len(values) - slow] if slow >= 1 else None


def summary(values: Sequence[float]) -> dict[str, float]:
    """Mean, extremes, and each percentile that so many values support."""
    result = {"mean": math.fsum(values) / len(values), "min": min(values), "max": max(values)}
    for p in _LISTED:
        if p == 0.5 or len(values) >= minimum_queries(p):
            result[f"p{100 * p:g}"] = percentile(values, p)
    return result


def stable(values: Sequence[float]) -> bool:
    """perf_analyzer's rule: the last three windows lie within 10 % of each other."""
    last = values[-3:]
    return len(last) == 3 and min(last) > 0 and max(last) / min(last) <= 1.10


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """How many times longer theirs takes than ours, from pairs measured side by side.

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
    middle = ratios[n // 2] if n % 2 else (ratios[n // 2 - 1] + ratios[n // 2]) / 2
    low = ratios[max(0, rank - 1)]
    return {"median": middle, "low": low, "high": ratios[min(n - 1, n - max(1, rank))], "pairs": n}
