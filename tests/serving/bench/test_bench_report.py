"""What is made of measurements: verdicts that know their noise, pictures, joules."""

from __future__ import annotations

import itertools
import json
import math
import platform
import sys

import numpy as np
import pytest
from fakes import Clock, Echo

from levi_serving.bench import Meter, Report, Target, Workload, baseline, single
from levi_serving.bench.plot import plot
from levi_serving.bench.report import DURATIONS, in_words
from levi_serving.bench.stats import shift, windows
from levi_serving.environment import allocator
from levi_serving.errors import LeviError, MissingExtraError, UsageError


class Timed(Echo):
    """Takes as many ms as the next of ``times`` says."""

    def __init__(self, clock, times, *, threads=2):
        super().__init__()
        self._clock, self._times, self.threads = clock, itertools.cycle(times), threads

    def run(self, encoded):
        self._clock.pass_s(next(self._times) / 1e3)
        return super().run(encoded)

    def describe(self):
        return {"threads": self.threads, "precision": "fp32"}


def report(times, *, batch_size=1, length=8, threads=2, names=("ours",), text="a"):
    clock = Clock()
    targets = [Target(name, Timed(clock, times, threads=threads)) for name in names]
    workload = Workload([[text] * batch_size], batch_size, length)
    return Report([single(targets, workload, duration_s=20, clock=clock)]).to_dict()


def noisy(rng, median, *, runs=1, memory=0.0):
    """Runs of 4000 times with a spread of 10 %, each like the one before it by ``memory``."""
    noise = rng.normal(size=(4000, runs))
    for k in range(1, len(noise)):
        noise[k] = memory * noise[k - 1] + math.sqrt(1 - memory**2) * noise[k]
    return (median * np.exp(0.1 * noise)).T.tolist()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["/usr/lib/libmimalloc.so.2.0", "/usr/lib/libc.so.6"], "mimalloc"),
        (["/usr/lib/libc.so.6", "/usr/lib/libtcmalloc_minimal.so.4.5.10"], "tcmalloc"),
        (["/usr/lib/libjemalloc.so.2"], "jemalloc"),
    ],
)
def test_a_report_says_where_memory_comes_from(tmp_path, files, expected):
    maps = tmp_path / "maps"
    maps.write_text(
        "".join(f"7f00-7f10 r-xp 00000000 fe:00 77   {file}\n" for file in files) + "7f20-7f30 rw-p 00:00 0\n"
    )
    assert allocator(maps) == expected
    maps.write_text("7f00-7f10 r-xp 00000000 fe:00 77   /usr/lib/libc.so.6\n")
    assert allocator(maps) == (platform.libc_ver()[0] or platform.system())
    assert report([1.0])["environment"]["allocator"]


def test_shift_counts_orders():
    """P(U < k) by listing every order of 4 and 5 values."""
    order = [sum(b > a for a in old for b in set(range(9)) - set(old)) for old in itertools.combinations(range(9), 4)]
    below = [np.mean([u < k for u in order]) for k in range(21)]
    k = max(k for k in range(21) if below[k] <= 0.025)
    old, new = [1.0, 1.1, 1.3, 1.7], [2.0, 2.3, 2.9, 3.1, 3.7]
    pairs = sorted(b / a for a in old for b in new)
    found = shift(old, new)
    assert (found["low"], found["high"]) == (pairs[k - 1], pairs[20 - k])
    assert found["ratio"] == pytest.approx((pairs[9] + pairs[10]) / 2)
    assert shift([1.0] * 3, [1.0] * 3) == {"ratio": 1.0, "low": 0.0, "high": math.inf}


@pytest.mark.parametrize("memory", [0.0, 0.95])
def test_false_alarms_are_as_rare_as_stated(memory):
    """400 pairs of like runs: about 5 % false alarms, also where neighbouring queries are alike; 9 % is 4 sigma."""
    rng = np.random.default_rng(5)
    runs = zip(noisy(rng, 10, runs=400, memory=memory), noisy(rng, 10, runs=400, memory=memory), strict=True)
    found = [shift(windows(old), windows(new)) for old, new in runs]
    alarms = np.mean([not one["low"] <= 1 <= one["high"] for one in found])
    assert 0.005 < alarms < 0.09


