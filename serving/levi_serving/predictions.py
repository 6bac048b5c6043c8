"""From logits to answers: probabilities, labels, disagreement. numpy alone.

Evaluation and the runner both finish with this file, so a metric is computed on what is served.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self, SupportsIndex

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Doubt",
    "Outputs",
    "Predictions",
    "Task",
    "TaskKind",
    "answer_columns",
    "disagreement",
    "doubts",
    "finish",
    "probabilities",
    "table",
]

TaskKind = Literal["classification", "multilabel", "regression"]
Doubt = Literal["disagreement", "max_probability", "novelty"]

_DOUBTS: dict[Doubt, str] = {
    "disagreement": "its heads' disagreement",
    "max_probability": "1 - the largest probability",
    "novelty": "novelty",
}

_SHOWN, _WIDEST = 10, 40  # rows, and characters of a prediction, that are printed


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a model answers.

    Attributes:
        kind: what its logits mean.
        labels: the C output names; for regression the target's name.
        abstain_by: the signal by which it abstains, see ``doubts``.
        abstain_above: the value of that above which it abstains; None where it never does.
        novelty_quantiles: of the ``novelty`` that the graph gives ID validation rows, in equal steps from the least
            to the largest; None where there is none.
    """

    kind: TaskKind
    labels: tuple[str, ...]
    abstain_by: Doubt = "disagreement"
    abstain_above: float | None = None
    novelty_quantiles: tuple[float, ...] | None = None

    @property
    def outputs(self) -> int:
        """C."""
        return len(self.labels)

    @property
    def abstains(self) -> str:
        """Where it abstains, in words."""
        if self.abstain_above is None:
            return "never"
        return f"where {_DOUBTS[self.abstain_by]} is above {self.abstain_above:.4g}"

    @property
    def in_words(self) -> str:
        """What it answers, in a few words: the labels' names, or their number where there are many."""
        named = ", ".join(self.labels)
        return f"{self.kind} of " + (named if len(named) <= _WIDEST else f"{self.outputs} labels")


@dataclass(frozen=True)
class Outputs:
    """What the graph answers for N rows.

    Attributes:
        logits: (N, C) float32, the heads' average.
        head_logits: (N, K, C) float32, each adapting layer's own.
        novelty: (N,) float32, how far each row lies from the training rows, in the graph's own units; None where it
            does not say.
        padded_tokens: positions that were computed for them, padding included, in the units of
            ``Encoded.costs``; None where what answers does not say.
    """

    logits: NDArray[np.float32]
    head_logits: NDArray[np.float32]
    novelty: NDArray[np.float32] | None = None
    padded_tokens: int | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[np.float32]], padded_tokens: int | None = None) -> Self:
        """From the graph's outputs by name; ``novelty`` may be missing."""
        return cls(arrays["logits"], arrays["head_logits"], arrays.get("novelty"), padded_tokens)

    @property
    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """The graph's outputs by name."""
        found = {"logits": self.logits, "head_logits": self.head_logits, "novelty": self.novelty}
        return {name: values for name, values in found.items() if values is not None}

    def take(self, rows: NDArray[Any]) -> Outputs:
        """The chosen rows' answers, by number or by a mask (N,)."""
        return Outputs.of({name: values[rows] for name, values in self.arrays.items()})

    @staticmethod
    def joined(parts: Sequence[Outputs]) -> Outputs:
        """The answers of several batches, one after the other."""
        names = parts[0].arrays
        return Outputs.of({name: np.concatenate([part.arrays[name] for part in parts]) for name in names})


