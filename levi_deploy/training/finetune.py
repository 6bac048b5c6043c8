"""Train a whole backbone first, for LEVI on a fine-tuned backbone (the paper's Remark 5). It is frozen after.

A linear head reads the pooled last layer; the head is thrown away. It knows no branch and no adapting layer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from levi_deploy.config import TrainingConfig
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.heads import prediction_loss
from levi_deploy.model.pooling import FixedPooling
from levi_deploy.training.fit import Examples
from levi_serving.predictions import Task

__all__ = ["fine_tune"]

Progress = Callable[[int, int], None]


def fine_tune(
    source: str,
    folder: Path,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    *,
    task: Task,
    outputs: int,
    progress: Progress | None = None,
) -> None:
    """Fine-tune a backbone and write it to a folder, its best epoch by ID validation loss.

    AdamW with a linear decay to zero and no warm-up beyond a twentieth. A folder that is there is whole:
    it is written aside and renamed.

    Args:
        source: a hub id or a folder.
        folder: where it goes.
        train: training rows; their taps are not read.
        validation: ID validation rows.
        config: epochs, rate, batch size and seed.
        task: what the targets are.
        outputs: C.
        progress: told rows done and all rows, over all epochs.
    """
    torch.manual_seed(config.seed)
    backbone = Backbone.load(source, lambda depth: (depth,))
    backbone.requires_grad_(True)
    identity = backbone.identity
    pool = FixedPooling("last" if identity.causal else "mean", identity.widths[-1])
    head = nn.Linear(identity.widths[-1], outputs)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.fine_tune_rate, weight_decay=config.weight_decay)
    scale = float(max(train.targets.std(), 1e-6)) if task == "regression" else 1.0
    shift = float(train.targets.mean()) if task == "regression" else 0.0

    def loss(examples: Examples, rows: np.ndarray) -> torch.Tensor:
        _, inputs = examples.batch(rows)
        hidden = backbone(inputs)[0]
        pooled = pool(hidden, inputs["attention_mask"] if identity.modality == "text" else None)
        targets = torch.from_numpy(examples.targets[rows])
        return prediction_loss(head(pooled) * scale + shift, targets, task) / scale**2

    steps, done = config.fine_tune * -(-len(train) // config.batch_size), 0
    lowest = float("inf")
    aside = folder.with_name(folder.name + ".partial")
    for epoch in range(config.fine_tune):
        backbone.model.train()
        order = np.random.default_rng([config.seed, epoch]).permutation(len(train))
        for start in range(0, len(order), config.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = config.fine_tune_rate * min(1.0, 20 * (done + 1) / steps) * (1 - done / steps)
            optimizer.zero_grad()
            torch.autograd.backward(loss(train, order[start : start + config.batch_size]))
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            done += 1
            if progress is not None:
                progress(done, steps)
        backbone.model.eval()
        with torch.inference_mode():
            rows = np.arange(len(validation))
            parts = [loss(validation, rows[n : n + 64]).item() * len(rows[n : n + 64]) for n in range(0, len(rows), 64)]
        if sum(parts) < lowest:
            lowest = sum(parts)
            shutil.rmtree(aside, ignore_errors=True)
            backbone.model.save_pretrained(aside)
    aside.rename(folder)
