"""A comparison trains what it says, chooses on ID validation alone, repeats nothing, and measures what is served."""

from __future__ import annotations

import csv
import json
import multiprocessing
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from levi_deploy.compare import compare, inference, measure
from levi_deploy.evaluation import evaluate
from levi_deploy.methods import jobs
from levi_deploy.run import Run
from levi_export import export
from levi_serving import verify
from levi_serving.errors import DivergenceError, ParityError, UsageError

pytestmark = pytest.mark.slow

ALL = ("scratch", "linear-probe", "fine-tune", "lp-ft", "wise-ft", "levi", "levi-on-fine-tuned", "levi-on-wise-ft")


@pytest.fixture(scope="module")
def asked(config):
    """Few epochs, and rates at which even full fine-tuning of a random backbone learns something."""
    return replace(config, training=replace(config.training, epochs=2, learning_rate=1e-3, fine_tune_rate=1e-3))


@pytest.fixture(scope="module")
def report(table, asked, cache, tmp_path_factory):
    folder = tmp_path_factory.mktemp("comparison") / "report"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "_SECONDS", 0.2)
        document = compare(table, folder, asked, methods=[*ALL, "soup"], seeds=2, budget=2, by="shop", cache=cache)
    return folder, document


def test_every_method_has_the_same_trials_and_the_best_on_id_validation_counts(report):
    folder, document = report
    assert document == json.loads((folder / "results.json").read_text())
    for method in ALL:
        own = [trial for trial in document["trials"] if trial["method"] == method]
        first = [trial for trial in own if trial["seed"] == 0]
        assert len(first) == 2
        assert len(own) == 3
        best = min(first, key=lambda trial: trial["validation_loss"])
        assert [trial for trial in first if trial["kept"]] == [best]
        assert [trial["choice"] for trial in own if trial["kept"]] == [best["choice"]] * 2
        for trial in own:
            run = Run.open(folder / trial["run"])
            assert run.config.training.seed == trial["seed"]
            if "learning_rate" in trial["choice"]:
                assert run.config.training.learning_rate == trial["choice"]["learning_rate"]


def test_its_numbers_are_those_of_levi_evaluate(report, table):
    """Another path: the whole torch model instead of stored taps."""
    folder, document = report
    for method in ("levi", "levi-on-fine-tuned", "fine-tune", "wise-ft", "soup"):
        trial = next(trial for trial in document["trials"] if trial["method"] == method and trial["kept"])
        run = Run.open(folder / trial["run"])
        found = evaluate(run.reference(), table, target="label", splits=["ood_test"], by="shop")["splits"]["ood_test"]
        for group in ("all", "north", "south", "east"):
            own = {
                record["metric"]: record["value"]
                for record in document["results"]
                if (record["method"], record["seed"], record["group"]) == (method, trial["seed"], group)
            }
            for metric in ("accuracy", "macro_f1", "log_loss"):
                assert own[metric] == pytest.approx(found[group][metric], abs=1e-3)


def test_a_method_on_another_is_built_on_that_ones_backbone_and_exports(report, tmp_path):
    folder, document = report
    records = {(t["method"], t["seed"]): t for t in document["trials"] if t["kept"]}
    kept = {(t["method"], t["seed"]): Run.open(folder / t["run"]) for t in document["trials"] if t["kept"]}
    for seed in (0, 1):
        tuned, on = kept["fine-tune", seed], kept["levi-on-fine-tuned", seed]
        seconds = [run.record["seconds"]["fit"] for run in (tuned, on)]
        assert records["levi-on-fine-tuned", seed]["training_seconds"] == pytest.approx(sum(seconds))
        assert min(seconds) > 0
        assert on.backbone.digest == tuned.backbone.digest != kept["levi", seed].backbone.digest
    assert kept["fine-tune", 0].backbone.digest != kept["fine-tune", 1].backbone.digest
    assert export(kept["levi-on-fine-tuned", 1].folder, tmp_path / "bundle").manifest.taps == (1, 3)