@dataclass(frozen=True, repr=False)
class Predictions:
    """The answers for N rows: a sequence of N answers, each again Predictions with N = 1. A slice gives several.

    Attributes:
        labels: classification: (N,) class names; multilabel: (N, C) booleans, a column a label;
            regression: (N,) float32, the predicted values.
        probabilities: (N, C) float32, summing to 1 for classification, each in 0 … 1 for multilabel;
            None for regression.
        logits: (N, C) float32, the heads' average.
        head_logits: (N, K, C) float32, each adapting head's own.
        disagreement: (N,) float32, see ``disagreement``.
        abstain: (N,) booleans, whether the signal that the model abstains by lies above its threshold, so that its
            answer should go to someone else. All False where the model has none.
        novelty: (N,) float32, the share of ID validation rows that lie nearer to the training rows: from 0 to 1,
            where 1 is further away than all of them. None where the model has no backbone.

    Example:
        >>> runner.predict(["works well", "broke after a day"])
           prediction  probability  disagreement  abstain  novelty
        0  positive         0.9836       0.00142    False    0.312
        1  negative         0.9127        0.0213    False    0.974
        2 rows
    """

    labels: NDArray[Any]
    probabilities: NDArray[np.float32] | None
    logits: NDArray[np.float32]
    head_logits: NDArray[np.float32]
    disagreement: NDArray[np.float32]
    abstain: NDArray[np.bool_]
    novelty: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.logits)

    def __iter__(self) -> Iterator[Predictions]:
        return (self[n] for n in range(len(self)))

    def __getitem__(self, rows: SupportsIndex | slice) -> Predictions:
        """The answer for one row, N = 1, or for a slice of them.

        Raises:
            IndexError: there is no such row.
        """
        if not isinstance(rows, slice):
            n = range(len(self))[operator.index(rows)]  # counts from the end where it is negative
            rows = slice(n, n + 1)
        return Predictions(
            self.labels[rows],
            None if self.probabilities is None else self.probabilities[rows],
            self.logits[rows],
            self.head_logits[rows],
            self.disagreement[rows],
            self.abstain[rows],
            None if self.novelty is None else self.novelty[rows],
        )

    def __repr__(self) -> str:
        first = self[:_SHOWN]
        columns = {"": [str(n) for n in range(len(first))], "prediction": [_shortened(label) for label in first.labels]}
        if first.probabilities is not None and first.labels.ndim == 1:
            columns["probability"] = [f"{p:.4f}" for p in first.probabilities.max(axis=1, initial=0)]
        columns["disagreement"] = [f"{value:.3g}" for value in first.disagreement]
        columns["abstain"] = [str(abstains) for abstains in first.abstain]
        if first.novelty is not None:
            columns["novelty"] = [f"{value:.3f}" for value in first.novelty]
        aligned = []
        for name, cells in columns.items():
            width = max(map(len, [name, *cells]))
            aligned.append([c.ljust(width) if name == "prediction" else c.rjust(width) for c in [name, *cells]])
        lines = ["  ".join(line) for line in zip(*aligned, strict=True)]
        more = "… " if len(self) > len(first) else ""
        return "\n".join([*lines, f"{more}{len(self):,} {'row' if len(self) == 1 else 'rows'}"])


def _shortened(label: Any) -> str:
    """One row's answer for people: a class, a number, or which labels hold."""
    if isinstance(label, np.ndarray):
        label = "labels " + ", ".join(map(str, label.nonzero()[0])) if label.any() else "no label"
    text = f"{label:.6g}" if isinstance(label, np.floating) else str(label)
    return text if len(text) <= _WIDEST else text[: _WIDEST - 1] + "…"


def probabilities(logits: NDArray[np.float32], kind: TaskKind) -> NDArray[np.float32]:
    """Softmax over the last axis for classification, logistic for multilabel. Any shape (…, C)."""
    if kind == "multilabel":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits)), np.float32)  # the logistic, without overflow
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def disagreement(head_logits: NDArray[np.float32], kind: TaskKind) -> NDArray[np.float32]:
    """How much the K heads differ on each row.

    Classification: the mutual information H(mean_k p_k) - mean_k H(p_k) in nats, from 0 (all heads
    alike) to log(min(K, C)): the generalised Jensen-Shannon divergence of the heads (Lin 1991), which
    active learning calls BALD (Houlsby et al. 2011). Multilabel: the same for each label's two
    outcomes, averaged over labels. Regression: the heads' standard deviation, in the target's units.

    Args:
        head_logits: (N, K, C).
        kind: what the logits mean.

    Returns:
        (N,) float32, never negative.
    """
    if kind == "regression":
        return np.asarray(head_logits[:, :, 0].std(axis=1), np.float32)
    p = probabilities(head_logits, kind).astype(np.float64)
    if kind == "multilabel":
        p = np.stack([p, 1 - p], axis=-1)  # (N, K, C, 2): two outcomes a label
    information = _entropy(p.mean(axis=1)) - _entropy(p).mean(axis=1)
    if kind == "multilabel":
        information = information.mean(axis=-1)
    return np.asarray(np.maximum(information, 0), np.float32)


def _entropy(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shannon entropy over the last axis in nats, with 0 log 0 = 0."""
    result: NDArray[np.float64] = -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
    return result


def finish(outputs: Outputs, task: Task) -> Predictions:
    """Turn the graph's answers for N rows into predictions."""
    logits, head_logits = outputs.logits, outputs.head_logits
    p = None if task.kind == "regression" else probabilities(logits, task.kind)
    answer: NDArray[Any]
    if task.kind == "classification":
        answer = np.asarray(task.labels, dtype=np.str_)[logits.argmax(axis=1)] if len(logits) else np.empty(0, "<U1")
    elif task.kind == "multilabel":
        answer = logits > 0  # probability above one half
    else:
        answer = logits[:, 0]
    differ = disagreement(head_logits, task.kind)
    novelty = _share_nearer(outputs, task)
    doubt = doubts(p, differ, novelty, task.kind).get(task.abstain_by)
    threshold = np.inf if task.abstain_above is None or doubt is None else task.abstain_above
    return Predictions(
        answer, p, logits, head_logits, differ, (differ if doubt is None else doubt) > threshold, novelty
    )


def doubts(
    p: NDArray[np.float32] | None,
    differ: NDArray[np.float32],
    novelty: NDArray[np.float32] | None,
    kind: TaskKind,
) -> dict[Doubt, NDArray[np.float32]]:
    """The signals that a model may abstain by, (N,) each, higher where there is less to trust.

    Args:
        p: probabilities, (N, C).
        differ: ``disagreement``, (N,).
        novelty: as ``Predictions`` has it, (N,).
        kind: what the model answers.

    Returns:
        ``disagreement``; for classification ``max_probability``, 1 - max p (Hendrycks and Gimpel 2017); ``novelty``
        where the model has it.
    """
    found: dict[Doubt, NDArray[np.float32]] = {"disagreement": differ}
    if kind == "classification" and p is not None:
        found["max_probability"] = 1 - p.max(axis=1, initial=0)
    if novelty is not None:
        found["novelty"] = novelty
    return found


def _share_nearer(outputs: Outputs, task: Task) -> NDArray[np.float32] | None:
    """The share of ID validation rows that lie nearer than each of N rows, (N,)."""
    if outputs.novelty is None or task.novelty_quantiles is None:
        return None
    shares = np.linspace(0, 1, len(task.novelty_quantiles))
    return np.asarray(np.interp(outputs.novelty, task.novelty_quantiles, shares), np.float32)


def answer_columns(task: Task, *, heads: int, with_heads: bool = False, all_probabilities: bool = False) -> list[str]:
    """The names of the columns that ``table`` gives, for a model of K = ``heads`` adapting layers."""
    names = ["prediction"]
    if task.kind == "classification":
        names.append("probability")
    if task.kind != "regression" and all_probabilities:
        names += [f"probability_{label}" for label in task.labels]
    names += ["disagreement", "abstain"] + (["novelty"] if task.novelty_quantiles is not None else [])
    return names + ([f"head_{k + 1}" for k in range(heads)] if with_heads else [])


def table(
    predictions: Predictions, task: Task, *, with_heads: bool = False, all_probabilities: bool = False
) -> dict[str, list[object]]:
    """Predictions as columns for a file.

    Returns:
        ``prediction`` (a class name; multilabel: the labels that hold, joined by ``|``; regression: a
        number), ``probability`` of the predicted class (classification), one ``probability_LABEL`` a
        class with ``all_probabilities``, ``disagreement``, ``abstain`` (true or false), ``novelty`` where the model
        has it, and ``head_k`` with each head's own prediction with ``with_heads``, k = 1 … K by depth.
    """
    p, heads = predictions.probabilities, predictions.head_logits.shape[1]
    columns: list[list[object]] = [_written(predictions.labels, task)]
    if p is not None and task.kind == "classification":
        columns.append(_rounded(p.max(axis=1, initial=0)))
    if p is not None and all_probabilities:
        columns += [_rounded(p[:, c]) for c in range(task.outputs)]
    columns += [_rounded(predictions.disagreement), list(predictions.abstain.tolist())]
    if predictions.novelty is not None:
        columns.append(_rounded(predictions.novelty))
    for k in range(heads if with_heads else 0):
        own = predictions.head_logits[:, k]
        columns.append(_written(finish(Outputs(own, own[:, None]), task).labels, task))
    names = answer_columns(task, heads=heads, with_heads=with_heads, all_probabilities=all_probabilities)
    return dict(zip(names, columns, strict=True))


def _written(answer: NDArray[Any], task: Task) -> list[object]:
    if task.kind == "multilabel":
        return ["|".join(label for label, holds in zip(task.labels, row, strict=True) if holds) for row in answer]
    if task.kind == "regression":
        return _rounded(answer)
    return list(answer.tolist())


def _rounded(values: NDArray[np.float32]) -> list[object]:
    """Six significant digits: what a float32 answer is good for, and short in a text file."""
    return [float(f"{value:.6g}") for value in values.tolist()]
