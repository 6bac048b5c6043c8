"""One training run, from a table to a folder, in acts: prepare, build, store taps, fit, calibrate, record."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from levi_deploy.config import Config
from levi_deploy.data import load
from levi_deploy.data.source import Table, source_of
from levi_deploy.model.architecture import count_stages
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.build import build
from levi_deploy.model.levi import Levi, without_fitted
from levi_deploy.run import LOG, TUNED, Run
from levi_deploy.training.calibrate import abstain_above, abstain_by, head_weights, temperature
from levi_deploy.training.device import settle
from levi_deploy.training.finetune import fine_tune
from levi_deploy.training.fit import cosine, fit, linear, predict
from levi_deploy.training.novelty import fit_novelty, quantiles
from levi_deploy.training.prepare import Examples, Prepared, encode
from levi_deploy.training.record import record
from levi_deploy.training.selection import select
from levi_deploy.training.taps import compute
from levi_serving import atomic, job
from levi_serving.environment import cache_folder
from levi_serving.errors import UsageError
from levi_serving.predictions import Predictions, Task, doubts, finish
from levi_serving.rows.preprocess import TOKENIZER

__all__ = ["calibrate", "conclude", "train"]

_STATE = "state.safetensors"
_REQUEST = "config.json"
_SELECTION = "selection.json"

Progress = Callable[[str, int, int], None]


def train(
    data: Table | Prepared,
    output: Path,
    config: Config,
    *,
    validation: Table | None = None,
    start: Run | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a LEVI model, or any other model that a configuration describes.

    Args:
        data: training rows, and validation rows where a split column tells them apart: a file, a list of mappings, a
            mapping of columns, a DataFrame, a pyarrow Table or a ``datasets.Dataset``; or rows that ``prepare`` made
            ready, for several runs on the same ones.
        output: the run's folder.
        config: the model, its training, and the table's columns.
        validation: a table of in-distribution validation rows.
        start: a run of the same model, whose weights training starts from instead of random ones.
        resume: continue an unfinished run in ``output``.
        overwrite: remove what is in ``output`` first.
        cache: where taps are kept; see ``levi_serving.environment.cache_folder``.
        progress: given what is being done, steps done, and all steps.

    Returns:
        The finished run.

    Raises:
        UsageError: a setting, a tap or the choice of rows is wrong; nothing has been written.
        ProviderError: torch does not have the device.
        TableError: the table is wrong.
        LeviError: training failed.
    """
    tell = progress or (lambda *_: None)
    held_out = None if validation is None else source_of(validation)
    origin = {} if start is None else {"start": start.fingerprint}
    request = {"data": _named(data), "validation": held_out, **origin, **config.to_dict()}
    _check_output(output, request, resume=resume, overwrite=overwrite)

    if isinstance(data, Prepared):
        backbone, prepared = _load(config), data
    else:
        table = load(data, config.data, validation=validation, seed=config.training.seed)  # before anything heavy
        backbone = _load(config)
        prepared = encode(table, config, backbone.identity)
    device = settle(config.training.device)
    levi, stages = _build(prepared, backbone, config)
    if start is not None:
        _start(levi, start, config)
    _begin(output, prepared, request, overwrite=overwrite)

    seconds = dict.fromkeys(("fine_tune", "select", "taps", "fit", "novelty"), 0.0)
    if config.training.fine_tune:
        with _timed(seconds, "fine_tune"):
            levi.backbone = fine_tune(prepared, output, config, progress=_epochs(tell, "fine-tuning, epoch"))
    levi.to(device)
    selection = None
    if config.training.select:
        with _timed(seconds, "select"):
            config, selection = _select(levi, prepared, config, output, cache, tell)
        levi, stages = _build(prepared, _load(config), config)
        if config.training.fine_tune:
            levi.backbone = fine_tune(prepared, output, config)  # which lies there
        levi.to(device)
    with _timed(seconds, "taps"):
        train_rows = _tapped(levi, prepared.train, config, cache, partial(tell, "taps of training rows"), exact=False)
        validation_rows = _tapped(levi, prepared.validation, config, cache, partial(tell, "taps of validation rows"))
    with _timed(seconds, "fit"):
        history = fit(
            levi,
            train_rows,
            validation_rows,
            config.training,
            state=output / _STATE,
            schedule=linear if config.training.train_backbone else cosine,
            on_epoch=lambda history: atomic.write(output / LOG, "".join(json.dumps(r) + "\n" for r in history)),
            progress=_epochs(tell, "epoch"),
        )
    run = conclude(
        levi,
        prepared,
        train_rows,
        validation_rows,
        output,
        config,
        stages=stages,
        history=history,
        seconds=seconds,
        device=device,
        further={**({"selection": selection} if selection else {}), **({"origin": origin} if origin else {})},
    )
    (output / _SELECTION).unlink(missing_ok=True)
    (output / _STATE).unlink()
    (output / _REQUEST).unlink()
    return run


