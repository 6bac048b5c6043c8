"""Fit what trains to stored taps: AdamW, the best epoch by ID validation loss, resumable, reproducible.

Each epoch draws from (seed, epoch) alone, so a run that was killed and resumed gives the same weights,
bit for bit on one machine, as one that was not. It knows no files of data; it runs a
backbone only where adapters in it train.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from levi_deploy.config import TrainingConfig
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.heads import loss, prediction_loss
from levi_deploy.model.levi import Ensemble
from levi_deploy.training.augment import flip_crop
from levi_deploy.training.taps import Taps
from levi_serving.errors import LeviError
from levi_serving.predictions import Outputs, Task
from levi_serving.preprocess import Encoded

__all__ = ["Examples", "class_weights", "fit", "predict"]

_BUCKET = 16  # batches whose rows are sorted by length together, to pad less

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Examples:
    """N rows with their taps and encoded targets; ``taps`` is None where they are not stored, or not read."""

    encoded: Encoded
    taps: Taps | None
    targets: NDArray[Any]

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, rows: NDArray[np.int64]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The chosen rows' taps, and their inputs by name."""
        inputs = {name: torch.from_numpy(array) for name, array in self.encoded.batch(rows).items()}
        return self.taps.batch(rows) if self.taps is not None else [], inputs


def fit(
    ensemble: Ensemble,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    *,
    state: Path,
    on_epoch: Callable[[list[dict[str, Any]]], None],
    progress: Progress | None = None,
    backbone: Backbone | None = None,
) -> list[dict[str, Any]]:
    """Train until the validation loss stops falling, and leave the best epoch's weights in ``ensemble``.

    Args:
        ensemble: freshly made; regression's shift and scale are set.
        train: training rows.
        validation: ID validation rows; they choose the epoch and nothing else.
        config: how.
        state: where the run's state goes after each epoch; one that is there is gone on from.
        on_epoch: told the history after each epoch.
        progress: told rows done and all rows, within an epoch.
        backbone: runs in every step, for examples without stored taps; its adapters train too.

    Returns:
        The history: a record an epoch.

    Raises:
        LeviError: the loss is no longer finite.
    """
    weights = torch.tensor(config.head_weights or (1.0,) * len(ensemble.heads))
    classes = class_weights(train.targets, ensemble.task) if config.class_weights == "balanced" else None
    trained = nn.ModuleDict({"ensemble": ensemble, **({"backbone": backbone} if backbone is not None else {})})
    parameters = [p for p in trained.parameters() if p.requires_grad]
    matrices = [p for p in parameters if p.dim() > 1]
    rest = [p for p in parameters if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}],
        lr=config.learning_rate,
    )
    best = {name: tensor.clone() for name, tensor in _weights(trained).items()}
    history = _resume(state, trained, optimizer, best)
    if history:
        on_epoch(history)
    while len(history) < config.epochs and not _finished(history, config.patience):
        epoch = len(history) + 1
        started = time.perf_counter()
        training_loss = _epoch(ensemble, train, config, epoch, optimizer, weights, classes, progress, backbone)
        outputs = predict(ensemble, validation, backbone=backbone)
        validation_loss = _validation_loss(outputs, validation.targets, ensemble)
        if not np.isfinite([training_loss, validation_loss]).all():
            raise LeviError(
                f"The loss of epoch {epoch} is {training_loss} in training and {validation_loss} in validation: "
                "training has diverged. Lower --learning-rate, and look for extreme values in the targets."
            )
        history.append(
            {
                "epoch": epoch,
                "train_loss": training_loss,
                "validation_loss": validation_loss,
                "learning_rate": optimizer.param_groups[0]["lr"],
                "seconds": round(time.perf_counter() - started, 3),
            }
        )
        if _best(history) == epoch:
            best = {name: tensor.clone() for name, tensor in _weights(trained).items()}
        _save(state, trained, optimizer, best, history)
        on_epoch(history)
    trained.load_state_dict(best, strict=False)
    ensemble.eval()
    return history


def _weights(trained: nn.Module) -> dict[str, Tensor]:
    """All that trains, and the ensemble's buffers: of a backbone its adapters alone."""
    state: dict[str, Tensor] = trained.state_dict()
    return {name: tensor for name, tensor in state.items() if name.startswith("ensemble.") or "lora_" in name}


