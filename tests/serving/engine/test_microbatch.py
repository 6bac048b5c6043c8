"""Whoever asks gets their own answer, whatever else is asked meanwhile."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from fakes import Echo, Texts
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serving.engine.batching import Limits
from levi_serving.engine.microbatch import MicroBatcher
from levi_serving.errors import LeviError, RowError


class Shout(Echo):
    """Answers in capitals; notes its batches. A row with ``?`` cannot be used, one with ``!`` breaks the model."""

    def __init__(self):
        super().__init__()
        self.batches = []
        self.may_run = threading.Event()
        self.may_run.set()
        self.taken = threading.Event()

    def prepare(self, rows, *, bad=None):
        self.taken.set()
        for n, row in enumerate(rows):
            if "?" in row:
                bad[n] = "it is a question."
        return Texts(row for row in rows if "?" not in row)

    def run(self, encoded):
        self.may_run.wait(10)
        self.batches.append(list(encoded))
        if any("!" in text for text in encoded):
            raise LeviError("the model broke")
        outputs = Texts(encoded)
        outputs.padded_tokens = len(encoded) * int(encoded.costs.max())
        return outputs

    def finish(self, outputs):
        return [text.upper() for text in outputs]


@given(
    rows=st.lists(st.text("abcdefghij?!", min_size=1, max_size=30), min_size=1, max_size=60),
    max_tokens=st.integers(1, 200),
    max_rows=st.integers(1, 20),
    callers=st.integers(1, 8),
)
@settings(max_examples=60, deadline=None)
def test_each_caller_gets_their_own_answer(rows, max_tokens, max_rows, callers):
    shout = Shout()
    limits = Limits(tokens=max_tokens, rows=max_rows)
    with MicroBatcher(shout, limits=limits) as batcher, ThreadPoolExecutor(callers) as pool:
        asked = [(row, pool.submit(batcher.submit, row)) for row in rows]
        answers = [(row, future.result()) for row, future in asked]
        for row, answer in answers:
            if "?" in row:
                with pytest.raises(RowError, match="it is a question"):
                    answer.result(10)
            elif "!" in row:
                with pytest.raises(LeviError, match="the model broke"):
                    answer.result(10)
            else:
                assert answer.result(10).predictions == row.upper()
    for batch in shout.batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(map(len, batch)) <= max_tokens


def test_what_waits_is_answered_together():
    shout = Shout()
    shout.may_run.clear()
    with MicroBatcher(shout, limits=Limits(tokens=12)) as batcher:
        first = batcher.submit("first")
        assert shout.taken.wait(10)
        others = [batcher.submit(row) for row in ("aaaa", "b", "cccc", "d", "eeee")]
        shout.may_run.set()
        assert first.result(10).batch.rows == 1
        batches = [other.result(10).batch for other in others]
    assert shout.batches == [["first"], ["aaaa", "cccc", "eeee"], ["b", "d"]]
    assert batches[0] is batches[2] is batches[4]
    assert (batches[0].rows, batches[0].tokens, batches[0].padded_tokens) == (3, 12, 12)


def test_closing_answers_or_cancels_what_waits_and_takes_no_more():
    shout = Shout()
    batcher = MicroBatcher(shout)
    waiting = [batcher.submit(f"row {n}") for n in range(50)]
    batcher.close()
    assert [answer.result(0).predictions for answer in waiting] == [f"ROW {n}" for n in range(50)]
    with pytest.raises(LeviError, match="closed"):
        batcher.submit("late")

    shout = Shout()
    shout.may_run.clear()
    batcher = MicroBatcher(shout)
    running = batcher.submit("running")
    assert shout.taken.wait(10)
    waiting = batcher.submit("waiting")
    closing = threading.Thread(target=batcher.close, kwargs={"cancel": True})
    closing.start()
    with pytest.raises(CancelledError):
        waiting.result(10)
    shout.may_run.set()
    closing.join(10)
    assert running.result(0).predictions == "RUNNING"
    assert shout.batches == [["running"]]
    assert "levi-microbatch" not in {thread.name for thread in threading.enumerate()}


def test_a_cancelled_row_costs_nothing():
    shout = Shout()
    shout.may_run.clear()
    with MicroBatcher(shout) as batcher:
        batcher.submit("first")
        assert shout.taken.wait(10)
        gone, stays = batcher.submit("gone"), batcher.submit("stays")
        assert gone.cancel()
        shout.may_run.set()
        assert stays.result(10).predictions == "STAYS"
    assert shout.batches == [["first"], ["stays"]]


def test_the_runner_answers_as_it_does_alone(runner, texts):
    """Real rows through the real runner: arrays are taken apart and answers put back in place."""
    rows = [{"text": text} for text in texts[:40]]
    rows[7] = {"text": ""}
    with MicroBatcher(runner, limits=Limits(tokens=200, rows=16)) as batcher:
        answers = [batcher.submit(row) for row in rows]
    for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        if n == 7:
            assert "column 'text' is empty" in str(answer.exception())
            continue
        alone, found = runner.predict([row]), answer.result().predictions
        assert len(found) == 1
        assert found.labels.tolist() == alone.labels.tolist()
        np.testing.assert_allclose(found.logits, alone.logits, atol=1e-5)
        np.testing.assert_allclose(found.head_logits, alone.head_logits, atol=1e-5)
        np.testing.assert_allclose(found.probabilities, alone.probabilities, atol=1e-5)
        np.testing.assert_allclose(found.disagreement, alone.disagreement, atol=1e-5)
    assert {answer.result().batch.rows for n, answer in enumerate(answers) if n != 7} != {1}