def conclude(
    levi: Levi,
    prepared: Prepared,
    train_rows: Examples,
    validation_rows: Examples,
    output: Path,
    config: Config,
    *,
    stages: tuple[int, ...],
    history: list[dict[str, Any]],
    seconds: dict[str, float],
    device: torch.device,
    further: Mapping[str, Any],
) -> Run:
    """Fit what is fitted once weights are final, and write a model as a run, with its backbone where that trained.

    Args:
        levi: on the device that computes.
        prepared: the rows.
        train_rows: training rows, with their taps where they are stored.
        validation_rows: ID validation rows, likewise.
        output: the run's folder.
        config: of the run.
        stages: M of each branch.
        history: a record an epoch; empty where no epoch was trained.
        seconds: that each act took.
        device: that it was trained on.
        further: what else its record says.
    """
    if levi.ensemble.novelty is not None:
        with _timed(seconds, "novelty"):
            fit_novelty(levi, train_rows, validation_rows, seed=config.training.seed)
    task, predictions = calibrate(levi, validation_rows, config)
    levi.cpu()
    if config.training.train_backbone:
        levi.backbone = _keep_backbone(levi, output, prepared)
    return record(
        prepared,
        levi,
        task,
        predictions,
        output=output,
        config=config,
        stages=stages,
        history=history,
        seconds=seconds,
        device=device,
        further=further,
    )


def _named(data: Table | Prepared) -> str:
    return str(data.source["file"]) if isinstance(data, Prepared) else source_of(data)


