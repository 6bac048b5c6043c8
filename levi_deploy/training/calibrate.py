"""What is fitted on ID validation once the weights are: a temperature, and where to abstain."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from levi_serving.errors import UsageError
from levi_serving.predictions import TaskKind

__all__ = ["abstain_above", "temperature"]

_LOW, _HIGH = 0.05, 20.0


def temperature(logits: NDArray[np.float32], targets: NDArray[Any], *, kind: TaskKind) -> float:
    """The temperature that makes the average's probabilities most likely (Guo et al. 2017).

    Where every row is right, ever smaller temperatures would be ever likelier. So targets are smoothed by
    one more row of each class (as Platt 1999 does): a hundred rows without an error bear out 99 %, not more.

    Args:
        logits: the average's, (N, C), before any temperature.
        targets: (N,) class numbers, or (N, C) zeros and ones.
        kind: classification or multilabel.

    Returns:
        From 0.05 to 20; above 1 where the model was too sure.

    Raises:
        UsageError: regression has no probabilities.
    """
    if kind == "regression":
        raise UsageError("A temperature calibrates probabilities, and regression has none.")
    scores, answers = torch.from_numpy(logits).double(), torch.from_numpy(targets)
    count, classes = scores.shape

    def loss(logarithm: float) -> float:
        scaled = scores / float(np.exp(logarithm))
        return float(_smoothed(scaled, answers, kind, count, classes))

    low, high = float(np.log(_LOW)), float(np.log(_HIGH))
    best = 0.0
    for _ in range(4):  # a grid, refined around its best point
        grid = np.linspace(low, high, 41)
        best = float(min(grid, key=loss))
        step = grid[1] - grid[0]
        low, high = max(best - step, float(np.log(_LOW))), min(best + step, float(np.log(_HIGH)))
    return float(np.exp(best))


def abstain_above(disagreement: NDArray[np.float32], share: float) -> float | None:
    """The disagreement above which ``share`` of these rows lie, rounded down to whole rows.

    It lies half-way between two rows, so that another machine's rounding moves neither over it. It needs no
    targets.

    Args:
        disagreement: of N ID validation rows, (N,).
        share: from 0 to below 1.

    Returns:
        A float32 value; None when no row may lie above it.
    """
    ordered = np.sort(disagreement)
    kept = len(ordered) - int(share * len(ordered) + 1e-9)
    if kept == len(ordered):
        return None
    return float(np.float32((float(ordered[kept - 1]) + float(ordered[kept])) / 2))


def _smoothed(logits: Tensor, targets: Tensor, kind: TaskKind, count: int, classes: int) -> Tensor:
    if kind == "classification":
        return F.cross_entropy(logits, targets, label_smoothing=classes / (count + classes))
    share = 2 / (count + 2)
    return F.binary_cross_entropy_with_logits(logits, targets.double() * (1 - share) + share / 2)
