"""What the READMEs and guides tell a user to type exists and runs, and the messages they explain are the code's."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from levi_deploy.cli import app

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
GUIDES = [
    "choosing",
    "comparing",
    "python",
    "serving",
    "files",
    "benchmarking",
    "gpu",
    "own_branch",
    "bundle",
    "troubleshooting",
]
PAGES = ["README.md", "serving/README.md", "export/README.md", *(f"docs/{name}.md" for name in ("README", *GUIDES))]
COLUMNS = 120


def text(page):
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```\n", text(page), re.DOTALL | re.MULTILINE)


def commands(page):
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith(("levi ", "$ levi "))]


PYTHON = [(page, n) for page in PAGES for n in range(len(blocks(page, "python")))]
TRAINS = [(page, n) for page, n in PYTHON if "train(" in blocks(page, "python")[n]]


@pytest.fixture(scope="module")
def small_backbone(backbone, tmp_path_factory):
    """The tests' backbone with as many positions as the examples' default for the longest row."""
    from transformers import BertConfig, BertModel

    folder = Path(shutil.copytree(backbone, tmp_path_factory.mktemp("positions") / "backbone"))
    BertModel(BertConfig.from_pretrained(backbone, max_position_embeddings=256)).save_pretrained(folder)
    settings = folder / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace('"model_max_length": 64', '"model_max_length": 256'))
    return folder


@pytest.fixture
def folder(tmp_path, table, small_backbone):
    """Where examples run: what they name is there, and the default backbone's name is a folder with a tiny one."""
    (tmp_path / "rows.csv").symlink_to(table)
    (tmp_path / "reviews.csv").symlink_to(table)
    (tmp_path / "sentence-transformers").mkdir()
    (tmp_path / "sentence-transformers/all-MiniLM-L6-v2").symlink_to(small_backbone)
    return tmp_path


def run_python(code, folder):
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("page", "n"), [example for example in PYTHON if example not in TRAINS])
def test_python_examples_run(page, n, folder, bundle, run):
    code = blocks(page, "python")[n]
    (folder / "run").symlink_to(run.folder)
    if "export(" not in code:
        (folder / "bundle").symlink_to(bundle)
    run_python(code, folder)


@pytest.mark.parametrize(("page", "n"), TRAINS)
def test_python_examples_that_train_run(page, n, folder):
    printed = run_python(blocks(page, "python")[n], folder)
    if page == "README.md":
        shown = next(iter(blocks(page, "text")))
        assert printed.splitlines()[0].split() == shown.splitlines()[0].split()
        assert printed.splitlines()[-1] == shown.splitlines()[-1]


def test_every_command_and_option_exists():
    import typer

    known = typer.main.get_command(app).commands
    seen = 0
    for line in [line for page in PAGES for line in commands(page)]:
        _, name, *words = line.split()
        options = {option for parameter in known[name].params for option in parameter.opts}
        for word in words:
            if word.startswith("-") and word != "-":
                seen += 1
                assert word in options, line
    assert seen > 15


def test_every_option_in_a_sentence_exists():
    import typer

    known = typer.main.get_command(app).commands.values()
    parameters = [parameter for command in known for parameter in command.params]
    options = {option for parameter in parameters for option in (*parameter.opts, *parameter.secondary_opts)}
    for page in PAGES:
        sentences = re.sub(r"^```.*?^```\n", "", text(page), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`([^`]+)`", sentences):
            if "levi " in code or code.startswith("-"):
                assert set(re.findall(r"(?<!\S)--[\w-]+", code)) <= options, f"{page}: {code}"


@pytest.mark.parametrize("line", commands("serving/README.md"))
def test_serving_commands_run(line, folder, bundle):
    (folder / "bundle").symlink_to(bundle)
    program = Path(sys.executable).with_name("levi")
    done = subprocess.run([program, *line.split()[1:]], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)|src=\"([^\":]+)\"", text(page)):
        assert (ROOT / page).parent.joinpath("".join(target)).exists(), target


@pytest.mark.parametrize("page", [*(page for page in PAGES if page != "export/README.md"), "CHANGELOG.md"])
def test_pages_are_narrow(page):
    code = re.compile(r"^```(?:text|console)\n.*?^```\n", re.DOTALL | re.MULTILINE)  # output is as wide as it is
    assert not [line for line in code.sub("", text(page)).splitlines() if len(line) > COLUMNS]


def test_the_index_names_every_page():
    named = set(re.findall(r"\(([\w]+\.md)\)", text("docs/README.md")))
    assert named == {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def messages():
    """Every text in the code, with … where it has a name or a number."""
    for path in [path for room in ("levi_deploy", "export", "serving") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_messages_that_are_explained_are_the_codes():
    written = [re.sub(r"`\w+`", "…", message) for message in messages()]
    explained = re.findall(r"^> (.*(?:\n> .*)*)", text("docs/troubleshooting.md"), re.MULTILINE)
    assert len(explained) > 20
    for message in explained:
        parts = [re.escape(part.strip()) for part in message.replace("\n> ", " ").split("…") if part.strip()]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(one) for one in written), message


def test_the_branch_from_outside_trains_and_exports(tmp_path, table, backbone, cache, monkeypatch):
    """The guide's class in a package, by its import string and as the entry point that the guide declares."""
    from typer.testing import CliRunner

    from levi_deploy.config import ModelConfig
    from levi_deploy.model.branches import Facts, make
    from levi_serving import Bundle, verify

    page = "docs/own_branch.md"
    (tmp_path / "mypackage").mkdir()
    code = next(block for block in blocks(page, "python") if "# mypackage/branches.py" in block)
    (tmp_path / "mypackage/branches.py").write_text(code)
    (declared,) = re.findall(r'^(\w+) = "(mypackage[^"]+)"$', "".join(blocks(page, "toml")), re.MULTILINE)
    (tmp_path / "mypackage-1.dist-info").mkdir()
    (tmp_path / "mypackage-1.dist-info/METADATA").write_text("Name: mypackage\nVersion: 1\n")
    (tmp_path / "mypackage-1.dist-info/entry_points.txt").write_text(
        "[levi_deploy.branches]\n" + " = ".join(declared) + "\n"
    )
    (tmp_path / "reviews.csv").symlink_to(table)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    train = next(line for line in commands(page) if declared[1] in line)
    more = ["--backbone", backbone, "--taps", "2", "--epochs", "1", "--max-length", "48", "--cache", cache]
    for line in ([*train.split()[1:], *map(str, more)], ["export", "run", "-o", "bundle"]):
        done = CliRunner().invoke(app, line, catch_exceptions=False)
        assert done.exit_code == 0, done.output
    (branch,) = Bundle.open("bundle").manifest.model["branches"]
    assert (branch["name"], branch["stages"], branch["reads"]) == (declared[1], 2, ["input_ids", "attention_mask"])
    assert verify("bundle")["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4
    named = make(declared[0], Facts(vocabulary=9), ModelConfig(branches=(declared[0],)))
    assert type(named).__name__ == declared[1].rpartition(":")[2]
