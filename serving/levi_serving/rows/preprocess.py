"""From rows to the graph's arrays, for training and serving alike.

There is one preprocessing: training encodes its rows with this file and so does the runner, so the two
cannot diverge. A row's text, image and further columns each have a file of their own; this one puts
them together.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from levi_serving.environment import usable_cores
from levi_serving.errors import RowError, UsageError
from levi_serving.rows.columns import Columns, ColumnSettings
from levi_serving.rows.images import ImageSettings, decode, normalise
from levi_serving.rows.text import TextSettings, Tokenization, Tokens, text_problem

__all__ = ["TOKENIZER", "Encoded", "Preprocessing", "Preprocessor", "Row", "rows_from_json", "rows_to_json"]

TOKENIZER = "tokenizer.json"

Row = str | bytes | Path | Mapping[str, object]
"""One row: a mapping from column name to value; or, where a model reads one column, its value alone."""

_PATCH = 16  # an image's cost in tokens, for cutting batches: its patches of 16 x 16 pixels


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How rows become arrays; what a model does not read is None."""

    text: TextSettings | None = None
    image: ImageSettings | None = None
    columns: ColumnSettings | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The columns a row must have, each once."""
        text = self.text.columns if self.text else ()
        image = (self.image.column,) if self.image else ()
        columns = self.columns.columns if self.columns else ()
        return tuple(dict.fromkeys([*text, *image, *columns]))

    def columns_in(self, names: Mapping[str, str]) -> dict[str, str]:
        """A table's column for each that is read: the one in ``names``, or the same.

        Raises:
            UsageError: ``names`` has a column that is not read.
        """
        for own in names:
            if own not in self.names:
                raise UsageError(f"`columns` has {own!r}, but this model reads {', '.join(map(repr, self.names))}.")
        return {own: names.get(own, own) for own in self.names}

    @property
    def in_words(self) -> str:
        """What of a row is read."""
        parts = []
        if text := self.text:
            parts.append(f"text in {' and '.join(text.columns)}, at most {text.max_length} tokens")
        if image := self.image:
            parts.append(f"image in {image.column}, {image.height} x {image.width} pixels")
        if columns := self.columns:
            kinds = {
                "numbers": [part.column for part in columns.numeric],
                "categories": [part.column for part in columns.categorical],
                "nodes": [part.column for part in columns.nodes],
            }
            parts += [f"{kind} in {', '.join(named)}" for kind, named in kinds.items() if named]
        return "; ".join(parts)

    @property
    def files(self) -> tuple[str, ...]:
        """The columns whose texts are paths of files."""
        return (self.image.column,) if self.image else ()

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild one from JSON."""
        text, image, columns = (document[name] for name in ("text", "image", "columns"))
        return cls(
            text=TextSettings(**text) if text else None,
            image=ImageSettings(**image) if image else None,
            columns=ColumnSettings.from_json(columns) if columns else None,
        )


@dataclass(frozen=True)
class Encoded:
    """N rows as arrays, nothing padded and no image normalised.

    Attributes:
        settings: how they were made, and how they are padded and normalised.
        tokens: the text's token ids; None where a model reads no text.
        arrays: the other inputs by name, N first: ``pixel_values`` (N, height, width, 3) uint8,
            ``numeric`` (N, n) float32, ``categorical`` (N, m) and ``nodes`` (N, 2) int64.
    """

    settings: Preprocessing
    tokens: Tokens | None = None
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens) if self.tokens is not None else len(next(iter(self.arrays.values())))

    @property
    def costs(self) -> NDArray[np.int64]:
        """What each row costs, (N,), in tokens: its own and its image's patches, at least 1."""
        image = self.settings.image
        patches = image.height * image.width // _PATCH**2 if image else 0
        tokens = self.tokens.lengths if self.tokens is not None else np.zeros(len(self), dtype=np.int64)
        return np.maximum(tokens + patches, 1)

    def take(self, rows: NDArray[np.int64]) -> Encoded:
        """The chosen rows alone."""
        tokens = None if self.tokens is None else self.tokens.take(rows)
        return Encoded(self.settings, tokens, {name: values[rows] for name, values in self.arrays.items()})

    def batch(self, rows: NDArray[np.int64] | Sequence[int], *, tokens: int = 0) -> dict[str, NDArray[Any]]:
        """The chosen B rows by the graph's input names, texts padded to the longest or ``tokens``, images normalised.

        ``input_ids``, ``attention_mask`` (B, T); ``pixel_values`` (B, 3, height, width); the others (B, …).
        """
        chosen = np.asarray(rows, dtype=np.int64)
        feeds: dict[str, NDArray[Any]] = (
            dict(self.tokens.batch(chosen, least=tokens)) if self.tokens is not None else {}
        )
        feeds |= {name: values[chosen] for name, values in self.arrays.items()}
        if self.settings.image is not None:
            feeds["pixel_values"] = normalise(feeds["pixel_values"], self.settings.image)
        return feeds

    @property
    def digest(self) -> str:
        """SHA-256 over the settings and all arrays."""
        digest = hashlib.sha256(repr(self.settings).encode())
        for name, values in sorted(self.stored().items()):
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def stored(self) -> dict[str, NDArray[Any]]:
        """All arrays by name, for a file."""
        arrays = dict(self.arrays)
        if self.tokens is not None:
            arrays |= {"ids": self.tokens.ids, "offsets": self.tokens.offsets}
            if self.tokens.types is not None:
                arrays["types"] = self.tokens.types
        return arrays

    @classmethod
    def restored(cls, arrays: Mapping[str, NDArray[Any]], settings: Preprocessing) -> Self:
        """Rebuild one from ``stored``."""
        rest = dict(arrays)
        tokens = None
        if settings.text is not None:
            tokens = Tokens(rest.pop("ids"), rest.pop("offsets"), settings.text, rest.pop("types", None))
        return cls(settings, tokens, rest)

    @classmethod
    def blank(cls, settings: Preprocessing, *, rows: int, tokens: int = 8) -> Self:
        """Rows of padding tokens, black images and zeros: to warm a session with."""
        text, image, columns = settings.text, settings.image, settings.columns
        arrays: dict[str, NDArray[Any]] = {}
        if image is not None:
            arrays["pixel_values"] = np.zeros((rows, image.height, image.width, 3), dtype=np.uint8)
        if columns is not None:
            arrays |= Columns(columns).encode([dict.fromkeys(columns.columns)] * rows)
        ids = None
        if text is not None:
            types = [[0] * tokens] * rows if text.pair else None
            ids = Tokens.of([[text.pad_id] * tokens] * rows, text, types)
        return cls(settings, ids, arrays)


