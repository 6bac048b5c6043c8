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
