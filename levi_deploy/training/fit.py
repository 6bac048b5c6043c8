"""The one training loop: AdamW, the best epoch by ID validation loss, resumable, reproducible.

What trains is what requires gradients: the ensemble, beside it LoRA's adapters in the backbone, or the whole
backbone. Each epoch draws from (seed, epoch) alone, so a run that was killed and resumed gives the same weights,
bit for bit on one machine, as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from levi_deploy.config import TrainingConfig
from levi_deploy.model.heads import loss, prediction_loss
from levi_deploy.model.levi import Ensemble, Levi, outputs
from levi_deploy.training.augment import flip_crop
from levi_deploy.training.device import half
from levi_deploy.training.prepare import Examples
from levi_serving import atomic
from levi_serving.errors import DivergenceError
from levi_serving.predictions import Outputs, TaskKind

__all__ = ["class_weights", "cosine", "fit", "linear", "predict"]

_BUCKET = 16  # batches whose rows are sorted by length together, to pad less
_WARM_UP = 0.05  # share of all steps

Progress = Callable[[int, int, int], None]
Schedule = Callable[[float], float]
"""The learning rate's share of its highest value, after a share of the steps."""


def cosine(done: float) -> float:
    """A linear warm-up over a twentieth of the steps, then a cosine down to a tenth."""
    rest = max(0.0, done - _WARM_UP) / (1 - _WARM_UP)
    return min(1.0, done / _WARM_UP) * float(0.55 + 0.45 * np.cos(np.pi * min(1.0, rest)))


def linear(done: float) -> float:
    """A linear warm-up over a twentieth of the steps, and a linear decay to zero over all."""
    return min(1.0, done / _WARM_UP) * (1 - done)


