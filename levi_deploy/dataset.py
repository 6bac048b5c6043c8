"""From a table to what training needs: rows, targets by task, and which rows are which.

Every way in which a table can be wrong is refused here, before any work is done. Knows no torch.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.config import DataConfig
from levi_serving.errors import TableError, UsageError
from levi_serving.predictions import Task
from levi_serving.tables import located, read_columns
from levi_serving.text import text_problem

__all__ = ["Dataset", "Learning", "encode_targets", "learn", "read"]

VALIDATION_SPLITS = ("id_val", "validation", "val", "valid", "dev")
SEPARATOR = "|"
HELD_OUT = 0.1


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """N rows of a table.

    Attributes:
        rows: N mappings from input column to cell; paths of files are found from where the table lies.
        targets: N raw values as read.
        columns: further columns by name, N values each.
        digest: SHA-256 over rows and targets.
    """

    rows: Sequence[dict[str, object]]
    targets: Sequence[object]
    columns: dict[str, list[object]]
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: Sequence[int]) -> Dataset:
        """The chosen rows, with a digest of their own."""
        return _dataset(
            [self.rows[n] for n in keep],
            [self.targets[n] for n in keep],
            {name: [values[n] for n in keep] for name, values in self.columns.items()},
        )


def _dataset(rows: list[dict[str, object]], targets: list[object], columns: dict[str, list[object]]) -> Dataset:
    digest = hashlib.sha256(repr((rows, targets)).encode("utf-8", "surrogatepass")).hexdigest()
    return Dataset(rows=rows, targets=targets, columns=columns, digest=digest)


def read(
    path: Path,
    *,
    inputs: Sequence[str],
    target: str,
    texts: Sequence[str] = (),
    files: Sequence[str] = (),
    further: Sequence[str] = (),
    empty: bool = False,
) -> Dataset:
    """Read a whole table for learning or evaluation; every row must be usable.

    Args:
        path: CSV, TSV, JSONL, Parquet, or a folder of images with one folder a class.
        inputs: the columns a model reads.
        target: the column with the answer.
        texts: those of ``inputs`` that must hold a text.
        files: those of ``inputs`` that hold files or their paths.
        further: other columns that are needed.
        empty: whether an empty target is an answer too: no label holds (multilabel).

    Raises:
        TableError: the file, a column or a row cannot be used; the first such row is named.
        UsageError: there is no such file.
    """
    table = read_columns(path, list(dict.fromkeys([*inputs, target, *further])))
    if table.bad:
        raise TableError(
            f"{path}: {len(table.bad)} rows cannot be read, first row {table.bad[0].row}: {table.bad[0].reason} "
            "Learning and evaluation need every row: mend or remove them."
        )
    values = table.values
    wrong: dict[int, str] = {}
    for name in (*texts, *files, target):
        problem = text_problem if name in texts else _problem
        for n, cell in enumerate(values[name]):
            if not (empty and name == target and cell == "") and (reason := problem(cell, f"column {name!r}")):
                wrong.setdefault(n, reason)
    if wrong:
        first = min(wrong)
        raise TableError(
            f"{path}: {len(wrong)} rows cannot be used, first row {table.numbers[first]}: {wrong[first]} "
            "Learning and evaluation need every row: mend or remove them."
        )
    if not values[target]:
        raise TableError(f"{path} has no rows.")
    for name in files:
        values[name] = located(values[name], path)
    rows = [dict(zip(inputs, cells, strict=True)) for cells in zip(*(values[name] for name in inputs), strict=True)]
    return _dataset(rows, values[target], {name: values[name] for name in further})


def _problem(cell: object, named: str) -> str | None:
    """Say why a cell is no value, or None when it is."""
    if cell is None:
        return f"{named} is missing; expected a value."
    if cell in ("", b""):
        return f"{named} is empty; expected a value."
    return f"{named} holds {cell}; expected a value." if isinstance(cell, float) and math.isnan(cell) else None


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What a training run learns from.

    Attributes:
        train: training rows.
        validation: in-distribution validation rows.
        task: what kind of answer.
        labels: the C output names, from training rows; for regression the target column's name.
        validation_from: in words, where the validation rows come from.
    """

    train: Dataset
    validation: Dataset
    task: Task
    labels: tuple[str, ...]
    validation_from: str