def test_a_true_change_is_found():
    rng = np.random.default_rng(6)
    runs = zip(noisy(rng, 10, runs=50), noisy(rng, 10.3, runs=50), strict=True)
    found = [shift(windows(old), windows(new)) for old, new in runs]
    assert np.mean([one["low"] > 1 for one in found]) > 0.9
    held = np.mean([one["low"] <= 1.03 <= one["high"] for one in found])
    assert held > 0.8


@pytest.mark.parametrize(
    ("times", "verdict"), [(8.0, "faster"), (12.5, "slower"), (10.0, "no difference beyond the noise")]
)
def test_a_comparison_says_what_changed(times, verdict):
    rng = np.random.default_rng(7)
    old, new = report(noisy(rng, 10.0)[0]), report(noisy(rng, times)[0])
    (found,) = baseline.compare(new, old)
    assert found["verdict"] == verdict
    assert found["low"] <= times / 10 <= found["high"]
    assert f"batch 1 x 8 tokens, 2 threads, ours: {verdict}, " in baseline.in_words([found], old)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"batch_size": 2}, "batch_size (1 in the baseline, 2 here)"),
        ({"length": 9}, "length (8 in the baseline, 9 here)"),
        ({"threads": 1}, "threads (2 in the baseline, 1 here)"),
        ({"names": ["torch"]}, "target ('ours' in the baseline, 'torch' here)"),
        ({"text": "b"}, "data ("),
    ],
)
def test_other_workloads_are_not_compared(changed, field):
    with pytest.raises(UsageError) as error:
        baseline.compare(report([10.0], **changed), report([10.0]))
    assert field in str(error.value)


def test_other_machines_and_files_are_not_compared(tmp_path):
    document = report([10.0])
    baseline.same_machine(document)
    document["environment"]["usable_cores"] = 1000
    with pytest.raises(UsageError, match="usable_cores was 1000 and is"):
        baseline.same_machine(document)
    path = tmp_path / "old.json"
    path.write_text(json.dumps(document))
    assert baseline.read(path) == json.loads(path.read_text())
    for content, says in (
        ("[", "not a report"),
        ("{}", "not a report"),
        ('{"format_version": 2}', "version 2; expected 3"),
    ):
        path.write_text(content)
        with pytest.raises(UsageError, match=says):
            baseline.read(path)


def test_a_machine_that_does_not_say_its_peak_memory(monkeypatch):
    monkeypatch.setattr("levi_serving.bench.report.peak_memory", lambda: None)  # Windows
    document = json.loads(json.dumps(report([10.0])))
    assert document["peak_memory_bytes"] is None
    assert "its peak unknown" in in_words(document)


def test_too_short_is_invalid_and_quick_says_so():
    assert Report([], preset="custom", duration_s=2.0).verdict == "INVALID"
    assert "too short to count" in Report([], preset="custom", duration_s=2.0).reasons[0]
    assert Report([], preset="custom", duration_s=10.0).verdict == "VALID"
    assert DURATIONS["mlperf"] == 600
    assert Report([], preset="quick").to_dict()["profile"] == {"name": "quick", "duration_s": 3.0}


def test_failed_requests_are_in_no_percentile():
    clock = Clock()

    class Failing(Timed):
        def run(self, encoded):
            answer = super().run(encoded)
            if clock.now > 5e9 and clock.now < 6e9:
                raise LeviError("out of memory")
            return answer

    measured = single([Target("ours", Failing(clock, [10.0]))], Workload([["a"]], 1), duration_s=20, clock=clock)
    (result,) = Report([measured]).to_dict()["workloads"][0]["results"].values()
    assert result["failed"] == pytest.approx(100, abs=1)
    assert result["requests"] + result["failed"] == pytest.approx(2000, abs=1)
    assert "requests failed, the first with: out of memory" in measured.reasons[0]


