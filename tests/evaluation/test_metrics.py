"""Metrics against hand-made values, on a run and on its bundle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from levi_deploy.cli import app
from levi_deploy.evaluation import evaluate, metrics
from levi_deploy.models import load
from levi_serving.errors import TableError, UsageError
from levi_serving.predictions import Outputs, Task, finish


def measured(logits, targets, kind, labels):
    logits, task = np.asarray(logits, np.float32), Task(kind=kind, labels=labels)
    return metrics(finish(Outputs(logits, logits[:, None]), task), np.asarray(targets), task)


def test_classification():
    """Three rows of a, one of b; c is never there. Said: a a b b."""
    logits = [[2, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0]]
    found = measured(logits, [0, 0, 0, 1], "classification", ("a", "b", "c"))
    assert (found["rows"], found["accuracy"], found["heads"]) == (4, 0.75, [0.75])
    assert found["macro_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 * 2 / (2 + 3) + 2 * 1 / (2 + 1)) / 2)
    right, wrong = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**2 + 2))
    assert found["log_loss"] == pytest.approx((3 * right + wrong) / 4, rel=1e-5)


def test_multilabel():
    found = measured([[1, -1], [1, 1], [-1, -1]], [[1, 0], [1, 0], [1, 0]], "multilabel", ("x", "y"))
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["macro_f1"] == pytest.approx((2 * 2 / (2 + 3) + 0) / 2)


def test_regression():
    found = measured([[1], [2], [4]], [1.0, 2.0, 3.0], "regression", ("y",))
    assert found["rmse"] == pytest.approx(math.sqrt(1 / 3))
    assert found["mae"] == pytest.approx(1 / 3)
    assert found["r2"] == pytest.approx(1 - 1 / 2)


def test_a_run_and_its_bundle_measure_alike(run, bundle, table):
    options = {"target": "label", "splits": ["id_val", "ood_test"], "by": "label"}
    torch, graph = (evaluate(load(folder).predictor, table, **options) for folder in (run.folder, bundle))
    assert torch["splits"].keys() == {"id_val", "ood_test"}
    for split, groups in torch["splits"].items():
        assert list(groups) == ["all", "negative", "positive"]
        for group, found in groups.items():
            other = graph["splits"][split][group]
            assert found["accuracy"] == other["accuracy"]
            assert found["log_loss"] == pytest.approx(other["log_loss"], abs=1e-5)
    assert torch["splits"]["id_val"]["all"]["accuracy"] == run.record["validation"]["accuracy"]


def test_what_is_refused(bundle, runner, table, tmp_path):
    with pytest.raises(UsageError, match="no row of .* has split = 'ood'; found id_val, ood_test, train"):
        evaluate(runner, table, target="label", splits=["ood"])
    with pytest.raises(UsageError, match="--image names a column, but this model reads 'text'"):
        app(["evaluate", str(bundle), str(table), "--image", "photo"], standalone_mode=False)
    (tmp_path / "t.csv").write_text("text,label\ngood,neutral\n")
    with pytest.raises(TableError, match="holds 'neutral', which no training row has; known are negative, positive"):
        evaluate(runner, tmp_path / "t.csv", target="label")


def test_columns_may_have_other_names_in_the_table(runner, table, tmp_path):
    expected = evaluate(runner, table, target="label", splits=["id_val"])
    header, rows = table.read_text().split("\n", 1)
    header = header.replace("text", "review").replace("label", "verdict").replace("split", "part")
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(f"{header}\n{rows}")
    found = evaluate(
        runner, renamed, target="verdict", columns={"text": "review"}, splits=["id_val"], split_column="part"
    )
    assert found == {**expected, "data": "renamed.csv"}
    with pytest.raises(TableError, match="no column 'text'"):
        evaluate(runner, renamed, target="verdict")
