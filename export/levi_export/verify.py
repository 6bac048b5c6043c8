"""Golden rows and shapes: what the torch model answers, for the proof. Knows torch; judges nothing.

The judge is ``levi_serving.parity.replay``, through the runner that serves, at export and ever after.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_deploy.evaluation.metrics import metrics
from levi_deploy.model import Reference
from levi_serving.bundle import Graph
from levi_serving.errors import ParityError
from levi_serving.parity import Case, Golden
from levi_serving.predictions import Outputs, Task, finish, table
from levi_serving.preprocess import Encoded, Row
from levi_serving.text import TextSettings, Tokens

__all__ = ["check_drop", "golden", "metric", "spread"]

BATCHES = (1, 2, 7, 32)
_ROWS = 64


def spread(rows: Sequence[Row]) -> list[Row]:
    """The golden rows: some of the run's, which go from short to long."""
    places = np.unique(np.linspace(0, len(rows) - 1, min(_ROWS, len(rows))).round().astype(int))
    return [rows[int(n)] for n in places]


def metric(
    reference: Outputs, found: Outputs, targets: NDArray[Any], *, task: Task, labels: Sequence[str]
) -> dict[str, Any]:
    """The task's first metric on N labelled rows, of the torch model and of a graph.

    Returns:
        ``name``, ``torch``, ``value``, and ``drop``: how many points are lost (regression: by how many percent
        the error rises); less than 0 where the graph does better.
    """
    torch, own = (
        metrics(finish(a, task=task, labels=labels), targets, task=task, labels=labels) for a in (reference, found)
    )
    name = next(name for name in own if name != "rows")
    drop = 100 * (own[name] / torch[name] - 1) if task == "regression" else 100 * (torch[name] - own[name])
    return {"name": name, "torch": torch[name], "value": own[name], "drop": drop}


def check_drop(measured: dict[str, Any], graph: Graph, *, allowed: float) -> None:
    """Refuse a graph that loses too much of the metric.

    Raises:
        ParityError: it does.
    """
    if not measured["drop"] <= allowed:
        unit = "percent more" if measured["name"] == "rmse" else "points less"
        raise ParityError(
            f"The {graph.precision} graph has the {measured['name']} {measured['value']:.4f} on the run's validation "
            f"rows, torch {measured['torch']:.4f}: {measured['drop']:.2f} {unit}, allowed {allowed:g}. Nothing was "
            "written. Take another precision, or allow more with --max-drop."
        )


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
    cases = [Case(feeds, chosen, reference.answer(feeds)) for feeds, chosen in _shapes(encoded)]
    return Golden(rows, encoded, outputs, predictions, cases)


def _shapes(encoded: Encoded) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[np.int64]]]:
    """Batches of 1, 2, 7 and 32 rows; texts from one token to the maximum, whole and padded."""
    others = Encoded(encoded.settings, None, encoded.arrays) if encoded.arrays else None
    place = 0
    for batch in BATCHES:
        for text in _texts(encoded.tokens, batch) if encoded.tokens is not None else [{}]:
            rows = np.arange(place, place + batch) % len(encoded)
            place += batch
            yield text | (others.batch(rows) if others is not None else {}), rows


def _texts(tokens: Tokens, batch: int) -> Iterator[dict[str, NDArray[np.int64]]]:
    """One batch size's texts at each length: all of it, and shorter ones padded."""
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
    """Pad a single row to ``length``, as if a longer row stood beside it."""
    missing = length - feeds["input_ids"].shape[1]
    before_after = (0, missing) if settings.padding_side == "right" else (missing, 0)
    fill = {"input_ids": settings.pad_id}
    return {
        name: np.pad(array, ((0, 0), before_after), constant_values=fill.get(name, 0)) for name, array in feeds.items()
    }