def test_what_is_made_of_runs_names_them_and_counts_their_cost_once(report):
    folder, document = report

    def fingerprints(method, **which):
        own = [t for t in document["trials"] if t["method"] == method and which.items() <= t.items()]
        return {Run.open(folder / t["run"]).fingerprint for t in own}

    for seed in (0, 1):
        (tuned,) = (t for t in document["trials"] if (t["method"], t["seed"], t["kept"]) == ("lp-ft", seed, True))
        assert {Run.open(folder / tuned["run"]).record["origin"]["start"]} == fingerprints(
            "linear-probe", seed=seed, kept=True
        )
        (wise,) = (t for t in document["trials"] if (t["method"], t["seed"], t["kept"]) == ("wise-ft", seed, True))
        ends = fingerprints("linear-probe", seed=seed, kept=True) | fingerprints("lp-ft", seed=seed, kept=True)
        assert set(Run.open(folder / wise["run"]).record["origin"]["mean_of"]) == ends
        own = wise["training_seconds"] - tuned["training_seconds"]
        assert own == pytest.approx(wise["seconds"]["fit"], abs=0.02), "the probe, which both are made of, counts once"
    soups = [t for t in document["trials"] if t["method"] == "soup"]
    assert [(t["choice"]["recipe"], t["seed"]) for t in sorted(soups, key=lambda t: t["choice"]["recipe"])] == [
        ("greedy", 0), ("uniform", 0),
    ]  # fmt: skip
    for soup in soups:
        record = Run.open(folder / soup["run"]).record
        used, there = set(record["origin"]["mean_of"]), fingerprints("lp-ft")
        assert used == there if soup["choice"]["recipe"] == "uniform" else used < there or used == there
        assert len(there) == 3
        assert record["best_epoch"] == record["epochs"] == 0


def test_what_a_graph_costs_is_measured_beside_the_backbones(report):
    """One bundle of each architecture; the linear probe's is the backbone, so its ratio is 1."""
    folder, document = report
    costs, probe = document["inference"], document["inference"]["graphs"]["linear-probe"]
    assert costs["errors"] == {}
    assert set(costs["graphs"]) == {*ALL, "soup"}
    assert [(one["batch_size"], one["ratio"], one["low"], one["high"]) for one in probe] == [(1, 1, 1, 1), (8, 1, 1, 1)]
    for method in ("fine-tune", "lp-ft", "wise-ft", "soup"):
        assert costs["graphs"][method] == probe, "built alike, measured once"
    for method in ("scratch", "levi"):
        for one in costs["graphs"][method]:
            assert one["low"] <= one["ratio"] <= one["high"]
            assert one["ratio"] == pytest.approx(one["ms"] / probe[one["batch_size"] > 1]["ms"], rel=0.5)
    assert costs["graphs"]["levi"] == costs["graphs"]["levi-on-fine-tuned"] != probe
    bundles = [path.parent for path in folder.glob("bundles/*/*/levi.json")]
    assert sorted(bundle.parent.name for bundle in bundles) == ["levi", "linear-probe", "scratch"]
    for bundle in bundles:
        verify(bundle)
    for record in document["results"]:
        assert record["inference_cost"] == costs["graphs"][record["method"]][0]["ratio"]


def test_a_method_that_cannot_be_exported_is_said(report, monkeypatch):
    folder, _ = report
    said = ParityError("The graph does not answer as the model does.")
    probe = next(path.parent for path in folder.glob("bundles/linear-probe/*/levi.json"))
    monkeypatch.setattr(inference, "_SECONDS", 0.05)
    found = inference.time_graphs({"levi": said, "linear-probe": probe}, [{"text": "a good lamp"}] * 8)
    assert list(found["graphs"]) == ["linear-probe"]
    assert found["errors"] == {"levi": str(said)}


def test_no_row_is_answered_twice(report, table, asked, cache, tmp_path, monkeypatch):
    """Another column of groups is asked for: nothing is trained, and nothing answered again."""
    folder, document = shutil.copytree(report[0], tmp_path / "report"), report[1]

    def refuse(*_, **__):
        raise AssertionError("answered again")

    monkeypatch.setattr(measure, "predict", refuse)
    given = {"methods": [*ALL, "soup"], "seeds": 2, "budget": 2, "cost": False, "cache": cache}
    again = compare(table, folder, asked, by="label", pairs="topics", resume=True, **given)
    whole = [[one for one in found["results"] if one["group"] == "all"] for found in (document, again)]
    assert [one["value"] for one in whole[0]] == [one["value"] for one in whole[1]]
    assert {one["group"] for one in again["results"]} == {"all", "negative", "positive"}
    assert {one["method"] for one in again["pairs"]} == {*ALL, "soup"}
    compare(table, folder, asked, by="shop", resume=True, **given)


