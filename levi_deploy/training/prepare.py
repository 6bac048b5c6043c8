"""Rows made ready for training: read, refused where they are wrong, encoded. Once, for any number of methods.

Nothing is written: a wrong table or column is refused before a run's folder is touched.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from levi_deploy.config import Config
from levi_deploy.data import Dataset, TrainingData, encode_targets, load
from levi_deploy.data.source import Table
from levi_deploy.identity import Identity
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.image_processor import image_settings
from levi_deploy.model.tokenizer import save_tokenizer
from levi_deploy.training.taps import Taps
from levi_serving.errors import RowError, TableError, UsageError
from levi_serving.predictions import Task
from levi_serving.rows.columns import Columns, ColumnSettings
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import TOKENIZER, Encoded, Preprocessing, Preprocessor
from levi_serving.tables import read_columns

__all__ = ["Examples", "Prepared", "encode", "prepare"]

_IMAGE_SIZE = 112  # of an image that only a branch reads


@dataclass(frozen=True)
class Examples:
    """N rows with their encoded targets; ``taps`` is None where they are not stored, or not read."""

    encoded: Encoded
    targets: NDArray[Any]
    taps: Taps | None = None

    def __len__(self) -> int:
        return len(self.encoded)

    def batch(self, rows: NDArray[np.int64]) -> tuple[list[Tensor], dict[str, Tensor]]:
        """The chosen rows' taps, none where they are not stored, and their inputs by name."""
        inputs = {name: torch.from_numpy(array) for name, array in self.encoded.batch(rows).items()}
        return self.taps.batch(rows) if self.taps is not None else [], inputs

    def narrowed(self, rows: NDArray[np.int64], taps: Sequence[int]) -> Examples:
        """The chosen rows with the chosen ones of their stored taps, which stay where they are."""
        stored = None if self.taps is None else self.taps.narrowed(rows, taps)
        return Examples(self.encoded.take(rows), self.targets[rows], stored)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Training and validation rows, ready for every model that reads them alike.

    Attributes:
        backbone: which backbone they were encoded for.
        preprocessing: how they became arrays.
        tokenizer: the content of ``tokenizer.json``; None where there is no text.
        task: what is answered; its labels are from training rows.
        train: training rows.
        validation: in-distribution validation rows.
        validation_rows: the same as they were read.
        domains: the domain of each training row; None where no column names them.
        edges: (2, E), of the graph that a graph branch trains on.
        source: where the rows come from, for the run's record.
    """

    backbone: Identity
    preprocessing: Preprocessing
    tokenizer: str | None
    task: Task
    train: Examples
    validation: Examples
    validation_rows: Sequence[dict[str, object]]
    domains: Sequence[str] | None
    edges: NDArray[np.int64] | None
    source: Mapping[str, Any]


def prepare(data: Table, config: Config, *, validation: Table | None = None) -> Prepared:
    """Read a table and encode its rows, for any number of trainings on them.

    Args:
        data: training rows, and validation rows where a split column tells them apart: a file, a list of mappings, a
            mapping of columns, a DataFrame, a pyarrow Table or a ``datasets.Dataset``.
        config: its columns, and what decides how rows are encoded: ``backbone``, ``max_length`` and ``image_size``
            of the model, and the seed where validation rows are drawn.
        validation: a table of in-distribution validation rows.

    Raises:
        UsageError: the backbone does not read what the rows have, or the choice of rows is wrong.
        TableError: the table, a column or a row cannot be used.
    """
    table = load(data, config.data, validation=validation, seed=config.training.seed)
    return encode(table, config, Backbone.load(config.model.backbone, lambda _: ()).identity)


def encode(table: TrainingData, config: Config, backbone: Identity) -> Prepared:
    """Encode the rows of a table that was read, for a backbone; arguments and errors as for ``prepare``."""
    with tempfile.TemporaryDirectory() as folder:
        preprocessing = _preprocessing(config, backbone, table.train, Path(folder))
        preprocessor = Preprocessor(Path(folder), preprocessing)
        tokenizer = Path(folder) / TOKENIZER
        text = tokenizer.read_text(encoding="utf-8") if preprocessing.text is not None else None
    train, held_out = (
        Examples(
            _encoded(preprocessor, rows, file), encode_targets(rows.targets, table.task, column=config.data.target)
        )
        for rows, file in zip((table.train, table.validation), table.sources, strict=True)
    )
    return Prepared(
        backbone=backbone,
        preprocessing=preprocessing,
        tokenizer=text,
        task=table.task,
        train=train,
        validation=held_out,
        validation_rows=table.validation.rows,
        domains=None if config.data.domain is None else [str(name) for name in table.train.columns[config.data.domain]],
        edges=_edges(config, preprocessing, table.train),
        source={
            "file": Path(table.sources[0]).name,
            "training_rows": len(table.train),
            "training_digest": table.train.digest,
            "validation_rows": len(table.validation),
            "validation_digest": table.validation.digest,
            "validation_from": table.validation_from,
        },
    )


def _preprocessing(config: Config, backbone: Identity, rows: Dataset, folder: Path) -> Preprocessing:
    """How these rows become arrays; the tokenizer is written into the folder.

    Raises:
        UsageError: the backbone does not read what the rows have.
        TableError: a column is not what it is said to be.
    """
    data, model, modality = config.data, config.model, backbone.modality
    if data.text is not None and modality != "text":
        instead = "Give `image`, the column with images" if data.image is None else "Leave `text` out"
        raise UsageError(
            f"`text` names the column {data.text!r}, but the backbone {backbone.name!r} reads images and has no "
            f"tokenizer. {instead}, or give a text backbone."
        )
    reads = data.text if modality == "text" else data.image
    if model.taps != () and reads is None:
        raise UsageError(
            f"The backbone {backbone.name!r} reads {'texts' if modality == 'text' else 'images'}, but no such column "
            f"was named. Give `{modality}`, or another backbone."
        )
    text = image = columns = None
    if data.text is not None:
        text = save_tokenizer(
            model.backbone,
            folder / TOKENIZER,
            column=data.text,
            pair=data.text_pair,
            max_length=model.max_length,
            causal=backbone.causal,
        )
    if data.image is not None and modality == "image":
        image = image_settings(model.backbone, column=data.image, size=model.image_size)
    elif data.image is not None:
        size = model.image_size or _IMAGE_SIZE
        image = ImageSettings(column=data.image, resize=(size, size), crop=None)
    if data.numeric or data.categorical or data.nodes:
        try:
            columns = ColumnSettings.fit(
                rows.rows, numeric=data.numeric, categorical=data.categorical, nodes=data.nodes
            )
        except ValueError as error:
            raise TableError(f"The training rows' {error}.") from error
    return Preprocessing(text=text, image=image, columns=columns)


def _edges(config: Config, preprocessing: Preprocessing, rows: Dataset) -> NDArray[np.int64] | None:
    """The graph's edges as node numbers, (2, E): those of a file, or the training rows."""
    if not config.data.nodes or preprocessing.columns is None:
        return None
    records = rows.rows
    if config.data.edges is not None:
        values = read_columns(Path(config.data.edges), config.data.nodes).values
        records = [dict(zip(values, pair, strict=True)) for pair in zip(*values.values(), strict=True)]
    columns = ColumnSettings(nodes=preprocessing.columns.nodes)
    return np.asarray(Columns(columns).encode(records)["nodes"].T)


def _encoded(preprocessor: Preprocessor, rows: Dataset, data: str) -> Encoded:
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
