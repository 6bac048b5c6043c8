"""From file to file: a million messy rows through the runner's three verbs, in bounded memory.

Reading and preparing, running, and writing each have a thread: three windows are worked on at a time. Each
finished window is a part file in ``OUTPUT.partial``, so a killed run can be gone on from; at the end the
parts are joined and renamed to OUTPUT. It knows no model and no format.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from levi_serving.ahead import Line
from levi_serving.errors import RowsFailedError, TableError, UsageError
from levi_serving.partial import Parts
from levi_serving.tables import BadRow, Chunk, Format, find_format, located, opened, require

__all__ = ["Predictor", "Summary", "predict_file"]

_AHEAD = 2  # windows prepared while one runs
_ROWS, _IMAGES = 2048, 256  # rows of a window; a decoded image is some hundred kilobytes


class Predictor(Protocol):
    """What a runner offers; ``levi_serving.Runner`` does."""

    fingerprint: str
    columns: tuple[str, ...]
    files: tuple[str, ...]

    def prepare(self, rows: Sequence[Any], *, bad: dict[int, str] | None = None) -> Any:
        """Rows to arrays; positions of rows that cannot be used, and why, go to ``bad``."""
        ...

    def run(self, prepared: Any) -> Any:
        """Arrays to arrays."""
        ...

    def finish(self, outputs: Any) -> Any:
        """Arrays to predictions."""
        ...

    def table(self, predictions: Any, *, heads: bool, all_probabilities: bool) -> dict[str, list[object]]:
        """Predictions as columns."""
        ...


@dataclass(frozen=True)
class Summary:
    """What a run did.

    Attributes:
        predicted: rows in the output.
        failed: rows that could not be used.
        resumed: rows taken over from an interrupted run, good and bad.
        seconds: wall time of this run.
        output: the file, or None for a pipe.
        errors: the file with the failed rows, or None when there is none.
    """

    predicted: int
    failed: int
    resumed: int
    seconds: float
    output: Path | None
    errors: Path | None

    def check(self) -> None:
        """Raise RowsFailedError when rows failed."""
        if self.failed:
            where = f"they are in {self.errors} with their reasons" if self.errors else "their reasons are on stderr"
            raise RowsFailedError(
                f"{self.failed} of {self.predicted + self.failed} rows could not be used; {where}. "
                "The others are predicted.",
                failed=self.failed,
                done=self.predicted,
            )


@dataclass(frozen=True, kw_only=True)
class _Window:
    """One window, read and prepared."""

    first: int
    last: int
    chunk: Chunk
    prepared: Any
    bad: list[BadRow]
    fraction: float


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How windows are made: everything the reading thread needs."""

    predictor: Predictor
    source: Path | None
    format: Format
    columns: Mapping[str, str]
    added: Sequence[str]
    rows: int
    skip: int
    strict: bool

    def windows(self) -> Iterator[_Window]:
        """Read, sort out bad rows, prepare the rest."""
        where = str(self.source) if self.source else "standard input"
        file: Path | BinaryIO = sys.stdin.buffer
        if self.source is not None:
            file = self.source if self.source.is_dir() else opened(self.source)
        size = self.source.stat().st_size if self.source else 0
        last, known = self.skip, False
        for chunk in self.format.read(file, rows=self.rows, skip=self.skip):
            if chunk.columns and not known:  # JSONL: none are known while every line is bad
                require(chunk.columns, list(self.columns.values()), where=where)
                known = True
            self._collide(chunk.columns, where)
            values = {own: chunk.column(name) for own, name in self.columns.items()}
            for own in self.predictor.files:
                values[own] = located(values[own], self.source)
            rows = [dict(zip(values, cells, strict=True)) for cells in zip(*values.values(), strict=True)]
            reasons: dict[int, str] = {}
            prepared = self.predictor.prepare(rows, bad=reasons)
            keep = [place for place in range(len(rows)) if place not in reasons]
            bad = [
                BadRow(chunk.numbers[place], reason, chunk.take([place]).records()[0])
                for place, reason in reasons.items()
            ]
            bad = sorted([*chunk.bad, *bad], key=lambda row: row.row)
            if bad and self.strict:
                raise TableError(
                    f"{where}, row {bad[0].row}: {bad[0].reason} Stopped there (--strict); rows before it are kept "
                    "for --resume."
                )
            first, last = last + 1, max([last, *chunk.numbers[-1:], *(row.row for row in bad[-1:])])
            yield _Window(
                first=first,
                last=last,
                chunk=chunk.take(keep),
                prepared=prepared,
                bad=bad,
                fraction=_fraction(file, size),
            )

    def _collide(self, columns: Sequence[str], where: str) -> None:
        for name in self.added:
            if name in columns:
                raise UsageError(
                    f"{where} already has a column {name!r}. Give the new columns a prefix, as --prefix levi_."
                )


def _fraction(file: Path | BinaryIO, size: int) -> float:
    if isinstance(file, Path):  # a folder
        return float("nan")
    try:
        return min(1.0, file.tell() / size) if size else float("nan")
    except ValueError:  # closed: all was read
        return 1.0


