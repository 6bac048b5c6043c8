"""From logits to answers, by hand and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from levi_serving.predictions import Outputs, disagreement, finish, probabilities, table

heads = arrays(np.float32, (5, 3, 4), elements=st.floats(-40, 40, width=32))


def test_disagreement_by_hand():
    sure, other = [20.0, -20.0], [-20.0, 20.0]
    alike, apart = np.asarray([[sure, sure]], np.float32), np.asarray([[sure, other]], np.float32)
    assert disagreement(alike, "classification")[0] == pytest.approx(0, abs=1e-6)
    assert disagreement(apart, "classification")[0] == pytest.approx(math.log(2), rel=1e-5)
    # H(mean) - mean H for p = (.9, .1) and (.5, .5)
    logits = np.log(np.asarray([[[0.9, 0.1], [0.5, 0.5]]], np.float32))
    entropy = lambda p: -sum(q * math.log(q) for q in p)  # noqa: E731
    expected = entropy((0.7, 0.3)) - (entropy((0.9, 0.1)) + entropy((0.5, 0.5))) / 2
    assert disagreement(logits, "classification")[0] == pytest.approx(expected, rel=1e-4)
    one_label = np.asarray([[[20.0], [-20.0]]], np.float32)
    assert disagreement(one_label, "multilabel")[0] == pytest.approx(math.log(2), rel=1e-5)
    assert disagreement(np.asarray([[[1.0], [3.0]]], np.float32), "regression")[0] == 1


@given(heads)
def test_disagreement_is_never_negative_and_bounded(logits):
    found = disagreement(logits, "classification")
    assert (found >= 0).all()
    assert (found <= math.log(3) + 1e-5).all()
    np.testing.assert_allclose(disagreement(logits[:, ::-1], "classification"), found, atol=1e-5)
    assert disagreement(logits[:, :1], "classification") == pytest.approx(0, abs=1e-6)


@given(heads)
def test_probabilities(logits):
    p = probabilities(logits, "classification")
    np.testing.assert_allclose(p.sum(axis=-1), 1, rtol=1e-5)
    q = probabilities(logits, "multilabel")
    assert ((q >= 0) & (q <= 1)).all()
    np.testing.assert_allclose(q, 1 / (1 + np.exp(-logits.astype(np.float64))), atol=1e-6)


def outputs(logits):
    logits = np.asarray(logits, np.float32)
    return Outputs(logits, np.stack([logits, -logits], axis=1))


def test_classification_table():
    found = finish(outputs([[0.0, 2.0], [3.0, 0.0]]), task="classification", labels=["no", "yes"])
    assert found.labels.tolist() == ["yes", "no"]
    columns = table(found, task="classification", labels=["no", "yes"], heads=True, all_probabilities=True)
    assert list(columns) == [
        "prediction", "probability", "probability_no", "probability_yes", "disagreement", "abstain", "head_1", "head_2",
    ]  # fmt: skip
    assert columns["head_2"] == ["no", "yes"]
    assert columns["probability"][0] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-5)


def test_multilabel_table():
    found = finish(outputs([[1.0, 1.0], [-1.0, -1.0]]), task="multilabel", labels=["a", "b"])
    assert found.labels.tolist() == [[True, True], [False, False]]
    assert table(found, task="multilabel", labels=["a", "b"])["prediction"] == ["a|b", ""]


def test_regression_table():
    found = finish(outputs([[1.23456789], [-2.0]]), task="regression", labels=["score"])
    assert found.probabilities is None
    assert table(found, task="regression", labels=["score"])["prediction"] == [1.23457, -2.0]


@pytest.mark.parametrize("task", ["classification", "multilabel", "regression"])
def test_no_rows(task):
    empty = Outputs(np.empty((0, 2), np.float32), np.empty((0, 3, 2), np.float32))
    columns = table(finish(empty, task=task, labels=["a", "b"]), task=task, labels=["a", "b"], heads=True)
    assert set(map(len, columns.values())) == {0}
