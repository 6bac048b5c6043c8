"""Rows in memory are the rows of the file that holds them, and what is no table is refused by name."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from levi_deploy.data.dataset import load, read
from levi_deploy.evaluation import evaluate
from levi_deploy.training import train
from levi_serving.errors import TableError, UsageError


@pytest.fixture(scope="module")
def rows(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def forms(rows):
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "list": rows,
        "tuple": tuple(rows),
        "columns": columns,
        "arrays": {name: np.asarray(values) for name, values in columns.items()},
        "pandas": pd.DataFrame(rows),
        "pandas, rows chosen": pd.DataFrame(rows).set_index(np.arange(len(rows))[::-1]),
        "pyarrow": pa.table(columns),
    }


FORMS = ("list", "tuple", "columns", "arrays", "pandas", "pandas, rows chosen", "pyarrow")


@pytest.mark.parametrize("form", FORMS)
def test_rows_in_memory_are_those_of_the_file(form, rows, table, config):
    asked = replace(config.data, numeric=("price",), categorical=("shop",))
    found, expected = (load(data, asked) for data in (forms(rows)[form], table))
    for part in ("train", "validation"):
        own, other = getattr(found, part), getattr(expected, part)
        assert (own.rows, own.targets, own.digest) == (other.rows, other.targets, other.digest)
    assert found.task == expected.task


def test_a_model_trains_on_a_frame_and_is_measured_on_one(run, rows, table, config, cache, tmp_path):
    frame = pd.DataFrame(rows)
    again = train(frame, tmp_path / "run", config, cache=cache)
    for file in ("weights.safetensors", "samples.json", "targets.json"):
        assert (again.folder / file).read_bytes() == (run.folder / file).read_bytes()
    assert again.record["data"]["file"] == "the DataFrame"
    asked = {"target": "label", "splits": ["id_val", "ood_test"], "by": "shop"}
    found = evaluate(again.reference(), frame, **asked)
    assert found.pop("data") == "the DataFrame"
    expected = evaluate(run.reference(), table, **asked)
    expected.pop("data")
    assert found == expected


def test_validation_rows_may_be_in_memory_too(rows, config):
    asked = replace(config.data, split_column=None)
    parts = {split: [row for row in rows if row["split"] == split] for split in ("train", "id_val")}
    found = load(parts["train"], asked, validation=pd.DataFrame(parts["id_val"]))
    assert (len(found.train), len(found.validation)) == tuple(map(len, parts.values()))
    assert found.validation_from == "the DataFrame"


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        ("reviews.csv", UsageError, "`data` is the text 'reviews.csv'; expected a path as pathlib.Path, or rows"),
        (7, UsageError, "`data` is a int; expected a path, a list of mappings"),
        ([{"text": "a"}, "b"], UsageError, "`data` has a str as row 2; expected a mapping"),
        (["a"], UsageError, "`data` has a str as row 1; expected a mapping"),
        ([], TableError, "the list of 0 rows has no column 'text'"),
        ({"text": ["a", "b"], "label": ["x"]}, UsageError, "the dict has 1 values in column 'label', but 2 in another"),
        ({"txt": ["a"], "label": ["x"]}, TableError, "the dict has no column 'text'.* Did you mean 'txt'"),
        ([{"text": "a", "label": "x"}, {"text": "b"}], TableError, "first row 2: column 'label' is missing"),
        (
            pd.DataFrame({"text": ["a", "b"], "label": ["x", math.nan]}),
            TableError,
            "the DataFrame: 1 rows cannot be used, first row 2: column 'label' holds nan",
        ),
        (pd.DataFrame({"text": [], "label": []}), TableError, "the DataFrame has no rows"),
    ],
)
def test_what_is_wrong_is_said(data, error, says):
    with pytest.raises(error, match=says):
        read(data, inputs=["text"], target="label", texts=["text"])
