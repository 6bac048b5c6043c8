"""A benchmark's numbers mean what their names say: known formulas against published and hand-made values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from fakes import Clock, Echo

from levi_serving.bench import Report, Target, Workload, fixed, offline, real, single
from levi_serving.bench.stats import early_stopping, minimum_requests, percentile, ratio, stable, summary
from levi_serving.errors import UsageError


def test_percentile_is_loadgens():
    values = list(range(100, 0, -1))  # 1 … 100
    assert [percentile(values, p) for p in (0.5, 0.9, 0.99)] == [51, 91, 100]
    assert percentile([7.0], 0.9) == 7.0


@pytest.mark.parametrize(("p", "fewest"), [(0.9, 64), (0.95, 130), (0.97, 219), (0.99, 662), (0.999, 6636)])
def test_minimum_requests_are_mlperfs(p, fewest):
    """The table of MLPerf's inference rules."""
    assert minimum_requests(p) == fewest
    assert early_stopping([1.0] * fewest, p) == 1.0
    assert early_stopping([1.0] * (fewest - 1), p) is None


def test_early_stopping_sets_the_slowest_aside():
    values = [float(n) for n in range(1, 1001)]

    def slow_at_most(t):  # P(Binomial(1000, 0.1) <= t)
        return sum(math.comb(1000, n) * 0.1**n * 0.9 ** (1000 - n) for n in range(t + 1))

    assert slow_at_most(78) <= 0.01 < slow_at_most(79)
    assert early_stopping(values, 0.9) == values[1000 - 78]


def test_early_stopping_covers_as_often_as_it_says():
    """Over 400 draws the estimate lies below the true p90 in about 1 %; more than 4 % is one in 10^6."""
    rng = np.random.default_rng(0)
    true = -math.log(0.1)
    below = sum(early_stopping(rng.exponential(size=200).tolist(), 0.9) < true for _ in range(400))
    assert below <= 16


def test_summary_leaves_out_what_so_few_requests_cannot_say():
    assert {"p50"} == {name for name in summary([1.0, 2.0, 3.0]) if name.startswith("p")}
    assert "p90" in summary([1.0] * 64)
    assert "p99" not in summary([1.0] * 661)


def test_stable():
    assert stable([9.0, 1.0, 1.05, 1.1])
    assert not stable([1.0, 1.05, 1.11])
    assert not stable([1.0, 1.0])
    assert not stable([1.0, 0.0, 0.0])


def test_ratio_is_a_median_with_its_interval():
    result = ratio([1.0] * 11, [1, 1.5, 2, 2, 2, 2, 2, 2, 2, 9, 100])
    assert result == {"median": 2, "low": 2, "high": 2, "pairs": 11} | {"low": 1.5, "high": 9}
    few = ratio([1.0, 1.0], [2.0, 4.0])
    assert (few["median"], few["low"], few["high"]) == (3.0, 2.0, 4.0)


