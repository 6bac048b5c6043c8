"""One training run, from a table to a folder: read, refuse, compute taps, fit, write down what happened."""

from __future__ import annotations

import json
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from levi_deploy.config import Config
from levi_deploy.dataset import Dataset, Learning, encode_targets, learn
from levi_deploy.evaluation.metrics import metrics
from levi_deploy.model.architecture import architecture, count_stages, parameters
from levi_deploy.model.backbone import Backbone, save_tokenizer
from levi_deploy.model.image_processor import image_settings
from levi_deploy.training.calibrate import abstain_above, temperature
from levi_deploy.training.checkpoint import LOG, TUNED, Run, build
from levi_deploy.training.finetune import fine_tune
from levi_deploy.training.fit import Examples, fit, predict
from levi_deploy.training.taps import cache_folder, compute
from levi_serving.columns import Columns, ColumnSettings
from levi_serving.errors import RowError, TableError, UsageError
from levi_serving.images import ImageSettings
from levi_serving.predictions import finish
from levi_serving.preprocess import TOKENIZER, Encoded, Preprocessing, Preprocessor
from levi_serving.tables import read_columns

__all__ = ["train"]

_STATE = "state.safetensors"
_ASKED = "config.json"
_SAMPLES = 512  # enough to see half a point of a metric
_FEWEST, _SAMPLES_BYTES = 64, 32_000_000
_IMAGE_SIZE = 112  # of an image that only a branch reads

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
    if table.task == "regression" and config.training.class_weights != "none":
        raise UsageError(
            f"class_weights is {config.training.class_weights!r}, but {config.data.target!r} holds numbers for "
            "regression, which has no classes. Leave it out, or give --task classification."
        )
    backbone = Backbone.load(config.model.backbone, config.model.depths)
    torch.manual_seed(config.training.seed)
    if config.model.lora:
        backbone.add_adapters(config.model.lora)
    with tempfile.TemporaryDirectory() as aside:  # what refuses does so before the run's folder is touched
        preprocessing = _preprocessing(config, backbone, table.train, Path(aside))
        torch.manual_seed(config.training.seed)
        ensemble = build(
            config.model,
            backbone.identity,
            preprocessing,
            backbone.taps,
            task=table.task,
            outputs=len(table.labels),
            edges=_edges(config, preprocessing, table.train),
        )
        stages = count_stages(ensemble, preprocessing)
        if config.training.head_weights and len(config.training.head_weights) != len(ensemble.heads):
            raise UsageError(
                f"head_weights has {len(config.training.head_weights)} numbers, but there are {len(ensemble.heads)} "
                f"heads, one for each of the taps {list(backbone.taps)}. Give as many."
            )
        learning, held_out = _examples(Path(aside), preprocessing, table, config, data, validation)
        if overwrite:
            shutil.rmtree(output, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
        if preprocessing.text is not None:
            shutil.copyfile(Path(aside) / TOKENIZER, output / TOKENIZER)
    (output / _ASKED).write_text(json.dumps(asked, indent=1) + "\n", encoding="utf-8")

    started = time.perf_counter()
    folder = cache or cache_folder()
    if config.training.fine_tune:
        if not (output / TUNED).is_dir():
            fine_tune(
                config.model.backbone,
                output / TUNED,
                learning,
                held_out,
                config.training,
                task=table.task,
                outputs=len(table.labels),
                progress=lambda done, total: tell("fine-tuning the backbone", done, total),
            )
        backbone = Backbone.load(str(output / TUNED), config.model.depths)
        backbone.identity = replace(backbone.identity, name=f"{config.model.backbone.rpartition('/')[2]}, fine-tuned")
    tune_s, started = time.perf_counter() - started, time.perf_counter()
    if backbone.taps and not config.model.lora:

        def stored(rows: Examples, what: str) -> Examples:
            return replace(
                rows,
                taps=compute(
                    backbone,
                    rows.encoded,
                    config.model.pooling,
                    folder=folder,
                    progress=lambda done, total: tell(f"taps of {what} rows", done, total),
                ),
            )

        learning, held_out = stored(learning, "training"), stored(held_out, "validation")
    taps_s = time.perf_counter() - started
    live = backbone if config.model.lora else None

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
        backbone=live,
    )
    fit_s = time.perf_counter() - started

    if config.training.calibrate and table.task != "regression":
        answers = predict(ensemble, held_out, backbone=live).logits
        ensemble.temperature.fill_(temperature(answers, held_out.targets, task=table.task))
    predictions = finish(predict(ensemble, held_out, backbone=live), task=table.task, labels=table.labels)
    threshold = None  # one head never disagrees
    if len(ensemble.heads) > 1:
        threshold = abstain_above(predictions.disagreement, config.training.abstain_share)
    model = architecture(
        ensemble, backbone, stages, outputs=len(table.labels), fine_tuned=config.training.fine_tune > 0
    )
    run = Run(
        folder=output,
        config=config,
        task=table.task,
        labels=table.labels,
        taps=backbone.taps,
        backbone=backbone.identity,
        preprocessing=preprocessing,
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
            "model": model,
            "parameters": parameters(model, backbone, outputs=len(table.labels)),
            "temperature": round(float(ensemble.temperature), 4),
            "abstain_above": threshold,
            "best_epoch": min(history, key=lambda record: record["validation_loss"])["epoch"],
            "epochs": len(history),
            "validation": metrics(predictions, held_out.targets, task=table.task, labels=table.labels),
            "seconds": {"fine_tune": round(tune_s, 2), "taps": round(taps_s, 2), "fit": round(fit_s, 2)},
            "versions": versions(),
        },
    )
    adapters = live.adapters() if live is not None else None
    places = _samples(table.validation, held_out.encoded.lengths, preprocessing.files)
    run.save(ensemble, [table.validation.rows[n] for n in places], held_out.targets[places], adapters=adapters)
    (output / _STATE).unlink()
    (output / _ASKED).unlink()
    return run


