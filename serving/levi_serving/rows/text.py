"""From texts to token ids: one tokenizer, for training and serving alike.

Padding and truncation come from ``TextSettings`` and never from inside ``tokenizer.json``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from levi_serving.errors import BundleError

__all__ = ["TextSettings", "Tokenization", "Tokens", "text_problem"]


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How text becomes token ids.

    Attributes:
        column: the row's column that holds the text.
        pair: the column with the second text of a pair (a hypothesis beside its premise), or None.
        max_length: the most tokens a row keeps, special tokens included; the end is cut off, of a pair
            the end of whichever text is longer.
        pad_id: the token id that fills a batch's shorter rows.
        padding_side: where it fills them.
    """

    column: str = "text"
    pair: str | None = None
    max_length: int = 256
    pad_id: int = 0
    padding_side: Literal["left", "right"] = "right"

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads."""
        return (self.column,) if self.pair is None else (self.column, self.pair)


@dataclass(frozen=True)
class Tokens:
    """The token ids of N rows, one row after another, nothing padded.

    Attributes:
        ids: (sum of lengths,) int64.
        offsets: (N + 1,) int64; row n is ``ids[offsets[n]:offsets[n + 1]]``.
        settings: how these were made, and how they are padded.
        types: (sum of lengths,) int64, for pairs which text a token is of; None for single texts.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    settings: TextSettings
    types: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens in each row, (N,)."""
        return np.diff(self.offsets)

    @classmethod
    def of(
        cls, rows: Sequence[Sequence[int]], settings: TextSettings, types: Sequence[Sequence[int]] | None = None
    ) -> Tokens:
        """Lay the token ids of N rows one after another."""
        lengths = np.fromiter((len(row) for row in rows), dtype=np.int64, count=len(rows))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return cls(_flat(rows, offsets), offsets, settings, None if types is None else _flat(types, offsets))

    def row(self, n: int) -> NDArray[np.int64]:
        """The token ids of row n, (T_n,)."""
        return self.ids[self.offsets[n] : self.offsets[n + 1]]

    def places(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where the tokens of the chosen rows lie, row after row, (sum of their lengths,)."""
        lengths = self.lengths[rows]
        before = np.cumsum(lengths) - lengths  # tokens of the rows that come earlier
        places: NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(self.offsets[rows] - before, lengths)
        return places

    def take(self, rows: NDArray[np.int64]) -> Tokens:
        """The chosen rows alone."""
        chosen = self.places(rows)
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows])]).astype(np.int64)
        return Tokens(self.ids[chosen], offsets, self.settings, None if self.types is None else self.types[chosen])

    def real(self, rows: NDArray[np.int64], *, least: int = 0) -> NDArray[np.bool_]:
        """Which places of a batch padded to its longest row, or ``least``, hold real tokens, (B, T)."""
        lengths = self.lengths[rows]
        longest = int(lengths.max(initial=least))
        positions = np.arange(longest)
        if self.settings.padding_side == "right":
            return positions < lengths[:, None]
        return positions >= longest - lengths[:, None]

    def batch(self, rows: NDArray[np.int64], *, least: int = 0) -> dict[str, NDArray[np.int64]]:
        """Pad the chosen rows to their longest, or further.

        Args:
            rows: B row numbers.
            least: the fewest places T.

        Returns:
            ``input_ids``, ``attention_mask`` and, for pairs, ``token_type_ids``: each (B, T) int64.
        """
        real = self.real(rows, least=least)
        feeds = {"input_ids": np.full(real.shape, self.settings.pad_id, dtype=np.int64)}
        feeds["attention_mask"] = real.astype(np.int64)
        if self.types is not None:
            feeds["token_type_ids"] = np.zeros(real.shape, dtype=np.int64)
        for name, values in (("input_ids", self.ids), ("token_type_ids", self.types)):
            if values is not None:
                feeds[name][real] = values[self.places(rows)]
        return feeds


def _flat(rows: Sequence[Sequence[int]], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.fromiter((i for row in rows for i in row), dtype=np.int64, count=int(offsets[-1]))


def text_problem(text: object, named: str) -> str | None:
    """Say why a value is no usable text, or None when it is."""
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


class Tokenization:
    """A tokenizer with its settings. Safe to use from several threads at once.

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

    def encode(self, texts: Sequence[Any]) -> Tokens:
        """Tokenise N usable texts, or N pairs of them."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        types = [encoding.type_ids for encoding in encodings] if self.settings.pair else None
        return Tokens.of([encoding.ids for encoding in encodings], self.settings, types)

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