def learn(path: Path, data: DataConfig, *, validation: Path | None = None, seed: int = 0) -> Learning:
    """Read training and validation rows and find the task and its labels.

    Validation rows are another file, or another value of the split column, or (with neither) a tenth
    of the training rows drawn by the seed.

    Raises:
        TableError, UsageError: what is wrong with the table or the choice of rows.
    """
    if validation is not None and data.split_column is not None:
        raise UsageError("Both a split column and a validation file were given; give one of them.")
    further = [data.split_column] if data.split_column else []
    table = _read(path, data, further)
    if validation is not None:
        train, held_out = table, _read(validation, data)
        source = validation.name
    elif data.split_column is not None:
        train, held_out, source = _split(table, data, path)
    else:
        if len(table) < 2:
            raise TableError(f"{path} has one row; learning needs one to train on and one to validate with at least.")
        order = list(range(len(table)))
        random.Random(seed).shuffle(order)  # noqa: S311  # a reproducible draw, not a secret
        cut = max(1, round(HELD_OUT * len(order)))
        train, held_out = table.take(sorted(order[cut:])), table.take(sorted(order[:cut]))
        source = f"{HELD_OUT:.0%} of the training rows, drawn by seed {seed}"
    for part in (train, held_out):
        _refuse_gaps(part.targets, data.target)
    task = _task(train.targets) if data.task == "auto" else data.task
    labels = _labels(train.targets, task, data.target)
    if task == "classification" and len(labels) < 2:
        raise UsageError(
            f"Column {data.target!r} of the training rows has only the value {labels[0]!r}; "
            "classification needs at least two classes."
        )
    if not labels:
        raise UsageError(f"Column {data.target!r} of the training rows has no label at all; multilabel needs one.")
    for part in (train, held_out):
        encode_targets(part.targets, task, labels, column=data.target)
    return Learning(train=train, validation=held_out, task=task, labels=labels, validation_from=source)


def _read(path: Path, data: DataConfig, further: Sequence[str] = ()) -> Dataset:
    texts = [name for name in (data.text, data.text_pair) if name is not None]
    files = [data.image] if data.image else []
    return read(
        path,
        inputs=data.inputs,
        target=data.target,
        texts=texts,
        files=files,
        further=further,
        empty=data.task == "multilabel",
    )


def _split(table: Dataset, data: DataConfig, path: Path) -> tuple[Dataset, Dataset, str]:
    column = data.split_column or ""
    names = [str(value) for value in table.columns[column]]
    counts = Counter(names)
    found = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    wanted = data.validation_split or next((name for name in VALIDATION_SPLITS if name in counts), None)
    for name, option in ((data.train_split, "--train-split"), (wanted, "--validation-split")):
        if name is None or name not in counts:
            what = f"no rows with {name!r}" if name else f"none of {', '.join(VALIDATION_SPLITS)}"
            raise UsageError(f"Column {column!r} of {path} has {what}; it has {found}. Choose with {option}.")
    parts = [table.take([n for n, name in enumerate(names) if name == part]) for part in (data.train_split, wanted)]
    return parts[0], parts[1], f"rows with {column} = {wanted}"


def _task(targets: Sequence[object]) -> Task:
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


def _refuse_gaps(targets: Sequence[object], column: str) -> None:
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


def _labels(targets: Sequence[object], task: Task, column: str) -> tuple[str, ...]:
    if task == "regression":
        return (column,)
    names = {n for value in targets for n in (_names(value) if task == "multilabel" else [_name(value)])}
    if all(_number(name) is not None for name in names):
        return tuple(sorted(names, key=float))
    return tuple(sorted(names))


def encode_targets(targets: Sequence[object], task: Task, labels: Sequence[str], *, column: str) -> NDArray[Any]:
    """Turn raw values into what the loss takes.

    Returns:
        Classification: (N,) int64 class numbers; multilabel: (N, C) float32 zeros and ones; regression:
        (N,) float32.

    Raises:
        TableError: a value is no number, or a class that is not among the labels.
    """
    if task == "regression":
        numbers = [_number(value) for value in targets]
        if None in numbers:
            n = numbers.index(None)
            raise TableError(f"Column {column!r} holds {targets[n]!r}; regression needs finite numbers everywhere.")
        return np.asarray(numbers, dtype=np.float32)
    position = {name: c for c, name in enumerate(labels)}
    rows = [_names(value) if task == "multilabel" else [_name(value)] for value in targets]
    unknown = sorted({name for row in rows for name in row if name not in position})
    if unknown:
        raise TableError(
            f"Column {column!r} holds {unknown[0]!r}, which no training row has; known are "
            f"{', '.join(labels[:8])}{' …' if len(labels) > 8 else ''}."
        )
    if task == "classification":
        return np.asarray([position[row[0]] for row in rows], dtype=np.int64)
    encoded = np.zeros((len(rows), len(labels)), dtype=np.float32)
    for n, row in enumerate(rows):
        encoded[n, [position[name] for name in row]] = 1
    return encoded
