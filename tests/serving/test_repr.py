"""What a notebook prints of predictions, a runner and a run, and predictions as a sequence."""

from __future__ import annotations

import numpy as np
import pytest

from levi_serving.predictions import Outputs, Predictions, Task, finish

YES_NO = Task(kind="classification", labels=("no", "yes"), abstain_above=0.1)


def answered(head_logits, task: Task = YES_NO) -> Predictions:
    """Predictions from (N, K, C) logits of the heads."""
    heads = np.asarray(head_logits, np.float32).reshape(-1, 2, task.outputs)
    return finish(Outputs(heads.mean(axis=1), heads), task)


ALIKE, DIFFERENT = [[0, 2], [0, 2]], [[4, 0], [0, 3]]  # two heads' logits of one row


def test_predictions_are_a_table():
    assert repr(answered([ALIKE, DIFFERENT])).splitlines() == [
        "   prediction  probability  disagreement  abstain",
        "0  yes              0.8808             0    False",
        "1  no               0.6225         0.552     True",
        "2 rows",
    ]
    assert repr(answered([ALIKE])).endswith("\n1 row")
    assert repr(answered([])).splitlines() == ["  prediction  probability  disagreement  abstain", "0 rows"]


def test_a_long_table_shows_its_first_rows():
    lines = repr(answered([ALIKE] * 1234)).splitlines()
    assert len(lines) == 12
    assert lines[-2].startswith("9  yes")
    assert lines[-1] == "… 1,234 rows"


def test_a_long_label_is_shortened():
    task = Task(kind="classification", labels=("no", "yes, " + "very " * 20))
    line = repr(answered([ALIKE], task)).splitlines()[1]
    assert "…" in line
    assert len(line) < 100


def test_other_tasks_are_tables_too():
    topics = Task(kind="multilabel", labels=("lamp", "tent", "iron"))
    lines = repr(answered([[[1, -1, 1]] * 2, [[-1, -1, -1]] * 2], topics)).splitlines()
    assert lines[0].split() == ["prediction", "disagreement", "abstain"]
    assert lines[1].startswith("0  labels 0, 2 ")
    assert lines[2].startswith("1  no label ")
    price = Task(kind="regression", labels=("price",))
    lines = repr(answered([[[2], [3]]], price)).splitlines()
    assert lines[1].split() == ["0", "2.5", "0.5", "False"]


def test_predictions_are_a_sequence():
    found = answered([ALIKE, DIFFERENT, ALIKE])
    assert [one.labels.tolist() for one in found] == [["yes"], ["no"], ["yes"]]
    assert all(len(one) == 1 for one in found)
    assert found[1].labels.tolist() == found[-2].labels.tolist() == found[np.int64(1)].labels.tolist() == ["no"]
    assert found[1:].labels.tolist() == ["no", "yes"]
    assert found[::2].disagreement.tolist() == [0, 0]
    assert found[1:1].head_logits.shape == (0, 2, 2)
    np.testing.assert_array_equal(found[1].probabilities, found.probabilities[1:2])
    for n in (3, -4):
        with pytest.raises(IndexError):
            found[n]
    with pytest.raises(TypeError):
        found["yes"]


def test_what_a_task_answers_in_words():
    assert YES_NO.in_words == "classification of no, yes"
    assert Task(kind="multilabel", labels=tuple(map(str, range(77)))).in_words == "multilabel of 77 labels"


def test_a_runner_says_what_it_is(runner):
    first, second = repr(runner).splitlines()
    assert first.startswith(f"<Runner {runner.bundle.folder}: classification of negative, positive; ")
    assert first.endswith(", taps 1, 3;")
    threads = runner.session.threads
    assert second == f" fp32 on CPUExecutionProvider, {threads} thread{'s' * (threads > 1)}, 1 worker>"


def test_a_run_says_what_it_is(run):
    first, second = repr(run).splitlines()
    assert first == f"<Run {run.folder}: classification of negative, positive; {run.backbone.title}, taps 1, 3;"
    assert second == f" accuracy {run.record['validation']['accuracy']:.4f} on 80 ID validation rows>"
