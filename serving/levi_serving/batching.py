"""Which rows go through the model together. Knows lengths and a budget; knows no model and no rows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["padded_tokens", "plan"]


def plan(lengths: NDArray[np.int64], *, max_tokens: int, max_rows: int) -> list[NDArray[np.int64]]:
    """Cut rows into batches of similar length, each within a budget of padded tokens.

    A batch costs (rows x its longest row), padding included, so rows are sorted by length first and
    a batch ends where one more row would pass ``max_tokens``. A row longer than the budget runs alone.

    Args:
        lengths: tokens in each row, (N,).
        max_tokens: the most padded tokens in a batch.
        max_rows: the most rows in a batch.

    Returns:
        Row numbers, batch by batch, longest rows first: every number in 0 … N - 1 exactly once.
    """
    order = np.argsort(-lengths, kind="stable")
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))  # sorted: a batch's first row is its longest
        rows = min(max_rows, max(1, max_tokens // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def padded_tokens(lengths: NDArray[np.int64], batches: list[NDArray[np.int64]]) -> int:
    """Token positions that the model computes for a plan, padding included."""
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches)
