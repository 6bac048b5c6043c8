"""Parquet, in and out. The only file that knows pyarrow. Rows stay in Arrow, so types pass through untouched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from levi_serving.errors import MissingExtraError, TableError
from levi_serving.tables.table import BadRow, Chunk, opened

try:
    import pyarrow as pa
    import pyarrow.parquet as pq
except ModuleNotFoundError as error:
    raise MissingExtraError("pyarrow", "table", "Reading and writing Parquet") from error

__all__ = ["Parquet"]


@dataclass(frozen=True)
class ArrowRows:
    """Rows of a Parquet file, as Arrow holds them."""

    numbers: Sequence[int]
    batch: Any
    bad: Sequence[BadRow] = ()

    @property
    def columns(self) -> Sequence[str]:
        """All column names."""
        return list(self.batch.schema.names)

    def column(self, name: str) -> list[object]:
        """One column as Python values."""
        values: list[object] = self.batch.column(name).to_pylist()
        return values

    def take(self, positions: Sequence[int]) -> ArrowRows:
        """The rows at these positions."""
        if len(positions) == len(self.numbers):
            return self
        return ArrowRows([self.numbers[p] for p in positions], self.batch.take(pa.array(positions, type=pa.int64())))

    def records(self) -> list[dict[str, object]]:
        """The rows as mappings; a timestamp finer than a microsecond becomes its ISO text."""
        fine = [
            n
            for n, column in enumerate(self.batch.schema)
            if (pa.types.is_timestamp(column.type) or pa.types.is_duration(column.type)) and column.type.unit == "ns"
        ]
        batch = self.batch
        for n in fine:
            batch = batch.set_column(n, batch.schema.names[n], batch.column(n).cast(pa.string()))
        rows: list[dict[str, object]] = batch.to_pylist()
        return rows


class Parquet:
    """Parquet files."""

    name = "parquet"

    def read(self, source: Path | BinaryIO, *, rows: int, skip: int = 0) -> Iterator[Chunk]:
        """Read windows.

        Raises:
            TableError: the file is truncated, damaged or not Parquet.
        """
        with opened(source) as file:
            try:
                parquet = pq.ParquetFile(file)
                groups, start = self._groups(parquet, skip)
                yielded = False
                for batch in parquet.iter_batches(batch_size=rows, row_groups=groups):
                    cut = min(len(batch), max(0, skip - start))
                    kept = batch.slice(cut)
                    first = start + cut + 1
                    start += len(batch)
                    if len(kept):
                        yielded = True
                        yield ArrowRows(range(first, first + len(kept)), kept)
                if not yielded:
                    yield ArrowRows((), _empty(parquet.schema_arrow))
            except pa.ArrowException as error:
                name = getattr(file, "name", source)
                raise TableError(f"{name} is not a whole Parquet file: {error}. Write or copy it again.") from error

    @staticmethod
    def _groups(parquet: Any, skip: int) -> tuple[list[int], int]:
        """The row groups after those that ``skip`` passes over whole, and the rows before them."""
        before = 0
        for group in range(parquet.num_row_groups):
            size = parquet.metadata.row_group(group).num_rows
            if before + size > skip:
                return list(range(group, parquet.num_row_groups)), before
            before += size
        return [], before

    def write(self, file: BinaryIO, chunk: Chunk, added: Mapping[str, Sequence[object]], *, header: bool) -> None:  # noqa: ARG002
        """Write one whole file of rows with added columns."""
        table = pa.Table.from_batches([chunk.batch]) if isinstance(chunk, ArrowRows) else _inferred(chunk)
        for name, values in added.items():
            table = table.append_column(name, pa.array(values) if len(values) else pa.array([], pa.string()))
        pq.write_table(table, file, compression="zstd")

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        """Join parts under one schema, a row group a part.

        Raises:
            TableError: a column's types cannot be unified.
        """
        schemas = [pq.read_schema(part) for part in parts]
        full = [schema for part, schema in zip(parts, schemas, strict=True) if pq.read_metadata(part).num_rows]
        try:
            schema = pa.unify_schemas(full or schemas[:1], promote_options="permissive")
        except pa.ArrowException as error:
            raise TableError(
                f"The rows' columns cannot be one Parquet table: {error}. Write JSONL instead (OUTPUT.jsonl)."
            ) from error
        with pq.ParquetWriter(file, schema, compression="zstd") as writer:
            for part in parts:
                table = pq.read_table(part)
                for column in schema:
                    if column.name not in table.schema.names:
                        table = table.append_column(column.name, pa.nulls(len(table), column.type))
                if len(table):
                    writer.write_table(table.select(schema.names).cast(schema))


def _empty(schema: Any) -> Any:
    return pa.RecordBatch.from_arrays([pa.array([], column.type) for column in schema], schema=schema)


def _inferred(chunk: Chunk) -> Any:
    """Rows of a text format as a table; types come from the values."""
    columns = {}
    for name in chunk.columns:
        try:
            columns[name] = pa.array(chunk.column(name)) if len(chunk.numbers) else pa.array([], pa.string())
        except (pa.ArrowException, OverflowError) as error:
            raise TableError(
                f"Column {name!r} holds values of several types ({error}); Parquet needs one. "
                "Write JSONL instead (OUTPUT.jsonl)."
            ) from error
    return pa.table(columns)
