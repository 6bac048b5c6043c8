"""From a table to what training needs: rows, targets by task, and which rows are which.

Every way in which a table can be wrong is refused here, before any work is done. No torch.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from levi_deploy.config import DataConfig
from levi_deploy.data.source import Table, read_source, source_of
from levi_deploy.data.targets import encode_targets, find_labels, refuse_gaps, tell_task
from levi_serving.errors import TableError, UsageError
from levi_serving.predictions import Task
from levi_serving.rows.text import text_problem
from levi_serving.tables import located

__all__ = ["Dataset", "TrainingData", "load", "read"]

VALIDATION_SPLITS = ("id_val", "validation", "val", "valid", "dev")
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
    digest = hashlib.sha256()
    for row in zip(rows, targets, strict=True):
        digest.update(repr(row).encode("utf-8", "surrogatepass"))
    return Dataset(rows=rows, targets=targets, columns=columns, digest=digest.hexdigest())


def read(
    data: Table,
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
        data: CSV, TSV, JSONL, Parquet, a folder of images with one folder a class, or rows in memory; paths of files
            in those are found from the working directory.
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
    path = source_of(data)
    table = read_source(data, list(dict.fromkeys([*inputs, target, *further])))
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
        values[name] = located(values[name], data if isinstance(data, Path) else None)
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
class TrainingData:
    """What a training run learns from.

    Attributes:
        train: training rows.
        validation: in-distribution validation rows.
        task: what is answered; its labels are from training rows.
        validation_from: in words, where the validation rows come from.
        sources: what training and validation rows were read from, in words.
    """

    train: Dataset
    validation: Dataset
    task: Task
    validation_from: str
    sources: tuple[str, str]


def load(rows: Table, data: DataConfig, *, validation: Table | None = None, seed: int = 0) -> TrainingData:
    """Read training and validation rows and find the task and its labels.

    Validation rows are another file, or another value of the split column, or (with neither) a tenth
    of the training rows drawn by the seed.

    Raises:
        TableError, UsageError: what is wrong with the table or the choice of rows.
    """
    if validation is not None and data.split_column is not None:
        raise UsageError("Both `split_column` and `validation` are given. Give one of them.")
    path = source_of(rows)
    table = _read(rows, data, [name for name in (data.split_column, data.domain) if name is not None])
    if validation is not None:
        train, held_out = table, _read(validation, data)
        source = Path(source_of(validation)).name
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
        refuse_gaps(part.targets, data.target)
    kind = tell_task(train.targets) if data.task == "auto" else data.task
    labels = find_labels(train.targets, kind, data.target)
    if kind == "classification" and len(labels) < 2:
        raise UsageError(
            f"Column {data.target!r} of the training rows has only the value {labels[0]!r}; "
            "classification needs at least two classes."
        )
    if not labels:
        raise UsageError(f"Column {data.target!r} of the training rows has no label at all; multilabel needs one.")
    task = Task(kind=kind, labels=labels)
    for part in (train, held_out):
        encode_targets(part.targets, task, column=data.target)
    return TrainingData(
        train=train,
        validation=held_out,
        task=task,
        validation_from=source,
        sources=(path, path if validation is None else source_of(validation)),
    )


def _read(rows: Table, data: DataConfig, further: Sequence[str] = ()) -> Dataset:
    texts = [name for name in (data.text, data.text_pair) if name is not None]
    files = [data.image] if data.image else []
    return read(
        rows,
        inputs=data.inputs,
        target=data.target,
        texts=texts,
        files=files,
        further=further,
        empty=data.task == "multilabel",
    )


def _split(table: Dataset, data: DataConfig, path: str) -> tuple[Dataset, Dataset, str]:
    column = data.split_column or ""
    names = [str(value) for value in table.columns[column]]
    counts = Counter(names)
    found = ", ".join(f"{name} ({count})" for name, count in counts.most_common(8))
    wanted = data.validation_split or next((name for name in VALIDATION_SPLITS if name in counts), None)
    for name, setting in ((data.train_split, "train_split"), (wanted, "validation_split")):
        if name is None or name not in counts:
            what = f"no rows with {name!r}" if name else f"none of {', '.join(VALIDATION_SPLITS)}"
            raise UsageError(f"Column {column!r} of {path} has {what}; it has {found}. Choose with `{setting}`.")
    parts = [table.take([n for n, name in enumerate(names) if name == part]) for part in (data.train_split, wanted)]
    return parts[0], parts[1], f"rows with {column} = {wanted}"
