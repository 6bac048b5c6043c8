"""What CONTRIBUTING.md says of the tree is the tree."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def listed():
    """The paths of the page's tree, folders with a slash at their end."""
    tree = next(block for block in PAGE.split("```\n") if block.startswith("levi_deploy/\n"))
    folders = []
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        depth = len(indent) // 2
        assert depth == 0 or len(line.split(maxsplit=1)) == 2, f"{name} says nothing"
        yield "".join([*folders[:depth], name])
        folders[depth:] = [name]


def test_the_tree_is_the_tree():
    files = [
        path.relative_to(ROOT)
        for package in ("levi_deploy", "export", "serving")
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py"
    ]
    named = list(listed())
    assert len(named) == len(set(named))
    assert {name for name in named if name.endswith(".py")} == {path.as_posix() for path in files}
    assert all(any((ROOT / name).glob("*.py")) for name in named if name.endswith("/"))


def test_each_question_is_answered_where_the_page_says():
    answers = re.findall(r"^\| .+\? \| `([\w/]+\.py)`: `(\w+)`", PAGE, re.MULTILINE)
    assert len(answers) == 5
    for file, name in answers:
        assert re.search(rf"^(?:def )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (file, name)
