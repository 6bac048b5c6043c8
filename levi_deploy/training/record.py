"""What is written down of a finished run, and which of its validation rows are kept for the proof at export."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from levi_deploy.config import Config
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.model.architecture import architecture, parameters
from levi_deploy.model.levi import Levi
from levi_deploy.run import Run
from levi_deploy.training.device import half, title
from levi_deploy.training.prepare import Prepared
from levi_serving.environment import versions
from levi_serving.predictions import Predictions, Task

__all__ = ["record"]

_SAMPLES = 512  # enough to see half a point of a metric
_FEWEST, _SAMPLES_BYTES = 64, 32_000_000
_MADE_WITH = ("levi-deploy", "torch", "transformers", "tokenizers", "numpy")


def record(
    prepared: Prepared,
    levi: Levi,
    task: Task,
    predictions: Predictions,
    *,
    output: Path,
    config: Config,
    stages: Sequence[int],
    history: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
    device: torch.device,
    further: Mapping[str, Any],
) -> Run:
    """Write a finished run: its weights, what it was trained on, and what came of it.

    Args:
        prepared: the rows.
        levi: trained.
        task: with the threshold for abstaining.
        predictions: of the validation rows.
        output: the run's folder.
        config: of the run.
        stages: M of each branch.
        history: a record an epoch; empty where no epoch was trained.
        seconds: that each act took.
        device: that it was trained on.
        further: what else it says: the ``selection`` that was made, the ``origin`` in other runs.
    """
    identity = levi.backbone.identity if levi.backbone is not None else prepared.backbone
    model = architecture(levi, identity, stages)
    run = Run(
        folder=output,
        config=config,
        task=task,
        taps=levi.ensemble.taps,
        backbone=identity,
        preprocessing=prepared.preprocessing,
        record={
            "target": config.data.target,
            "data": dict(prepared.source),
            "model": model,
            "parameters": parameters(model, identity, outputs=task.outputs),
            "temperature": round(float(levi.ensemble.temperature), 4),
            "best_epoch": min(history, key=lambda record: record["validation_loss"])["epoch"] if history else 0,
            "epochs": len(history),
            "validation": metrics(predictions, prepared.validation.targets, task),
            "device": title(device),
            "threads": torch.get_num_threads(),
            **further,
            "backbone_passes": "float32" if isinstance(half(device), nullcontext) else "bfloat16",
            "seconds": {name: round(value, 2) for name, value in seconds.items()},
            "versions": {"python": platform.python_version(), **versions(_MADE_WITH)},
        },
    )
    adapters = levi.backbone.adapters() if levi.backbone is not None else {}
    rows = prepared.validation_rows
    places = _samples(rows, prepared.validation.encoded.costs, prepared.preprocessing.files)
    targets = prepared.validation.targets[places]
    run.save(levi.ensemble, [rows[n] for n in places], targets, adapters=adapters)
    return run


def _samples(rows: Sequence[dict[str, object]], costs: NDArray[np.int64], files: Sequence[str]) -> list[int]:
    """Places of rows of all lengths, short to long, for the proof at export; fewer where their images are large."""
    order = np.argsort(costs, kind="stable")
    count = min(_SAMPLES, len(order))
    while True:
        places: list[int] = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))].tolist()
        if count <= _FEWEST or sum(_size(rows[n][name]) for n in places for name in files) <= _SAMPLES_BYTES:
            return places
        count = max(_FEWEST, count // 2)


def _size(image: object) -> int:
    return len(image) if isinstance(image, bytes) else Path(str(image)).stat().st_size