def fit(
    levi: Levi,
    train: Examples,
    validation: Examples,
    config: TrainingConfig,
    *,
    state: Path,
    schedule: Schedule = cosine,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda _: None,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Train until the validation loss stops falling, and leave the best epoch's weights in the model.

    Args:
        levi: freshly made, on the device that it trains on. Its backbone runs in every step where the examples' taps
            are not stored. Regression learns in units of the training targets' mean and spread, which are set here.
        train: training rows.
        validation: ID validation rows; they choose the epoch and nothing else.
        config: epochs, rate, batch size, weights of heads and classes, patience, seed.
        state: a file for everything that is needed to resume; the caller removes it when all is done.
        schedule: of the learning rate.
        on_epoch: given the history after each epoch, and once when resuming.
        progress: given the epoch, its rows done, and all rows.

    Returns:
        The history: a record an epoch.

    Raises:
        DivergenceError: the loss is no longer finite.
    """
    ensemble = levi.ensemble
    if ensemble.task.kind == "regression":
        ensemble.shift.fill_(float(train.targets.mean()))
        ensemble.scale.fill_(max(float(train.targets.std()), 1e-6))
    device = levi.device
    weights = torch.tensor(config.head_weights * ensemble.members or (1.0,) * len(ensemble.heads), device=device)
    classes = None
    if config.class_weights == "balanced":
        classes = class_weights(train.targets, ensemble.task.kind).to(device)
    parameters = [p for p in levi.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
    best = {name: tensor.clone() for name, tensor in _trained(levi).items()}
    followed = parameters if config.ema_decay else []
    averaged = [p.detach().clone() for p in followed]
    history = _resume(state, levi, optimizer, best, averaged)
    if history:
        on_epoch(history)
    while len(history) < config.epochs and not _finished(history, config.patience):
        epoch, started = len(history) + 1, time.perf_counter()
        levi.train()
        torch.manual_seed(config.seed * 1_000_003 + epoch)  # drop-out
        batches = _batches(train.encoded.costs, config.batch_size, np.random.default_rng([config.seed, epoch]))
        total, done = 0.0, 0
        for step, rows in enumerate(batches, start=(epoch - 1) * len(batches)):
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * schedule((step + 1) / (config.epochs * len(batches)))
            value = _loss(levi, train, rows, config, weights, classes)
            optimizer.zero_grad()
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            _average(averaged, followed, config.ema_decay, step)
            total, done = total + value.item() * len(rows), done + len(rows)
            if progress is not None:
                progress(epoch, done, len(train))
        _exchange(followed, averaged)
        training_loss, validation_loss = total / done, _validation_loss(levi, validation)
        if not np.isfinite([training_loss, validation_loss]).all():
            raise DivergenceError(
                f"The loss of epoch {epoch} is {training_loss} in training and {validation_loss} in validation: "
                "training has diverged. Lower `learning_rate`, and look for extreme values in the targets."
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
            best = {name: tensor.clone() for name, tensor in _trained(levi).items()}
        _exchange(followed, averaged)
        _save(state, levi, optimizer, best, averaged, history)
        on_epoch(history)
    levi.load_state_dict(best, strict=False)
    levi.eval()
    return history


@torch.no_grad()
def _average(averaged: list[Tensor], parameters: list[nn.Parameter], decay: float, step: int) -> None:
    """Move the average of the weights towards them; its memory is short at first, when it has seen little."""
    decay = min(decay, (1 + step) / (10 + step))
    for average, parameter in zip(averaged, parameters, strict=True):
        average.lerp_(parameter, 1 - decay)


@torch.no_grad()
def _exchange(parameters: list[nn.Parameter], averaged: list[Tensor]) -> None:
    """Put the average in the model's place, or the weights back."""
    for parameter, other in zip(parameters, averaged, strict=True):
        parameter.data, other.data = other.data, parameter.data


def _loss(
    levi: Levi,
    train: Examples,
    rows: NDArray[np.int64],
    config: TrainingConfig,
    weights: Tensor,
    classes: Tensor | None,
) -> Tensor:
    """The training loss of a batch, in units of the targets' spread."""
    ensemble = levi.ensemble
    pooled, inputs = _pooled(levi, train, rows)
    if config.augment != "none" and "pixel_values" in inputs:
        inputs["pixel_values"] = flip_crop(inputs["pixel_values"])  # the branches' view: the taps are stored
    _, head_logits = ensemble.combine(pooled, inputs)
    targets = torch.from_numpy(train.targets[rows]).to(levi.device)
    return loss(head_logits, targets, ensemble.task.kind, weights, classes) / ensemble.scale**2


def _pooled(levi: Levi, examples: Examples, rows: NDArray[np.int64]) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The chosen rows' pooled taps, stored or computed now, and their inputs."""
    taps, inputs = examples.batch(rows)
    taps = [tap.to(levi.device) for tap in taps]
    inputs = {name: array.to(levi.device) for name, array in inputs.items()}
    if examples.taps is None and levi.backbone is not None:
        with half(levi.device) if levi.training else nullcontext():
            taps = levi.backbone(inputs)
    fixed = examples.taps is not None and examples.taps.fixed
    return taps if fixed else levi.ensemble.pool(taps, inputs), inputs


@torch.inference_mode()
def predict(levi: Levi, examples: Examples, *, batch_size: int = 256) -> Outputs:
    """Answer N rows, from their stored taps where they have them."""
    levi.eval()
    parts: list[Outputs] = []
    order = np.argsort(examples.encoded.costs, kind="stable")
    for start in range(0, len(order), batch_size):
        pooled, inputs = _pooled(levi, examples, order[start : start + batch_size])
        parts.append(outputs(levi.ensemble.answer(pooled, inputs)))
    return Outputs.joined(parts).take(np.argsort(order, kind="stable"))


def _validation_loss(levi: Levi, validation: Examples) -> float:
    """The loss of the average, in the units of training."""
    ensemble: Ensemble = levi.ensemble
    logits = torch.from_numpy(predict(levi, validation).logits)
    value = prediction_loss(logits, torch.from_numpy(validation.targets), ensemble.task.kind)
    return float(value) / float(ensemble.scale) ** 2


def class_weights(targets: NDArray[Any], kind: TaskKind) -> Tensor:
    """What makes every class weigh the same, from the training rows.

    Classification: N / (C · n_c) for a class of n_c rows (King and Zeng 2001). Multilabel: rows without a
    label over rows with it, the weight of its presence.
    """
    if kind == "classification":
        counts = np.bincount(targets)
        return torch.from_numpy(len(targets) / (len(counts) * np.maximum(counts, 1))).float()
    there = targets.sum(axis=0)
    return torch.from_numpy((len(targets) - there) / np.maximum(there, 1)).float()


def _batches(costs: NDArray[np.int64], size: int, order: np.random.Generator) -> list[NDArray[np.int64]]:
    """A random order of rows, sorted by length only within a bucket of batches, batches shuffled again."""
    rows = order.permutation(len(costs))
    batches = []
    for start in range(0, len(rows), size * _BUCKET):
        bucket = rows[start : start + size * _BUCKET]
        bucket = bucket[np.argsort(costs[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in order.permutation(len(batches))]


def _best(history: list[dict[str, Any]]) -> int:
    return int(min(history, key=lambda record: record["validation_loss"])["epoch"])


def _finished(history: list[dict[str, Any]], patience: int) -> bool:
    return bool(history) and len(history) - _best(history) >= patience


def _trained(levi: Levi) -> dict[str, Tensor]:
    """All that training changes: the ensemble, its buffers too, and what trains of the backbone."""
    whole = levi.backbone is not None and levi.backbone.unfrozen
    trains = {name for name, parameter in levi.named_parameters() if parameter.requires_grad}
    state: dict[str, Tensor] = levi.state_dict()
    return {name: t for name, t in state.items() if whole or name in trains or name.startswith("ensemble.")}


def _save(
    state: Path,
    levi: Levi,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    averaged: list[Tensor],
    history: list[dict[str, Any]],
) -> None:
    """Write all of the state as one file: it is whole, or it is the epoch before."""
    # Cloned: of weights that share memory, as tied embeddings do, safetensors would refuse the second.
    tensors = {f"weights/{name}": tensor.clone() for name, tensor in _trained(levi).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in best.items()}
    tensors |= {f"averaged/{number}": tensor.clone() for number, tensor in enumerate(averaged)}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{number}/{name}": tensor for name, tensor in moments.items()}
    atomic.write(state, save(tensors, metadata={"history": json.dumps(history)}))


def _resume(
    state: Path, levi: Levi, optimizer: torch.optim.Optimizer, best: dict[str, Tensor], averaged: list[Tensor]
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
            elif kind == "averaged":
                averaged[int(name)].copy_(file.get_tensor(key))
            else:
                {"weights": weights, "best": best}[kind][name] = file.get_tensor(key)
    levi.load_state_dict(weights, strict=False)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return history
