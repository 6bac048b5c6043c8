"""Metrics of a run or a bundle on a table's rows, whole and by group, and how far its doubts can be trusted.

Without torch for a bundle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from levi_deploy.dataset import encode_targets, read
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.evaluation.signals import detected, ranked
from levi_serving.errors import UsageError
from levi_serving.predictions import Outputs, Predictions, Task
from levi_serving.preprocess import Encoded, Preprocessor, Row
from levi_serving.session import Device

__all__ = ["evaluate"]

_WINDOW = 512

Progress = Callable[[str, float, float], None]


class _Served(Protocol):
    """What a bundle's runner and a run's torch model have in common."""

    task: Task
    labels: tuple[str, ...]
    abstain_above: float | None
    preprocessor: Preprocessor

    def prepare(self, rows: Sequence[Row]) -> Encoded: ...
    def run(self, encoded: Encoded) -> Outputs: ...
    def finish(self, outputs: Outputs) -> Predictions: ...


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
        splits: values of ``split_column``, each measured apart; all rows together when empty. The first is
            the in-distribution one, from which rows of the others are told.
        split_column: tells rows apart.
        by: a column; each of its values is measured too.
        backbone: where a run's backbone lies now.
        device: for a bundle.
        progress: told what, rows done, all rows.

    Returns:
        ``splits``: by split, by group (``all`` first), the metrics of ``evaluation.metrics``.
        ``errors``: by split, how well each signal ranks its errors, see ``evaluation.signals.ranked``.
        ``ood``: by each further split, how well each signal tells its rows from those of the first.
        ``abstain``: by split, the ``share`` of rows above the model's threshold, and the first metric on the
        ``kept`` ones, how many they are beside it. ``abstain_above``: that threshold; None where it has none.

    Raises:
        UsageError: a split has no rows, or a column is named for what the model does not read.
        TableError, BundleError, RunError, ProviderError: as the parts raise them.
    """
    served, own_target = _model(model, backbone, device)
    task, labels, preprocessing = served.task, served.labels, served.preprocessor.settings
    target = target or own_target
    further = ([split_column] if splits else []) + ([by] if by else [])
    names = {name: name for name in preprocessing.names}  # the model's: the table's
    for option, part, given in (("text", preprocessing.text, text), ("image", preprocessing.image, image)):
        if given is not None and part is None:
            raise UsageError(
                f"{option} is {given!r}, but this model reads {', '.join(map(repr, names))}. Leave it out."
            )
        if given is not None and part is not None:
            names[part.column] = given
    table = read(
        data,
        inputs=list(names.values()),
        target=target,
        texts=[names[name] for name in (preprocessing.text.columns if preprocessing.text else ())],
        files=[names[name] for name in preprocessing.files],
        further=further,
        empty=task == "multilabel",
    )
    targets = encode_targets(table.targets, task, labels, column=target)
    chosen = _chosen(table.columns.get(split_column, []), splits, split_column, data, len(table))
    result: dict[str, Any] = {"model": model.name, "data": data.name, "task": task}
    result |= {"abstain_above": served.abstain_above, "splits": {}, "errors": {}, "ood": {}, "abstain": {}}
    first: Predictions | None = None
    for split, rows in chosen.items():
        own = [{name: table.rows[n][given] for name, given in names.items()} for n in rows]
        outputs = _answers(own, served, split, progress)
        groups = {"all": np.arange(len(rows))}
        if by:
            values = np.asarray([str(table.columns[by][n]) for n in rows])
            groups |= {value: np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
        result["splits"][split] = {
            name: metrics(served.finish(_take(outputs, members)), targets[rows[members]], task=task, labels=labels)
            for name, members in groups.items()
        }
        predictions = served.finish(outputs)
        result["errors"][split] = ranked(predictions, targets[rows], task)
        name = next(name for name in result["splits"][split]["all"] if name != "rows")  # the first metric
        result["abstain"][split] = _kept(served, outputs, ~predictions.abstain, targets[rows], name)
        if first is None:
            first = predictions
        else:
            result["ood"][split] = detected(first, predictions, task)
    return result


def _kept(
    served: _Served, outputs: Outputs, keep: NDArray[np.bool_], targets: NDArray[Any], name: str
) -> dict[str, Any]:
    """The share of rows left out, and a metric on those that are kept; None where none is."""
    kept = served.finish(_take(outputs, keep))
    measured = metrics(kept, targets[keep], task=served.task, labels=served.labels)[name] if keep.any() else None
    return {"share": float((~keep).mean()), "kept": int(keep.sum()), name: measured}


def _model(model: Path, backbone: str | None, device: str) -> tuple[_Served, str]:
    """What answers, and the column with the answer in training."""
    if (model / "levi.json").is_file():
        from levi_serving.runner import Runner

        runner = Runner(model, device=cast("Device", device))
        return runner, runner.bundle.manifest.provenance.get("target", "label")
    from levi_deploy.training import Run

    run = Run.open(model)
    return run.reference(backbone=backbone), run.config.data.target


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


def _answers(rows: Sequence[Any], served: _Served, what: str, progress: Progress | None) -> Outputs:
    parts = []
    for start in range(0, len(rows), _WINDOW):
        parts.append(served.run(served.prepare(rows[start : start + _WINDOW])))
        if progress is not None:
            progress(what, min(start + _WINDOW, len(rows)), len(rows))
    return Outputs(
        np.concatenate([part.logits for part in parts]), np.concatenate([part.head_logits for part in parts])
    )


def _take(outputs: Outputs, rows: NDArray[Any]) -> Outputs:
    return Outputs(outputs.logits[rows], outputs.head_logits[rows])
