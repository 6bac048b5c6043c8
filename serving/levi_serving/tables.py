"""Tables in and out, a window at a time: CSV, TSV and JSONL here, Parquet in ``parquet.py``.

A row that cannot be read becomes a ``BadRow`` and the rest goes on. Rows are numbered from 1, the header
and blank lines not counted. It knows no model.
"""

from __future__ import annotations

import base64
import csv
import datetime
import difflib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from levi_serving.errors import TableError, UsageError

__all__ = [
    "BadRow",
    "Chunk",
    "Columns",
    "Format",
    "Records",
    "find_format",
    "located",
    "opened",
    "read_columns",
    "require",
]

_LONGEST_FIELD = 16_000_000  # characters; a longer one is a quote that was never closed
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: its number from 1, why, and what could be kept of it."""

    row: int
    reason: str
    record: object = None

    def to_json(self) -> bytes:
        """One line for the errors file."""
        return _line({"row": self.row, "reason": self.reason, "input": self.record})


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


def find_format(path: Path | None, name: str | None = None) -> Format:
    """The format of a path by its suffix, or by name; a folder is one of images.

    Args:
        path: None for a pipe.
        name: csv, tsv, jsonl or parquet; for a pipe jsonl when None.

    Raises:
        UsageError: the suffix or the name is unknown, or Parquet is asked of a pipe.
        MissingExtraError: Parquet needs pyarrow.
    """
    if path is not None and name is None and path.is_dir():
        from levi_serving.image_folder import ImageFolder

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
        from levi_serving.parquet import Parquet

        return Parquet()
    return Jsonl() if chosen == "jsonl" else Delimited(chosen, "," if chosen == "csv" else "\t")


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


@dataclass(frozen=True)
class Columns:
    """Chosen columns of a whole table: row numbers, values by column, and the rows that could not be read."""

    numbers: list[int] = field(default_factory=list)
    values: dict[str, list[object]] = field(default_factory=dict)
    bad: list[BadRow] = field(default_factory=list)


def read_columns(path: Path, names: Sequence[str], *, format: str | None = None) -> Columns:  # noqa: A002
    """Read whole columns into memory.

    Raises:
        TableError: the file cannot be read or lacks a column.
        UsageError: there is no such file, or its format is unknown.
    """
    result = Columns(values={name: [] for name in names})
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


def _name(source: Path | BinaryIO) -> str:
    name = str(source if isinstance(source, Path) else getattr(source, "name", "<stdin>"))
    return "standard input" if name == "<stdin>" else name


class _Lines(list[str]):
    """What a csv writer writes, a line a row: it quotes the characters of its own line end, so that must be CRLF."""

    def write(self, line: str) -> None:
        self.append(line.removesuffix("\r\n") + "\n")


class Delimited:
    """CSV or TSV with a header, as RFC 4180: quotes, doubled quotes, line ends inside quotes."""

    def __init__(self, name: str, delimiter: str) -> None:
        self.name = name
        self._delimiter = delimiter

    def read(self, source: Path | BinaryIO, *, rows: int, skip: int = 0) -> Iterator[Chunk]:
        """Read windows; every value is a text."""
        where = _name(source)
        csv.field_size_limit(_LONGEST_FIELD)
        with opened(source) as file:
            # Bytes that are no UTF-8 become surrogates, so that one bad field costs one row.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(text, delimiter=self._delimiter, strict=True)
            columns = self._header(reader, where)
            number, good, numbers, bad = 0, list[dict[str, object]](), list[int](), list[BadRow]()
            yielded = False
            while True:
                line = reader.line_num + 1
                problem: str | None = None
                try:
                    values = next(reader)
                except StopIteration:
                    break
                except csv.Error as error:
                    values, problem = [], self._misread(error, where, number + 1, line)
                else:
                    if not values:
                        continue  # a blank line
                number += 1
                if number <= skip:
                    continue
                problem = problem or self._problem(values, columns)
                if problem:
                    bad.append(BadRow(number, f"line {line}: {problem}", [_shown(value) for value in values]))
                else:
                    numbers.append(number)
                    good.append(dict(zip(columns, values, strict=True)))
                if len(numbers) + len(bad) == rows:
                    yield Records(numbers, good, columns, bad)
                    yielded, good, numbers, bad = True, [], [], []
            if numbers or bad or not yielded:
                yield Records(numbers, good, columns, bad)

    def _header(self, reader: Any, where: str) -> list[str]:
        try:
            columns = next(reader, None)
        except csv.Error as error:
            raise TableError(f"The header of {where} cannot be read: {error}. Is it a {self.name} file?") from error
        if not columns:
            raise TableError(f"{where} is empty; expected a header line with column names.")
        try:
            "".join(columns).encode()
        except UnicodeEncodeError as error:
            raise TableError(f"The header of {where} is not UTF-8. Save the file as UTF-8.") from error
        for name in columns:
            if not name.strip() or columns.count(name) > 1:
                what = "an empty name" if not name.strip() else f"the name {name!r} twice"
                raise TableError(f"The header of {where} has {what}: {', '.join(map(repr, columns))}. Rename it.")
        return list(columns)

    def _misread(self, error: csv.Error, where: str, number: int, line: int) -> str:
        """What the parser found; a quote that swallows the rest of the file is not one row's problem."""
        if "end of data" in str(error) or "field limit" in str(error):
            raise TableError(
                f"{where}: a quote that opens in row {number} (line {line}) is not closed within "
                f"{'the file' if 'end of data' in str(error) else f'{_LONGEST_FIELD:,} characters'}. "
                "Close it, or double a quote that belongs to the text."
            ) from error
        return f"broken quoting ({error}); a quote inside quotes is written twice"

    @staticmethod
    def _problem(values: list[str], columns: list[str]) -> str | None:
        if len(values) != len(columns):
            return f"{len(values)} fields; the header has {len(columns)}"
        for value, column in zip(values, columns, strict=True):
            if not value.isascii():
                try:
                    value.encode()
                except UnicodeEncodeError as error:
                    return f"column {column!r} is not UTF-8 at character {error.start}"
        return None

    def write(self, file: BinaryIO, chunk: Chunk, added: Mapping[str, Sequence[object]], *, header: bool) -> None:
        """Write rows; None is an empty field, lists and mappings are JSON."""
        lines = _Lines()
        writer = csv.writer(lines, delimiter=self._delimiter)
        if header:
            writer.writerow([*chunk.columns, *added])
        for n, record in enumerate(chunk.records()):
            own = [_cell(record.get(name)) for name in chunk.columns]
            writer.writerow([*own, *(_cell(values[n]) for values in added.values())])
        file.write("".join(lines).encode("utf-8", "backslashreplace"))

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        """Join parts; where their columns differ (JSONL rows with other keys), the header is their union."""
        headers = [self._part_header(part) for part in parts]
        union = list(dict.fromkeys(name for header in headers for name in header))
        self.write(file, Records([], [], union), {}, header=True)
        for part, header in zip(parts, headers, strict=True):
            with part.open("rb") as source:
                if header == union:
                    self._part_header(source)
                    while block := source.read(1 << 20):
                        file.write(block)
                    continue
            for chunk in self.read(part, rows=4096):
                empty = {name: [""] * len(chunk.numbers) for name in union if name not in header}
                whole = Records(
                    chunk.numbers,
                    [
                        {**record, **{name: values[n] for name, values in empty.items()}}
                        for n, record in enumerate(chunk.records())
                    ],
                    union,
                )
                self.write(file, whole, {}, header=False)

    def _part_header(self, part: Path | BinaryIO) -> list[str]:
        """A part's header; its own file is left behind it. A name in a header may hold line ends."""
        file = opened(part)
        line = b""
        while True:
            line += file.readline()
            if line.count(b'"') % 2 == 0:
                break
        if isinstance(part, Path):
            file.close()
        return next(csv.reader(io.StringIO(line.decode(), newline=""), delimiter=self._delimiter))


