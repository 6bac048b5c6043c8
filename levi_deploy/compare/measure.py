"""What a run answers on test rows, from stored taps where its backbone is frozen."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.compare.shared import Shared
from levi_deploy.evaluation import assess
from levi_deploy.evaluation.labelled import LabelledRows
from levi_deploy.model import Levi
from levi_deploy.run import Run
from levi_deploy.training.device import settle
from levi_deploy.training.fit import predict
from levi_deploy.training.prepare import Examples
from levi_deploy.training.taps import compute
from levi_serving import atomic
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
    parts, answers = shared.test.parts, _Answers(shared, run)
    found = {}
    for split, own in parts.items():
        found[split] = answers.of(own)
        shared.progress(f"{run.folder.parent.name}, {run.folder.name}: test rows", len(found), len(parts))
    scores = {split: _scores(outputs.logits, parts[split].targets, run.task) for split, outputs in found.items()}
    model = run.record["model"]
    return Measured(
        [head["tap"] for head in model["heads"]] * model["members"],
        assess(found, parts, run.task, by=shared.test.by, pairs=shared.test.pairs),
        scores,
    )


class _Answers:
    """What a run answers, kept in ``answers/METHOD/RUN`` of the report's folder, so that no rows are answered twice."""

    def __init__(self, shared: Shared, run: Run) -> None:
        self.shared, self.run = shared, run
        self.folder = shared.output / "answers" / run.folder.parent.name / run.folder.name

    @cached_property
    def levi(self) -> Levi:
        """Loaded where it is needed."""
        return self.run.levi().to(settle(self.run.config.training.device))

    def of(self, rows: LabelledRows) -> Outputs:
        """The answers to these rows."""
        file = self.folder / f"{rows.digest}.npz"
        if file.is_file():
            with np.load(file) as stored:
                return Outputs.of(dict(stored))
        outputs = self._predict(rows)
        buffer, arrays = io.BytesIO(), dict[str, Any](outputs.arrays)
        np.savez(buffer, **arrays)
        self.folder.mkdir(parents=True, exist_ok=True)
        atomic.write(file, buffer.getvalue())
        return outputs

    def _predict(self, rows: LabelledRows) -> Outputs:
        run, backbone = self.run, self.levi.backbone
        encoded, taps = Preprocessor(run.folder, run.preprocessing).encode(rows.rows), None
        if backbone is not None and not run.config.model.lora and not run.config.training.train_backbone:
            taps = compute(backbone, encoded, run.config.model.pooling, folder=self.shared.cache)
        return predict(self.levi, Examples(encoded, rows.targets, taps))


def _scores(logits: NDArray[np.float32], targets: NDArray[Any], task: Task) -> NDArray[np.float64]:
    if task.kind == "regression":
        return np.square(np.asarray(logits[:, 0] - targets, np.float64))
    right = ((logits > 0) == (targets > 0)).all(axis=1) if task.kind == "multilabel" else logits.argmax(1) == targets
    return np.asarray(right, np.float64)
