"""What a run answers on test rows, from stored taps where its backbone is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.config import Config
from levi_deploy.data import encode_targets, read
from levi_deploy.data.dataset import VALIDATION_SPLITS
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.run import Run
from levi_deploy.training.fit import predict
from levi_deploy.training.prepare import Examples, Prepared
from levi_deploy.training.taps import compute
from levi_serving.errors import UsageError
from levi_serving.predictions import Task, finish
from levi_serving.rows.preprocess import Preprocessor

__all__ = ["Measured", "TestRows", "measure", "read_test_rows"]


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


@dataclass(frozen=True)
class Measured:
    """One run on test rows.

    Attributes:
        metrics: by split, by group, those of ``evaluation.metrics``.
        scores: by split, a number a row whose mean is the first metric (regression: its square): 1 where the
            answer is right, or the squared error.
    """

    metrics: Mapping[str, Mapping[str, Mapping[str, Any]]]
    scores: Mapping[str, NDArray[np.float64]]


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


def measure(run: Run, test: TestRows, *, cache: Path) -> Measured:
    """Answer all test rows and measure each split and group."""
    levi, preprocessor = run.levi(), Preprocessor(run.folder, run.preprocessing)
    frozen = None if run.config.model.lora or run.config.training.train_backbone else levi.backbone
    found: dict[str, dict[str, Any]] = {}
    scores = {}
    for split, rows in test.rows.items():
        encoded, targets = preprocessor.encode(rows), test.targets[split]
        taps = compute(frozen, encoded, run.config.model.pooling, folder=cache) if frozen is not None else None
        outputs = predict(levi, Examples(encoded, targets, taps))
        found[split] = {
            name: metrics(finish(outputs.take(places), run.task), targets[places], run.task)
            for name, places in test.groups[split].items()
        }
        scores[split] = _scores(outputs.logits, targets, run.task)
    return Measured(found, scores)


def _scores(logits: NDArray[np.float32], targets: NDArray[Any], task: Task) -> NDArray[np.float64]:
    if task.kind == "regression":
        return np.square(np.asarray(logits[:, 0] - targets, np.float64))
    right = ((logits > 0) == (targets > 0)).all(axis=1) if task.kind == "multilabel" else logits.argmax(1) == targets
    return np.asarray(right, np.float64)
