"""From a target column's raw values to what the loss takes: which task, which labels, which numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_serving.errors import TableError
from levi_serving.predictions import Task, TaskKind

__all__ = ["encode_targets", "find_labels", "refuse_gaps", "tell_task"]

SEPARATOR = "|"


def tell_task(targets: Sequence[object]) -> TaskKind:
    """Tell the task from the values: lists are multilabel, words are classes, few whole numbers are too."""
    if isinstance(targets[0], list | tuple):
        return "multilabel"
    numbers = [_number(value) for value in targets]
    if any(number is None for number in numbers):
        return "classification"
    whole = all(number is not None and number == int(number) for number in numbers)
    return "classification" if whole and len(set(numbers)) <= 20 else "regression"


def _number(value: object) -> float | None:
    """A finite number, or None."""
    number = _parsed(value)
    return number if number is not None and math.isfinite(number) else None


def _parsed(value: object) -> float | None:
    """A number, NaN and infinity among them, or None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def refuse_gaps(targets: Sequence[object], column: str) -> None:
    """Refuse numbers with NaN or infinity among them, which are a gap in a column and no class of its own.

    Raises:
        TableError: naming the first.
    """
    numbers = [_parsed(value) for value in targets]
    if None in numbers:  # words: among them "nan" may be one
        return
    for value, number in zip(targets, numbers, strict=True):
        if number is not None and not math.isfinite(number):
            raise TableError(
                f"Column {column!r} holds {value!r} among numbers; targets need finite numbers everywhere. "
                "Mend or remove such rows."
            )


def _name(value: object) -> str:
    """A class's name: whole numbers look the same from every file format."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def _names(value: object) -> list[str]:
    """The labels of one multilabel row: a list, or names joined by ``|``; an empty text is none."""
    values = value if isinstance(value, list | tuple) else [v for v in str(value).split(SEPARATOR) if v]
    return [_name(v).strip() for v in values]


def find_labels(targets: Sequence[object], kind: TaskKind, column: str) -> tuple[str, ...]:
    """The C output names, from training rows; for regression the target column's."""
    if kind == "regression":
        return (column,)
    names = {n for value in targets for n in (_names(value) if kind == "multilabel" else [_name(value)])}
    if all(_number(name) is not None for name in names):
        return tuple(sorted(names, key=float))
    return tuple(sorted(names))


def encode_targets(targets: Sequence[object], task: Task, *, column: str) -> NDArray[Any]:
    """Turn raw values into what the loss takes.

    Returns:
        Classification: (N,) int64 class numbers; multilabel: (N, C) float32 zeros and ones; regression:
        (N,) float32.

    Raises:
        TableError: a value is no number, or a class that is not among the labels.
    """
    if task.kind == "regression":
        numbers = [_number(value) for value in targets]
        if None in numbers:
            n = numbers.index(None)
            raise TableError(f"Column {column!r} holds {targets[n]!r}; regression needs finite numbers everywhere.")
        return np.asarray(numbers, dtype=np.float32)
    position = {name: c for c, name in enumerate(task.labels)}
    rows = [_names(value) if task.kind == "multilabel" else [_name(value)] for value in targets]
    unknown = sorted({name for row in rows for name in row if name not in position})
    if unknown:
        raise TableError(
            f"Column {column!r} holds {unknown[0]!r}, which no training row has; known are "
            f"{', '.join(task.labels[:8])}{' …' if len(task.labels) > 8 else ''}."
        )
    if task.kind == "classification":
        return np.asarray([position[row[0]] for row in rows], dtype=np.int64)
    encoded = np.zeros((len(rows), task.outputs), dtype=np.float32)
    for n, row in enumerate(rows):
        encoded[n, [position[name] for name in row]] = 1
    return encoded
