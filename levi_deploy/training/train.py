"""One training run, from a table to a folder: read, refuse, compute taps, fit, write down what happened."""

from __future__ import annotations

import json
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from levi_deploy.config import Config
from levi_deploy.dataset import Dataset, encode_targets, learn
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.model.backbone import Backbone, save_tokenizer
from levi_deploy.model.levi import Ensemble
from levi_deploy.training.checkpoint import LOG, TOKENIZER, Run
from levi_deploy.training.fit import Examples, fit, predict
from levi_deploy.training.taps import cache_folder, compute
from levi_serving.errors import UsageError
from levi_serving.predictions import finish
from levi_serving.preprocess import TextPreprocessor

__all__ = ["train"]

_STATE = "state.safetensors"
_ASKED = "config.json"
_SAMPLES = 64

Progress = Callable[[str, int, int], None]


def train(
    data: Path,
    output: Path,
    config: Config,
    *,
    validation: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Train a LEVI model.

    Args:
        data: a table with training rows, and validation rows where a split column tells them apart.
        output: the run's folder.
        config: the model, its training, and the table's columns.
        validation: a table of in-distribution validation rows.
        resume: go on with an unfinished run in ``output``.
        overwrite: remove what is in ``output`` first.
        cache: where taps are kept; see ``taps.cache_folder``.
        progress: told what is being done, steps done, and all steps.

    Returns:
        The finished run.

    Raises:
        UsageError: an option, a tap or the choice of rows is wrong; nothing has been written.
        TableError: the table is wrong.
        LeviError: training failed.
    """
    tell = progress or (lambda *_: None)
    asked = {"data": str(data), "validation": str(validation) if validation else None, **config.to_dict()}
    _check_output(output, asked, resume=resume, overwrite=overwrite)
    table = learn(data, config.data, validation=validation, seed=config.training.seed)
    backbone = Backbone.load(config.model.backbone, config.model.depths)
    if overwrite:
        shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True, exist_ok=True)
    text = save_tokenizer(
        config.model.backbone, output / TOKENIZER, column=config.data.text, max_length=config.model.max_length
    )
    (output / _ASKED).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")

    started = time.perf_counter()
    preprocessor = TextPreprocessor(output / TOKENIZER, text)
    folder = cache or cache_folder()

    def examples(rows: Dataset, what: str) -> Examples:
        encoded = preprocessor.encode(rows.rows)
        targets = encode_targets(rows.targets, table.task, table.labels, column=config.data.target)
        taps = None
        if backbone.taps:
            taps = compute(
                backbone,
                encoded,
                config.model.pooling,
                folder=folder,
                progress=lambda done, total: tell(f"taps of {what} rows", done, total),
            )
        return Examples(encoded, taps, targets)

    learning, held_out = examples(table.train, "training"), examples(table.validation, "validation")
    taps_s = time.perf_counter() - started

    torch.manual_seed(config.training.seed)
    ensemble = Ensemble(config.model, backbone.identity, taps=backbone.taps, task=table.task, outputs=len(table.labels))
    if table.task == "regression":
        ensemble.shift.fill_(float(learning.targets.mean()))
        ensemble.scale.fill_(max(float(learning.targets.std()), 1e-6))
    started = time.perf_counter()
    epoch = 1

    def write_log(history: list[dict[str, Any]]) -> None:
        nonlocal epoch
        epoch = len(history) + 1
        (output / LOG).write_text("".join(json.dumps(record) + "\n" for record in history), encoding="utf-8")

    history = fit(
        ensemble,
        learning,
        held_out,
        config.training,
        state=output / _STATE,
        on_epoch=write_log,
        progress=lambda done, total: tell(f"epoch {epoch} of {config.training.epochs}", done, total),
    )
    fit_s = time.perf_counter() - started

    predictions = finish(predict(ensemble, held_out), task=table.task, labels=table.labels)
    run = Run(
        folder=output,
        config=config,
        task=table.task,
        labels=table.labels,
        taps=backbone.taps,
        backbone=backbone.identity,
        text=text,
        record={
            "target": config.data.target,
            "data": {
                "file": data.name,
                "training_rows": len(table.train),
                "training_digest": table.train.digest,
                "validation_rows": len(table.validation),
                "validation_digest": table.validation.digest,
                "validation_from": table.validation_from,
            },
            "parameters": {
                "trained": sum(p.numel() for p in ensemble.parameters()),
                "backbone": backbone.identity.parameters,
            },
            "best_epoch": min(history, key=lambda record: record["validation_loss"])["epoch"],
            "epochs": len(history),
            "validation": metrics(predictions, held_out.targets, task=table.task, labels=table.labels),
            "seconds": {"taps": round(taps_s, 2), "fit": round(fit_s, 2)},
            "versions": versions(),
        },
    )
    run.save(ensemble, _spread(table.validation, held_out.encoded.lengths))
    (output / _STATE).unlink()
    (output / _ASKED).unlink()
    return run


def versions() -> dict[str, str]:
    """What made this run."""
    packages = ("levi-deploy", "torch", "transformers", "tokenizers", "numpy")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}


def _check_output(output: Path, asked: Mapping[str, Any], *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds something else, before any work."""
    if overwrite or not output.exists() or not any(output.iterdir()):
        return
    unfinished = output / _ASKED
    if not unfinished.is_file():
        raise UsageError(f"{output} exists and is not empty. Choose another folder, or add --overwrite.")
    if not resume:
        raise UsageError(f"{output} holds an unfinished run. Add --resume to go on, or --overwrite to start again.")
    before = json.loads(unfinished.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(asked))
    for section in now:
        if before.get(section) != now[section]:
            raise UsageError(
                f"The unfinished run in {output} has another {section}: {before.get(section)}, now {now[section]}. "
                "Give the same options to go on, or --overwrite to start again."
            )


def _spread(rows: Dataset, lengths: np.ndarray) -> list[object]:
    """Rows of all lengths, short to long, for the proof at export."""
    order = np.argsort(lengths, kind="stable")
    places = np.unique(np.linspace(0, len(order) - 1, min(_SAMPLES, len(order))).round().astype(int))
    return [rows.rows[int(n)] for n in order[places]]
