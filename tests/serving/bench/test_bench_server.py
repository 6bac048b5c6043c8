"""The server scenario in simulated time: what it charges, what it refuses, and the peak it finds."""

from __future__ import annotations

import json
import math
from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import Clock, Echo

from levi_serving.bench import Benchmark, Report, Target, Workload, find_peak, offline, server, single
from levi_serving.bench.open_loop import arrivals
from levi_serving.bench.stats import minimum_requests
from levi_serving.engine.microbatch import Answer, Batch, MicroBatcher
from levi_serving.errors import LeviError, UsageError

WORKLOAD = Workload([["a"], ["bb"], ["ccc"]], 1)


class Till:
    """A service with one till: rows are served one after another, each taking as long as ``seconds(n)`` says.

    It is a simulation: time passes in ``sleep``, and an answer is given at the instant at which it is due.
    """

    def __init__(self, clock, seconds, *, failing=()):
        self._clock, self._seconds, self._failing = clock, seconds, failing
        self._waiting = deque()
        self._free = self.sent = 0

    def submit(self, row):
        answer = Future()
        began = max(self._clock.now, self._free)
        self._free = began + round(self._seconds(self.sent) * 1e9)
        self._waiting.append((self.sent, self._free, answer, (self._free - began) / 1e9))
        self.sent += 1
        return answer

    def sleep(self, seconds):
        self._advance(self._clock.now + math.ceil(seconds * 1e9))

    def close(self, *, cancel=False):
        if cancel:
            self._waiting.clear()
        self._advance(None)

    def _advance(self, until):
        while self._waiting and (until is None or self._waiting[0][1] <= until):
            n, self._clock.now, answer, took = self._waiting.popleft()
            if n in self._failing:
                answer.set_exception(LeviError("out of memory"))
            else:
                answer.set_result(Answer(None, Batch(1, 3, 4, 0.0, took, 0.0)))
        self._clock.now = max(self._clock.now, until or 0)


def measure(seconds=lambda n: 0.01, *, qps=50.0, bound_s=0.1, oversleep_s=0.0, failing=(), **settings):
    clock = Clock()
    till = Till(clock, seconds, failing=failing)
    return server(
        Target("echo", Echo()), WORKLOAD, qps=qps, bound_s=bound_s, service=lambda _: till, clock=clock,
        sleep=lambda wait: till.sleep(wait + oversleep_s), **{"duration_s": 20.0, **settings},
    )  # fmt: skip


def test_arrivals_are_poisson_and_repeat():
    due = arrivals(200, duration_s=100, fewest=10, seed=3)
    gaps = np.diff(due)
    assert (due[-1] < 100, gaps.min() >= 0) == (True, True)
    assert len(due) == pytest.approx(20_000, abs=5 * 20_000**0.5)
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)  # of an exponential: 1
    assert (due == arrivals(200, duration_s=100, fewest=10, seed=3)).all()
    assert not np.array_equal(due[:10], arrivals(200, duration_s=100, fewest=10, seed=4)[:10])
    np.testing.assert_allclose(arrivals(100, duration_s=200, fewest=10, seed=3), 2 * due, rtol=1e-9)
    assert len(arrivals(1, duration_s=1, fewest=662, seed=0)) == 662


def test_a_rate_that_is_held_is_valid():
    measured = measure()
    assert measured.reasons == []
    series = measured.series["echo"]
    assert len(series.ended_s) >= minimum_requests(0.99)
    assert series.run_s == pytest.approx([0.01] * len(series.ended_s))
    assert min(series.latency_s) == pytest.approx(0.01)
    assert measured.server.busy == pytest.approx(0.5, abs=0.1)
    report = Report([measured]).to_dict()
    (entry,) = report["workloads"]
    assert report["verdict"] == "VALID"
    assert (entry["server"]["scheduled_qps"], entry["server"]["slo_percentile"]) == (50, 99)
    result = entry["results"]["echo"]
    assert result["latency_ms"]["p99"] <= result["early_stopping"]["ms"] <= 100
    assert result["rows_per_s"] == pytest.approx(50, rel=0.1)
    assert sum(part["share"] for part in result["split"].values()) == pytest.approx(1)
    assert result["padding_share"] == pytest.approx(0.25)
    json.dumps(report, allow_nan=False)


