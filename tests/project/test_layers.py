"""Each contract of ``pyproject.toml`` on imports fails on an import that breaks it, planted in a copy."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CIRCLE = "No package has a circle"
SERVING, DEPLOY = "Serving is in layers", "Training and evaluation are in layers"
NO_TORCH_IN_SERVING = "Serving knows neither torch nor the other packages"
COMMAND = "Only the command, the demo and the comparison know export, onnxruntime or typer"
METRICS = "Training and export know of evaluation the metrics alone"
EXPORT = "Export knows no command, demo, comparison, methods or training"
NO_TORCH = "Configurations, identities, data and evaluation know no torch"
PLANTED = [
    ("levi_serving.files.predict", "levi_serving.bench.stats", SERVING),
    ("levi_serving.bench.stats", "levi_serving.files.parts", SERVING),
    ("levi_serving.parity", "levi_serving.bench.stats", SERVING),
    ("levi_serving.engine.runner", "levi_serving.parity", SERVING),
    ("levi_serving.engine.runner", "levi_serving.bench.stats", SERVING),
    ("levi_serving.bundle", "levi_serving.engine.batching", SERVING),
    ("levi_serving.rows.text", "levi_serving.bundle", SERVING),
    ("levi_serving.rows.text", "levi_serving.tables.table", SERVING),
    ("levi_serving.tables.table", "levi_serving.rows.text", SERVING),
    ("levi_serving.predictions", "levi_serving.tables.table", SERVING),
    ("levi_serving.environment", "levi_serving.predictions", SERVING),
    ("levi_serving.errors", "levi_serving.environment", SERVING),
    ("levi_serving.engine.batching", "torch", NO_TORCH_IN_SERVING),
    ("levi_serving.rows.text", "transformers", NO_TORCH_IN_SERVING),
    ("levi_serving.parity", "levi_deploy.config", NO_TORCH_IN_SERVING),
    ("levi_serving.bundle", "levi_export.card", NO_TORCH_IN_SERVING),
    ("levi_deploy.model.levi", "levi_deploy.training.fit", DEPLOY),
    ("levi_deploy.model.levi", "levi_deploy.evaluation.metrics", DEPLOY),
    ("levi_deploy.model.levi", "levi_deploy.methods.probes", DEPLOY),
    ("levi_deploy.model.levi", "levi_deploy.data.dataset", DEPLOY),
    ("levi_deploy.evaluation.metrics", "levi_deploy.training.fit", DEPLOY),
    ("levi_deploy.evaluation.metrics", "levi_deploy.methods.probes", DEPLOY),
    ("levi_deploy.evaluation.metrics", "levi_deploy.run", DEPLOY),
    ("levi_deploy.training.fit", "levi_deploy.methods.probes", DEPLOY),
    ("levi_deploy.training.fit", "levi_deploy.cli.options", DEPLOY),
    ("levi_deploy.training.fit", "levi_export.card", COMMAND),
    ("levi_deploy.model.levi", "onnxruntime", COMMAND),
    ("levi_deploy.run", "typer", COMMAND),
    ("levi_deploy.training.fit", "levi_deploy.evaluation.evaluate", METRICS),
    ("levi_export.golden", "levi_deploy.evaluation.signals", METRICS),
    ("levi_export.pipeline", "levi_deploy.cli.options", EXPORT),
    ("levi_export.pipeline", "levi_deploy.compare.shared", EXPORT),
    ("levi_export.pipeline", "levi_deploy.methods.probes", EXPORT),
    ("levi_export.pipeline", "levi_deploy.training.fit", EXPORT),
    ("levi_deploy.config", "torch", NO_TORCH),
    ("levi_deploy.identity", "transformers", NO_TORCH),
    ("levi_deploy.data.dataset", "levi_deploy.model.backbone", NO_TORCH),
    ("levi_deploy.evaluation.metrics", "torch", NO_TORCH),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("copy")
    for package in ("levi_deploy", "export/levi_export", "serving/levi_serving"):
        shutil.copytree(ROOT / package, folder / Path(package).name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copyfile(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def lint(folder, module="levi_serving.errors", line=""):
    """What import-linter prints while a line stands at the end of a module, which is made where it does not exist."""
    file = (folder / module.replace(".", "/")).with_suffix(".py")
    before = file.read_bytes() if file.exists() else None
    with file.open("a", encoding="utf-8") as opened:
        opened.write(f"\n{line}\n")
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--cache-dir", folder / "cache"],
        cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True,
    )  # fmt: skip
    file.unlink() if before is None else file.write_bytes(before)
    return " ".join(done.stdout.split())


def test_the_copy_keeps_every_contract(copy):
    assert "0 broken" in lint(copy)


@pytest.mark.parametrize(("importer", "imported", "contract"), PLANTED)
def test_a_planted_import_breaks_its_contract(copy, importer, imported, contract):
    found = lint(copy, importer, f"import {imported}")
    assert f"{contract} BROKEN" in found
    assert f"{importer} -> {imported}" in found


def test_a_circle_is_found(copy):
    found = lint(copy, "levi_export.card", "import levi_export.pipeline")
    assert f"{CIRCLE} BROKEN" in found
    assert "No cycles are allowed in levi_export" in found


def test_a_module_without_a_layer_is_found(copy):
    found = lint(copy, "levi_serving.utils")
    assert f"{SERVING} BROKEN" in found
    assert "- levi_serving.utils" in found


def test_every_contract_is_broken_once():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    assert {contract["name"] for contract in settings["contracts"]} == {CIRCLE, *(name for *_, name in PLANTED)}
