"""From logits to answers: probabilities, labels, disagreement. numpy alone; knows no model and no file.

Evaluation and the runner both finish with this file, so a metric is computed on what is served.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Outputs", "Predictions", "Task", "disagreement", "finish", "probabilities", "table"]

Task = Literal["classification", "multilabel", "regression"]


@dataclass(frozen=True)
class Outputs:
    """What the graph answers for N rows: ``logits`` (N, C) and ``head_logits`` (N, K, C), float32."""

    logits: NDArray[np.float32]
    head_logits: NDArray[np.float32]


@dataclass(frozen=True)
class Predictions:
    """The answers for N rows.

    Attributes:
        labels: classification: (N,) class names; multilabel: (N, C) booleans, a column a label;
            regression: (N,) float32, the predicted values.
        probabilities: (N, C) float32, summing to 1 for classification, each in 0 … 1 for multilabel;
            None for regression.
        logits: (N, C) float32, the heads' average.
        head_logits: (N, K, C) float32, each adapting head's own.
        disagreement: (N,) float32, see ``disagreement``.
        abstain: (N,) booleans, whether ``disagreement`` lies above the model's threshold, so that its
            answer should go to someone else. All False where the model has none, as with one head.
    """

    labels: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    logits: NDArray[np.float32]
    head_logits: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    abstain: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, n: int) -> Predictions:
        """The answer for row n alone, N = 1."""
        one = slice(n, n + 1)
        return Predictions(
            self.labels[one],
            None if self.probabilities is None else self.probabilities[one],
            self.logits[one],
            self.head_logits[one],
            self.disagreement[one],
            self.abstain[one],
        )


def probabilities(logits: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """Softmax over the last axis for classification, logistic for multilabel. Any shape (…, C)."""
    if task == "multilabel":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)  # the logistic, without overflow
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def disagreement(head_logits: NDArray[np.float32], task: Task) -> NDArray[np.float32]:
    """How much the K heads differ on each row.

    Classification: the mutual information H(mean_k p_k) - mean_k H(p_k) in nats, from 0 (all heads
    alike) to log(min(K, C)): the generalised Jensen-Shannon divergence of the heads (Lin 1991), which
    active learning calls BALD (Houlsby et al. 2011). Multilabel: the same for each label's two
    outcomes, averaged over labels. Regression: the heads' standard deviation, in the target's units.

    Args:
        head_logits: (N, K, C).
        task: what the logits mean.

    Returns:
        (N,) float32, never negative.
    """
    if task == "regression":
        return np.asarray(head_logits[:, :, 0].std(axis=1), np.float32)
    p = probabilities(head_logits, task).astype(np.float64)
    if task == "multilabel":
        p = np.stack([p, 1 - p], axis=-1)  # (N, K, C, 2): two outcomes a label
    information = _entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)
    if task == "multilabel":
        information = information.mean(axis=-1)
    return np.asarray(np.maximum(information, 0), np.float32)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shannon entropy over the last axis in nats, with 0 log 0 = 0."""
    result: NDArray[np.float64] = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return result


def finish(outputs: Outputs, *, task: Task, labels: Sequence[str], abstain_above: float | None = None) -> Predictions:
    """Turn the graph's answers into predictions.

    Args:
        outputs: for N rows.
        task: what the logits mean.
        labels: the C class names; one name, unused, for regression.
        abstain_above: the disagreement above which the model abstains; it never does when None.
    """
    logits, head_logits = outputs.logits, outputs.head_logits
    p = None if task == "regression" else probabilities(logits, task)
    answer: NDArray[Any]
    if task == "classification":
        answer = np.asarray(labels, dtype=np.str_)[logits.argmax(axis=1)] if len(logits) else np.empty(0, "<U1")
    elif task == "multilabel":
        answer = logits > 0  # probability above one half
    else:
        answer = logits[:, 0]
    apart = disagreement(head_logits, task)
    return Predictions(
        answer, p, logits, head_logits, apart, apart > (np.inf if abstain_above is None else abstain_above)
    )


def table(
    predictions: Predictions,
    *,
    task: Task,
    labels: Sequence[str],
    heads: bool = False,
    all_probabilities: bool = False,
) -> dict[str, list[object]]:
    """Predictions as columns for a file.

    Returns:
        ``prediction`` (a class name; multilabel: the labels that hold, joined by ``|``; regression: a
        number), ``probability`` of the predicted class (classification), one ``probability_LABEL`` a
        class with ``all_probabilities``, ``disagreement``, ``abstain`` (true or false), and ``head_k`` with
        each head's own prediction with ``heads``, k = 1 … K by depth.
    """
    columns: dict[str, list[object]] = {"prediction": _written(predictions.labels, task, labels)}
    p = predictions.probabilities
    if p is not None:
        if task == "classification":
            columns["probability"] = _rounded(p.max(axis=1, initial=0))
        if all_probabilities:
            for c, label in enumerate(labels):
                columns[f"probability_{label}"] = _rounded(p[:, c])
    columns["disagreement"] = _rounded(predictions.disagreement)
    columns["abstain"] = list(predictions.abstain.tolist())
    if heads:
        for k in range(predictions.head_logits.shape[1]):
            own = predictions.head_logits[:, k]
            answer = finish(Outputs(own, own[:, None]), task=task, labels=labels).labels
            columns[f"head_{k + 1}"] = _written(answer, task, labels)
    return columns


def _written(answer: NDArray[Any], task: Task, labels: Sequence[str]) -> list[object]:
    if task == "multilabel":
        return ["|".join(label for label, holds in zip(labels, row, strict=True) if holds) for row in answer]
    if task == "regression":
        return _rounded(answer)
    return list(answer.tolist())


def _rounded(values: NDArray[np.float32]) -> list[object]:
    """Six significant digits: what a float32 answer is good for, and short in a text file."""
    return [float(f"{value:.6g}") for value in values.tolist()]
