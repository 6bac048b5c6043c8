"""CSV and TSV, in and out, a window at a time."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from levi_serving.errors import TableError
from levi_serving.tables.table import BadRow, Chunk, Records, opened, plain, source_name

__all__ = ["Delimited"]

_LONGEST_FIELD = 16_000_000  # characters; a longer one is a quote that was never closed


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
        where = source_name(source)
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


def _cell(value: object) -> object:
    """What a value is in a delimited file."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(value, ensure_ascii=False, default=plain)
    if value is None or isinstance(value, str | int | float):
        return value
    return plain(value)


def _shown(value: str) -> str:
    """A field with bytes that are no UTF-8 written out, for the errors file."""
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
