"""What a table is, whatever its format: windows of rows, good and bad.

A row that cannot be read becomes a ``BadRow`` and the rest goes on. Rows are numbered from 1, the header
and blank lines not counted.
"""

from __future__ import annotations

import base64
import datetime
import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from levi_serving.errors import TableError, UsageError

__all__ = ["BadRow", "Chunk", "Format", "Records", "line", "opened", "plain", "require", "source_name"]


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its number from 1, why, and what could be kept of it."""

    row: int
    reason: str
    record: object = None

    def to_json(self) -> bytes:
        """One line for the errors file."""
        return line({"row": self.row, "reason": self.reason, "input": self.record})


class Chunk(Protocol):
    """Some consecutive rows of a table.

    Attributes:
        numbers: the numbers of the rows that could be read.
        bad: the others.
        columns: all column names.
    """

    @property
    def numbers(self) -> Sequence[int]: ...  # noqa: D102  # above
    @property
    def bad(self) -> Sequence[BadRow]: ...  # noqa: D102
    @property
    def columns(self) -> Sequence[str]: ...  # noqa: D102

    def column(self, name: str) -> list[object]:
        """One column's values, None where a row has none."""
        ...

    def take(self, positions: Sequence[int]) -> Chunk:
        """The readable rows at these positions, in this order, without the bad ones."""
        ...

    def records(self) -> list[dict[str, object]]:
        """The readable rows as mappings."""
        ...


@dataclass(frozen=True)
class Records:
    """Rows as mappings."""

    numbers: Sequence[int]
    rows: Sequence[dict[str, object]]
    columns: Sequence[str]
    bad: Sequence[BadRow] = ()

    def column(self, name: str) -> list[object]:
        """One column's values, None where a row has none."""
        return [row.get(name) for row in self.rows]

    def take(self, positions: Sequence[int]) -> Records:
        """The readable rows at these positions."""
        return Records([self.numbers[p] for p in positions], [self.rows[p] for p in positions], self.columns)

    def records(self) -> list[dict[str, object]]:
        """The readable rows."""
        return list(self.rows)


class Format(Protocol):
    """One file format, read and written in windows."""

    name: str

    def read(self, source: Path | BinaryIO, *, rows: int, skip: int = 0) -> Iterator[Chunk]:
        """Read windows of ``rows`` rows after the first ``skip``; at least one window, if an empty one.

        Raises:
            TableError: the file as a whole cannot be read.
        """
        ...

    def write(self, file: BinaryIO, chunk: Chunk, added: Mapping[str, Sequence[object]], *, header: bool) -> None:
        """Write rows with added columns behind their own."""
        ...

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        """Write the rows of files that ``write`` made as one file."""
        ...


def require(columns: Sequence[str], wanted: Sequence[str], *, where: str) -> None:
    """Check that columns are there.

    Raises:
        TableError: naming those found and the nearest.
    """
    for name in wanted:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            found = ", ".join(map(repr, list(columns)[:20])) or "none"
            raise TableError(f"{where} has no column {name!r}; its columns are {found}.{hint}")


def opened(source: Path | BinaryIO) -> BinaryIO:
    """Open a file for reading; a stream is itself.

    Raises:
        UsageError: there is no such file.
        TableError: it cannot be read.
    """
    if not isinstance(source, Path):
        return source
    try:
        return source.open("rb")
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {source}.") from error
    except OSError as error:
        raise TableError(f"{source} cannot be read: {error.strerror}.") from error


def source_name(source: Path | BinaryIO) -> str:
    """What messages call a file or a pipe."""
    name = str(source if isinstance(source, Path) else getattr(source, "name", "<stdin>"))
    return "standard input" if name == "<stdin>" else name


def line(record: Mapping[str, object]) -> bytes:
    """A record as one line of JSON."""
    text = json.dumps(record, ensure_ascii=False, default=plain) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as JSON's own escape
        return (json.dumps(record, default=plain) + "\n").encode()


def plain(value: object) -> object:
    """What a value of another format is in JSON."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)