class Preprocessor:
    """Turns rows into arrays. Safe to use from several threads at once.

    Args:
        folder: of the bundle or run; ``tokenizer.json`` in it is read where there is text.
        settings: what is read and how.

    Raises:
        BundleError: the tokenizer file is none.
    """

    def __init__(self, folder: Path, settings: Preprocessing) -> None:
        self.settings = settings
        self.tokenization = Tokenization(folder / TOKENIZER, settings.text) if settings.text else None
        self._columns = Columns(settings.columns) if settings.columns else None

    def encode(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Encoded:
        """Turn N rows into arrays.

        Args:
            rows: N rows.
            bad: rows that cannot be used are left out and listed here, reasons by position.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given; the first such row is named.
        """
        reasons: dict[int, str] = {}
        records: dict[int, Mapping[str, object]] = {}
        for n, row in enumerate(rows):
            record = self._record(row)
            if reason := record if isinstance(record, str) else self._problem(record):
                reasons[n] = reason
            elif not isinstance(record, str):
                records[n] = record
        pixels = self._pixels(records, reasons)
        if reasons and bad is None:
            first = min(reasons)
            raise RowError(first, reasons[first])
        if bad is not None:
            bad.update(sorted(reasons.items()))
        kept = [record for n, record in records.items() if n not in reasons]
        arrays = self._columns.encode(kept) if self._columns else {}
        if pixels is not None:
            arrays["pixel_values"] = pixels
        return Encoded(self.settings, self._tokens(kept), arrays)

    def _record(self, row: Row) -> Mapping[str, object] | str:
        """The row as a mapping with every column needed, or why it is none."""
        names = self.settings.names
        if isinstance(row, Mapping):
            for name in names:
                if name not in row:
                    return f"there is no column {name!r}; found {', '.join(map(repr, row)) or 'no columns'}."
            return row
        if len(names) == 1 and isinstance(row, str | bytes | Path):
            return {names[0]: row}
        wanted = f"the columns {', '.join(map(repr, names))}" if len(names) > 1 else f"the column {names[0]!r}"
        alone = "" if len(names) > 1 else "a text or " if self.settings.text else "an image's path, its bytes, or "
        return f"found {type(row).__name__}; expected {alone}a mapping with {wanted}."

    def _problem(self, record: Mapping[str, object]) -> str | None:
        for name in self.settings.text.columns if self.settings.text else ():
            if reason := text_problem(record[name], f"column {name!r}"):
                return reason
        return self._columns.problem(record) if self._columns else None

    def _tokens(self, records: Sequence[Mapping[str, object]]) -> Tokens | None:
        if self.tokenization is None:
            return None
        names = self.tokenization.settings.columns
        if len(names) == 1:
            return self.tokenization.encode([record[names[0]] for record in records])
        return self.tokenization.encode([tuple(record[name] for name in names) for record in records])

    def _pixels(self, records: Mapping[int, Mapping[str, object]], reasons: dict[int, str]) -> NDArray[np.uint8] | None:
        """Decode the records' images; those that cannot be decoded join ``reasons``."""
        settings = self.settings.image
        if settings is None:
            return None
        cells = [record[settings.column] for record in records.values()]
        with ThreadPoolExecutor(usable_cores()) as threads:  # Pillow decodes without Python's lock
            found = list(threads.map(partial(_decoded, settings=settings), cells))
        images = []
        for n, image in zip(records, found, strict=True):
            if isinstance(image, str):
                reasons[n] = f"column {settings.column!r}: {image}"
            else:
                images.append(image)
        blank = np.empty((0, settings.height, settings.width, 3), dtype=np.uint8)
        return np.stack(images) if images else blank


def _decoded(cell: Any, *, settings: ImageSettings) -> NDArray[np.uint8] | str:
    try:
        return decode(cell, settings)
    except ValueError as error:
        return str(error)


def rows_to_json(rows: Sequence[Row], settings: Preprocessing) -> str:
    """Rows as JSON, the columns that are read alone; an image's file becomes its bytes, in base64."""
    names, files = settings.names, settings.files
    records = []
    for row in rows:
        record = dict(row) if isinstance(row, Mapping) else {names[0]: row}
        record = {name: record[name] for name in names}
        for name in files:
            content = record[name]
            data = content if isinstance(content, bytes) else Path(str(content)).read_bytes()
            record[name] = base64.b64encode(data).decode()
        records.append(record)
    return json.dumps(records, ensure_ascii=False, default=str)


def rows_from_json(text: str | bytes, settings: Preprocessing) -> list[dict[str, Any]]:
    """Rows back from ``rows_to_json``."""
    records: list[dict[str, Any]] = json.loads(text)
    for record in records:
        for name in settings.files:
            record[name] = base64.b64decode(record[name])
    return records
