"""Metrics of a run or a bundle on a table's rows, whole and by group. Without torch for a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from levi_deploy.dataset import encode_targets, read
from levi_deploy.evaluation.metrics import metrics
from levi_serving.errors import UsageError
from levi_serving.predictions import Outputs, Predictions, Task, finish
from levi_serving.preprocess import Preprocessing
from levi_serving.session import Device

__all__ = ["evaluate"]

_WINDOW = 512

Progress = Callable[[str, float, float], None]


def evaluate(
    model: Path,
    data: Path,
    *,
    text: str | None = None,
    image: str | None = None,
    target: str | None = None,
    splits: Sequence[str] = (),
    split_column: str = "split",
    by: str | None = None,
    backbone: str | None = None,
    device: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a model on rows with answers.

    Args:
        model: a run or a bundle.
        data: the table.
        text: column with the text; the model's own when None.
        image: column with the image; likewise.
        target: column with the answer; the model's own when None.
        splits: values of ``split_column``, each measured apart; all rows together when empty.
        split_column: tells rows apart.
        by: a column; each of its values is measured too.
        backbone: where a run's backbone lies now.
        device: for a bundle.
        progress: told what, rows done, all rows.

    Returns:
        ``splits``: by split, by group (``all`` first), the metrics of ``evaluation.metrics``.

    Raises:
        UsageError: a split has no rows.
        TableError, BundleError, RunError, ProviderError: as the parts raise them.
    """
    answer, task, labels, preprocessing, own_target = _model(model, backbone, device)
    target = target or own_target
    further = ([split_column] if splits else []) + ([by] if by else [])
    names = {name: name for name in preprocessing.names}  # the model's: the table's
    for part, given in ((preprocessing.text, text), (preprocessing.image, image)):
        if part is not None and given is not None:
            names[part.column] = given
    table = read(
        data,
        inputs=list(names.values()),
        target=target,
        texts=[names[name] for name in (preprocessing.text.columns if preprocessing.text else ())],
        files=[names[name] for name in preprocessing.files],
        further=further,
    )
    targets = encode_targets(table.targets, task, labels, column=target)
    chosen = _chosen(table.columns.get(split_column, []), splits, split_column, data, len(table))
    result: dict[str, Any] = {"model": model.name, "data": data.name, "task": task, "splits": {}}
    for split, rows in chosen.items():
        own = [{name: table.rows[n][given] for name, given in names.items()} for n in rows]
        outputs = _answers(own, answer, split, progress)
        groups = {"all": np.arange(len(rows))}
        if by:
            values = np.asarray([str(table.columns[by][n]) for n in rows])
            groups |= {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
        result["splits"][split] = {
            name: metrics(_take(outputs, members, task, labels), targets[rows[members]], task=task, labels=labels)
            for name, members in groups.items()
        }
    return result


def _model(
    model: Path, backbone: str | None, device: str
) -> tuple[Callable[[Sequence[Any]], Outputs], Task, tuple[str, ...], Preprocessing, str]:
    """A function from rows to outputs, and what the answers mean."""
    if (model / "levi.json").is_file():
        from levi_serving.runner import Runner

        runner = Runner(model, device=cast("Device", device))
        target = runner.bundle.manifest.provenance.get("target", "label")
        return (
            lambda rows: runner.run(runner.prepare(rows)),
            runner.task,
            runner.labels,
            runner.preprocessor.settings,
            target,
        )
    from levi_deploy.training import Run

    run = Run.open(model)
    reference = run.reference(backbone=backbone)
    return (
        lambda rows: reference.run(reference.prepare(rows)),
        run.task,
        run.labels,
        run.preprocessing,
        run.config.data.target,
    )


def _chosen(values: Sequence[object], splits: Sequence[str], column: str, data: Path, count: int) -> dict[str, Any]:
    if not splits:
        return {"all rows": np.arange(count)}
    names = np.asarray([str(value) for value in values])
    chosen = {split: np.flatnonzero(names == split) for split in splits}
    for split, rows in chosen.items():
        if not len(rows):
            found = ", ".join(sorted(set(names.tolist()))[:8])
            raise UsageError(f"No row of {data} has {column} = {split!r}; found {found}. Choose with --split.")
    return chosen


def _answers(
    rows: Sequence[Any], answer: Callable[[Sequence[Any]], Outputs], what: str, progress: Progress | None
) -> Outputs:
    parts = []
    for start in range(0, len(rows), _WINDOW):
        parts.append(answer(rows[start : start + _WINDOW]))
        if progress is not None:
            progress(what, min(start + _WINDOW, len(rows)), len(rows))
    return Outputs(
        np.concatenate([part.logits for part in parts]), np.concatenate([part.head_logits for part in parts])
    )


def _take(outputs: Outputs, rows: Any, task: Task, labels: Sequence[str]) -> Predictions:
    return finish(Outputs(outputs.logits[rows], outputs.head_logits[rows]), task=task, labels=labels)
