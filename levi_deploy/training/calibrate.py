"""What is fitted on ID validation once training is done: the heads' weights, a temperature, where to abstain."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from levi_deploy.evaluation.metrics import auroc, errors, spearman
from levi_deploy.model.heads import average
from levi_serving.errors import UsageError
from levi_serving.predictions import Doubt, Predictions, TaskKind, doubts

__all__ = ["abstain_above", "abstain_by", "head_weights", "temperature"]

_LOW, _HIGH = 0.05, 20.0
_PSEUDO = 5.0
"""Rows that each head is credited with before any is seen."""


def head_weights(
    head_logits: NDArray[np.float32],
    targets: NDArray[Any],
    *,
    of: Literal["logits", "probabilities"],
    kind: TaskKind,
) -> NDArray[np.float32]:
    """The weights of the heads that make the targets most likely, under a Dirichlet prior around equal weights.

    Maximum a posteriori of the weights, together with the average's temperature (regression: with errors of the spread
    that the equal average leaves), so that a head is not preferred for being sharper. The prior counts as five rows
    for each head: few validation rows leave the weights nearly equal.

    Args:
        head_logits: (N, K, C); regression: the heads' values.
        targets: (N,) class numbers, (N, C) zeros and ones, or (N,) values.
        of: what the average is taken of.
        kind: what the logits mean.

    Returns:
        (K,) float32, above 0, summing to 1.
    """
    scores = torch.from_numpy(head_logits).double()
    answers = torch.from_numpy(targets).double() if kind == "regression" else torch.from_numpy(targets)
    count, heads, classes = scores.shape
    spread = (scores.mean(dim=1)[:, 0] - answers).square().mean().clamp_min(1e-12) if kind == "regression" else None
    free = torch.zeros(heads + 1, dtype=torch.float64, requires_grad=True)  # the weights' logits; log temperature
    optimizer = torch.optim.LBFGS([free], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        shares = free[:heads].log_softmax(dim=0)
        logits = average(scores, of, kind, shares.exp())
        if spread is not None:
            likelihood = (logits[:, 0] - answers).square().sum() / (2 * spread)
        else:
            answered = count * (classes if kind == "multilabel" else 1)  # a label of a row is an answer of its own
            likelihood = answered * _smoothed(logits / free[heads].exp(), answers, kind, count, classes)
        loss = likelihood - _PSEUDO * shares.sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return np.asarray(free[:heads].detach().softmax(dim=0).numpy(), np.float32)


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


def abstain_by(predictions: Predictions, targets: NDArray[Any], kind: TaskKind) -> Doubt | None:
    """The signal that ranks the errors of ID validation rows best.

    The largest probability where there are probabilities of classes, else the heads' disagreement where there are
    several heads; another one only where it is better by more than a standard error, and novelty alone only where it
    is better than chance by as much. Novelty tells rows that are foreign, which are not always those that are wrong.

    Args:
        predictions: of N ID validation rows.
        targets: as ``encode_targets`` gives them.
        kind: what they are.

    Returns:
        None where no signal tells anything.
    """
    found = doubts(predictions.probabilities, predictions.disagreement, predictions.novelty, kind)
    if predictions.head_logits.shape[1] == 1:  # one head never disagrees
        del found["disagreement"]
    wrong = errors(predictions, targets, kind)
    measure = spearman if kind == "regression" else auroc
    chance, error = (0.0, 1 / np.sqrt(len(wrong))) if kind == "regression" else (0.5, _auroc_error(wrong))
    order: tuple[Doubt, ...] = ("max_probability", "disagreement", "novelty")
    best: Doubt | None = None
    reached = chance
    for name in order:
        if name in found:
            ranked = measure(found[name], wrong)
            value = chance if ranked is None else ranked
            if value > reached + error or (best is None and name != "novelty"):
                best, reached = name, value
    return best


def _auroc_error(wrong: NDArray[Any]) -> float:
    """The standard error of an area under the ROC curve that is near chance: sqrt((a + b + 1) / (12 a b)).

    That of the Mann-Whitney statistic of a errors among a + b rows over its largest value (Hanley and McNeil 1982).
    """
    count = int(wrong.sum())
    pairs = count * (len(wrong) - count)
    return float(np.sqrt((len(wrong) + 1) / (12 * pairs))) if pairs else 1.0


def abstain_above(doubt: NDArray[np.float32], share: float) -> float | None:
    """The value of a signal above which ``share`` of these rows lie, rounded down to whole rows.

    It lies half-way between two rows, so that another machine's rounding moves neither over it. It needs no
    targets.

    Args:
        doubt: of N ID validation rows, (N,), higher where there is less to trust.
        share: from 0 to below 1.

    Returns:
        A float32 value; None when no row may lie above it.
    """
    ordered = np.sort(doubt)
    kept = len(ordered) - int(share * len(ordered) + 1e-9)
    if kept == len(ordered):
        return None
    return float(np.float32((float(ordered[kept - 1]) + float(ordered[kept])) / 2))


def _smoothed(logits: Tensor, targets: Tensor, kind: TaskKind, count: int, classes: int) -> Tensor:
    if kind == "classification":
        return F.cross_entropy(logits, targets, label_smoothing=classes / (count + classes))
    share = 2 / (count + 2)
    return F.binary_cross_entropy_with_logits(logits, targets.double() * (1 - share) + share / 2)
