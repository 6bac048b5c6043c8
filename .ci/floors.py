"""The lower bounds of pyproject.toml as pip constraints: the oldest versions that an install may bring.

    python .ci/floors.py [EXTRA ...]

Prints ``name==version`` for each ``name>=version`` of the dependencies and of the extras. torch has the version of
constraints.txt: PyPI has older ones for CUDA alone.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    floors = dict(bounds(project, sys.argv[1:]))
    if "torch" in floors:
        tested = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        floors["torch"] = next(line.removeprefix("torch==") for line in tested if line.startswith("torch=="))
    print("\n".join(f"{name}=={version}" for name, version in sorted(floors.items())))


def bounds(project: dict[str, Any], extras: list[str]) -> Iterator[tuple[str, str]]:
    """Name and lower bound of each requirement, with those of the extras that an extra brings."""
    requirements = [*project["dependencies"]]
    for extra in extras:
        requirements += project["optional-dependencies"][extra]
    for requirement in requirements:
        if nested := re.fullmatch(rf"{project['name']}\[(.+)\]", requirement):
            yield from bounds(project, nested[1].split(","))
        elif bound := re.fullmatch(r"([\w-]+)(?:\[.+\])?>=([\d.]+)", requirement):
            yield bound[1], bound[2]
        else:
            sys.exit(f"{requirement} has no lower bound; expected name>=version.")


if __name__ == "__main__":
    main()