def predict_file(
    predictor: Predictor,
    source: Path | None,
    output: Path | None,
    *,
    columns: Mapping[str, str] | None = None,
    heads: bool = False,
    all_probabilities: bool = False,
    prefix: str = "",
    errors: Path | None = None,
    strict: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    input_format: str | None = None,
    output_format: str | None = None,
    window_rows: int | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> Summary:
    """Predict every row of a file.

    Rows that cannot be used are not in the output: they go to ``errors``, one JSON object a line with
    ``row`` (from 1), ``reason`` and ``input``.

    Args:
        predictor: a runner.
        source: CSV, TSV, JSONL or Parquet; None is standard input.
        output: likewise; None is standard output, as windows are done.
        columns: the file's column for each of the model's; the same name where not given.
        heads: also write each head's own prediction.
        all_probabilities: also write each class's probability.
        prefix: of the columns that are added.
        errors: where failed rows go, always written; ``OUTPUT.errors.jsonl``, when there are any, if None.
        strict: stop at the first row that cannot be used.
        resume: go on with an interrupted run.
        overwrite: replace OUTPUT and forget an interrupted run.
        input_format: csv, tsv, jsonl or parquet; by suffix when None.
        output_format: likewise.
        window_rows: rows in memory at a time; 2048, or 256 with images, when None.
        progress: told rows done, rows failed, and the share of the input read (NaN for a pipe).

    Returns:
        What was done. ``Summary.check`` raises when rows failed.

    Raises:
        UsageError: an option or a file name is wrong; nothing was done.
        TableError: the input cannot be read, lacks a column, or (strict) has a bad row. Windows done
            before it are kept for ``resume``.
    """
    started = time.perf_counter()
    wanted = {own: own for own in predictor.columns} | dict(columns or {})
    if source is not None and not source.exists():
        raise UsageError(f"There is no file {source}.")
    if source is None and resume:
        raise UsageError("Standard input cannot be read twice, so --resume needs an input file.")
    reads, writes = find_format(source, input_format), find_format(output, output_format)
    added = predictor.table(
        predictor.finish(predictor.run(predictor.prepare([]))),
        heads=heads,
        all_probabilities=all_probabilities,
    )

    def reading(skip: int) -> _Reading:
        return _Reading(
            predictor=predictor,
            source=source,
            format=reads,
            columns=wanted,
            added=[prefix + name for name in added],
            rows=rows,
            skip=skip,
            strict=strict,
        )

    def answers(outputs: Any) -> dict[str, list[object]]:
        table = predictor.table(predictor.finish(outputs), heads=heads, all_probabilities=all_probabilities)
        return {prefix + name: values for name, values in table.items()}

    tell = progress or (lambda *_: None)
    rows = window_rows or (_IMAGES if predictor.files else _ROWS)
    if output is None:
        predicted, failed = _stream(reading(0), answers, writes, errors, tell)
        return Summary(predicted, failed, 0, time.perf_counter() - started, None, errors)
    job = {
        "input": str(source),
        "input_size_and_time": _identity(source),
        "bundle": predictor.fingerprint,
        "columns": wanted,
        "added": [prefix + name for name in added],
        "formats": [reads.name, writes.name],
        "window_rows": rows,
    }
    parts = Parts(output, writes, errors)
    skipped = parts.begin(job, resume=resume, overwrite=overwrite)
    predicted, failed = parts.predicted, parts.failed
    try:
        for window, outputs in _answered(reading(skipped)):
            if skipped and window.last < window.first:
                continue  # nothing was left to read
            parts.add(window.chunk, answers(outputs), first=window.first, last=window.last, bad=window.bad)
            predicted, failed = predicted + len(window.chunk.numbers), failed + len(window.bad)
            tell(predicted, failed, window.fraction)
    except BaseException:
        parts.leave()
        raise
    where = parts.end(failed)
    return Summary(predicted, failed, skipped, time.perf_counter() - started, output, where)


def _identity(source: Path | None) -> list[int]:
    if source is None:
        return []
    about = source.stat()
    return [about.st_size, about.st_mtime_ns]


def _stream(
    reading: _Reading,
    answers: Callable[[Any], dict[str, list[object]]],
    writes: Format,
    errors: Path | None,
    tell: Callable[[int, int, float], None],
) -> tuple[int, int]:
    """Window by window to standard output; failed rows to a file or to stderr."""
    predicted = failed = 0
    header: list[str] | None = None
    with errors.open("wb") if errors else nullcontext(sys.stderr.buffer) as bad_file:
        for window, outputs in _answered(reading):
            names = list(window.chunk.columns)
            if writes.name != "jsonl" and header is not None and set(names) - set(header):
                raise TableError(
                    f"Row {window.first} or one soon after brings the column {sorted(set(names) - set(header))[0]!r}, "
                    "which the header already written lacks. Write jsonl, or to a file."
                )
            writes.write(sys.stdout.buffer, window.chunk, answers(outputs), header=header is None)
            sys.stdout.buffer.flush()
            header = header or names
            for row in window.bad:
                bad_file.write(row.to_json())
            predicted, failed = predicted + len(window.chunk.numbers), failed + len(window.bad)
            tell(predicted, failed, window.fraction)
    return predicted, failed


def _answered(reading: _Reading) -> Iterator[tuple[_Window, Any]]:
    """Each window with its outputs; the next one runs while the caller writes this one."""
    line = Line()
    windows = line.ahead(reading.windows(), _AHEAD, name="levi-reading")
    outputs = ((window, reading.predictor.run(window.prepared)) for window in windows)
    try:
        yield from line.ahead(outputs, 1, name="levi-running")
    finally:
        line.close(wait_s=1 if reading.source else 0)
