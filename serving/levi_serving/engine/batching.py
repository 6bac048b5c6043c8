"""Which rows go through the model together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Limits", "plan"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much goes through the model together.

    Attributes:
        tokens: the most padded tokens in one batch.
        rows: the most rows in one batch.
    """

    tokens: int = 1024
    rows: int = 128


def plan(costs: NDArray[np.int64], limits: Limits) -> list[NDArray[np.int64]]:
    """Cut rows into batches of similar length, each within a budget of padded tokens.

    A batch costs (rows x its longest row), padding included, so rows are sorted by length first and
    a batch ends where one more row would pass ``limits.tokens``. A row longer than the budget runs alone.

    Args:
        costs: of each row, (N,), in tokens; see ``Encoded.costs``.
        limits: of one batch.

    Returns:
        Row numbers, batch by batch, longest rows first: every number in 0 … N - 1 exactly once.
    """
    order = np.argsort(-costs, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(costs[order[start]]))  # sorted: a batch's first row is its longest
        rows = min(limits.rows, max(1, limits.tokens // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches
