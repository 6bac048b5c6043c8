"""How far answers move between versions of one row: what a model leans on, measured by an intervention.

Two versions with the same answer differ in what should not matter, a spurious part: a recoloured digit, another
courier. Two with different answers differ in what should, the core: a review that was rewritten to say the opposite,
while all else stayed as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.evaluation.labelled import LabelledRows
from levi_deploy.evaluation.metrics import errors
from levi_serving.errors import UsageError
from levi_serving.predictions import Outputs, Predictions, Task, TaskKind, finish

__all__ = ["find_pairs", "sensitivity"]


def find_pairs(parts: Mapping[str, LabelledRows], column: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places, in all splits together, of the first version of a row and of each other one: (P,) each.

    Raises:
        UsageError: no two rows share a value.
    """
    values = [value for part in parts.values() for value in part.columns[column]]
    firsts: dict[str, int] = {}
    pairs = []
    for place, value in enumerate(values):
        if value is None or value == "" or value != value:  # a gap, as nan
            continue
        original = firsts.setdefault(str(value), place)
        if original != place:
            pairs.append((original, place))
    if not pairs:
        raise UsageError(
            f"`pairs` is {column!r}, but no two of the {len(values)} rows that are measured share a value there. Name "
            "the column in which versions of one row have the same value, and measure the splits that they are in."
        )
    first, second = np.asarray(pairs, np.int64).T
    return first, second


def sensitivity(
    answers: Mapping[str, Outputs], parts: Mapping[str, LabelledRows], task: Task, *, column: str
) -> list[dict[str, Any]]:
    """Measure how far answers move between the first version of a row and each other one.

    Args:
        answers: by split.
        parts: by split, the rows that they are of. Versions of one row may be in different splits.
        task: what is answered.
        column: versions of one row share its value; rows without one have no other version.

    Returns:
        For ``part`` in ``average``, ``head 1`` …, and for what was ``changed``, ``spurious`` or ``core``: ``pairs``,
        how many there are; ``moves``, the mean distance of both answers: for classification the total variation of
        their probabilities, from 0 to 1 (of heads, before the average's temperature), for multilabel the mean
        difference of a label's, for regression the difference; ``flips``, the share of pairs whose answers differ, and
        ``both_right``, that of pairs with both right, which regression does not have.

    Raises:
        UsageError: no two rows share a value.
    """
    first, second = find_pairs(parts, column)
    joined = Outputs.joined([answers[split] for split in parts])
    targets = np.concatenate([part.targets for part in parts.values()])
    same = targets[first] == targets[second]
    same = same.all(axis=1) if same.ndim > 1 else same
    found = []
    for part, predictions in _parts(joined, task).items():
        moved, flips = _moved(predictions, first, second, task.kind)
        right = ~np.asarray(errors(predictions, targets, task.kind), bool)
        for changed, chosen in (("spurious", same), ("core", ~same)):
            if not chosen.any():
                continue
            record: dict[str, Any] = {"part": part, "changed": changed, "pairs": int(chosen.sum())}
            record["moves"] = float(moved[chosen].mean())
            if task.kind != "regression":
                record["flips"] = float(flips[chosen].mean())
                record["both_right"] = float((right[first] & right[second])[chosen].mean())
            found.append(record)
    return found


def _parts(outputs: Outputs, task: Task) -> dict[str, Predictions]:
    """The average's answers, and those of each head alone where there are several."""
    parts = {"average": finish(outputs, task)}
    if outputs.head_logits.shape[1] > 1:
        for k in range(outputs.head_logits.shape[1]):
            own = outputs.head_logits[:, k]
            parts[f"head {k + 1}"] = finish(Outputs(own, own[:, None]), task)
    return parts


def _moved(
    predictions: Predictions, first: NDArray[np.int64], second: NDArray[np.int64], kind: TaskKind
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """The distance of two answers, and whether they differ, (P,) each."""
    if kind == "regression" or predictions.probabilities is None:
        values = predictions.logits[:, 0].astype(np.float64)
        return np.abs(values[first] - values[second]), values[first] != values[second]
    distance = np.abs(predictions.probabilities[first].astype(np.float64) - predictions.probabilities[second])
    labels = predictions.labels
    if kind == "multilabel":
        return distance.mean(axis=1), (labels[first] != labels[second]).any(axis=1)
    return distance.sum(axis=1) / 2, labels[first] != labels[second]