def test_over_the_bound_is_invalid():
    """662 requests say that p99 is below the bound when one of them, the slowest, is set aside: none may be over."""
    measured = measure(lambda n: 0.12 if n == 300 else 0.001, qps=5)
    assert "1 of the first 302 requests at 5/s took longer than 100 ms" in measured.reasons[0]
    assert "at most 0 of all 662 do" in measured.reasons[0]
    report = Report([measured])
    assert report.verdict == "INVALID"
    assert "Lower `qps`" in str(report)
    few = measure(lambda n: 0.12 if n in (300, 1200) else 0.001, qps=100)  # 0.1 %, of about 2000
    assert few.reasons == []
    assert Report([few]).to_dict()["workloads"][0]["results"]["echo"]["early_stopping"]["ms"] < 100
    many = measure(lambda n: 0.12 if n % 40 == 0 else 0.001)  # 2.5 % of about 1000
    assert "took longer than 100 ms" in many.reasons[0]
    assert len(many.series["echo"].ended_s) < 300  # it was stopped


def test_a_stall_is_charged_to_every_request_that_waited():
    """One request stalls for 2 s of 20. A closed loop would see one slow request; here about 100 come meanwhile."""
    measured = measure(lambda n: 2.0 if n == 300 else 0.001, qps=50, bound_s=10.0)
    assert measured.reasons == []
    latency = np.array(measured.series["echo"].latency_s)
    assert (latency > 0.1).sum() == pytest.approx(95, abs=30)
    assert latency.max() == pytest.approx(2.0, abs=0.01)
    assert measured.series["echo"].queue_s[301] > 1.9


def test_a_late_generator_is_invalid():
    measured = measure(oversleep_s=0.011)
    assert measured.server.late > 0.5  # those that are due meanwhile are sent with it, less late
    assert "the generator sent" in measured.reasons[0]
    on_time = measure(oversleep_s=0.009)
    assert on_time.reasons == []
    assert np.median(on_time.series["echo"].latency_s) >= 0.019 - 1e-6  # being late is charged, too


def test_failures_are_counted_separately():
    measured = measure(failing=range(10, 15))
    series = measured.series["echo"]
    assert series.failed == 5
    assert measured.reasons == [f"echo: 5 of {5 + len(series.ended_s)} requests failed, the first with: out of memory"]
    assert Report([measured]).to_dict()["workloads"][0]["results"]["echo"]["failed"] == 5
    all_failed = measure(failing=range(100_000))
    assert Report([all_failed]).verdict == "INVALID"


def test_the_search_finds_the_peak():
    """Of one till with 10 ms a row, by trying every rate: the search ends within its resolution of the truth."""

    def at(qps):
        return measure(qps=qps, bound_s=0.05)

    found = find_peak(at, start=3.0)
    peak = found.server.qps
    assert found.reasons == []
    rates = [one.server.qps for one in found.tried]
    assert rates[:3] == [3.0, 6.0, 12.0]
    assert peak == max(one.server.qps for one in found.tried if not one.reasons)
    assert min(one.server.qps for one in found.tried if one.reasons) / peak <= 1.05
    truth = max(qps for qps in range(40, 100) if not at(float(qps)).reasons)
    assert peak == pytest.approx(truth, rel=0.06)
    assert find_peak(at, start=700.0).server.qps == pytest.approx(peak, rel=0.06)
    entry = Report([found]).to_dict()["workloads"][0]
    assert [one["scheduled_qps"] for one in entry["tried"]] == rates
    assert [one["valid"] for one in entry["tried"]] == [not one.reasons for one in found.tried]
    assert f"tried {rates[-1]:.4g} requests/s" in str(Report([found]))


def test_a_search_without_a_valid_rate_says_so():
    found = find_peak(lambda qps: measure(lambda n: 1.0, qps=qps, bound_s=0.05), start=4.0)
    assert found.reasons
    assert len(found.tried) == 12
    assert Report([found]).verdict == "INVALID"


