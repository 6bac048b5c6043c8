"""A folder of images is a table."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from levi_serving.errors import TableError, UsageError
from levi_serving.tables import find_format


def put(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path, "PNG")


def test_rows_are_files_and_folders_are_labels(tmp_path):
    put(tmp_path, "dog/b.JPG", "dog/a.png", "cat/deep/x.webp", ".hidden/y.png", "dog/.z.png")
    (tmp_path / "dog" / "notes.txt").write_text("no image")
    reader = find_format(tmp_path)
    chunks = list(reader.read(tmp_path, rows=2))
    assert [row for chunk in chunks for row in chunk.records()] == [
        {"image": "cat/deep/x.webp", "label": "deep"},
        {"image": "dog/a.png", "label": "dog"},
        {"image": "dog/b.JPG", "label": "dog"},
    ]
    assert [n for chunk in chunks for n in chunk.numbers] == [1, 2, 3]
    (rest,) = reader.read(tmp_path, rows=2, skip=2)
    assert (rest.numbers, rest.column("image")) == ([3], ["dog/b.JPG"])
    (none,) = reader.read(tmp_path, rows=2, skip=3)
    assert none.numbers == []


def test_files_beside_each_other_have_no_label(tmp_path):
    put(tmp_path, "a.png", "b.png", "dog/c.png")
    (chunk,) = find_format(tmp_path).read(tmp_path, rows=9)
    assert chunk.columns == ["image"]


def test_what_it_cannot_do(tmp_path):
    with pytest.raises(TableError, match="There is no image in"):
        list(find_format(tmp_path).read(tmp_path, rows=2))
    with pytest.raises(UsageError, match="cannot come through a pipe"):
        list(find_format(tmp_path).read(io.BytesIO(), rows=2))
    with pytest.raises(UsageError, match="is for reading"):
        find_format(tmp_path).write(io.BytesIO(), None, {}, header=True)
