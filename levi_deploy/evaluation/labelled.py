"""Rows with answers, by split and by group, as a model reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.data import encode_targets, read
from levi_deploy.data.source import Table, source_of
from levi_serving.errors import UsageError
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Preprocessing

__all__ = ["LabelledRows", "read_labelled"]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """N rows with answers.

    Attributes:
        rows: N mappings with the columns that a model reads.
        targets: as ``encode_targets`` gives them.
        columns: further columns by name, N values each.
        digest: SHA-256 over rows and raw targets.
    """

    rows: Sequence[dict[str, object]]
    targets: NDArray[Any]
    columns: Mapping[str, Sequence[object]]
    digest: str

    def __len__(self) -> int:
        return len(self.rows)

    def groups(self, by: str | None) -> dict[str, NDArray[np.int64]]:
        """Places of all rows, ``all``, and of those with each value of a column."""
        groups = {"all": np.arange(len(self))}
        if by:
            values = np.asarray([str(value) for value in self.columns[by]])
            groups |= {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
        return groups


def read_labelled(
    data: Table,
    preprocessing: Preprocessing,
    task: Task,
    *,
    target: str,
    columns: Mapping[str, str] | None = None,
    split_column: str | None = None,
    splits: Sequence[str] = (),
    further: Sequence[str] = (),
) -> dict[str, LabelledRows]:
    """Read the rows of a table that a model reads, with their answers.

    Args:
        data: the table.
        preprocessing: what the model reads.
        task: what it answers.
        target: the column with the answer.
        columns: the table's column for each of the model's; the same name where not given.
        split_column: the column with each row's split; without one all rows are together.
        splits: its values, in this order; all of them, as the table has them, when empty.
        further: other columns that are needed.

    Returns:
        By split, its rows; ``all rows`` without a split column.

    Raises:
        TableError: the table lacks a column, or a row cannot be used.
        UsageError: there is no such file, a split has no rows, or ``columns`` has one that the model does not read.
    """
    names = preprocessing.columns_in(columns or {})  # the model's: the table's
    table = read(
        data,
        inputs=list(names.values()),
        target=target,
        texts=[names[own] for own in (preprocessing.text.columns if preprocessing.text else ())],
        files=[names[own] for own in preprocessing.files],
        further=[*further, *([split_column] if split_column else [])],
        empty=task.kind == "multilabel",
    )
    places = {"all rows": np.arange(len(table))}
    if split_column:
        values = np.asarray([str(value) for value in table.columns[split_column]])
        found = list(dict.fromkeys(values.tolist()))
        places = {split: np.flatnonzero(values == split) for split in splits or found}
        for split, rows in places.items():
            if not len(rows):
                raise UsageError(
                    f"`splits` has {split!r}, but no row of {source_of(data)} has {split_column} = {split!r}; "
                    f"found {', '.join(sorted(found)[:8])}."
                )
    parts = {}
    for split, rows in places.items():
        part = table.take(rows.tolist())
        parts[split] = LabelledRows(
            rows=[{own: row[name] for own, name in names.items()} for row in part.rows],
            targets=encode_targets(part.targets, task, column=target),
            columns=part.columns,
            digest=part.digest,
        )
    return parts