def test_the_report_needs_nothing_else(report):
    folder, document = report
    html, text = (folder / "index.html").read_text(), (folder / "report.md").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)', html)
    assert html.count("<svg") == 5 + 3, "one split, and three methods with heads on two taps"
    for title in ("LEVI, frozen", "full fine-tuning", "linear probe", "branch alone, from scratch"):
        assert title in html
        assert re.search(rf"^\| \d+ {title} \|", text, re.MULTILINE)
    accuracy = [
        record["value"]
        for record in document["results"]
        if (record["method"], record["group"], record["metric"]) == ("levi", "all", "accuracy")
    ]
    line = next(line for line in text.splitlines() if re.match(r"\| \d+ LEVI, frozen \|", line))
    assert f"| {np.mean(accuracy):.4f} ± {np.std(accuracy, ddof=1):.4f} |" in line
    assert "accuracy less that of full fine-tuning: row by row" in text


def test_nothing_finished_is_trained_again(report, table, asked, cache, tmp_path, monkeypatch):
    """More is asked for, it is interrupted, and asked for again."""
    trained, folder = [], tmp_path / "report"
    train = jobs.train

    def counted(prepared, output, *given, **named):
        result = train(prepared, output, *given, **named)
        trained.append(f"{output.parent.name}/{output.name}")
        return result

    monkeypatch.setattr(jobs, "train", counted)

    def ask(**changes):
        given = {"methods": ["linear-probe", "levi"], "seeds": 1, "budget": 1, "cost": False, "cache": cache} | changes
        trained.clear()
        return compare(table, folder, asked, **given)

    def stop(what, done, total):
        if what.startswith("levi, ") and "epoch 2" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(progress=stop)
    assert trained == ["linear-probe/0.001-0"]
    with pytest.raises(UsageError, match="Set `resume`"):
        ask()
    ask(resume=True)
    assert trained == ["levi/0.001-0"]
    document = ask(resume=True, budget=2, methods=["linear-probe"])
    assert trained == ["linear-probe/0.003-0"]
    assert {trial["method"] for trial in document["trials"]} == {"linear-probe"}
    assert document["inference"] is None
    other = replace(asked, training=replace(asked.training, epochs=3))
    with pytest.raises(UsageError, match="had another training"):
        compare(table, folder, other, methods=["linear-probe"], seeds=1, budget=1, resume=True, cache=cache)


def test_a_method_is_trained_again_where_what_it_is_built_on_has_changed(table, asked, cache, tmp_path, monkeypatch):
    """With a second trial full fine-tuning has another best rate: LEVI on the former backbone does not count for it."""
    slow = replace(asked, training=replace(asked.training, fine_tune_rate=1e-5))
    given = {"methods": ["levi-on-fine-tuned"], "seeds": 1, "cost": False, "cache": cache}
    bases = []
    for budget in (1, 3):
        document = compare(table, tmp_path / "report", slow, budget=budget, resume=budget > 1, **given)
        runs = {"fine-tune": [], "levi-on-fine-tuned": [], "linear-probe": []}
        for trial in document["trials"]:
            if trial["kept"] or trial["method"] == "levi-on-fine-tuned":
                runs[trial["method"]].append(Run.open(tmp_path / "report" / trial["run"]))
        (base,) = runs["fine-tune"]
        assert [run.backbone.digest for run in runs["levi-on-fine-tuned"]] == [base.backbone.digest] * budget
        bases.append(base.backbone.digest)
    assert bases[0] != bases[1], "the case that is meant"


