"""The runner in someone's program: two lines, any rows, many threads."""

from __future__ import annotations

import csv
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from levi_serving import Runner
from levi_serving.errors import BundleError, LeviError, ProviderError, RowError


def test_two_lines(bundle, run):
    predictions = Runner(bundle).predict(
        ["the lamp is lovely and superb on my desk", "this kettle was poor broken tent"]
    )
    assert set(predictions.labels.tolist()) <= {"positive", "negative"}
    assert predictions.probabilities.shape == (2, 2)
    np.testing.assert_allclose(predictions.probabilities.sum(axis=1), 1, rtol=1e-6)
    assert predictions.head_logits.shape == (2, 2, 2)
    average = predictions.head_logits.mean(axis=1) / run.record["temperature"]
    np.testing.assert_allclose(average, predictions.logits, rtol=1e-3)
    assert (predictions.disagreement >= 0).all()


def test_it_has_learned_the_table(runner, table):
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    right = runner.predict([row["text"] for row in rows]).labels == np.asarray([row["label"] for row in rows])
    assert right.mean() > 0.9


def test_rows_may_be_mappings(runner, texts):
    whole = runner.predict(texts[:5])
    mapped = runner.predict([{"text": text, "other": 1} for text in texts[:5]])
    np.testing.assert_array_equal(whole.logits, mapped.logits)


def test_no_rows(runner):
    predictions = runner.predict([])
    assert len(predictions) == 0
    assert predictions.labels.tolist() == []
    assert predictions.head_logits.shape == (0, 2, 2)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("", "'text' is empty"),
        ("  \n", "'text' is empty"),
        (None, "found NoneType; expected a text or a mapping"),
        (7, "found int; expected a text or a mapping"),
        ({"texts": "a"}, "there is no column 'text'; found 'texts'"),
        ({"text": None}, "column 'text' is missing"),
        ({"text": 3.5}, r"column 'text' holds 3.5 \(float\)"),
        ("\ud800", "invalid Unicode at character 0"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(runner, row, reason):
    with pytest.raises(RowError, match=rf"^rows\[2\]: .*{reason}") as caught:
        runner.predict(["good", "bad", row])
    assert caught.value.row == 2
    assert isinstance(caught.value, LeviError)


def test_a_very_long_row_is_cut_and_answered(runner):
    words = "good lamp " * 20_000
    assert len(runner.prepare([words]).tokens.ids) == 48
    np.testing.assert_array_equal(runner.predict([words]).logits, runner.predict([words[:2000]]).logits)


def test_threads_do_not_disturb_each_other(bundle, texts):
    runner = Runner(bundle, threads=1)
    batches = [texts[n : n + 1 + n % 7] for n in range(80)]
    expected = [runner.predict(batch).logits for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda batch: runner.predict(batch).logits, batches * 3))
    for n, logits in enumerate(found):
        np.testing.assert_array_equal(logits, expected[n % len(batches)])


def test_what_cannot_be_had(bundle, tmp_path):
    with pytest.raises(ProviderError, match="needs CUDAExecutionProvider"):
        Runner(bundle, device="cuda")
    there = "fp32 for cpu device, fp32 for any device"
    with pytest.raises(BundleError, match=f"has no int8 graph for the device 'cpu'; it has {there}"):
        Runner(bundle, precision="int8")
    with pytest.raises(BundleError, match="no such folder"):
        Runner(tmp_path / "nowhere")
