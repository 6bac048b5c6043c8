"""From file to file: a million messy rows through the runner's three verbs, in bounded memory.

Reading and preparing, running, and writing each have a thread: three windows are worked on at a time. Each
finished window is a part file in ``OUTPUT.partial``, so a killed run can be resumed; at the end the parts are
joined and renamed to OUTPUT.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from levi_serving.atomic import require_folder
from levi_serving.engine.predictor import Predictor
from levi_serving.errors import RowsFailedError, TableError, UsageError
from levi_serving.files.parts import Parts
from levi_serving.files.prefetch import Prefetch
from levi_serving.predictions import Outputs
from levi_serving.rows.preprocess import Encoded
from levi_serving.tables import BadRow, Chunk, Format, find_format, located, opened, require, source_name

__all__ = ["Summary", "predict_file"]

_AHEAD = 2  # windows prepared while one runs
_ROWS, _IMAGES = 2048, 256  # rows of a window; a decoded image is some hundred kilobytes


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
            where = (
                f"they are in {self.errors} with their reasons"
                if self.errors
                else "their reasons went to the stream for errors"
            )
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
    prepared: Encoded
    bad: list[BadRow]
    fraction: float


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """How windows are made: everything the reading thread needs."""

    predictor: Predictor
    source: Path | BinaryIO
    format: Format
    columns: Mapping[str, str]
    added: Sequence[str]
    rows: int
    skip: int
    strict: bool

    def windows(self) -> Iterator[_Window]:
        """Read, sort out bad rows, prepare the rest."""
        where, path = source_name(self.source), self.source if isinstance(self.source, Path) else None
        file = self.source if path is None or path.is_dir() else opened(path)
        size = path.stat().st_size if path else 0
        last, known = self.skip, False
        for chunk in self.format.read(file, rows=self.rows, skip=self.skip):
            if chunk.columns and not known:  # JSONL: none are known while every line is bad
                require(chunk.columns, list(self.columns.values()), where=where)
                known = True
            self._collide(chunk.columns, where)
            values = {own: chunk.column(name) for own, name in self.columns.items()}
            for own in self.predictor.preprocessor.settings.files:
                values[own] = located(values[own], path)
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
                    f"{where}, row {bad[0].row}: {bad[0].reason} Stopped there (`strict`); rows before it are kept "
                    "for `resume`."
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
                raise UsageError(f"{where} already has a column {name!r}. Set `prefix`, as to 'levi_'.")


def _fraction(file: Path | BinaryIO, size: int) -> float:
    if isinstance(file, Path):  # a folder
        return float("nan")
    try:
        return min(1.0, file.tell() / size) if size else float("nan")
    except ValueError:  # closed: all was read
        return 1.0


def predict_file(
    predictor: Predictor,
    source: Path | BinaryIO,
    output: Path | BinaryIO,
    *,
    columns: Mapping[str, str] | None = None,
    heads: bool = False,
    all_probabilities: bool = False,
    prefix: str = "",
    errors: Path | BinaryIO | None = None,
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
        source: CSV, TSV, JSONL or Parquet, a folder of images, or a stream of bytes.
        output: CSV, TSV, JSONL or Parquet; to a stream windows are written as they are done.
        columns: the file's column for each of the model's; the same name where not given.
        heads: also write each head's own prediction.
        all_probabilities: also write each class's probability.
        prefix: of the columns that are added.
        errors: where failed rows go, always written; ``OUTPUT.errors.jsonl``, when there are any, if None. With a
            stream as output, a file or a stream must be given.
        strict: stop at the first row that cannot be used.
        resume: go on with an interrupted run.
        overwrite: replace OUTPUT and forget an interrupted run.
        input_format: csv, tsv, jsonl or parquet; by suffix when None.
        output_format: likewise.
        window_rows: rows in memory at a time; 2048, or 256 with images, when None.
        progress: given rows done, rows failed, and the share of the input read (NaN for a stream).

    Returns:
        What was done. ``Summary.check`` raises when rows failed.

    Raises:
        UsageError: an option or a file name is wrong; nothing was done.
        TableError: the input cannot be read, lacks a column, or (strict) has a bad row. Windows done
            before it are kept for ``resume``.
    """
    started = time.perf_counter()
    settings = predictor.preprocessor.settings
    wanted = settings.columns_in(columns or {})
    source_path = source if isinstance(source, Path) else None
    if source_path is not None and not source_path.exists():
        raise UsageError(f"There is no file {source_path}.")
    if source_path is None and resume:
        raise UsageError("A stream cannot be read twice, so `resume` needs an input file.")
    for file in (output, errors):
        if isinstance(file, Path):
            require_folder(file)
    reads = find_format(source_path, input_format)
    writes = find_format(output if isinstance(output, Path) else None, output_format)
    options = {"with_heads": heads, "all_probabilities": all_probabilities}
    added = [prefix + name for name in predictor.answer_columns(**options)]

    def reading(skip: int) -> _Reading:
        return _Reading(
            predictor=predictor,
            source=source,
            format=reads,
            columns=wanted,
            added=added,
            rows=rows,
            skip=skip,
            strict=strict,
        )

    def answers(outputs: Outputs) -> dict[str, list[object]]:
        table = predictor.table(predictor.finish(outputs), **options)
        return {prefix + name: values for name, values in table.items()}

    tell = progress or (lambda *_: None)
    rows = window_rows or (_IMAGES if settings.files else _ROWS)
    errors_path = errors if isinstance(errors, Path) else None
    if not isinstance(output, Path):
        if errors is None:
            raise UsageError("The output is a stream, so `errors` must name a file or a stream for rows that fail.")
        with nullcontext(errors) if not isinstance(errors, Path) else errors.open("wb") as bad_rows:
            predicted, failed = _stream(reading(0), answers, writes, output, bad_rows, tell)
        return Summary(predicted, failed, 0, time.perf_counter() - started, None, errors_path)
    if errors is not None and errors_path is None:
        raise UsageError("The output is a file, so `errors` must be a file too: both are needed to resume.")
    request = {
        "input": str(source_path),
        "input_size_and_time": _identity(source_path),
        "bundle": predictor.fingerprint,
        "columns": wanted,
        "added": added,
        "formats": [reads.name, writes.name],
        "window_rows": rows,
    }
    parts = Parts(output, writes, errors_path)
    skipped = parts.begin(request, resume=resume, overwrite=overwrite)
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
    answers: Callable[[Outputs], dict[str, list[object]]],
    writes: Format,
    output: BinaryIO,
    bad_rows: BinaryIO,
    tell: Callable[[int, int, float], None],
) -> tuple[int, int]:
    """Window by window to a stream; failed rows to another."""
    predicted = failed = 0
    header: list[str] | None = None
    for window, outputs in _answered(reading):
        names = list(window.chunk.columns)
        if writes.name != "jsonl" and header is not None and set(names) - set(header):
            raise TableError(
                f"Row {window.first} or one soon after brings the column {sorted(set(names) - set(header))[0]!r}, "
                "which the header already written lacks. Write jsonl, or to a file."
            )
        writes.write(output, window.chunk, answers(outputs), header=header is None)
        output.flush()
        header = header or names
        for row in window.bad:
            bad_rows.write(row.to_json())
        predicted, failed = predicted + len(window.chunk.numbers), failed + len(window.bad)
        tell(predicted, failed, window.fraction)
    return predicted, failed


def _answered(reading: _Reading) -> Iterator[tuple[_Window, Outputs]]:
    """Each window with its outputs; the next one runs while the caller writes this one."""
    prefetch = Prefetch()
    windows = prefetch.ahead(reading.windows(), _AHEAD, name="levi-reading")
    outputs = ((window, reading.predictor.run(window.prepared)) for window in windows)
    try:
        yield from prefetch.ahead(outputs, 1, name="levi-running")
    finally:
        prefetch.close(wait_s=1 if isinstance(reading.source, Path) else 0)
