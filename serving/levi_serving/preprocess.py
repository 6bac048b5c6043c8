"""From rows to token arrays, for training and serving alike.

There is one preprocessing: training encodes its rows with this file and so does the runner, so the
two cannot drift apart. It knows tokenizers and numpy; it knows no model, no file format and no task.
Padding and truncation come from ``TextSettings`` and never from inside ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from levi_serving.errors import BundleError, RowError

__all__ = ["Encoded", "Row", "TextPreprocessor", "TextSettings"]

Row = str | Mapping[str, object]
"""One row: its text, or a mapping from column name to value."""


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How text becomes token ids.

    Attributes:
        column: the row's column that holds the text.
        max_length: the most tokens a row keeps, special tokens included; the end is cut off.
        pad_id: the token id that fills a batch's shorter rows.
        padding_side: where it fills them.
    """

    column: str = "text"
    max_length: int = 256
    pad_id: int = 0
    padding_side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Encoded:
    """The token ids of N rows, one row after another, nothing padded.

    Attributes:
        ids: (sum of lengths,) int64.
        offsets: (N + 1,) int64; row n is ``ids[offsets[n]:offsets[n + 1]]``.
        settings: how these were made, and how they are padded.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    settings: TextSettings

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each row, (N,)."""
        return np.diff(self.offsets)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], settings: TextSettings) -> Encoded:
        """Lay the token ids of N rows one after another."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        ids = np.fromiter((i for row in rows for i in row), dtype=np.int64, count=int(lengths.sum()))
        return cls(ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), settings)

    def row(self, n: int) -> NDArray[np.int64]:
        """The token ids of row n, (T_n,)."""
        return self.ids[self.offsets[n] : self.offsets[n + 1]]

    def batch(self, rows: NDArray[np.int64] | Sequence[int]) -> dict[str, NDArray[np.int64]]:
        """Pad the chosen rows to their longest.

        Args:
            rows: B row numbers.

        Returns:
            ``input_ids`` and ``attention_mask``, each (B, T) int64, by the graph's input names.
        """
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen]
        longest = int(lengths.max(initial=0))
        positions = np.arange(longest)
        if self.settings.padding_side == "right":
            real = positions < lengths[:, None]
        else:
            real = positions >= longest - lengths[:, None]
        input_ids = np.full((len(chosen), longest), self.settings.pad_id, dtype=np.int64)
        if len(chosen):
            input_ids[real] = np.concatenate([self.row(int(n)) for n in chosen])
        return {"input_ids": input_ids, "attention_mask": real.astype(np.int64)}


class TextPreprocessor:
    """Turns rows into token ids. Safe to use from several threads at once.

    Args:
        tokenizer: the ``tokenizer.json`` file.
        settings: padding and truncation; what the file itself says of them is ignored.

    Raises:
        BundleError: the file is no tokenizer.
    """

    def __init__(self, tokenizer: Path, settings: TextSettings) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(
                f"{tokenizer.name} in {tokenizer.parent} is no tokenizer file ({error}). "
                "Export the model again, or copy the whole bundle again."
            ) from error
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_length)
        self.settings = settings

    def problem(self, row: Row) -> str | None:
        """Say why a row cannot be used, or None when it can. Cheap: nothing is tokenised."""
        column = self.settings.column
        if isinstance(row, str):
            text: object = row
            named = "the text"
        elif isinstance(row, Mapping):
            if column not in row:
                return f"there is no column {column!r}; found {', '.join(map(repr, row)) or 'no columns'}."
            text = row[column]
            named = f"column {column!r}"
        else:
            return f"found {type(row).__name__}; expected a text or a mapping with the column {column!r}."
        if text is None:
            return f"{named} is missing; expected a text."
        if not isinstance(text, str):
            return f"{named} holds {text!r:.60} ({type(text).__name__}); expected a text."
        if not text or text.isspace():
            return f"{named} is empty; expected a text."
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"{named} holds invalid Unicode at character {error.start}; expected UTF-8 text."
        return None

    def encode(self, rows: Sequence[Row]) -> Encoded:
        """Tokenise N rows.

        Raises:
            RowError: a row cannot be used; the first such row is named.
        """
        for n, row in enumerate(rows):
            if reason := self.problem(row):
                raise RowError(n, reason)
        texts = [row if isinstance(row, str) else row[self.settings.column] for row in rows]
        encodings = self._tokenizer.encode_batch_fast(texts)
        return Encoded.of([encoding.ids for encoding in encodings], self.settings)

    def text_of(self, length: int, source: Sequence[str]) -> str:
        """Cut real text to an exact number of tokens, special tokens included.

        Args:
            length: tokens, more than the special tokens and at most ``max_length``.
            source: texts to cut from, joined and repeated until long enough.

        Raises:
            ValueError: nothing of exactly that length can be cut from this source.
        """
        words = " ".join(source).split()
        wanted = length - self._tokenizer.num_special_tokens_to_add(is_pair=False)
        for start in range(len(words) if wanted > 0 and length <= self.settings.max_length else 0):
            later = words[start:] + words * (1 + length // len(words))
            text = " ".join(later[: self.settings.max_length])
            encoding = self._tokenizer.encode(text)
            ends = [
                end
                for (_, end), special in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
                if not special
            ]
            if len(ends) < wanted:
                continue
            text = text[: ends[wanted - 1]]
            if len(self._tokenizer.encode(text).ids) == length:
                return text
        raise ValueError(f"no text of exactly {length} tokens can be cut from the {len(source)} texts given")
