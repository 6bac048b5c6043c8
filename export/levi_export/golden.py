"""Golden rows: real rows and batches of many shapes with the torch model's answers, the reference of every proof.

They are only made here. ``levi_serving.parity.replay`` compares a graph with them, through the runner that serves, at
export and whenever a bundle is verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.model import Reference
from levi_serving.parity import Case, Golden
from levi_serving.predictions import Outputs
from levi_serving.rows.preprocess import Encoded, Row
from levi_serving.rows.text import TextSettings, Tokens

__all__ = ["choose", "golden"]

_BATCHES = (1, 2, 7, 32)
_ROWS = 64


def choose(rows: Sequence[Row]) -> list[Row]:
    """At most 64 of a run's N rows at even distances: they are sorted by length, so all lengths are there."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).round().astype(int))
    return [rows[int(n)] for n in places]


def golden(reference: Reference, rows: Sequence[Row]) -> Golden:
    """Compute the torch model's answers to real rows, alone and in batches of many shapes.

    Args:
        reference: the trained model.
        rows: N real rows, short and long.
    """
    encoded = reference.prepare(rows)
    alone = [reference.answer(encoded.batch([n])) for n in range(len(encoded))]
    outputs = Outputs.joined(alone)
    predictions = reference.table(reference.finish(outputs))["prediction"]
    cases = [Case(feeds, chosen, reference.answer(feeds)) for feeds, chosen in _shapes(encoded)]
    return Golden(rows, encoded, outputs, predictions, cases)


def _shapes(encoded: Encoded) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
    """Batches of 1, 2, 7 and 32 rows; texts from one token to the maximum, whole and padded."""
    others = Encoded(encoded.settings, None, encoded.arrays) if encoded.arrays else None
    place = 0
    for batch in _BATCHES:
        for text in _texts(encoded.tokens, batch) if encoded.tokens is not None else [{}]:
            rows = np.arange(place, place + batch) % len(encoded)
            place += batch
            yield text | (others.batch(rows) if others is not None else {}), rows


def _texts(tokens: Tokens, batch: int) -> Iterator[dict[str, NDArray[np.int64]]]:
    """One batch size's texts at each length T: all of T tokens, and shorter ones padded to it."""
    longest = tokens.settings.max_length
    place = batch  # another start for each batch size
    for length in sorted({1, 2, max(1, longest // 8), max(1, longest // 2), longest}):
        shares = np.linspace(1, 0.2, batch) if batch > 1 else np.asarray([0.7])
        for lengths in {(length,) * batch, tuple(max(1, round(length * share)) for share in shares)}:
            rows = []
            for count in lengths:
                rows.append(np.take(tokens.ids, range(place, place + count), mode="wrap").tolist())
                place += count
            types = (
                None if tokens.types is None else [[int(2 * n >= len(row)) for n in range(len(row))] for row in rows]
            )
            feeds = Tokens.of(rows, tokens.settings, types).batch(np.arange(batch))
            yield _widened(feeds, length, tokens.settings) if lengths[0] < length else feeds


def _widened(feeds: dict[str, NDArray[np.int64]], length: int, settings: TextSettings) -> dict[str, NDArray[np.int64]]:
    """Pad a single row to ``length``, as beside a longer row in a batch."""
    missing = length - feeds["input_ids"].shape[1]
    before_after = (0, missing) if settings.padding_side == "right" else (missing, 0)
    fill = {"input_ids": settings.pad_id}
    return {
        name: np.pad(array, ((0, 0), before_after), constant_values=fill.get(name, 0)) for name, array in feeds.items()
    }
