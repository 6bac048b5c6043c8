"""Rows from where a program has them: a file, or a table in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from levi_serving.errors import UsageError
from levi_serving.tables import read_columns, require
from levi_serving.tables.formats import ColumnValues

__all__ = ["ColumnTable", "Table", "read_source", "source_of"]


class ColumnTable(Protocol):
    """A table that gives a column by its name: a DataFrame, a pyarrow Table, a ``datasets.Dataset``."""

    def __getitem__(self, name: str, /) -> Any:
        """The values of a column."""
        ...


Table = Path | Sequence[Mapping[str, object]] | Mapping[str, Sequence[object]] | ColumnTable
"""A file, a row a mapping, a column a sequence, or a table of another library."""

_AS_LIST = ("to_pylist", "to_list", "tolist")  # pyarrow, polars, pandas and numpy; others are listed as they are


def source_of(data: Table) -> str:
    """What messages call a table: a file's path, or what it is.

    Raises:
        UsageError: it is no table.
    """
    if isinstance(data, Path):
        return str(data)
    if isinstance(data, str):
        raise UsageError(f"`data` is the text {data!r:.80}; expected a path as pathlib.Path, or rows.")
    if isinstance(data, Sequence):
        for number, row in enumerate(data, start=1):
            if not isinstance(row, Mapping):
                raise UsageError(f"`data` has a {type(row).__name__} as row {number}; expected a mapping by column.")
        return f"the {type(data).__name__} of {len(data)} rows"
    if isinstance(data, Mapping) or _columns(data) is not None:
        return f"the {type(data).__name__}"
    raise UsageError(
        f"`data` is a {type(data).__name__}; expected a path, a list of mappings, a mapping of columns, a DataFrame, "
        "a pyarrow Table or a datasets.Dataset."
    )


def read_source(data: Table, names: Sequence[str]) -> ColumnValues:
    """Read whole columns of a file or of a table in memory; rows count from 1.

    Raises:
        TableError: the file cannot be read, or a column is not there.
        UsageError: it is no table, or there is no such file.
    """
    where = source_of(data)
    if isinstance(data, Path):
        return read_columns(data, names)
    if isinstance(data, Sequence):
        require(list(dict.fromkeys(name for row in data for name in row)), names, where=where)
        values = {name: [row.get(name) for row in data] for name in names}
    else:
        require(list(data) if isinstance(data, Mapping) else _columns(data) or (), names, where=where)
        values = {name: _listed(data[name]) for name in names}
    count = max(map(len, values.values()), default=0)
    for name, cells in values.items():
        if len(cells) != count:
            raise UsageError(f"{where} has {len(cells)} values in column {name!r}, but {count} in another.")
    return ColumnValues(values=values, numbers=list(range(1, count + 1)))


def _columns(data: Any) -> list[str] | None:
    """The names of its columns, where it is a table of columns."""
    names = getattr(data, "column_names", None) or getattr(data, "columns", None)
    return None if names is None or not hasattr(data, "__getitem__") else [str(name) for name in names]


def _listed(column: Any) -> list[object]:
    """A column's values as Python's own."""
    as_list = next((method for name in _AS_LIST if (method := getattr(column, name, None)) is not None), None)
    return list(column) if as_list is None else list(as_list())
