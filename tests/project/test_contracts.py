"""The walls of the house: what may import what, and what the packages offer."""

from __future__ import annotations

import importlib
import os
import pkgutil
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "transformers", "onnx", "onnxscript", "optimum", "safetensors", "typer", "levi_deploy", "levi_export"}
MODELS = {"torch", "transformers", "safetensors", "onnxruntime"}  # what runs one
OFFERED = {
    "levi_serving": ["Bundle", "LeviError", "Predictions", "Runner", "predict_file", "verify"],
    "levi_serving.tables": [
        "BadRow", "Chunk", "Format", "Records", "find_format", "located", "opened", "read_columns", "require",
        "source_name",
    ],
    "levi_serving.rows": ["Encoded", "Preprocessing", "Preprocessor", "Row"],
    "levi_serving.engine": ["Device", "MicroBatcher", "Runner", "Scenario", "Session", "providers"],
    "levi_serving.files": ["Summary", "predict_file"],
    "levi_serving.bench": [
        "DURATIONS", "Benchmark", "Measurement", "Meter", "Preset", "Report", "Target", "Workload", "find_peak",
        "fixed", "in_words", "offline", "real", "server", "single", "workloads",
    ],
    "levi_deploy.data": ["Dataset", "TrainingData", "encode_targets", "load", "read"],
    "levi_deploy.model": ["Backbone", "Ensemble", "Levi", "Reference"],
    "levi_deploy.training": ["Prepared", "prepare", "train"],
    "levi_deploy.compare": ["compare"],
    "levi_deploy.methods": ["METHODS", "Method", "branch_alone", "full_fine_tuning", "linear_probe"],
    "levi_deploy.evaluation": ["assess", "evaluate", "metrics"],
    "levi_deploy.demo": ["demo", "in_words"],
    "levi_export": ["export"],
}  # fmt: skip


def modules():
    for root in ("levi_deploy", "levi_export", "levi_serving"):
        package = importlib.import_module(root)
        for found in pkgutil.walk_packages(package.__path__, root + "."):
            yield found.name


def loaded_after(code):
    script = f"import sys\n{code}\nprint(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    alone = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}  # it imports too
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=alone)
    return set(done.stdout.split())


def test_serving_loads_nothing_of_torch(bundle):
    """Not on import, and not when it predicts."""
    assert "numpy" in loaded_after("import levi_serving")
    assert not HEAVY & loaded_after("import levi_serving")
    used = loaded_after(f"from levi_serving import Runner; Runner({str(bundle)!r}).predict(['a good lamp'])")
    assert "onnxruntime" in used
    assert not HEAVY & used


def test_a_cold_start_loads_only_what_answers(bundle):
    """Every further module would be paid for by each process that starts."""
    optional = {"pyarrow", "PIL", "matplotlib", "rich", "asyncio", "multiprocessing", "unittest"}
    imported = loaded_after("import levi_serving")
    assert not (optional | {"onnxruntime"}) & imported
    script = f"""
import sys
from levi_serving import Runner
Runner({str(bundle)!r}).predict(["a good lamp"])
print(*(name for name in sys.modules if name.startswith("levi_serving.")))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "levi_serving.engine.session" in done.stdout.split()
    assert not [name for name in done.stdout.split() if name.startswith("levi_serving.bench")]


def test_what_a_run_says_is_read_without_torch(run):
    """Its record is plain data: in the light install it can be read too."""
    script = "from pathlib import Path; from levi_deploy.run import Run"
    opened = loaded_after(f"{script}; Run.open(Path({str(run.folder)!r}))")
    assert "levi_deploy" in opened
    assert not MODELS & opened


def test_a_model_is_inspected_without_torch(run, bundle):
    for folder in (run.folder, bundle):
        script = f"""
from typer.testing import CliRunner
from levi_deploy.cli import app
done = CliRunner().invoke(app, ["inspect", {str(folder)!r}], catch_exceptions=False)
assert done.exit_code == 0 and "backbone" in done.output, done.output
"""
        assert not MODELS & loaded_after(script)


def test_the_check_of_directions_can_fail(tmp_path):
    """A planted import of torch in serving is found."""
    for folder in ("levi_deploy", "export", "serving", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / folder).is_dir() else shutil.copyfile
        copy(ROOT / folder, tmp_path / folder)
    with (tmp_path / "serving/levi_serving/engine/batching.py").open("a") as file:
        file.write("\nimport torch\n")
    paths = f"{tmp_path}:{tmp_path / 'export'}:{tmp_path / 'serving'}"
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"],
        cwd=tmp_path, env={"PYTHONPATH": paths, "PATH": "/usr/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "levi_serving.engine.batching -> torch" in done.stdout


@pytest.mark.parametrize("package", OFFERED)
def test_what_a_package_offers(package):
    assert importlib.import_module(package).__all__ == OFFERED[package]


def test_every_listed_name_exists_and_is_documented():
    seen = 0
    for name in modules():
        module = importlib.import_module(name)
        assert module.__doc__, name
        for public in getattr(module, "__all__", ()):
            thing = getattr(module, public)
            seen += 1
            if callable(thing) and getattr(thing, "__module__", "").startswith("levi_"):
                assert thing.__doc__, f"{name}.{public}"
    assert seen > 50
