"""Further columns: standardised numbers, categories with an unknown bucket, nodes with an unseen one."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levi_serving.errors import RowError
from levi_serving.rows.columns import Columns, ColumnSettings, category
from levi_serving.rows.preprocess import Encoded, Preprocessing, Preprocessor

ROWS = [
    {"price": "1", "shop": "north", "user": 7, "item": "a"},
    {"price": "3", "shop": "south", "user": 8.0, "item": "b"},
    {"price": "", "shop": "", "user": 7, "item": "a"},
]
SETTINGS = ColumnSettings.fit(ROWS, numeric=["price"], categorical=["shop"], nodes=["user", "item"])


def test_what_is_learned():
    assert (SETTINGS.numeric[0].mean, SETTINGS.numeric[0].std) == (2, 1)
    assert SETTINGS.categorical[0].values == ("north", "south")
    assert [part.values for part in SETTINGS.nodes] == [("7", "8"), ("a", "b")]
    assert SETTINGS.columns == ("price", "shop", "user", "item")
    assert ColumnSettings.from_json(json.loads(json.dumps(asdict(SETTINGS)))) == SETTINGS


def test_rows_become_arrays():
    encode = Columns(SETTINGS).encode
    arrays = encode([*ROWS, {"price": 5, "shop": "west", "user": "7", "item": None}])
    assert arrays["numeric"].tolist() == [[-1], [1], [0], [3]]
    assert arrays["categorical"].tolist() == [[1], [2], [0], [0]]
    assert arrays["nodes"].tolist() == [[1, 1], [2, 2], [1, 1], [1, 0]]
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "numeric": "float32", "categorical": "int64", "nodes": "int64",
    }  # fmt: skip
    assert {name: array.shape for name, array in encode([]).items()} == {
        "numeric": (0, 1), "categorical": (0, 1), "nodes": (0, 2),
    }  # fmt: skip


@pytest.mark.parametrize("cell", ["cheap", "inf", [1], "1,5"])
def test_what_is_no_number_is_a_row_error(tmp_path, cell):
    own = Preprocessor(tmp_path, Preprocessing(columns=SETTINGS))
    with pytest.raises(RowError, match=r"rows\[1\]: column 'price' holds .*; expected a finite number"):
        own.encode([ROWS[0], {**ROWS[1], "price": cell}])
    bad = {}
    assert len(own.encode([ROWS[0], {**ROWS[1], "price": cell}], bad=bad)) == 1
    assert list(bad) == [1]


@pytest.mark.parametrize(("cells", "says"), [(["1", "two"], "holds 'two'"), (["", None], "has no number")])
def test_a_column_that_cannot_be_learned(cells, says):
    with pytest.raises(ValueError, match=says):
        ColumnSettings.fit([{"price": cell} for cell in cells], numeric=["price"])


def test_a_column_of_one_value_is_not_divided_by_zero():
    settings = ColumnSettings.fit([{"price": 4}] * 3, numeric=["price"])
    assert Columns(settings).encode([{"price": 4}, {"price": 5}])["numeric"].tolist() == [[0], [1]]


@given(st.one_of(st.integers(-(10**6), 10**6), st.text(max_size=5), st.none(), st.booleans()))
def test_a_category_has_one_name_whatever_the_file_format(cell):
    if isinstance(cell, int) and not isinstance(cell, bool):
        assert category(cell) == category(float(cell)) == category(str(cell))
    assert category(cell) == category(category(cell))


def test_stored_and_restored():
    settings = Preprocessing(columns=SETTINGS)
    encoded = Encoded(settings, None, Columns(SETTINGS).encode(ROWS))
    again = Encoded.restored(encoded.stored(), settings)
    assert again.digest == encoded.digest
    for name, array in encoded.batch([2, 0]).items():
        np.testing.assert_array_equal(again.batch([2, 0])[name], array)
    assert len(Encoded.blank(settings, rows=3)) == 3
