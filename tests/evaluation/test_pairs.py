"""What answers lean on: their distance between versions of one row, by hand, per head, within and across splits."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from levi_deploy.evaluation import evaluate
from levi_deploy.evaluation.labelled import LabelledRows
from levi_deploy.evaluation.pairs import sensitivity
from levi_serving.errors import UsageError
from levi_serving.predictions import Outputs, Task

LABELS = ("no", "yes")


def parts(targets, versions):
    """One split of rows with these answers, versions of these."""
    return {
        "test": LabelledRows(
            rows=[{}] * len(versions), targets=np.asarray(targets), columns={"id": versions}, digest=""
        )
    }


def outputs(head_logits):
    heads = np.asarray(head_logits, np.float32)
    return {"test": Outputs(heads.mean(axis=1), heads)}


def test_by_hand():
    """Head 1 sees the spurious part alone, head 2 the core; a row without another version does not count."""
    sure = np.log(3)  # of 3/4 and 1/4
    no, yes = [sure, 0], [0, sure]
    answered = outputs([[no, no], [yes, no], [no, yes], [yes, yes], [no, no]])
    rows = parts([0, 0, 1, 0, 0], ["a", "a", "a", None, "b"])
    found = {(one["part"], one["changed"]): one for one in sensitivity(answered, rows, task(), column="id")}
    assert found["head 1", "spurious"] == {
        "part": "head 1", "changed": "spurious", "pairs": 1, "moves": pytest.approx(1 / 2), "flips": 1,
        "both_right": 0,
    }  # fmt: skip
    assert (found["head 1", "core"]["moves"], found["head 1", "core"]["flips"]) == (0, 0)
    assert (found["head 2", "spurious"]["moves"], found["head 2", "spurious"]["both_right"]) == (0, 1)
    core = found["head 2", "core"]
    assert (core["moves"], core["flips"], core["both_right"]) == (pytest.approx(1 / 2), 1, 1)
    assert found["average", "core"]["moves"] == pytest.approx(3 / 4 - 1 / 2)
    assert next(iter(found)) == ("average", "spurious")


def task(kind="classification"):
    return Task(kind=kind, labels=LABELS if kind != "regression" else ("value",))


def test_values_and_labels_of_several():
    values = outputs([[[1.0]], [[4.0]], [[2.0]]])
    found = sensitivity(values, parts([1.0, 1.0, 3.0], [7, 7, 7]), task("regression"), column="id")
    assert found == [
        {"part": "average", "changed": "spurious", "pairs": 1, "moves": 3},
        {"part": "average", "changed": "core", "pairs": 1, "moves": 1},
    ]
    several = outputs([[[-9.0, 9.0]], [[9.0, 9.0]]])
    (found,) = sensitivity(several, parts([[0, 1], [0, 1]], ["a", "a"]), task("multilabel"), column="id")
    assert (found["changed"], found["flips"], found["both_right"]) == ("spurious", 1, 0)
    assert found["moves"] == pytest.approx(1 / 2, abs=1e-3)


def test_versions_in_different_splits():
    answered = {"id": outputs([[[0.0, 9]]])["test"], "ood": outputs([[[9.0, 0]]])["test"]}
    rows = {"id": parts([1], ["a"])["test"], "ood": parts([0], ["a"])["test"]}
    (found,) = sensitivity(answered, rows, task(), column="id")
    assert (found["changed"], found["pairs"], found["both_right"]) == ("core", 1, 1)


def test_no_versions_are_said():
    with pytest.raises(UsageError, match=r"`pairs` is 'id', but no two of the 2 rows that are measured share a value"):
        sensitivity(outputs([[[0.0, 1]], [[1.0, 0]]]), parts([0, 1], ["a", ""]), task(), column="id")


def test_a_column_of_a_table(runner, table, tmp_path):
    """Each row beside itself: nothing changes, and nothing moves."""
    rows = [row for row in csv.DictReader(table.read_text().splitlines()) if row["split"] == "id_val"][:20]
    with (tmp_path / "twins.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "twin"])
        writer.writeheader()
        writer.writerows({**row, "twin": n % 20} for n, row in enumerate([*rows, *rows]))
    found = evaluate(runner, tmp_path / "twins.csv", target="label", pairs="twin")["pairs"]
    assert [(one["part"], one["changed"], one["pairs"]) for one in found] == [
        ("average", "spurious", 20), ("head 1", "spurious", 20), ("head 2", "spurious", 20),
    ]  # fmt: skip
    assert all(one["moves"] < 1e-5 and one["flips"] == 0 for one in found)