def _pooled(
    ensemble: Ensemble, backbone: Backbone | None, examples: Examples, rows: NDArray[np.int64]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The chosen rows' pooled taps, stored or computed now, and their inputs."""
    taps, inputs = examples.batch(rows)
    if backbone is not None:
        taps = backbone(inputs)
    fixed = examples.taps is not None and examples.taps.fixed
    return taps if fixed else ensemble.pool(taps, inputs), inputs


def class_weights(targets: NDArray[Any], task: Task) -> Tensor:
    """What makes every class weigh the same, from the training rows.

    Classification: N / (C · n_c) for a class of n_c rows (King and Zeng 2001). Multilabel: rows without a
    label over rows with it, the weight of its presence.
    """
    if task == "classification":
        counts = np.bincount(targets)
        return torch.from_numpy(len(targets) / (len(counts) * np.maximum(counts, 1))).float()
    there = targets.sum(axis=0)
    return torch.from_numpy((len(targets) - there) / np.maximum(there, 1)).float()


def _rate(step: int, steps: int) -> float:
    """A short linear warm-up, then a cosine down to a tenth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return float(0.55 + 0.45 * np.cos(np.pi * min(1.0, (step - warm) / max(1, steps - warm))))


def _best(history: list[dict[str, Any]]) -> int:
    return int(min(history, key=lambda record: record["validation_loss"])["epoch"])


def _finished(history: list[dict[str, Any]], patience: int) -> bool:
    return bool(history) and len(history) - _best(history) >= patience


def _epoch(
    ensemble: Ensemble,
    train: Examples,
    config: TrainingConfig,
    epoch: int,
    optimizer: torch.optim.Optimizer,
    weights: Tensor,
    classes: Tensor | None,
    progress: Progress | None,
    backbone: Backbone | None,
) -> float:
    ensemble.train()
    torch.manual_seed(config.seed * 1_000_003 + epoch)  # drop-out
    order = np.random.default_rng([config.seed, epoch])
    batches = _batches(train.encoded.lengths, config.batch_size, order)
    total, done = 0.0, 0
    for step, rows in enumerate(batches, start=(epoch - 1) * len(batches)):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _rate(step, config.epochs * len(batches))
        pooled, inputs = _pooled(ensemble, backbone, train, rows)
        if config.augment != "none" and "pixel_values" in inputs:
            inputs["pixel_values"] = flip_crop(inputs["pixel_values"])  # the branches' view: the taps are stored
        _, head_logits = ensemble.combine(pooled, inputs)
        targets = torch.from_numpy(train.targets[rows])
        value = loss(head_logits, targets, ensemble.task, weights, classes) / ensemble.scale**2
        optimizer.zero_grad()
        torch.autograd.backward(value)
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 1.0)
        optimizer.step()
        total += value.item() * len(rows)
        done += len(rows)
        if progress is not None:
            progress(done, len(train))
    return total / done


def _batches(lengths: NDArray[np.int64], size: int, order: np.random.Generator) -> list[NDArray[np.int64]]:
    """A random order of rows, sorted by length only within a bucket of batches, batches shuffled again."""
    rows = order.permutation(len(lengths))
    batches = []
    for start in range(0, len(rows), size * _BUCKET):
        bucket = rows[start : start + size * _BUCKET]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in order.permutation(len(batches))]


@torch.inference_mode()
def predict(
    ensemble: Ensemble, examples: Examples, *, batch_size: int = 256, backbone: Backbone | None = None
) -> Outputs:
    """Answer N rows, from their stored taps where no backbone is given: logits (N, C), head logits (N, K, C)."""
    ensemble.eval()
    parts: dict[int, tuple[Tensor, Tensor]] = {}
    order = np.argsort(examples.encoded.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        pooled, inputs = _pooled(ensemble, backbone, examples, rows)
        parts[start] = ensemble.combine(pooled, inputs)
    back = np.argsort(order, kind="stable")
    logits = torch.cat([logits for logits, _ in parts.values()]).numpy()[back]
    head_logits = torch.cat([head_logits for _, head_logits in parts.values()]).numpy()[back]
    return Outputs(logits, head_logits)


def _validation_loss(outputs: Outputs, targets: NDArray[Any], ensemble: Ensemble) -> float:
    """The loss of the average, in the units of training."""
    value = prediction_loss(torch.from_numpy(outputs.logits), torch.from_numpy(targets), ensemble.task)
    return float(value / ensemble.scale**2)


def _save(
    state: Path,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    history: list[dict[str, Any]],
) -> None:
    """Write all of the state as one file, aside and renamed: it is whole or it is the epoch before."""
    tensors = {f"weights/{name}": tensor for name, tensor in _weights(trained).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in moments.items()}
    aside = state.with_suffix(".partial")
    save_file(tensors, aside, metadata={"history": json.dumps(history)})
    aside.replace(state)


def _resume(
    state: Path,
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
) -> list[dict[str, Any]]:
    """Take everything up where the state file left it; an empty history where there is none."""
    if not state.is_file():
        return []
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = {}
    with safe_open(state, framework="pt") as file:
        history: list[dict[str, Any]] = json.loads(file.metadata()["history"])
        for key in file.keys():  # noqa: SIM118  # not a dictionary
            kind, _, name = key.partition("/")
            if kind == "optimizer":
                number, _, name = name.partition("/")
                moments.setdefault(int(number), {})[name] = file.get_tensor(key)
            else:
                {"weights": weights, "best": best}[kind][name] = file.get_tensor(key)
    trained.load_state_dict(weights, strict=False)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return history
