"""Which format a path has, and whole columns of a table in memory.

To add a format: a class with the verbs of ``table.Format``, and a line in ``find_format``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from levi_serving.errors import UsageError
from levi_serving.tables.delimited import Delimited
from levi_serving.tables.jsonl import Jsonl
from levi_serving.tables.table import BadRow, Format, require

__all__ = ["ColumnValues", "find_format", "located", "read_columns"]

_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def find_format(path: Path | None, name: str | None = None) -> Format:
    """The format of a path by its suffix, or by name; a folder is one of images.

    Args:
        path: None for a pipe.
        name: csv, tsv, jsonl or parquet; for a pipe jsonl when None.

    Raises:
        UsageError: the suffix or the name is unknown, or a pipe is to hold Parquet.
        MissingExtraError: Parquet needs pyarrow.
    """
    if path is not None and name is None and path.is_dir():
        from levi_serving.tables.image_folder import ImageFolder

        return ImageFolder()
    suffix = path.suffix.lower() if path is not None else ".jsonl"
    chosen = name or _SUFFIXES.get(suffix, "")
    if chosen not in _SUFFIXES.values():
        found = f"format {name!r}" if name else f"suffix {suffix!r} of {path}"
        raise UsageError(f"The {found} is unknown; known are {', '.join(_SUFFIXES)}. Name one with a format option.")
    if chosen == "parquet":
        if path is None:
            raise UsageError(
                "Parquet cannot go through a pipe: its index lies at its end. Use jsonl or csv, or a file."
            )
        from levi_serving.tables.parquet import Parquet

        return Parquet()
    return Jsonl() if chosen == "jsonl" else Delimited(chosen, "," if chosen == "csv" else "\t")


@dataclass(frozen=True)
class ColumnValues:
    """Chosen columns of a whole table: row numbers, values by column, and the rows that could not be read."""

    numbers: list[int] = field(default_factory=list)
    values: dict[str, list[object]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)


def read_columns(path: Path, names: Sequence[str], *, format: str | None = None) -> ColumnValues:  # noqa: A002
    """Read whole columns into memory.

    Raises:
        TableError: the file cannot be read or lacks a column.
        UsageError: there is no such file, or its format is unknown.
    """
    result = ColumnValues(values={name: [] for name in names})
    for chunk in find_format(path, format).read(path, rows=8192):
        if chunk.numbers or not result.numbers:
            require(chunk.columns, names, where=str(path))
        result.numbers.extend(chunk.numbers)
        result.bad.extend(chunk.bad)
        for name in names:
            result.values[name].extend(chunk.column(name))
    return result


def located(cells: Sequence[object], table: Path | None) -> list[object]:
    """Cells with paths of files, found from where their table lies (a folder of images: from itself).

    A pipe's paths are found from the working directory; what is no text stays as it is.
    """
    if table is None:
        return list(cells)
    root = table if table.is_dir() else table.parent
    return [str(root / cell) if isinstance(cell, str) and cell else cell for cell in cells]
