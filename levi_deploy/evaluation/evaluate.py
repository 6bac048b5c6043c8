"""Metrics of whatever answers rows, on a table's rows: whole and by group, and how far its doubts can be trusted.

It measures the predictor that it is handed: a bundle's runner, a run's torch model, or anything else with the
three verbs. Without torch for a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.data import encode_targets, read
from levi_deploy.data.source import Table, source_of
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.evaluation.signals import detect_errors, detect_ood
from levi_serving.engine.predictor import Predictor
from levi_serving.errors import UsageError
from levi_serving.predictions import Outputs

__all__ = ["LabelledRows", "answer", "evaluate", "read_labelled"]

_WINDOW = 512

Progress = Callable[[str, float, float], None]


@dataclass(frozen=True, kw_only=True)
class LabelledRows:
    """N rows with answers.

    Attributes:
        rows: N mappings with the columns that a model reads.
        targets: as ``encode_targets`` gives them.
        columns: further columns by name, N values each.
    """

    rows: Sequence[dict[str, object]]
    targets: NDArray[Any]
    columns: Mapping[str, Sequence[object]]

    def take(self, places: NDArray[np.int64]) -> LabelledRows:
        """The chosen rows alone."""
        columns = {name: [values[n] for n in places] for name, values in self.columns.items()}
        return LabelledRows(rows=[self.rows[n] for n in places], targets=self.targets[places], columns=columns)


def evaluate(
    model: Predictor,
    data: Table,
    *,
    target: str,
    columns: Mapping[str, str] | None = None,
    splits: Sequence[str] = (),
    split_column: str = "split",
    by: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model on rows with answers.

    Args:
        model: what answers.
        data: the table.
        target: its column with the answer.
        columns: its column for each of the model's; the same name where not given.
        splits: values of ``split_column``, each measured separately; all rows together when empty. The first is
            the in-distribution one, against which OOD detection is measured on the others.
        split_column: the column with each row's split.
        by: a column; each of its values is measured too.
        progress: given what is measured, rows done, all rows.

    Returns:
        ``splits``: by split, by group (``all`` first), the metrics of ``evaluation.metrics``.
        ``errors``: by split, how well each signal ranks its errors, see ``evaluation.signals.detect_errors``.
        ``ood``: by each further split, how well each signal detects its rows among those of the first.
        ``abstain``: by split, the ``share`` of rows above the model's threshold, and the first metric on the
        ``kept`` ones, how many they are beside it. ``abstain_above``: that threshold; None where it has none.

    Raises:
        UsageError: a split has no rows.
        TableError: the table lacks a column, or a row cannot be used.
    """
    further = ([split_column] if splits else []) + ([by] if by else [])
    labelled = read_labelled(model, data, target=target, columns=columns or {}, further=further)
    task = model.task
    where = source_of(data)
    result: dict[str, Any] = {"data": Path(where).name, "task": task.kind, "abstain_above": task.abstain_above}
    result |= {"splits": {}, "errors": {}, "ood": {}, "abstain": {}}
    first = None
    for split, places in _chosen(labelled, splits, split_column, where).items():
        own = labelled.take(places)
        outputs = answer(model, own.rows, progress=(lambda *a, what=split: progress(what, *a)) if progress else None)
        predictions = model.finish(outputs)
        result["splits"][split] = {
            name: metrics(model.finish(outputs.take(members)), own.targets[members], task)
            for name, members in _groups(own, by).items()
        }
        result["errors"][split] = detect_errors(predictions, own.targets, task.kind)
        name = next(name for name in result["splits"][split]["all"] if name != "rows")  # the first metric
        result["abstain"][split] = _kept(model, outputs, ~predictions.abstain, own.targets, name)
        if first is None:
            first = predictions
        else:
            result["ood"][split] = detect_ood(first, predictions, task.kind)
    return result


def read_labelled(
    model: Predictor, data: Table, *, target: str, columns: Mapping[str, str], further: Sequence[str] = ()
) -> LabelledRows:
    """Read the rows of a table that a model reads, with their answers.

    Raises:
        TableError: the table lacks a column, or a row cannot be used.
        UsageError: there is no such file, or ``columns`` has one that the model does not read.
    """
    settings = model.preprocessor.settings
    names = settings.columns_in(columns)  # the model's: the table's
    table = read(
        data,
        inputs=list(names.values()),
        target=target,
        texts=[names[own] for own in (settings.text.columns if settings.text else ())],
        files=[names[own] for own in settings.files],
        further=further,
        empty=model.task.kind == "multilabel",
    )
    rows = [{own: row[name] for own, name in names.items()} for row in table.rows]
    targets = encode_targets(table.targets, model.task, column=target)
    return LabelledRows(rows=rows, targets=targets, columns=table.columns)


def answer(
    model: Predictor, rows: Sequence[dict[str, object]], *, progress: Callable[[int, int], None] | None = None
) -> Outputs:
    """Ask a model about N rows, a window at a time."""
    parts = []
    for start in range(0, len(rows), _WINDOW):
        parts.append(model.run(model.prepare(rows[start : start + _WINDOW])))
        if progress is not None:
            progress(min(start + _WINDOW, len(rows)), len(rows))
    return Outputs.joined(parts)


def _chosen(labelled: LabelledRows, splits: Sequence[str], column: str, data: str) -> dict[str, NDArray[np.int64]]:
    """The rows of each split."""
    if not splits:
        return {"all rows": np.arange(len(labelled.rows))}
    names = np.asarray([str(value) for value in labelled.columns[column]])
    chosen = {split: np.flatnonzero(names == split) for split in splits}
    for split, rows in chosen.items():
        if not len(rows):
            found = ", ".join(sorted(set(names.tolist()))[:8])
            raise UsageError(f"`splits` has {split!r}, but no row of {data} has {column} = {split!r}; found {found}.")
    return chosen


def _groups(labelled: LabelledRows, by: str | None) -> dict[str, NDArray[np.int64]]:
    """All rows, and those of each value of a column."""
    groups = {"all": np.arange(len(labelled.rows))}
    if by:
        values = np.asarray([str(value) for value in labelled.columns[by]])
        groups |= {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
    return groups


def _kept(
    model: Predictor, outputs: Outputs, keep: NDArray[np.bool_], targets: NDArray[Any], name: str
) -> dict[str, Any]:
    """The share of rows left out, and a metric on those that are kept; None where none is."""
    measured = metrics(model.finish(outputs.take(keep)), targets[keep], model.task)[name] if keep.any() else None
    return {"share": float((~keep).mean()), "kept": int(keep.sum()), name: measured}
