"""Parquet: types pass through untouched, and a damaged file is said to be one."""

from __future__ import annotations

import datetime
import decimal
import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from levi_serving.errors import TableError
from levi_serving.tables import Records, find_format, read_columns


@pytest.fixture
def rich() -> pa.Table:
    """Ten rows of types that Python objects would lose."""
    return pa.table(
        {
            "text": pa.array([f"row {n}" for n in range(10)], pa.large_string()),
            "when": pa.array([1_700_000_000_123_456_789 + n for n in range(10)], pa.timestamp("ns", "UTC")),
            "price": pa.array([decimal.Decimal(f"{n}.10") for n in range(10)], pa.decimal128(9, 2)),
            "kind": pa.array(["a", "b"] * 5).dictionary_encode(),
            "tags": pa.array([[n, None] for n in range(10)], pa.list_(pa.int16())),
            "small": pa.array([None, *range(9)], pa.int8()),
        }
    )


def test_types_pass_through_windows_and_joining(tmp_path, rich):
    source = tmp_path / "in.parquet"
    pq.write_table(rich, source, row_group_size=4)
    parquet = find_format(source)
    parts = []
    for n, chunk in enumerate(parquet.read(source, rows=3)):
        kept = chunk.take([p for p in range(len(chunk.numbers)) if chunk.numbers[p] != 5])
        parts.append(tmp_path / f"{n}.part")
        with parts[-1].open("wb") as file:
            parquet.write(file, kept, {"prediction": [f"p{number}" for number in kept.numbers]}, header=True)
    out = tmp_path / "out.parquet"
    with out.open("wb") as file:
        parquet.join(parts, file)
    found = pq.read_table(out)
    kept = rich.take([n for n in range(10) if n != 4])
    assert found.schema.field("kind").type == rich.schema.field("kind").type
    assert found.drop_columns(["prediction"]).equals(kept)
    assert found["prediction"].to_pylist() == [f"p{n}" for n in range(1, 11) if n != 5]


@pytest.mark.parametrize("skip", [0, 1, 4, 5, 9, 10])
def test_skipping(tmp_path, rich, skip):
    source = tmp_path / "in.parquet"
    pq.write_table(rich, source, row_group_size=4)
    chunks = list(find_format(source).read(source, rows=3, skip=skip))
    assert [number for chunk in chunks for number in chunk.numbers] == list(range(skip + 1, 11))
    assert [text for chunk in chunks for text in chunk.column("text")] == [f"row {n}" for n in range(skip, 10)]


def test_no_rows_keep_their_columns(tmp_path, rich):
    source = tmp_path / "in.parquet"
    pq.write_table(rich.slice(0, 0), source)
    (chunk,) = find_format(source).read(source, rows=3)
    assert list(chunk.columns) == rich.column_names
    assert len(chunk.numbers) == 0


@pytest.mark.parametrize("cut", [0, 3, 100, -1])
def test_damaged_files(tmp_path, rich, cut):
    source = tmp_path / "in.parquet"
    pq.write_table(rich, source)
    source.write_bytes(source.read_bytes()[:cut])
    with pytest.raises(TableError, match=r"in\.parquet is not a whole Parquet file"):
        read_columns(source, ["text"])


def test_as_mappings_for_text_formats(tmp_path, rich):
    source = tmp_path / "in.parquet"
    pq.write_table(rich, source)
    (chunk,) = find_format(source).read(source, rows=100)
    record = chunk.take([1]).records()[0]
    assert record["when"].startswith("2023-11-14 22:13:20.123456790")
    assert record["price"] == decimal.Decimal("1.10")
    out = io.BytesIO()
    find_format(None, "jsonl").write(out, chunk, {}, header=False)
    assert out.getvalue().count(b"\n") == 10


def test_text_rows_become_typed_columns(tmp_path):
    parts = []
    for n, rows in enumerate([[{"a": 1, "b": "x"}], [{"a": 2.5}], [{"c": datetime.date(2026, 1, 1)}]]):
        parts.append(tmp_path / f"{n}.part")
        with parts[-1].open("wb") as file:
            find_format(None, "jsonl")
            chunk = Records([1], rows, list(rows[0]))
            find_format(tmp_path / "x.parquet").write(file, chunk, {"prediction": ["p"]}, header=True)
    with (tmp_path / "out.parquet").open("wb") as file:
        find_format(tmp_path / "x.parquet").join(parts, file)
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["a"].to_pylist() == [1.0, 2.5, None]
    assert found["b"].to_pylist() == ["x", None, None]


def test_values_of_several_types_are_refused(tmp_path):
    chunk = Records([1, 2], [{"a": 1}, {"a": "x"}], ["a"])
    with pytest.raises(TableError, match=r"'a' holds values of several types .* Write JSONL instead"):
        find_format(tmp_path / "x.parquet").write(io.BytesIO(), chunk, {}, header=True)
