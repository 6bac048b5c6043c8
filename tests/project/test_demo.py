"""``levi demo`` runs from its first step to its last, in its quick form, on the tests' tiny backbone."""

from __future__ import annotations

import csv
import json

import pytest
from typer.testing import CliRunner

from levi_deploy.cli import app
from levi_deploy.demo.steps import in_words
from levi_deploy.run import Run
from levi_serving import verify

pytestmark = pytest.mark.slow

METHODS = {"LEVI", "linear probe", "branch alone"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def demo(folder, backbone):
    options = ["--quick", "--backbone", backbone, "-o", folder, "--json"]
    return CliRunner().invoke(app, ["demo", *map(str, options)], catch_exceptions=False)


@pytest.fixture(scope="module")
def result(demo):
    assert demo.exit_code == 0, demo.output
    return json.loads(demo.stdout)


def test_six_steps_are_announced(demo):
    assert [line[:4] for line in demo.stderr.splitlines() if line[1:4] == "/6 "] == [f"{n}/6 " for n in range(1, 7)]


def test_every_artefact_is_there(result, folder):
    with (folder / "reviews.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in ("levi-run", "linear-probe-run", "branch-alone-run"):
        assert Run.open(folder / name).task.labels == ("negative", "positive")
    assert verify(folder / "bundle")["graphs"]["model.onnx"]["worst_scaled_error"] == result["worst_scaled_error"]
    with (folder / "predictions.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [row["text"] for row in predicted] == [row["text"] for row in rows]
    assert {row["prediction"] for row in predicted} <= {"negative", "positive"}
    assert result["rows_predicted"] == len(rows)
    assert sum(row["split"] != "id_test_twins" for row in rows) == 210
    assert all(str(folder) in path for path in result["paths"].values())


def test_every_method_and_both_runtimes_are_in_the_result(result):
    assert set(result["accuracy"]) == set(result["flips"]) == set(result["parameters"]) == METHODS
    assert all(set(flips) == {"spurious", "core"} for flips in result["flips"].values())
    assert all(set(splits) == {"id_test", "ood_test"} for splits in result["accuracy"].values())
    assert all(0 <= value <= 1 for splits in result["accuracy"].values() for value in splits.values())
    assert [set(workload["results"]) for workload in result["bench"]["workloads"]] == [{"onnxruntime", "torch"}] * 2


def test_the_table_has_every_method(result):
    said = in_words(result)
    assert {method for method in METHODS if f"\n  {method:<14}" in said} == METHODS
    assert "A quick run" in said


def test_a_folder_in_use_is_refused(result, folder):
    again = CliRunner().invoke(app, ["demo", "--quick", "-o", str(folder)])
    assert again.exit_code != 0
    assert (folder / "bundle").is_dir()
