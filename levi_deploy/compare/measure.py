"""What a run answers on test rows, from stored taps where its backbone is frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.compare.shared import Shared
from levi_deploy.evaluation import assess
from levi_deploy.run import Run
from levi_deploy.training.fit import predict
from levi_deploy.training.prepare import Examples
from levi_deploy.training.taps import compute
from levi_serving.predictions import Outputs, Task
from levi_serving.rows.preprocess import Preprocessor

__all__ = ["Measured", "measure"]


@dataclass(frozen=True)
class Measured:
    """One run on test rows.

    Attributes:
        taps: the layer that each head reads; None for none.
        found: what ``evaluation.assess`` says of its answers.
        scores: by split, a number a row whose mean is the first metric (regression: its square): 1 where the
            answer is right, or the squared error.
    """

    taps: Sequence[int | None]
    found: Mapping[str, Any]
    scores: Mapping[str, NDArray[np.float64]]


def measure(shared: Shared, run: Run) -> Measured:
    """Answer all test rows and measure each split and group, here or in a process of its own."""
    levi, preprocessor = run.levi(), Preprocessor(run.folder, run.preprocessing)
    frozen = None if run.config.model.lora or run.config.training.train_backbone else levi.backbone
    parts = shared.test.parts
    answers: dict[str, Outputs] = {}
    for split, own in parts.items():
        encoded = preprocessor.encode(own.rows)
        taps = None
        if frozen is not None:
            taps = compute(frozen, encoded, run.config.model.pooling, folder=shared.cache)
        answers[split] = predict(levi, Examples(encoded, own.targets, taps))
        shared.progress(f"{run.folder.parent.name}, {run.folder.name}: test rows", len(answers), len(parts))
    scores = {split: _scores(outputs.logits, parts[split].targets, run.task) for split, outputs in answers.items()}
    found = assess(answers, parts, run.task, by=shared.test.by, pairs=shared.test.pairs)
    model = run.record["model"]
    return Measured([head["tap"] for head in model["heads"]] * model["members"], found, scores)


def _scores(logits: NDArray[np.float32], targets: NDArray[Any], task: Task) -> NDArray[np.float64]:
    if task.kind == "regression":
        return np.square(np.asarray(logits[:, 0] - targets, np.float64))
    right = ((logits > 0) == (targets > 0)).all(axis=1) if task.kind == "multilabel" else logits.argmax(1) == targets
    return np.asarray(right, np.float64)
