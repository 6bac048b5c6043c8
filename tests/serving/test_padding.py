"""The padding that is reported is the padding that ran: the runner cuts batches, and nobody guesses how."""

from __future__ import annotations

import threading

import pytest
from fakes import watch

from levi_serving import Runner
from levi_serving.bench import Target, Workload, single
from levi_serving.engine.batching import plan
from levi_serving.engine.microbatch import MicroBatcher

LENGTHS = (26, 45, 19, 38, 30, 22, 42, 34)
BATCHES = [(5, 45), (3, 26)]  # 256 tokens in all are one worker's share, and 8 rows of 45 would be 360
RAN = 5 * 45 + 3 * 26


@pytest.fixture(scope="module")
def one_worker(bundle):
    return Runner(bundle, threads=1, workers=1)


@pytest.fixture
def rows(one_worker, texts):
    rows = [one_worker.preprocessor.tokenization.text_of(length, texts) for length in LENGTHS]
    assert tuple(one_worker.prepare(rows).costs) == LENGTHS
    assert len(LENGTHS) * max(LENGTHS) <= one_worker.limits.tokens, "the limits alone would make one batch of them"
    return rows


def test_a_run_says_what_the_session_saw(one_worker, rows, monkeypatch):
    shapes = watch(monkeypatch, one_worker.session)
    padded = one_worker.run(one_worker.prepare(rows)).padded_tokens
    assert shapes == BATCHES
    assert padded == RAN


@pytest.mark.parametrize("workers", [2, 3])
def test_several_workers_add_up(bundle, texts, workers, monkeypatch):
    runner = Runner(bundle, threads=1, workers=workers)
    shapes, prepared = watch(monkeypatch, runner.session), runner.prepare(texts[:60])
    padded = runner.run(prepared).padded_tokens
    assert len(shapes) >= workers
    assert sum(rows for rows, _ in shapes) == 60
    assert padded == sum(rows * tokens for rows, tokens in shapes)
    assert padded < sum(len(rows) * prepared.costs[rows].max() for rows in plan(prepared.costs, runner.limits))


def test_no_rows_are_no_padding(one_worker):
    assert one_worker.run(one_worker.prepare([])).padded_tokens == 0


def test_a_benchmark_reports_it(one_worker, rows):
    measured = single([Target("ours", one_worker)], Workload([rows], len(rows)), duration_s=0)
    assert measured.series["ours"].padding == pytest.approx(1 - sum(LENGTHS) / RAN)


def test_the_torch_model_says_what_it_ran(run, rows):
    """It cuts by the limits alone, and so computes more."""
    reference = run.reference()
    assert reference.run(reference.prepare(rows)).padded_tokens == len(LENGTHS) * max(LENGTHS)


def test_a_micro_batch_reports_it(one_worker, rows, monkeypatch):
    """The rows wait together while another is answered."""
    began, may_end, run = threading.Event(), threading.Event(), one_worker.session.run

    def slow(feeds):
        began.set()
        assert may_end.wait(10)
        return run(feeds)

    monkeypatch.setattr(one_worker.session, "run", slow)
    shapes = watch(monkeypatch, one_worker.session)
    with MicroBatcher(one_worker) as batcher:
        first = batcher.submit("a lamp")
        assert began.wait(10)
        answers = [batcher.submit(row) for row in rows]
        may_end.set()
        batches = {id(batch): batch for answer in answers if (batch := answer.result(10).batch)}
    (batch,) = batches.values()
    assert (batch.rows, batch.tokens, batch.padded_tokens) == (len(LENGTHS), sum(LENGTHS), RAN)
    assert shapes[1:] == BATCHES
    assert first.result(0).batch.padded_tokens == shapes[0][1]
