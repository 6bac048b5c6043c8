"""How good predictions are: numpy alone, on what is served."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_serving.predictions import Outputs, Predictions, Task, TaskKind, finish

__all__ = ["auroc", "errors", "metrics", "spearman"]


def metrics(predictions: Predictions, targets: NDArray[Any], task: Task) -> dict[str, Any]:
    """Measure N predictions against their targets.

    Args:
        predictions: as the runner finishes them.
        targets: classification (N,) class numbers; multilabel (N, C) zeros and ones; regression (N,).
        task: what they answer.

    Returns:
        Classification: ``accuracy``, ``macro_accuracy`` (mean recall over the classes present),
        ``macro_f1``, ``log_loss`` (nats). Multilabel: ``exact_match``, ``micro_f1``, ``macro_f1``,
        ``log_loss``. Regression: ``rmse``, ``mae``, ``r2`` (against the mean of these targets). Always
        ``rows``, and ``heads`` with each head's first metric.
    """
    result: dict[str, Any] = {"rows": len(targets), **_measure(predictions, targets, task)}
    first = next(name for name in result if name != "rows")
    result["heads"] = []
    for k in range(predictions.head_logits.shape[1]):
        own = predictions.head_logits[:, k]
        alone = finish(Outputs(own, own[:, None]), task)
        result["heads"].append(_measure(alone, targets, task)[first])
    return result


def errors(predictions: Predictions, targets: NDArray[Any], kind: TaskKind) -> NDArray[Any]:
    """Where answers are wrong, (N,): booleans for classes (multilabel: not exactly right), |error| for regression."""
    if kind == "classification":
        return np.asarray(predictions.logits.argmax(axis=1) != targets)
    if kind == "multilabel":
        return np.asarray(((predictions.logits > 0) != (targets > 0)).any(axis=1))
    return np.asarray(np.abs(predictions.logits[:, 0].astype(np.float64) - targets))


def auroc(scores: NDArray[Any], positive: NDArray[np.bool_]) -> float | None:
    """The chance that a positive row scores above a negative one, equal scores counting half.

    The area under the ROC curve, as the Mann-Whitney statistic over its largest value (Hanley and McNeil 1982).

    Args:
        scores: (N,).
        positive: (N,).

    Returns:
        From 0 to 1, 0.5 for chance; None when all rows are positive or none is.
    """
    count = int(positive.sum())
    pairs = count * (len(positive) - count)
    if not pairs:
        return None
    return float((_ranks(scores)[positive].sum() - count * (count + 1) / 2) / pairs)


def spearman(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """The rank correlation of two numbers of N rows (Spearman 1904): Pearson's, of their mean ranks.

    Returns:
        From -1 to 1, 0 for chance; None when one of them is the same everywhere.
    """
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    spread = np.sqrt((x**2).sum() * (y**2).sum())
    return float((x * y).sum() / spread) if spread else None


def _measure(predictions: Predictions, targets: NDArray[Any], task: Task) -> dict[str, float]:
    p = predictions.probabilities
    if task.kind == "regression" or p is None:
        error = predictions.logits[:, 0].astype(np.float64) - targets
        spread = ((targets - targets.mean()) ** 2).mean()
        return {
            "rmse": float(np.sqrt((error**2).mean())),
            "mae": float(np.abs(error).mean()),
            "r2": float(1 - (error**2).mean() / spread) if spread else 0.0,
        }
    tiny = np.finfo(np.float32).tiny
    if task.kind == "multilabel":
        said, holds = predictions.logits > 0, targets > 0
        right = np.where(holds, p, 1 - p)
        return {
            "exact_match": float((said == holds).all(axis=1).mean()),
            "micro_f1": _f1((said & holds).sum(), said.sum(), holds.sum()),
            "macro_f1": float(np.mean([_f1(*c) for c in zip(*_counts(said, holds), strict=True)])),
            "log_loss": float(-np.log(np.maximum(right, tiny)).mean()),
        }
    answer = predictions.logits.argmax(axis=1)
    said, holds = answer[:, None] == np.arange(task.outputs), targets[:, None] == np.arange(task.outputs)
    there = holds.any(axis=0)
    both, said_n, holds_n = (counts[there] for counts in _counts(said, holds))
    return {
        "accuracy": float((answer == targets).mean()),
        "macro_accuracy": float((both / holds_n).mean()),
        "macro_f1": float(np.mean([_f1(*c) for c in zip(both, said_n, holds_n, strict=True)])),
        "log_loss": float(-np.log(np.maximum(p[np.arange(len(targets)), targets], tiny)).mean()),
    }


def _counts(said: NDArray[np.bool_], holds: NDArray[np.bool_]) -> tuple[NDArray[np.int64], ...]:
    """For each class: rows said and held, rows said, rows held."""
    return (said & holds).sum(axis=0), said.sum(axis=0), holds.sum(axis=0)


def _f1(both: int, said: int, holds: int) -> float:
    """2·TP / (said + holds); 0 where the class is neither said nor held."""
    return float(2 * both / (said + holds)) if said + holds else 0.0


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    """Ranks from 1; equal values share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)
