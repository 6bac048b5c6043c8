"""Tuning: the fastest layout is found by measuring, kept beside the bundle, and gone by on the same machine alone."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace

import pytest

from levi_serving import Runner, tuning
from levi_serving.bench.tune import candidates, tune
from levi_serving.tuning import TUNING, Setting, Tuning

DEFAULT = Setting(threads=1, workers=2, max_batch_tokens=1024)
OTHER = Setting(threads=2, workers=1, max_batch_tokens=512)
WORSE = Setting(threads=2, workers=1, max_batch_tokens=2048)


class Machine:
    """A clock that moves as long as a layout's run takes."""

    def __init__(self, takes, noise=0.0):
        self.now, self.takes, self.noise = 0.0, takes, noise
        self.draw = random.Random(0)
        self.runs = []

    def make(self, setting):
        def run(rows):
            self.runs.append(setting)
            self.now += self.takes[setting] * len(rows) * (1 + self.noise * self.draw.random())

        return SimpleNamespace(prepare=lambda rows: rows, run=run)

    def tune(self, settings, **further):
        return tune(self.make, ["a", "b"], settings=settings, clock=lambda: self.now, **further)


def test_the_fastest_layout_is_chosen():
    machine = Machine({DEFAULT: 1.0, OTHER: 0.9, WORSE: 2.0})
    chosen, trials = machine.tune([DEFAULT, OTHER, WORSE])
    assert chosen == OTHER
    gains = {trial.setting: trial.gain["median"] for trial in trials}
    assert gains[OTHER] == pytest.approx(1 / 0.9)
    assert machine.runs.count(WORSE) == 1 + 3  # left out after three rounds


def test_a_gain_within_the_noise_changes_nothing():
    machine = Machine({DEFAULT: 1.0, OTHER: 0.999, WORSE: 1.0}, noise=0.5)
    chosen, _ = machine.tune([DEFAULT, OTHER, WORSE])
    assert chosen == DEFAULT


def test_single_asks_row_by_row():
    machine = Machine({DEFAULT: 1.0, OTHER: 0.5})
    machine.tune([DEFAULT, OTHER], queries=True, rounds=4)
    assert machine.runs.count(DEFAULT) == 2 * (1 + 4)


@pytest.mark.parametrize("cores", [1, 2, 6])
def test_every_layout_uses_the_cores_and_no_more(cores):
    offline = candidates(scenario="offline", cores=cores)
    assert offline[0] == Setting(threads=1, workers=cores, max_batch_tokens=1024)
    assert all(setting.threads * setting.workers <= cores for setting in offline)
    assert len(set(offline)) == len(offline)
    single = candidates(scenario="single", cores=cores)
    assert single[0] == Setting(threads=cores, workers=1, max_batch_tokens=1024)


def test_the_runner_goes_by_it(bundle_copy):
    Tuning().put(OTHER, scenario="offline", device="cpu", graph="model.cpu.onnx").write(bundle_copy)
    runner = Runner(bundle_copy, scenario="offline")
    assert (runner.session.threads, runner.workers) == (2, 1)
    assert runner.describe()["max_batch_tokens"] == 512
    assert runner.tuned
    assert not Runner(bundle_copy).tuned  # another scenario
    asked = Runner(bundle_copy, scenario="offline", workers=3, threads=1)
    assert (asked.session.threads, asked.workers) == (1, 3)


@pytest.mark.parametrize("content", ["{", "[]", '{"machine": 1}', '{"machine": %s, "settings": {"a": {}}}'])
def test_a_file_that_says_nothing_is_passed_over(bundle_copy, content):
    here = json.dumps(tuning.machine())
    (bundle_copy / TUNING).write_text(content % here if "%" in content else content)
    assert not Runner(bundle_copy, scenario="offline").tuned


def test_another_machine_is_not_gone_by(bundle_copy, monkeypatch):
    Tuning().put(OTHER, scenario="offline", device="cpu", graph="model.cpu.onnx").write(bundle_copy)
    monkeypatch.setattr(tuning, "usable_cores", lambda: 999)
    assert not Runner(bundle_copy, scenario="offline").tuned
