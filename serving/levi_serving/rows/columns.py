"""From a row's further columns to arrays: numbers, categories, and the nodes of a graph.

What was learned from the training rows (means, spreads, known values) travels in ``ColumnSettings``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Category", "ColumnSettings", "Columns", "Number", "category", "number"]


@dataclass(frozen=True, kw_only=True)
class Number:
    """A numeric column with its mean and standard deviation in the training rows."""

    column: str
    mean: float
    std: float


@dataclass(frozen=True, kw_only=True)
class Category:
    """A column of names: value v is number 1 + its place here, and 0 stands for every other."""

    column: str
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ColumnSettings:
    """What of a row's further columns a model reads.

    Attributes:
        numeric: standardised; a missing number counts as the mean.
        categorical: missing and unknown values share the bucket 0.
        nodes: the two id columns of a recommendation graph; unseen ids are 0.
    """

    numeric: tuple[Number, ...] = ()
    categorical: tuple[Category, ...] = ()
    nodes: tuple[Category, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it reads, each once."""
        named = [part.column for part in (*self.categorical, *self.nodes)]
        return tuple(dict.fromkeys([*(part.column for part in self.numeric), *named]))

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Rebuild one from JSON."""

        def categories(name: str) -> tuple[Category, ...]:
            return tuple(Category(column=c["column"], values=tuple(c["values"])) for c in document[name])

        return cls(
            numeric=tuple(Number(**n) for n in document["numeric"]),
            categorical=categories("categorical"),
            nodes=categories("nodes"),
        )

    @classmethod
    def fit(
        cls,
        rows: Sequence[Mapping[str, object]],
        *,
        numeric: Iterable[str] = (),
        categorical: Iterable[str] = (),
        nodes: Iterable[str] = (),
    ) -> Self:
        """Take means, spreads and known values from training rows.

        Raises:
            ValueError: a column has no number, or one that is none.
        """
        return cls(
            numeric=tuple(_number(rows, column) for column in numeric),
            categorical=tuple(_category(rows, column) for column in categorical),
            nodes=tuple(_category(rows, column) for column in nodes),
        )


def _number(rows: Sequence[Mapping[str, object]], column: str) -> Number:
    cells = [row[column] for row in rows]
    if bad := next((cell for cell in cells if number(cell) is None), None):
        raise ValueError(f"column {column!r} holds {bad!r:.60}; a numeric column needs finite numbers")
    values = np.asarray([number(cell) for cell in cells], dtype=np.float64)
    if np.isnan(values).all():
        raise ValueError(f"column {column!r} has no number in any training row")
    return Number(column=column, mean=float(np.nanmean(values)), std=float(np.nanstd(values)) or 1.0)


def _category(rows: Sequence[Mapping[str, object]], column: str) -> Category:
    names = {category(row[column]) for row in rows} - {""}
    return Category(column=column, values=tuple(sorted(names)))


def number(cell: object) -> float | None:
    """A cell as a number; NaN when it is missing, None when it holds something else."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    if isinstance(cell, bool | np.bool_):
        return float(cell)
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return None if math.isinf(value) else value


def category(cell: object) -> str:
    """A cell as a category's name, the same from every file format; empty when it is missing."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


class Columns:
    """Turns further columns into arrays, by their settings."""

    def __init__(self, settings: ColumnSettings) -> None:
        self.settings = settings
        self._places = {
            part: {name: 1 + n for n, name in enumerate(part.values)}
            for part in (*settings.categorical, *settings.nodes)
        }

    def problem(self, row: Mapping[str, object]) -> str | None:
        """Say why a row's numbers cannot be used, or None when they can."""
        for part in self.settings.numeric:
            if number(row[part.column]) is None:
                return f"column {part.column!r} holds {row[part.column]!r:.60}; expected a finite number."
        return None

    def encode(self, rows: Sequence[Mapping[str, object]]) -> dict[str, NDArray[Any]]:
        """Turn N usable rows into ``numeric`` (N, n) float32, ``categorical`` and ``nodes`` (N, m) int64."""
        arrays: dict[str, NDArray[Any]] = {}
        if parts := self.settings.numeric:
            values = np.asarray([[number(row[p.column]) for p in parts] for row in rows], dtype=np.float64)
            scaled = (values.reshape(len(rows), len(parts)) - [p.mean for p in parts]) / [p.std for p in parts]
            arrays["numeric"] = np.nan_to_num(scaled).astype(np.float32)
        for name, named in (("categorical", self.settings.categorical), ("nodes", self.settings.nodes)):
            if named:
                places = [[self._places[p].get(category(row[p.column]), 0) for p in named] for row in rows]
                arrays[name] = np.asarray(places, dtype=np.int64).reshape(len(rows), len(named))
        return arrays
