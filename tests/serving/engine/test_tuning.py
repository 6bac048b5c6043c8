"""Tuning: the fastest layout is found by measuring, kept in the cache, and used on the same machine alone."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from levi_serving import Bundle, Runner, environment
from levi_serving.bench.tune import candidates, tune
from levi_serving.engine.tuning import Layout, Tuning

DEFAULT = Layout(threads=1, workers=2, max_batch_tokens=1024)
OTHER = Layout(threads=2, workers=1, max_batch_tokens=512)
WORSE = Layout(threads=2, workers=1, max_batch_tokens=2048)


class Machine:
    """A clock that moves as long as a layout's run takes."""

    def __init__(self, takes, noise=0.0):
        self.now, self.takes, self.noise = 0.0, takes, noise
        self.draw = random.Random(0)
        self.runs = []

    def make(self, layout):
        def run(rows):
            self.runs.append(layout)
            self.now += self.takes[layout] * len(rows) * (1 + self.noise * self.draw.random())

        return SimpleNamespace(prepare=lambda rows: rows, run=run)

    def tune(self, layouts, **further):
        return tune(self.make, ["a", "b"], layouts=layouts, clock=lambda: self.now, **further)


def test_the_fastest_layout_is_chosen():
    machine = Machine({DEFAULT: 1.0, OTHER: 0.9, WORSE: 2.0})
    chosen, attempts = machine.tune([DEFAULT, OTHER, WORSE])
    assert chosen == OTHER
    gains = {attempt.layout: attempt.gain["median"] for attempt in attempts}
    assert gains[OTHER] == pytest.approx(1 / 0.9)
    assert machine.runs.count(WORSE) == 1 + 3  # left out after three rounds


def test_a_gain_within_the_noise_changes_nothing():
    machine = Machine({DEFAULT: 1.0, OTHER: 0.999, WORSE: 1.0}, noise=0.5)
    chosen, _ = machine.tune([DEFAULT, OTHER, WORSE])
    assert chosen == DEFAULT


def test_single_runs_row_by_row():
    machine = Machine({DEFAULT: 1.0, OTHER: 0.5})
    machine.tune([DEFAULT, OTHER], row_by_row=True, rounds=4)
    assert machine.runs.count(DEFAULT) == 2 * (1 + 4)


@pytest.mark.parametrize("cores", [1, 2, 6])
def test_every_layout_uses_the_cores_and_no_more(cores):
    offline = candidates(scenario="offline", cores=cores)
    assert offline[0] == Layout(threads=1, workers=cores, max_batch_tokens=1024)
    assert all(layout.threads * layout.workers <= cores for layout in offline)
    assert len(set(offline)) == len(offline)
    single = candidates(scenario="single", cores=cores)
    assert single[0] == Layout(threads=cores, workers=1, max_batch_tokens=1024)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LEVI_CACHE", str(tmp_path / "cache"))


def tuning_of(bundle):
    return Tuning.read(Bundle.read(bundle).manifest.digest)


def test_a_bundle_is_not_written_into(bundle_copy):
    before = sorted(bundle_copy.iterdir())
    tuning_of(bundle_copy).put(OTHER, scenario="offline", device="cpu", graph="model.cpu.onnx")
    assert sorted(bundle_copy.iterdir()) == before


def test_the_runner_uses_it(bundle_copy):
    tuning_of(bundle_copy).put(OTHER, scenario="offline", device="cpu", graph="model.cpu.onnx")
    runner = Runner(bundle_copy, scenario="offline")
    assert (runner.session.threads, runner.workers) == (2, 1)
    assert runner.describe()["max_batch_tokens"] == 512
    assert runner.tuned
    assert not Runner(bundle_copy).tuned  # another scenario
    explicit = Runner(bundle_copy, scenario="offline", workers=3, threads=1)
    assert (explicit.session.threads, explicit.workers) == (1, 3)


@pytest.mark.parametrize("content", ["{", "[]", '{"machine": 1}', '{"machine": %s, "layouts": {"a": {}}}'])
def test_a_file_that_cannot_be_read_is_ignored(bundle_copy, content):
    tuning = tuning_of(bundle_copy)
    tuning.put(OTHER, scenario="offline", device="cpu", graph="model.cpu.onnx")
    here = json.dumps(json.loads(tuning.file.read_text())["machine"])
    tuning.file.write_text(content % here if "%" in content else content)
    assert not Runner(bundle_copy, scenario="offline").tuned


def test_it_is_not_used_on_another_machine(bundle_copy, monkeypatch):
    tuning_of(bundle_copy).put(OTHER, scenario="offline", device="cpu", graph="model.cpu.onnx")
    assert Runner(bundle_copy, scenario="offline").tuned
    monkeypatch.setattr(environment, "usable_cores", lambda: 999)
    assert not Runner(bundle_copy, scenario="offline").tuned
