"""Metrics of whatever answers rows, on a table's rows: whole and by group, and how far its doubts can be trusted.

It measures the predictor that it is handed: a bundle's runner, a run's torch model, or anything else with the
three verbs. Without torch for a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.data.source import Table, source_of
from levi_deploy.evaluation.labelled import LabelledRows, read_labelled
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.evaluation.pairs import sensitivity
from levi_deploy.evaluation.signals import detect_errors, detect_ood, risk_coverage
from levi_serving.engine.predictor import Predictor
from levi_serving.predictions import Outputs, Task, finish

__all__ = ["answer", "assess", "evaluate"]

_WINDOW = 512

Progress = Callable[[str, float, float], None]


def evaluate(
    model: Predictor,
    data: Table,
    *,
    target: str,
    columns: Mapping[str, str] | None = None,
    splits: Sequence[str] = (),
    split_column: str = "split",
    by: str | None = None,
    pairs: str | None = None,
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
        pairs: a column that versions of one row share the value of, see ``evaluation.pairs``.
        progress: given what is measured, rows done, all rows.

    Returns:
        ``splits``: by split, by group (``all`` first), the metrics of ``evaluation.metrics``.
        ``errors``: by split, how well each signal ranks its errors, see ``evaluation.signals.detect_errors``.
        ``ood``: by each further split, how well each signal detects its rows among those of the first.
        ``abstain``: by split, the ``share`` of rows above the model's threshold, and the first metric on the
        ``kept`` ones, how many they are beside it. ``abstains``: in words, where it does so.
        ``coverage``: by split, how wrong the rows are that a signal trusts most: ``evaluation.signals.risk_coverage``.
        ``pairs``: how far answers move between versions of one row, see ``evaluation.pairs.sensitivity``.

    Raises:
        UsageError: a split has no rows.
        TableError: the table lacks a column, or a row cannot be used.
    """
    parts = read_labelled(
        data,
        model.preprocessor.settings,
        model.task,
        target=target,
        columns=columns,
        split_column=split_column if splits else None,
        splits=splits,
        further=[name for name in (by, pairs) if name],
    )
    answers = {
        split: answer(model, own.rows, progress=(lambda *a, what=split: progress(what, *a)) if progress else None)
        for split, own in parts.items()
    }
    about = {"data": Path(source_of(data)).name, "task": model.task.kind, "abstains": model.task.abstains}
    return about | assess(answers, parts, model.task, by=by, pairs=pairs)


def assess(
    answers: Mapping[str, Outputs],
    parts: Mapping[str, LabelledRows],
    task: Task,
    *,
    by: str | None = None,
    pairs: str | None = None,
) -> dict[str, Any]:
    """Measure what a model answered.

    Args:
        answers: by split, the in-distribution one first.
        parts: by split, the rows that they are of.
        task: what is answered.
        by: a column; each of its values is measured too.
        pairs: a column that versions of one row share the value of.

    Returns:
        ``splits``, ``errors``, ``ood``, ``abstain``, ``coverage`` and ``pairs`` as ``evaluate`` gives them.

    Raises:
        UsageError: no two rows are versions of one.
    """
    result: dict[str, Any] = {"splits": {}, "errors": {}, "ood": {}, "abstain": {}, "coverage": {}}
    first = None
    for split, outputs in answers.items():
        own, predictions = parts[split], finish(outputs, task)
        result["splits"][split] = {
            name: metrics(finish(outputs.take(members), task), own.targets[members], task)
            for name, members in own.groups(by).items()
        }
        result["errors"][split] = detect_errors(predictions, own.targets, task.kind)
        result["coverage"][split] = risk_coverage(predictions, own.targets, task.kind)
        name = next(name for name in result["splits"][split]["all"] if name != "rows")  # the first metric
        result["abstain"][split] = _kept(outputs, ~predictions.abstain, own.targets, task, name)
        if first is None:
            first = predictions
        else:
            result["ood"][split] = detect_ood(first, predictions, task.kind)
    result["pairs"] = sensitivity(answers, parts, task, column=pairs) if pairs else []
    return result


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


def _kept(outputs: Outputs, keep: NDArray[np.bool_], targets: NDArray[Any], task: Task, name: str) -> dict[str, Any]:
    """The share of rows left out, and a metric on those that are kept; None where none is."""
    measured = metrics(finish(outputs.take(keep), task), targets[keep], task)[name] if keep.any() else None
    return {"share": float((~keep).mean()), "kept": int(keep.sum()), name: measured}
