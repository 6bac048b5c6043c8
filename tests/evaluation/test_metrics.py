"""Metrics against hand-made values, on a run and on its bundle."""

from __future__ import annotations

import math

import numpy as np
import pytest

from levi_deploy.evaluation import evaluate, metrics
from levi_serving.errors import TableError, UsageError
from levi_serving.predictions import Outputs, finish


def predictions(logits, task, labels=("a", "b", "c")):
    logits = np.asarray(logits, np.float32)
    return finish(Outputs(logits, logits[:, None]), task=task, labels=labels)


def test_classification():
    """Three rows of a, one of b; c is never there. Said: a a b b."""
    made = predictions([[2, 0, 0], [2, 0, 0], [0, 2, 0], [0, 2, 0]], "classification")
    found = metrics(made, np.asarray([0, 0, 0, 1]), task="classification", labels=("a", "b", "c"))
    assert (found["rows"], found["accuracy"], found["heads"]) == (4, 0.75, [0.75])
    assert found["macro_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_f1"] == pytest.approx((2 * 2 / (2 + 3) + 2 * 1 / (2 + 1)) / 2)
    right, wrong = -math.log(math.e**2 / (math.e**2 + 2)), -math.log(1 / (math.e**2 + 2))
    assert found["log_loss"] == pytest.approx((3 * right + wrong) / 4, rel=1e-5)


def test_multilabel():
    made = predictions([[1, -1], [1, 1], [-1, -1]], "multilabel", ("x", "y"))
    found = metrics(made, np.asarray([[1, 0], [1, 0], [1, 0]]), task="multilabel", labels=("x", "y"))
    assert found["exact_match"] == pytest.approx(1 / 3)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 3))
    assert found["macro_f1"] == pytest.approx((2 * 2 / (2 + 3) + 0) / 2)


def test_regression():
    made = predictions([[1], [2], [4]], "regression", ("y",))
    found = metrics(made, np.asarray([1.0, 2.0, 3.0]), task="regression", labels=("y",))
    assert found["rmse"] == pytest.approx(math.sqrt(1 / 3))
    assert found["mae"] == pytest.approx(1 / 3)
    assert found["r2"] == pytest.approx(1 - 1 / 2)


def test_a_run_and_its_bundle_measure_alike(run, bundle, table):
    options = {"splits": ["id_val", "ood_test"], "by": "label"}
    torch, graph = evaluate(run.folder, table, **options), evaluate(bundle, table, **options)
    assert torch["splits"].keys() == {"id_val", "ood_test"}
    for split, groups in torch["splits"].items():
        assert list(groups) == ["all", "negative", "positive"]
        for group, found in groups.items():
            other = graph["splits"][split][group]
            assert found["accuracy"] == other["accuracy"]
            assert found["log_loss"] == pytest.approx(other["log_loss"], abs=1e-5)
    assert torch["splits"]["id_val"]["all"]["accuracy"] == run.record["validation"]["accuracy"]


def test_what_is_refused(bundle, table, tmp_path):
    with pytest.raises(UsageError, match="No row of .* has split = 'ood'; found id_val, ood_test, train"):
        evaluate(bundle, table, splits=["ood"])
    with pytest.raises(UsageError, match="image is 'photo', but this model reads 'text'"):
        evaluate(bundle, table, image="photo")
    (tmp_path / "t.csv").write_text("text,label\ngood,neutral\n")
    with pytest.raises(TableError, match="holds 'neutral', which no training row has; known are negative, positive"):
        evaluate(bundle, tmp_path / "t.csv")
