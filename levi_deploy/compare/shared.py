"""What all runs of a comparison share: their rows, and where things lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.config import Config
from levi_deploy.data import encode_targets, read
from levi_deploy.data.dataset import VALIDATION_SPLITS
from levi_deploy.training import Prepared
from levi_serving.errors import UsageError
from levi_serving.predictions import Task

__all__ = ["Progress", "Shared", "TestRows", "read_test_rows", "silent"]

Progress = Callable[[str, float, float], None]


def silent(step: str, done: float, total: float) -> None:
    """No progress."""


@dataclass(frozen=True, kw_only=True)
class TestRows:
    """Rows that no choice has seen.

    Attributes:
        rows: by split, what a model reads.
        targets: by split, as ``encode_targets`` gives them.
        groups: by split, by group (``all`` first), places of its rows.
        task: what is answered.
    """

    __test__ = False  # no test, for pytest

    rows: Mapping[str, Sequence[dict[str, object]]]
    targets: Mapping[str, NDArray[Any]]
    groups: Mapping[str, Mapping[str, NDArray[np.int64]]]
    task: Task

    def counts(self) -> dict[str, int]:
        """How many rows each split has."""
        return {split: len(rows) for split, rows in self.rows.items()}


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all runs of a comparison share.

    Attributes:
        output: the report's folder.
        prepared: training and validation rows.
        test: rows that no choice has seen.
        cache: where taps are kept.
        progress: given what is being done, steps done, and all steps.
    """

    output: Path
    prepared: Prepared
    test: TestRows
    cache: Path
    progress: Progress = silent


def read_test_rows(
    data: Path, config: Config, prepared: Prepared, *, splits: Sequence[str] = (), by: str | None = None
) -> TestRows:
    """Read the rows of the table that are neither for training nor for validation.

    Args:
        data: the table.
        config: its columns.
        prepared: its training rows, which say what is answered and how rows are read.
        splits: values of the split column, the in-distribution one first; all others when empty.
        by: a column; each of its values is a group.

    Raises:
        UsageError: a split has no rows, or there is none to test on.
        TableError: the table lacks a column, or a row cannot be used.
    """
    settings, column, target = prepared.preprocessing, str(config.data.split_column), config.data.target
    table = read(
        data,
        inputs=settings.names,
        target=target,
        texts=settings.text.columns if settings.text else (),
        files=settings.files,
        further=[column, *([by] if by else [])],
        empty=prepared.task.kind == "multilabel",
    )
    names = np.asarray([str(value) for value in table.columns[column]])
    found = list(dict.fromkeys(names.tolist()))
    validation = config.data.validation_split or next((name for name in VALIDATION_SPLITS if name in found), None)
    wanted = list(splits) or [name for name in found if name not in (config.data.train_split, validation)]
    for split in wanted:
        if split not in found:
            raise UsageError(f"`splits` has {split!r}, but no row of {data} has {column} = {split!r}; found {found}.")
    if not wanted:
        raise UsageError(f"{data} has no test rows: {column} is one of {found}. Give rows a split of their own.")
    rows, targets, groups = {}, {}, {}
    for split in wanted:
        places = np.flatnonzero(names == split)
        part = table.take(places.tolist())
        rows[split], targets[split] = part.rows, encode_targets(part.targets, prepared.task, column=target)
        groups[split] = {"all": np.arange(len(places))}
        if by:
            values = np.asarray([str(table.columns[by][n]) for n in places])
            groups[split] |= {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
    return TestRows(rows=rows, targets=targets, groups=groups, task=prepared.task)