def test_trials_side_by_side_go_on_after_a_kill(report, table, asked, cache, tmp_path):
    """In processes, which end with the one that is killed; no finished one is trained again, and all are the same."""
    folder, methods = tmp_path / "report", ["linear-probe", "scratch", "no-branch"]
    (tmp_path / "levi.toml").write_text(asked.to_toml())
    command = [sys.executable, "-m", "levi_deploy", "compare", tmp_path / "levi.toml", table, "-o", folder]
    options = ["--methods", ",".join(methods), "--seeds", "2", "--budget", "2", "--jobs", "2", "--no-cost"]
    options += ["--cache", cache]
    whole = subprocess.Popen([*command, *options], stdout=subprocess.DEVNULL)
    try:
        finished = until(lambda: list(folder.glob("runs/*/*/run.json")), while_=lambda: whole.poll() is None)
        children = Path(f"/proc/{whole.pid}/task/{whole.pid}/children").read_text().split()
    finally:
        whole.kill()
        whole.wait()
    assert until(lambda: not any(running(child) for child in children)), "nothing goes on behind it"
    before = {path: path.stat().st_mtime_ns for path in finished}
    document = compare(
        table,
        folder,
        asked,
        methods=methods,
        seeds=2,
        budget=2,
        by="shop",
        cost=False,
        jobs=2,
        cache=cache,
        resume=True,
    )
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (document["jobs"], document["threads"]) == (2, max(1, torch.get_num_threads() // 2))
    alone = {trial["run"]: trial for trial in report[1]["trials"]}
    both = [trial for trial in document["trials"] if trial["run"] in alone]
    assert {trial["method"] for trial in both} == {"linear-probe", "scratch"}
    for trial in both:
        assert trial["validation_loss"] == pytest.approx(alone[trial["run"]]["validation_loss"], rel=1e-4)
        assert trial["kept"] == alone[trial["run"]]["kept"]


def until(found, *, while_=lambda: True, seconds=300):
    """Wait for something, and give it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and while_():
        if there := found():
            return there
        time.sleep(0.05)
    return found()


def running(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_error_in_a_process_is_the_comparisons(table, asked, cache, tmp_path):
    """It is said once, and the other processes end."""
    lost = replace(asked, data=replace(asked.data, target="score", task="regression"))
    balanced = replace(lost, training=replace(lost.training, class_weights="balanced"))
    with pytest.raises(UsageError, match="holds numbers for regression, which has no classes"):
        compare(table, tmp_path / "report", balanced, methods=["scratch", "levi"], seeds=1, jobs=2, cache=cache)
    assert multiprocessing.active_children() == []


def test_what_diverges_is_said_and_not_chosen(table, asked, cache, tmp_path, monkeypatch):
    train = jobs.train

    def fragile(prepared, output, config, **named):
        if config.training.learning_rate >= limit:
            raise DivergenceError("The loss of epoch 1 is nan.")
        return train(prepared, output, config, **named)

    monkeypatch.setattr(jobs, "train", fragile)
    limit = 2e-3
    document = compare(
        table, tmp_path / "a", asked, methods=["linear-probe"], seeds=1, budget=2, cost=False, cache=cache
    )
    assert [(t["choice"]["learning_rate"], t["kept"], t["diverged"]) for t in document["trials"]] == [
        (1e-3, True, False), (3e-3, False, True),
    ]  # fmt: skip
    assert "| 0.003 | diverged | no |  |" in (tmp_path / "a" / "report.md").read_text()
    limit = 1e-4
    with pytest.raises(DivergenceError, match=r"Every trial of 'linear-probe' diverged: 0.001, 0.003\. Lower"):
        compare(table, tmp_path / "b", asked, methods=["linear-probe"], seeds=1, budget=2, cost=False, cache=cache)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"methods": ["levi", "magic"]}, "`methods` has 'magic'; expected some of scratch, linear-probe, fine-tune"),
        ({"methods": []}, "`methods` is empty"),
        ({"seeds": 0}, "`seeds` is 0"),
        ({"jobs": 0}, "`jobs` is 0; expected 1 or more"),
        ({"budget": 5}, "`budget` is 5; expected 1 to 4"),
        ({"methods": ["soup"], "budget": 1, "seeds": 1}, "'soup' is made of all runs of 'lp-ft', and there is one"),
        ({"splits": ["id_test"]}, r"`splits` has 'id_test', but no row of .* found id_val, ood_test, train\."),
    ],
)
def test_refused_before_anything_is_written(changes, says, table, asked, cache, tmp_path):
    with pytest.raises(UsageError, match=says):
        compare(table, tmp_path / "report", asked, cache=cache, **changes)
    assert not (tmp_path / "report").exists()


def test_configurations_that_cannot_be_compared(table, asked, cache, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists and is not empty"):
        compare(table, tmp_path / "kept", asked, cache=cache)
    with pytest.raises(UsageError, match="`split_column` is not set"):
        compare(table, tmp_path / "report", replace(asked, data=replace(asked.data, split_column=None)))
    with pytest.raises(UsageError, match="trains the backbone already"):
        compare(table, tmp_path / "report", replace(asked, model=replace(asked.model, lora=2)))
    with table.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] != "ood_test"]
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(UsageError, match="has no test rows: split is one of"):
        compare(tmp_path / "rows.csv", tmp_path / "report", asked, cache=cache)