class Padded:
    """A predictor that records what it computed: tokens and padded tokens of every run."""

    def __init__(self, predictor, padding=lambda encoded, outputs: outputs.padded_tokens):
        self._predictor, self._padding = predictor, padding
        self.runs = []

    def __getattr__(self, name):
        return getattr(self._predictor, name)

    def run(self, encoded):
        outputs = self._predictor.run(encoded)
        padded = self._padding(encoded, outputs)
        self.runs.append((int(encoded.costs.sum()), padded))
        return SimpleNamespace(rows=outputs, padded_tokens=padded)

    def finish(self, outputs):
        return self._predictor.finish(outputs.rows)

    def serve(self, predictor):
        """As a benchmark's service: what ran before was warm-up."""
        self.runs.clear()
        return MicroBatcher(predictor)

    @property
    def share(self):
        tokens, padded = np.sum(self.runs, axis=0)
        return 1 - tokens / padded


def to_a_multiple_of_four(encoded, outputs):
    return len(encoded) * (-(-int(encoded.costs.max()) // 4) * 4)


def test_padding_is_what_the_predictor_says_it_computed():
    """Whatever the micro-batcher cut: rows of 1, 2 and 3 tokens, each padded to 4, and no other number."""
    target = Padded(Echo(), to_a_multiple_of_four)
    measured = server(
        Target("echo", target), WORKLOAD, qps=5000.0, bound_s=30.0, duration_s=0.05, service=target.serve
    )  # fmt: skip
    series = measured.series["echo"]
    assert series.padded_tokens == 4 * series.rows
    assert series.padding == pytest.approx(target.share)
    assert 0.25 < series.padding < 0.75


def test_padding_of_one_request_after_another_is_what_ran():
    clock = Clock()
    target = Padded(Echo(), lambda *given: clock.pass_s(0.01) or to_a_multiple_of_four(*given))
    workload = Workload([["a", "bb"], ["ccc", "ddd"]], 2)  # 3 + 6 tokens in 8 + 8 positions
    for scenario in (single, offline):
        measured = scenario([Target("echo", target)], workload, duration_s=1.0, clock=clock)
        assert measured.series["echo"].padding == pytest.approx(1 - 9 / 16)
    silent = single(
        [Target("echo", Padded(Echo(), lambda *_: clock.pass_s(0.01)))], workload, duration_s=1, clock=clock
    )
    assert silent.series["echo"].padding is None


def test_the_real_micro_batcher_serves(runner, texts):
    """Real threads and time, and nothing asserted of how fast: every request has its answer, in batches."""
    workload = Workload([[text] for text in texts[:20]], 1)
    benchmark = Benchmark(scenario="server", duration_s=0.2, qps=2000.0, bound_s=30.0)
    (measured,) = benchmark.measure([Target("ours", runner)], workload)
    series = measured.series["ours"]
    assert (series.failed, series.rows) == (0, len(series.ended_s))
    assert series.rows >= minimum_requests(0.99)
    assert measured.server.rows_per_batch >= 1


def test_the_real_runner_says_what_it_padded(runner, texts):
    target = Padded(runner)
    workload = Workload([[text] for text in texts[:20]], 1)
    measured = server(
        Target("ours", target), workload, qps=2000.0, bound_s=30.0, duration_s=0.2, service=target.serve
    )  # fmt: skip
    series = measured.series["ours"]
    assert series.tokens == sum(tokens for tokens, _ in target.runs)
    assert series.padding == pytest.approx(target.share)
    assert series.padding > 0  # texts of 3 to 27 words, 2000 a second


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"scenario": "server"}, "needs a rate. Give `qps`, or `find_peak`"),
        ({"scenario": "single", "qps": 3.0}, "settings of the server scenario, but `scenario` is 'single'"),
        ({"scenario": "burst"}, "^`scenario` is 'burst'; expected single, offline or server"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, says):
    with pytest.raises(UsageError, match=says):
        Benchmark(duration_s=1.0, **settings)