def _preprocessing(config: Config, backbone: Backbone, rows: Dataset, folder: Path) -> Preprocessing:
    """How these rows become arrays; the tokenizer is written into the folder.

    Raises:
        UsageError: the backbone does not read what the rows have.
        TableError: a column is not what it is said to be.
    """
    data, model, modality = config.data, config.model, backbone.identity.modality
    if data.text is not None and modality != "text":
        raise UsageError(
            f"The column {data.text!r} holds texts, but the backbone {backbone.identity.name!r} reads images and has "
            f"no tokenizer. {'Give --image COLUMN' if data.image is None else 'Leave --text out'}, or a text backbone."
        )
    reads = data.text if modality == "text" else data.image
    if backbone.taps and reads is None:
        raise UsageError(
            f"The backbone {backbone.identity.name!r} reads {'texts' if modality == 'text' else 'images'}, but no such "
            f"column was named. Give --{modality} COLUMN, or another backbone."
        )
    text = image = columns = None
    if data.text is not None:
        text = save_tokenizer(
            model.backbone,
            folder / TOKENIZER,
            column=data.text,
            pair=data.text_pair,
            max_length=model.max_length,
            causal=backbone.identity.causal,
        )
    if data.image is not None and modality == "image":
        image = image_settings(model.backbone, column=data.image, size=model.image_size)
    elif data.image is not None:
        size = model.image_size or _IMAGE_SIZE
        image = ImageSettings(column=data.image, resize=(size, size), crop=None)
    if data.numeric or data.categorical or data.nodes:
        try:
            columns = ColumnSettings.learn(
                rows.rows, numeric=data.numeric, categorical=data.categorical, nodes=data.nodes
            )
        except ValueError as error:
            raise TableError(f"The training rows' {error}.") from error
    return Preprocessing(text=text, image=image, columns=columns)


def _edges(config: Config, preprocessing: Preprocessing, rows: Dataset) -> np.ndarray | None:
    """The graph's edges as node numbers, (2, E): those of a file, or the training rows."""
    if not config.data.nodes or preprocessing.columns is None:
        return None
    records = rows.rows
    if config.data.edges is not None:
        values = read_columns(Path(config.data.edges), config.data.nodes).values
        records = [dict(zip(values, pair, strict=True)) for pair in zip(*values.values(), strict=True)]
    columns = ColumnSettings(nodes=preprocessing.columns.nodes)
    return np.asarray(Columns(columns).encode(records)["nodes"].T)


def _examples(
    folder: Path, preprocessing: Preprocessing, table: Learning, config: Config, data: Path, validation: Path | None
) -> tuple[Examples, Examples]:
    """Training and validation rows with their targets, encoded by the tokenizer in a folder.

    Raises:
        TableError: a row cannot be used.
    """
    preprocessor = Preprocessor(folder, preprocessing)
    result = []
    for rows, source in ((table.train, data), (table.validation, validation or data)):
        targets = encode_targets(rows.targets, table.task, table.labels, column=config.data.target)
        result.append(Examples(_encoded(preprocessor, rows, source), None, targets))
    return result[0], result[1]


def _encoded(preprocessor: Preprocessor, rows: Dataset, data: Path) -> Encoded:
    """All rows as arrays.

    Raises:
        TableError: a row cannot be used; the first such row is named.
    """
    try:
        return preprocessor.encode(rows.rows)
    except RowError as error:
        raise TableError(
            f"{data}: a row with {dict(list(rows.rows[error.row].items())[:1])!r:.80} cannot be used: {error.reason} "
            "Learning needs every row: mend or remove it."
        ) from error


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


def _samples(rows: Dataset, lengths: np.ndarray, files: Sequence[str]) -> list[int]:
    """Places of rows of all lengths, short to long, for the proof at export; fewer where their images are large."""
    order = np.argsort(lengths, kind="stable")
    count = min(_SAMPLES, len(order))
    while True:
        places: list[int] = order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))].tolist()
        if count <= _FEWEST or sum(_size(rows.rows[n][name]) for n in places for name in files) <= _SAMPLES_BYTES:
            return places
        count = max(_FEWEST, count // 2)


def _size(image: object) -> int:
    return len(image) if isinstance(image, bytes) else Path(str(image)).stat().st_size