class Jsonl:
    """One JSON object a line."""

    name = "jsonl"

    def read(self, source: Path | BinaryIO, *, rows: int, skip: int = 0) -> Iterator[Chunk]:
        """Read windows; rows may have different keys."""
        with opened(source) as file:
            number, good, numbers, bad = 0, list[dict[str, object]](), list[int](), list[BadRow]()
            yielded = False
            for place, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf") if place == 1 else line
                if not content.strip():
                    continue
                number += 1
                if number <= skip:
                    continue
                record, problem = self._parse(content)
                if record is None:
                    bad.append(
                        BadRow(
                            number,
                            f"line {place}: {problem}",
                            content.decode(errors="backslashreplace").strip(),
                        )
                    )
                else:
                    numbers.append(number)
                    good.append(record)
                if len(numbers) + len(bad) == rows:
                    yield self._chunk(numbers, good, bad)
                    yielded, good, numbers, bad = True, [], [], []
            if numbers or bad or not yielded:
                yield self._chunk(numbers, good, bad)

    @staticmethod
    def _chunk(numbers: list[int], rows: list[dict[str, object]], bad: list[BadRow]) -> Records:
        return Records(numbers, rows, list(dict.fromkeys(name for row in rows for name in row)), bad)

    @staticmethod
    def _parse(line: bytes) -> tuple[dict[str, object] | None, str]:
        try:
            record = json.loads(line.decode())
        except UnicodeDecodeError as error:
            return None, f"not UTF-8 at byte {error.start}"
        except (ValueError, RecursionError) as error:
            return None, f"not valid JSON ({error})"
        if not isinstance(record, dict):
            return None, f"a JSON {type(record).__name__}; expected an object with the columns as keys"
        return record, ""

    def write(self, file: BinaryIO, chunk: Chunk, added: Mapping[str, Sequence[object]], *, header: bool) -> None:  # noqa: ARG002
        """Write rows, nested values and all; each row keeps just its own keys."""
        for n, record in enumerate(chunk.records()):
            file.write(_line({**record, **{name: values[n] for name, values in added.items()}}))

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        """Join parts."""
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    file.write(block)


def _line(record: Mapping[str, object]) -> bytes:
    text = json.dumps(record, ensure_ascii=False, default=_plain) + "\n"
    try:
        return text.encode()
    except UnicodeEncodeError:  # a lone surrogate, written as JSON's own escape
        return (json.dumps(record, default=_plain) + "\n").encode()


def _plain(value: object) -> object:
    """What a value of another format is in JSON."""
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return str(value)


def _cell(value: object) -> object:
    """What a value is in a delimited file."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=_plain)
    if value is None or isinstance(value, str | int | float):
        return value
    return _plain(value)


def _shown(value: str) -> str:
    """A field with bytes that are no UTF-8 written out, for the errors file."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