def package(folder, name, microjoules, most=1000):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")


def test_energy_wraps_around(tmp_path):
    package(tmp_path / "intel-rapl:0", "package-0", 900)
    package(tmp_path / "intel-rapl:1", "package-1", 100)
    package(tmp_path / "intel-rapl:0:0", "core", 5)  # a part of its package
    package(tmp_path / "intel-rapl:2", "psys", 7)  # the whole machine, packages included
    meter = Meter.find(tmp_path)
    assert meter() == 0
    package(tmp_path / "intel-rapl:0", "package-0", 50)  # 100 to the end, then 50
    package(tmp_path / "intel-rapl:1", "package-1", 130)
    assert meter() == pytest.approx(180e-6)
    package(tmp_path / "intel-rapl:0", "package-0", 60)
    assert meter() == pytest.approx(190e-6)


def test_a_machine_without_counters_reports_none(tmp_path):
    assert Meter.find(tmp_path / "nowhere") is None
    package(tmp_path / "intel-rapl:0", "package-0", 1)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()  # as good as one that only root may read
    assert Meter.find(tmp_path) is None
    assert report([10.0])["workloads"][0]["results"]["ours"]["joules_per_1000_rows"] is None


def test_joules_are_each_targets_own():
    clock = Clock()
    targets = [Target("ours", Timed(clock, [10.0])), Target("theirs", Timed(clock, [30.0]))]
    meter = lambda: clock.now / 1e9 * 40  # 40 W  # noqa: E731
    measured = single(targets, Workload([["a", "b"]], 2), duration_s=20, clock=clock, meter=meter)
    document = Report([measured]).to_dict()
    results = document["workloads"][0]["results"]
    assert results["ours"]["joules_per_1000_rows"] == pytest.approx(40 * 0.010 / 2 * 1000)
    assert results["theirs"]["joules_per_1000_rows"] == pytest.approx(40 * 0.030 / 2 * 1000)
    assert "J/1000 rows" in str(Report([measured]))


@pytest.fixture
def swept():
    clock = Clock()
    measured = []
    for threads in (1, 2):
        for size, length in itertools.product((1, 8), (32, 128)):
            targets = [
                Target("onnxruntime-fp32", Timed(clock, [size * length / 8 / threads], threads=threads)),
                Target("torch <eager>", Timed(clock, [size * length / 4 / threads], threads=threads)),
            ]
            workload = Workload([["a"] * size], size, length)
            measured.append(single(targets, workload, duration_s=10, clock=clock))
    return Report(measured)


def test_a_sweep_has_an_entry_each(swept):
    document = swept.to_dict()
    assert [(w["threads"], w["batch_size"], w["length"]) for w in document["workloads"]] == list(
        itertools.product((1, 2), (1, 8), (32, 128))
    )
    table = str(swept)
    assert table.count("onnxruntime-fp32: threads 1") == 1
    assert table.count("batch 8 x 128 tokens") == 2
    assert "2.00 [2.00, 2.00]" in table


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_plot_names_its_series(swept, tmp_path, suffix):
    path = tmp_path / f"plot.{suffix}"
    plot(swept.to_dict(), path)
    if suffix == "png":
        assert path.read_bytes().startswith(b"\x89PNG")
        return
    page = path.read_text()
    for words in (
        "onnxruntime-fp32, 1 thread<",
        "torch &lt;eager&gt;, 2 threads<",
        "rows/s",
        "latency, ms",
        "128 tokens",
    ):
        assert words in page, words
    assert "torch <eager>" not in page
    fetched = [line for line in page.splitlines() if "http" in line and "xmlns" not in line and "DOCTYPE" not in line]
    assert fetched == []


def test_a_plot_that_cannot_be_drawn_is_refused_at_once(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"ends in .png or .html"):
        plot({}, tmp_path / "plot.pdf")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'levi-deploy\[plot\]'"):
        plot({}, tmp_path / "plot.png")
    assert "matplotlib.pyplot" not in sys.modules
