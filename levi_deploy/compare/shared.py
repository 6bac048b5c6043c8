"""What all runs of a comparison share: their rows, and where things lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from levi_deploy.config import Config
from levi_deploy.data.dataset import VALIDATION_SPLITS
from levi_deploy.evaluation.labelled import LabelledRows, read_labelled
from levi_deploy.evaluation.pairs import find_pairs
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
        parts: by split, the in-distribution one first.
        by: the column whose values are groups.
        pairs: the column that versions of one row share the value of.
        task: what is answered.
    """

    __test__ = False  # no test, for pytest

    parts: Mapping[str, LabelledRows]
    by: str | None
    pairs: str | None
    task: Task

    def counts(self) -> dict[str, int]:
        """How many rows each split has."""
        return {split: len(rows) for split, rows in self.parts.items()}


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
    data: Path,
    config: Config,
    prepared: Prepared,
    *,
    splits: Sequence[str] = (),
    by: str | None = None,
    pairs: str | None = None,
) -> TestRows:
    """Read the rows of the table that are neither for training nor for validation.

    Args:
        data: the table.
        config: its columns.
        prepared: its training rows, which say what is answered and how rows are read.
        splits: values of the split column, the in-distribution one first; all others when empty.
        by: a column; each of its values is a group.
        pairs: a column that versions of one row share the value of.

    Raises:
        UsageError: a split has no rows, there is none to test on, or no two rows are versions of one.
        TableError: the table lacks a column, or a row cannot be used.
    """
    parts = read_labelled(
        data,
        prepared.preprocessing,
        prepared.task,
        target=config.data.target,
        split_column=config.data.split_column,
        splits=splits,
        further=[name for name in (by, pairs) if name],
    )
    if not splits:
        validation = config.data.validation_split or next((name for name in VALIDATION_SPLITS if name in parts), None)
        found, column = list(parts), config.data.split_column
        parts = {name: own for name, own in parts.items() if name not in (config.data.train_split, validation)}
        if not parts:
            raise UsageError(f"{data} has no test rows: {column} is one of {found}. Give rows a split of their own.")
    if pairs:
        find_pairs(parts, pairs)
    return TestRows(parts=parts, by=by, pairs=pairs, task=prepared.task)
