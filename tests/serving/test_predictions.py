"""From logits to answers, by hand and by property."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from levi_serving.predictions import Outputs, Task, answer_columns, disagreement, finish, probabilities, table

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
    task = Task(kind="classification", labels=("no", "yes"))
    found = finish(outputs([[0.0, 2.0], [3.0, 0.0]]), task)
    assert found.labels.tolist() == ["yes", "no"]
    columns = table(found, task, with_heads=True, all_probabilities=True)
    assert list(columns) == [
        "prediction", "probability", "probability_no", "probability_yes", "disagreement", "abstain", "head_1", "head_2",
    ]  # fmt: skip
    assert columns["head_2"] == ["no", "yes"]
    assert columns["probability"][0] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-5)


def test_multilabel_table():
    task = Task(kind="multilabel", labels=("a", "b"))
    found = finish(outputs([[1.0, 1.0], [-1.0, -1.0]]), task)
    assert found.labels.tolist() == [[True, True], [False, False]]
    assert table(found, task)["prediction"] == ["a|b", ""]


def test_regression_table():
    task = Task(kind="regression", labels=("score",))
    found = finish(outputs([[1.23456789], [-2.0]]), task)
    assert found.probabilities is None
    assert table(found, task)["prediction"] == [1.23457, -2.0]


def test_abstaining_is_the_tasks_threshold():
    alike, apart = [[2.0, 0.0], [2.0, 0.0]], [[2.0, 0.0], [0.0, 2.0]]
    head_logits = np.asarray([alike, apart], np.float32)
    for threshold, expected in ((None, [False, False]), (0.1, [False, True]), (1.0, [False, False])):
        task = Task(kind="classification", labels=("a", "b"), abstain_above=threshold)
        assert finish(Outputs(head_logits.mean(axis=1), head_logits), task).abstain.tolist() == expected


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("options", [{}, {"with_heads": True}, {"all_probabilities": True}])
def test_no_rows_have_the_columns_of_some(kind, options):
    task = Task(kind=kind, labels=("a",) if kind == "regression" else ("a", "b"))
    some = Outputs(np.zeros((4, task.outputs), np.float32), np.zeros((4, 3, task.outputs), np.float32))
    none = table(finish(some.take(np.arange(0)), task), task, **options)
    assert set(map(len, none.values())) == {0}
    assert list(none) == list(table(finish(some, task), task, **options))
    assert list(none) == answer_columns(task, heads=3, **options)


def test_outputs_of_chosen_rows_say_nothing_of_padding():
    """What ran, ran for all rows: a part of them has no number of its own."""
    whole = Outputs(np.arange(6, dtype=np.float32).reshape(3, 2), np.zeros((3, 1, 2), np.float32), padded_tokens=40)
    for rows in (np.array([2, 0]), np.array([False, True, True])):
        part = whole.take(rows)
        np.testing.assert_array_equal(part.logits, whole.logits[rows])
        assert len(part.head_logits) == 2
        assert part.padded_tokens is None
