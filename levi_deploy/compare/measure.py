"""What a run answers on test rows, from stored taps where its backbone is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.compare.shared import Shared
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.run import Run
from levi_deploy.training.fit import predict
from levi_deploy.training.prepare import Examples
from levi_deploy.training.taps import compute
from levi_serving.predictions import Task, finish
from levi_serving.rows.preprocess import Preprocessor

__all__ = ["Measured", "measure"]


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


def measure(shared: Shared, run: Run) -> Measured:
    """Answer all test rows and measure each split and group, here or in a process of its own."""
    test = shared.test
    levi, preprocessor = run.levi(), Preprocessor(run.folder, run.preprocessing)
    frozen = None if run.config.model.lora or run.config.training.train_backbone else levi.backbone
    found: dict[str, dict[str, Any]] = {}
    scores = {}
    for split, rows in test.rows.items():
        encoded, targets = preprocessor.encode(rows), test.targets[split]
        taps = compute(frozen, encoded, run.config.model.pooling, folder=shared.cache) if frozen is not None else None
        outputs = predict(levi, Examples(encoded, targets, taps))
        found[split] = {
            name: metrics(finish(outputs.take(places), run.task), targets[places], run.task)
            for name, places in test.groups[split].items()
        }
        scores[split] = _scores(outputs.logits, targets, run.task)
        shared.progress(f"{run.folder.parent.name}, {run.folder.name}: test rows", len(scores), len(test.rows))
    return Measured(found, scores)


def _scores(logits: NDArray[np.float32], targets: NDArray[Any], task: Task) -> NDArray[np.float64]:
    if task.kind == "regression":
        return np.square(np.asarray(logits[:, 0] - targets, np.float64))
    right = ((logits > 0) == (targets > 0)).all(axis=1) if task.kind == "multilabel" else logits.argmax(1) == targets
    return np.asarray(right, np.float64)