def test_the_ratios_interval_covers_the_median():
    """In 300 draws of 25 pairs, about 95 % hold the true median 1; fewer than 88 % is one in 10^6."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(300):
        pair = ratio([1.0] * 25, np.exp(rng.normal(size=25)).tolist())
        held += pair["low"] <= 1 <= pair["high"]
    assert held >= 264


class Timed(Echo):
    """Takes the given times, on a simulated clock, and records the order of the requests."""

    def __init__(self, name, clock, trace, times):
        super().__init__()
        self.name, self._clock, self._trace = name, clock, trace
        self._times = times  # ms of prepare, run, finish

    def prepare(self, rows):
        self._clock.now += int(self._times[0] * 1e6)
        return super().prepare(rows)

    def run(self, encoded):
        self._trace.append(self.name)
        self._clock.now += int(self._times[1] * 1e6)
        return super().run(encoded)

    def finish(self, outputs):
        self._clock.now += int(self._times[2] * 1e6)
        return super().finish(outputs)


def test_single_interleaves_and_splits():
    clock, trace = Clock(), []
    times = {"ours": (1, 8, 1), "theirs": (1, 18, 1)}
    targets = [Target(name, Timed(name, clock, trace, ms)) for name, ms in times.items()]
    workload = Workload([["a"], ["b"]], 1, 4)
    measured = single(targets, workload, duration_s=1.0, clock=clock)
    assert measured.reasons == []
    assert trace[-4:] in (["ours", "theirs", "theirs", "ours"], ["theirs", "ours", "ours", "theirs"])
    report = Report([measured]).to_dict()
    (entry,) = report["workloads"]
    ours, theirs = entry["results"]["ours"], entry["results"]["theirs"]
    assert report["verdict"] == "VALID"
    assert ours["latency_ms"]["p50"] == pytest.approx(10)
    assert {step: round(v["share"], 3) for step, v in ours["split"].items()} == {
        "tokenise": 0.1, "run": 0.8, "finish": 0.1,
    }  # fmt: skip
    assert ours["rows_per_s"] == pytest.approx(100)
    assert theirs["ratio"]["median"] == pytest.approx(2)
    assert ours["requests"] == theirs["requests"] >= 64
    json.dumps(report)


def test_a_machine_that_slows_down_is_invalid():
    clock = Clock()

    class Slowing(Timed):
        def run(self, encoded):
            self._times = (0, self._times[1] * 1.002, 0)
            return super().run(encoded)

    target = Target("slowing", Slowing("slowing", clock, [], (0, 10, 0)))
    report = Report([single([target], Workload([["a"]], 1), duration_s=20, clock=clock)])
    assert report.verdict == "INVALID"
    assert "differ by more than 10 %" in report.reasons[0]
    assert "INVALID" in str(report)
    assert Report([], preset="quick").verdict == "QUICK"


def test_offline_hands_over_everything():
    clock, trace = Clock(), []
    target = Target("ours", Timed("ours", clock, trace, (0, 100, 0)))
    measured = offline([target], Workload([["a"], ["b"], ["c"]], 1), duration_s=0.5, clock=clock)
    entry = Report([measured]).to_dict()["workloads"][0]
    assert (entry["rows"], entry["results"]["ours"]["requests"]) == (3, 5)
    assert entry["results"]["ours"]["rows_per_s"] == pytest.approx(30)


def test_workloads_are_real_text_of_exact_length(runner, texts):
    for workload in fixed(runner.preprocessor, [{"text": text} for text in texts], batch_sizes=[1, 3], lengths=[5, 48]):
        for batch in workload.batches:
            assert len(batch) == workload.batch_size
            assert set(runner.prepare(batch).costs.tolist()) == {workload.length}
    with pytest.raises(UsageError, match="`lengths` has 49: .* takes at most 48"):
        fixed(runner.preprocessor, [{"text": text} for text in texts], batch_sizes=[1], lengths=[49])
    with pytest.raises(UsageError, match="`lengths` has 2: "):
        fixed(runner.preprocessor, [{"text": text} for text in texts], batch_sizes=[1], lengths=[2])
    (workload,) = real(texts[:10], batch_sizes=[4])
    assert [len(batch) for batch in workload.batches] == [4, 4]
    with pytest.raises(UsageError, match="`batch_sizes` has 11, but there are only 10 rows"):
        real(texts[:10], batch_sizes=[11])


def test_a_report_for_people_names_machine_and_definitions(runner, texts):
    measured = single(
        [Target("ours", runner)],
        fixed(runner.preprocessor, [{"text": text} for text in texts], batch_sizes=[1], lengths=[8])[0],
        duration_s=0.2,
    )
    page = str(Report([measured], preset="quick"))
    assert "usable cores" in page
    assert "provider CPUExecutionProvider" in page
    assert "sorted[floor(n*p)]" in page
    assert "Too short to publish" in page
