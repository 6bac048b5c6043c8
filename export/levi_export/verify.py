"""Golden rows and shapes: what the torch model answers, for the proof. Knows torch; judges nothing.

The judge is ``levi_serving.parity.replay``, through the runner that serves, at export and ever after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from levi_deploy.model import Reference
from levi_serving.parity import Case, Golden
from levi_serving.predictions import Outputs, table
from levi_serving.preprocess import Encoded, Row

__all__ = ["golden"]

BATCHES = (1, 2, 7, 32)


def golden(reference: Reference, rows: Sequence[Row]) -> Golden:
    """Ask the torch model about real rows, alone and in batches of many shapes.

    Args:
        reference: the trained model.
        rows: real rows, short and long.
    """
    encoded = reference.prepare(rows)
    alone = [reference.answer(encoded.batch([n])) for n in range(len(encoded))]
    outputs = Outputs(np.concatenate([one.logits for one in alone]), np.concatenate([one.head_logits for one in alone]))
    predictions = table(reference.finish(outputs), task=reference.task, labels=reference.labels)["prediction"]
    cases = [Case(feeds, reference.answer(feeds)) for feeds in _shapes(encoded)]
    return Golden(rows, encoded, outputs, predictions, cases)


def _shapes(encoded: Encoded) -> Iterator[dict[str, NDArray[np.int64]]]:
    """Batches of 1, 2, 7 and 32 rows × lengths from one token to the maximum, whole and padded."""
    longest = encoded.settings.max_length
    stream = encoded.ids  # real tokens, row after row
    place = 0
    for length in sorted({1, 2, max(1, longest // 8), max(1, longest // 2), longest}):
        for batch in BATCHES:
            shares = np.linspace(1, 0.2, batch) if batch > 1 else np.asarray([0.7])
            for lengths in {
                (length,) * batch,
                tuple(max(1, round(length * share)) for share in shares),
            }:
                rows = []
                for tokens in lengths:
                    rows.append(np.take(stream, range(place, place + tokens), mode="wrap").tolist())
                    place += tokens
                feeds = Encoded.of(rows, encoded.settings).batch(range(batch))
                if batch == 1 and lengths[0] < length:
                    feeds = _widened(feeds, length, encoded)
                yield feeds


def _widened(feeds: dict[str, NDArray[np.int64]], length: int, encoded: Encoded) -> dict[str, NDArray[np.int64]]:
    """Pad a single row to ``length``, as if a longer row stood beside it."""
    missing = length - feeds["input_ids"].shape[1]
    before_after = (0, missing) if encoded.settings.padding_side == "right" else (missing, 0)
    fill = {"input_ids": encoded.settings.pad_id, "attention_mask": 0}
    return {name: np.pad(array, ((0, 0), before_after), constant_values=fill[name]) for name, array in feeds.items()}
