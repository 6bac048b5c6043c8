"""Reading and writing tables: messy input costs the rows it is in and no more."""

from __future__ import annotations

import csv
import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serving.errors import TableError, UsageError
from levi_serving.tables import Records, find_format, read_columns

cells = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
names = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name.strip())


def read(path, content=None, *, rows=1000, skip=0):
    if content is not None:
        path.write_bytes(content)
    return list(find_format(path).read(path, rows=rows, skip=skip))


def everything(chunks):
    return [record for chunk in chunks for record in chunk.records()], [row for chunk in chunks for row in chunk.bad]


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
@given(data=st.data())
@settings(max_examples=60)
def test_any_cells_come_back(tmp_path_factory, suffix, data):
    columns = data.draw(st.lists(names, min_size=2, max_size=4, unique=True))
    rows = data.draw(st.lists(st.lists(cells, min_size=len(columns), max_size=len(columns)), max_size=8))
    if suffix != "jsonl":
        columns = [name.removeprefix("\ufeff") or "x" for name in columns]
        columns = (
            list(dict.fromkeys(columns)) if len(set(columns)) == len(columns) else ["a", "b", "c", "d"][: len(columns)]
        )
    records = [dict(zip(columns, row, strict=True)) for row in rows]
    path = tmp_path_factory.mktemp("round") / f"t.{suffix}"
    with path.open("wb") as file:
        find_format(path).write(file, Records(range(1, len(rows) + 1), records, columns), {}, header=True)
    window = data.draw(st.integers(1, 5))
    skip = data.draw(st.integers(0, len(rows)))
    found, bad = everything(read(path, rows=window, skip=skip))
    assert bad == []
    assert found == records[skip:]


def test_quotes_line_ends_bom_and_empty_fields(tmp_path):
    content = b'\xef\xbb\xbftext,n\r\n"a ""quoted"" word, and\nanother line",1\r\n,\r\n\r\nlast,3\r\n'
    (chunk,) = read(tmp_path / "t.csv", content)
    assert chunk.columns == ["text", "n"]
    assert chunk.column("text") == ['a "quoted" word, and\nanother line', "", "last"]
    assert chunk.numbers == [1, 2, 3]


def test_bad_rows_are_named_and_the_rest_goes_on(tmp_path):
    content = b'text,n\ngood,1\none,two,three\nshort\n\xff\xfe,4\n"a"b,5\nnul \x00,6\nfine,7\n'
    (chunk,) = read(tmp_path / "t.csv", content)
    assert chunk.column("text") == ["good", "nul \x00", "fine"]
    assert [(row.row, row.reason.split(";")[0]) for row in chunk.bad] == [
        (2, "line 3: 3 fields"),
        (3, "line 4: 1 fields"),
        (4, "line 5: column 'text' is not UTF-8 at character 0"),
        (5, "line 6: broken quoting (',' expected after '\"')"),
    ]
    assert json.loads(chunk.bad[2].to_json())["input"] == ["\\xff\\xfe", "4"]


def test_jsonl_bad_rows(tmp_path):
    lines = [
        b'\xef\xbb\xbf{"text": "a"}',
        b"",
        b"[1]",
        b'{"text": ',
        b'{"text": "\xff"}',
        b'{"other": {"x": [NaN]}}',
        b"7",
    ]
    (chunk,) = read(tmp_path / "t.jsonl", b"\n".join(lines))
    assert chunk.columns == ["text", "other"]
    assert chunk.column("text") == ["a", None]
    assert math.isnan(chunk.records()[1]["other"]["x"][0])
    assert [row.row for row in chunk.bad] == [2, 3, 4, 6]
    assert "expected an object" in chunk.bad[0].reason
    assert "not UTF-8 at byte 10" in chunk.bad[2].reason


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_very_long_row(tmp_path, suffix):
    text = 'long, "quoted"\n' * 20_000
    record = {"text": text, "n": "1"}
    path = tmp_path / f"t.{suffix}"
    with path.open("wb") as file:
        find_format(path).write(file, Records([1], [record], list(record)), {}, header=True)
    assert everything(read(path)) == ([record], [])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty; expected a header"),
        (b"a,b,a\n1,2,3\n", "the name 'a' twice"),
        (b"a,,b\n1,2,3\n", "an empty name"),
        (b"\xff\xfea\x00,b\n", "is not UTF-8"),
        (b'text,n\nok,1\n"never closed,2\nmore,3\n', r"opens in row 2 \(line 3\) is not closed within the file"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, says):
    with pytest.raises(TableError, match=says):
        read(tmp_path / "t.csv", content)


def test_an_open_quote_does_not_eat_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("levi_serving.tables.delimited._LONGEST_FIELD", 1000)
    with pytest.raises(TableError, match="not closed within 1,000 characters"):
        read(tmp_path / "t.csv", b'text\n"' + b"x,y\n" * 5000)
    csv.field_size_limit(16_000_000)


def test_header_only_and_no_lines(tmp_path):
    (chunk,) = read(tmp_path / "t.csv", b"text,n\n")
    assert (list(chunk.columns), list(chunk.numbers)) == (["text", "n"], [])
    (chunk,) = read(tmp_path / "t.jsonl", b"")
    assert list(chunk.numbers) == []


def test_one_row_without_a_line_end(tmp_path):
    (chunk,) = read(tmp_path / "t.csv", b"text\nonly")
    assert chunk.column("text") == ["only"]


@pytest.mark.parametrize(
    ("path", "name", "says"),
    [
        ("t.xlsx", None, "suffix '.xlsx'"),
        ("t.csv", "xml", "format 'xml'"),
        (None, "parquet", "cannot go through a pipe"),
    ],
)
def test_unknown_formats(tmp_path, path, name, says):
    with pytest.raises(UsageError, match=says):
        find_format(tmp_path / path if path else None, name)


def test_missing_files_and_columns(tmp_path):
    with pytest.raises(UsageError, match="There is no file"):
        read_columns(tmp_path / "none.csv", ["text"])
    with pytest.raises(TableError, match="cannot be read: Is a directory"):
        read_columns(tmp_path, ["text"], format="csv")
    (tmp_path / "t.csv").write_text("Text,label\na,b\n")
    with pytest.raises(TableError, match=r"no column 'text'; its columns are 'Text', 'label'. Did you mean 'Text'\?"):
        read_columns(tmp_path / "t.csv", ["text"])


def test_values_of_other_formats_are_written_readably():
    import datetime
    from decimal import Decimal

    record = {
        "day": datetime.date(2026, 1, 2),
        "raw": b"\x00\xff",
        "price": Decimal("1.10"),
        "tags": ["a", 1],
        "no": None,
    }
    chunk = Records([1], [record], list(record))
    text, lines = io.BytesIO(), io.BytesIO()
    find_format(None, "csv").write(text, chunk, {}, header=False)
    find_format(None, "jsonl").write(lines, chunk, {}, header=False)
    assert text.getvalue().decode() == '2026-01-02,AP8=,1.10,"[""a"", 1]",\n'
    assert json.loads(lines.getvalue()) == {
        "day": "2026-01-02", "raw": "AP8=", "price": "1.10", "tags": ["a", 1], "no": None,
    }  # fmt: skip


def test_a_lone_surrogate_in_json_survives(tmp_path):
    chunks = read(tmp_path / "t.jsonl", b'{"text": "a", "odd": "\\ud800"}\n')
    out = io.BytesIO()
    find_format(None, "jsonl").write(out, chunks[0], {}, header=False)
    assert json.loads(out.getvalue())["odd"] == "\ud800"
