"""What the READMEs tell a user to type exists and runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from levi_deploy.cli import app

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "serving/README.md", "export/README.md"]


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```\n", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def commands(page):
    return [line for block in blocks(page, "console") for line in block.splitlines() if line.startswith("levi ")]


@pytest.fixture
def folder(tmp_path, bundle, table):
    (tmp_path / "bundle").symlink_to(bundle)
    (tmp_path / "rows.csv").symlink_to(table)
    return tmp_path


@pytest.mark.parametrize(("page", "n"), [(page, n) for page in PAGES for n in range(len(blocks(page, "python")))])
def test_python_examples_run(page, n, folder):
    done = subprocess.run([sys.executable, "-c", blocks(page, "python")[n]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_and_option_exists():
    import typer

    known = typer.main.get_command(app).commands
    seen = 0
    for line in [line for page in PAGES for line in commands(page)]:
        _, name, *words = line.split()
        options = {option for parameter in known[name].params for option in parameter.opts}
        for word in words:
            if word.startswith("-"):
                seen += 1
                assert word in options, line
    assert seen > 15


@pytest.mark.parametrize("line", [line for line in commands("serving/README.md") if "bench" not in line])
def test_serving_commands_run(line, folder):
    program = Path(sys.executable).with_name("levi")
    done = subprocess.run([program, *line.split()[1:]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_branch_from_outside_trains_and_exports(tmp_path, table, backbone, cache, monkeypatch):
    """The README's class in a package, by its import string and as the entry point that the README declares."""
    from typer.testing import CliRunner

    from levi_deploy.config import ModelConfig
    from levi_deploy.model.branches import Facts, make
    from levi_serving import Bundle, verify

    (tmp_path / "mypackage").mkdir()
    code = next(block for block in blocks("README.md", "python") if "# mypackage/branches.py" in block)
    (tmp_path / "mypackage/branches.py").write_text(code)
    (declared,) = re.findall(r'^(\w+) = "(mypackage[^"]+)"$', "".join(blocks("README.md", "toml")), re.MULTILINE)
    (tmp_path / "mypackage-1.dist-info").mkdir()
    (tmp_path / "mypackage-1.dist-info/METADATA").write_text("Name: mypackage\nVersion: 1\n")
    (tmp_path / "mypackage-1.dist-info/entry_points.txt").write_text(
        "[levi_deploy.branches]\n" + " = ".join(declared) + "\n"
    )
    (tmp_path / "reviews.csv").symlink_to(table)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    train = next(line for line in commands("README.md") if declared[1] in line)
    more = ["--backbone", backbone, "--taps", "2", "--epochs", "1", "--max-length", "48", "--cache", cache]
    for line in ([*train.split()[1:], *map(str, more)], ["export", "run", "-o", "bundle"]):
        done = CliRunner().invoke(app, line, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    (branch,) = Bundle.open("bundle").manifest.model["branches"]
    assert (branch["name"], branch["stages"], branch["reads"]) == (declared[1], 2, ["input_ids", "attention_mask"])
    assert verify("bundle")["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4
    named = make(declared[0], Facts(vocabulary=9), ModelConfig(branches=(declared[0],)))
    assert type(named).__name__ == declared[1].rpartition(":")[2]


def test_the_tree_is_the_tree():
    """Every source file is named in the README's tree, and every file named there exists."""
    tree = next(block for block in (ROOT / "README.md").read_text(encoding="utf-8").split("```") if "levi.py" in block)
    named = set(re.findall(r"\b(\w+\.py)\b", tree))
    quiet = {"levi_deploy/cli", "levi_deploy/evaluation", "serving/levi_serving/bench"}  # named as folders
    found = {
        path.name
        for room in ("levi_deploy", "export", "serving")
        for path in (ROOT / room).rglob("*.py")
        if path.name != "__init__.py" and str(path.parent.relative_to(ROOT)) not in quiet
    }
    assert named == found
    assert all(folder.rpartition("/")[2] + "/" in tree for folder in quiet)