def _check_output(output: Path, request: dict[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else, before any work."""
    if overwrite or not output.exists() or not any(output.iterdir()):
        return
    if not job.resumes(output / _REQUEST, request, resume=resume):
        raise UsageError(f"{output} exists and is not empty. Choose another folder, or set `overwrite`.")


def _load(config: Config) -> Backbone:
    """The backbone, with what of it trains.

    Raises:
        UsageError: it cannot be loaded, tapped, or trained in this way.
    """
    backbone = Backbone.load(config.model.backbone, config.model.depths)
    if config.training.train_backbone and backbone.taps[-1] != backbone.identity.depth:
        raise UsageError(
            f"`train_backbone` is set, but the taps {list(backbone.taps)} leave out the last layer "
            f"{backbone.identity.depth}, which would be cut off. Tap it too."
        )
    if config.model.lora:
        torch.manual_seed(config.training.seed)
        backbone.add_adapters(config.model.lora)
    if config.training.train_backbone:
        backbone.unfreeze()
    return backbone


def _build(prepared: Prepared, backbone: Backbone, config: Config) -> tuple[Levi, tuple[int, ...]]:
    """The model before training, and M of each branch.

    Raises:
        UsageError: the configuration does not fit the rows or the backbone.
    """
    settings = config.training
    if backbone.identity.digest != prepared.backbone.digest:
        raise UsageError(
            f"The rows were prepared for the backbone {prepared.backbone.title!r} with the digest "
            f"{prepared.backbone.digest[:12]}…, but {config.model.backbone!r} has {backbone.identity.digest[:12]}…. "
            "Prepare them again for this backbone."
        )
    if prepared.task.kind == "regression" and settings.class_weights != "none":
        raise UsageError(
            f"`class_weights` is {settings.class_weights!r}, but {config.data.target!r} holds numbers for "
            "regression, which has no classes. Leave it out, or set `task` to classification."
        )
    torch.manual_seed(settings.seed)
    ensemble = build(
        config.model,
        backbone.identity,
        prepared.preprocessing,
        backbone.taps,
        task=prepared.task,
        edges=prepared.edges,
    )
    stages = count_stages(ensemble, prepared.preprocessing)
    heads = len(ensemble.heads) // ensemble.members
    if settings.head_weights and len(settings.head_weights) != heads:
        raise UsageError(
            f"`head_weights` has {len(settings.head_weights)} numbers, but there are {heads} heads, one "
            f"for each of the taps {list(backbone.taps)}. Give as many."
        )
    return Levi(backbone if backbone.taps else None, ensemble), stages


def _start(levi: Levi, start: Run, config: Config) -> None:
    """Give a model the weights of a run; what is fitted on ID validation after training is not among them.

    Raises:
        UsageError: the run is of another model, or on another backbone, or the model is still to be chosen.
    """
    if config.training.select:
        raise UsageError("`select` is set, which chooses the model, and `start` has one already. Give one of them.")
    digest = levi.backbone.identity.digest if levi.backbone is not None else start.backbone.digest
    weights, own = (without_fitted(ensemble.state_dict()) for ensemble in (start.ensemble(), levi.ensemble))
    shapes, expected = ({name: tensor.shape for name, tensor in state.items()} for state in (weights, own))
    if start.backbone.digest != digest or shapes != expected:
        raise UsageError(
            f"`start` is {start.folder}, a run of another model or on another backbone: its weights do not fit. "
            "Give one with the same settings of [model]."
        )
    levi.ensemble.load_state_dict(weights, strict=False)


def _begin(output: Path, prepared: Prepared, request: dict[str, Any], *, overwrite: bool) -> None:
    """Make the run's folder."""
    if overwrite:
        shutil.rmtree(output, ignore_errors=True)
    job.start(output / _REQUEST, request)
    if prepared.tokenizer is not None:
        atomic.write(output / TOKENIZER, prepared.tokenizer)


def _select(
    levi: Levi, prepared: Prepared, config: Config, output: Path, cache: Path | None, tell: Progress
) -> tuple[Config, dict[str, Any]]:
    """Choose within the family on stored tokens of all the taps that were asked for."""
    tokens = replace(config, model=replace(config.model, pooling="tokens"))
    train_rows = _tapped(levi, prepared.train, tokens, cache, partial(tell, "taps of training rows"), exact=False)
    validation_rows = _tapped(levi, prepared.validation, tokens, cache, partial(tell, "taps of validation rows"))
    return select(
        prepared,
        train_rows,
        validation_rows,
        levi.ensemble.taps,
        config,
        state=output / _SELECTION,
        device=levi.device,
        progress=tell,
    )


def _tapped(
    levi: Levi,
    rows: Examples,
    config: Config,
    cache: Path | None,
    progress: Callable[[int, int], None],
    *,
    exact: bool = True,
) -> Examples:
    """The rows with their taps, computed once and kept, where the backbone is frozen; validation's are exact."""
    if levi.backbone is None or config.model.lora or config.training.train_backbone:
        return rows
    taps = compute(
        levi.backbone,
        rows.encoded,
        config.model.pooling,
        folder=cache or cache_folder(),
        exact=exact,
        progress=progress,
    )
    return replace(rows, taps=taps)


def calibrate(levi: Levi, validation: Examples, config: Config) -> tuple[Task, Predictions]:
    """Fit what is left on ID validation: the heads' weights, temperature, when to abstain; then answer its rows."""
    ensemble, task = levi.ensemble, levi.ensemble.task
    ensemble.temperature.fill_(1.0)
    if config.model.average == "weighed":
        head_logits = predict(levi, validation).head_logits
        fitted = head_weights(head_logits, validation.targets, of=config.model.average_of, kind=task.kind)
        ensemble.weights.copy_(torch.from_numpy(fitted))
    if config.training.calibrate and task.kind != "regression":
        logits = predict(levi, validation).logits
        ensemble.temperature.fill_(temperature(logits, validation.targets, kind=task.kind))
    outputs = predict(levi, validation)
    if outputs.novelty is not None:
        task = replace(task, novelty_quantiles=quantiles(outputs.novelty))
    predictions = finish(outputs, task)
    by = abstain_by(predictions, validation.targets, task.kind)
    if by is None:
        return task, predictions
    doubt = doubts(predictions.probabilities, predictions.disagreement, predictions.novelty, task.kind)[by]
    return replace(task, abstain_by=by, abstain_above=abstain_above(doubt, config.training.abstain_share)), predictions


def _keep_backbone(levi: Levi, output: Path, prepared: Prepared) -> Backbone:
    """Write a backbone that trained into the run's folder, and load it as the run will."""
    assert levi.backbone is not None  # noqa: S101  # the configuration has taps
    shutil.rmtree(output / TUNED, ignore_errors=True)
    levi.backbone.save(output / TUNED)
    return Backbone.load(str(output / TUNED), lambda _: levi.ensemble.taps, fine_tuned_from=prepared.backbone)


def _epochs(tell: Progress, what: str) -> Callable[[int, int, int], None]:
    """Progress over rows, by epoch."""
    return lambda epoch, done, total: tell(f"{what} {epoch}", done, total)


@contextmanager
def _timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[name] += time.perf_counter() - started
