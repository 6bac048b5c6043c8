"""The light install: the wheel with the extra ``cpu`` alone, in an environment of its own, without torch."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
CONSTRAINTS = Path(os.environ.get("LEVI_TEST_CONSTRAINTS", ROOT / "constraints.txt")).resolve()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("levi_deploy", "export", "serving", "pyproject.toml", "README.md", "LICENSE"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def light(wheel, tmp_path_factory):
    """Runs a program of the light environment."""
    folder = tmp_path_factory.mktemp("light")
    venv.create(folder, with_pip=True)

    def run(program, *arguments):
        command = [folder / "bin" / program, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=folder)

    done = run("python", "-m", "pip", "install", "-q", f"{wheel}[cpu]", "-c", CONSTRAINTS)
    assert done.returncode == 0, done.stderr
    return run


def test_the_wheel_holds_three_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"levi_deploy", "levi_export", "levi_serving"}
    assert {"levi_deploy/py.typed", "levi_export/py.typed", "levi_serving/py.typed"} <= set(names)


def test_it_predicts_and_measures_without_torch(light, bundle, table, tmp_path):
    assert "No module named 'torch'" in light("python", "-c", "import torch").stderr
    done = light("levi", "predict", bundle, table, "-o", tmp_path / "out.csv")
    assert (done.returncode, done.stderr) == (0, "")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert {row["prediction"] for row in csv.DictReader(file)} == {"negative", "positive"}
    assert light("levi", "verify", bundle).returncode == 0
    done = light("levi", "bench", bundle, "--length", 8, "--quick", "--duration", 0.2, "--json")
    assert (done.returncode, json.loads(done.stdout)["verdict"]) == (0, "QUICK")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["predict", "{bundle}", "{parquet}", "-o", "{tmp}/o.csv"], "pip install 'levi-deploy[table]'"),
        (["train", "{table}", "-o", "{tmp}/run"], "pip install 'levi-deploy[train]'"),
        (["export", "{tmp}", "-o", "{tmp}/b"], "pip install 'levi-deploy["),
    ],
)
def test_what_is_missing_is_named_with_the_line_that_installs_it(light, bundle, table, tmp_path, arguments, line):
    (tmp_path / "in.parquet").write_bytes(b"PAR1")
    values = {"bundle": bundle, "table": table, "parquet": tmp_path / "in.parquet", "tmp": tmp_path}
    done = light("levi", *(argument.format(**values) for argument in arguments))
    assert done.returncode == 1
    assert line in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["in.parquet"]


def test_doctor_says_what_is_missing(light):
    done = light("levi", "doctor")
    assert done.returncode == 0
    assert "pip install 'levi-deploy[export]'" in done.stdout
