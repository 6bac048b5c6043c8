"""The requests of a benchmark: real rows, at their own lengths or cut to exact ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from levi_serving.bench.measurement import Workload
from levi_serving.errors import UsageError
from levi_serving.rows.preprocess import Preprocessor, Row

__all__ = ["fixed", "real", "workloads"]

_DIFFERENT = 8  # requests before they repeat


def fixed(
    preprocessor: Preprocessor,
    rows: Sequence[Mapping[str, object]],
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
) -> list[Workload]:
    """Real rows with their text cut to exact lengths, one workload for each batch size and length.

    Raises:
        UsageError: a length is more than the model takes, no text has it, or the model does not read one text.
    """
    tokenization = preprocessor.tokenization
    if tokenization is None or tokenization.settings.pair:
        raise UsageError("`lengths` are of a row's one text, but this model reads none or two. Leave `lengths` out.")
    column = tokenization.settings.column
    texts = [str(row[column]) for row in rows]
    workloads = []
    for length in lengths:
        try:
            cut = [
                {**rows[n], column: tokenization.text_of(length, [*texts[n:], *texts[:n]])}
                for n in range(min(_DIFFERENT, len(texts)))
            ]
        except ValueError as error:
            limit = tokenization.settings.max_length
            raise UsageError(f"`lengths` has {length}: {error}; the model takes at most {limit} tokens.") from error
        for size in batch_sizes:
            batches = [[cut[(start + n) % len(cut)] for n in range(size)] for start in range(len(cut))]
            workloads.append(Workload(batches, size, length))
    return workloads


def real(rows: Sequence[Row], *, batch_sizes: Sequence[int]) -> list[Workload]:
    """Rows in their own order and lengths, one workload for each batch size; a last short batch is dropped.

    Raises:
        UsageError: there are fewer rows than a batch has.
    """
    workloads = []
    for size in batch_sizes:
        batches = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        if not batches:
            raise UsageError(f"`batch_sizes` has {size}, but there are only {len(rows)} rows. Give more rows.")
        workloads.append(Workload(batches, size))
    return workloads


def workloads(
    preprocessor: Preprocessor,
    rows: Sequence[Mapping[str, object]],
    *,
    batch_sizes: Sequence[int],
    lengths: Sequence[int],
) -> list[Workload]:
    """Workloads of exact lengths where some are given, else of the rows' own lengths.

    Raises:
        UsageError: see ``fixed`` and ``real``.
    """
    if lengths:
        return fixed(preprocessor, rows, batch_sizes=batch_sizes, lengths=lengths)
    return real(rows, batch_sizes=batch_sizes)
