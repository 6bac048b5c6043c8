"""How well a signal that needs no label detects errors and out-of-distribution (OOD) rows.

numpy alone, on what is served.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.evaluation.metrics import auroc, errors, spearman
from levi_serving.predictions import Predictions, TaskKind, doubts

__all__ = ["COVERAGE", "detect_errors", "detect_ood", "risk_coverage", "signals"]

COVERAGE = tuple(n / 20 for n in range(1, 21))
"""The shares of rows at which ``risk_coverage`` looks."""


def signals(predictions: Predictions, kind: TaskKind) -> dict[str, NDArray[np.float64]]:
    """The signals of N rows, (N,) each, higher where there is less to trust.

    Returns:
        Those that a model may abstain by, see ``levi_serving.predictions.doubts``; for classification beside them
        ``energy``: -logsumexp of the logits at temperature 1 (Liu et al. 2020), the logits being the heads' mean before
        calibration.
    """
    p, novelty = predictions.probabilities, predictions.novelty
    found: dict[str, NDArray[np.float64]] = {
        name: values.astype(np.float64) for name, values in doubts(p, predictions.disagreement, novelty, kind).items()
    }
    if kind == "classification":
        mean = predictions.head_logits.mean(axis=1, dtype=np.float64)
        top = mean.max(axis=1)
        found["energy"] = -(top + np.log(np.exp(mean - top[:, None]).sum(axis=1)))
    return found


def detect_errors(predictions: Predictions, targets: NDArray[Any], kind: TaskKind) -> dict[str, float | None]:
    """How well each signal ranks the errors of N rows.

    Returns:
        By signal, for classes ``auroc`` of wrong rows against right ones; for regression ``spearman`` with the
        size of the error. None where it is not defined.
    """
    wrong = errors(predictions, targets, kind)
    measure = spearman if kind == "regression" else auroc
    return {name: measure(values, wrong) for name, values in signals(predictions, kind).items()}


def detect_ood(inside: Predictions, outside: Predictions, kind: TaskKind) -> dict[str, float | None]:
    """How well each signal detects OOD rows among in-distribution ones: ``auroc`` by signal."""
    a, b = signals(inside, kind), signals(outside, kind)
    foreign = np.arange(len(inside) + len(outside)) >= len(inside)
    return {name: auroc(np.concatenate([a[name], b[name]]), foreign) for name in a}


def risk_coverage(predictions: Predictions, targets: NDArray[Any], kind: TaskKind) -> dict[str, list[float]]:
    """How wrong the rows are that a signal trusts most (El-Yaniv and Wiener 2010).

    Returns:
        By signal that is not the same everywhere, at each share of ``COVERAGE`` the risk of so many rows, the most
        trusted ones: the share of wrong answers, for regression the root mean square of the errors. Of rows with equal
        signals a share counts as much as it would on average.
    """
    wrong = np.asarray(errors(predictions, targets, kind), np.float64)
    loss = wrong**2
    curves = {}
    for name, values in signals(predictions, kind).items():
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        if len(counts) == 1:
            continue
        alike = np.bincount(place, weights=loss) / counts  # the mean of those with equal signals
        total = np.cumsum(alike[np.sort(place)])
        kept = np.maximum(1, np.round(np.asarray(COVERAGE) * len(loss)).astype(int))
        risk = total[kept - 1] / kept
        curves[name] = (np.sqrt(risk) if kind == "regression" else risk).tolist()
    return curves
