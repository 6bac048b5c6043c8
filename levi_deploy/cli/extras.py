"""Which extra of levi-deploy installs which package, read from the package's own metadata."""

from __future__ import annotations

import re
from importlib import metadata

__all__ = ["extra_of", "extras", "required"]

_IMPORTED_AS = {"PIL": "pillow", "onnx_ir": "onnxscript"}
"""Modules whose distribution has another name, or that another distribution brings."""

_NOT_FOR_USERS = ("dev",)


def required() -> list[str]:
    """The packages that levi-deploy always needs."""
    return [package for package, extra in _requirements() if extra is None]


def extras() -> dict[str, str]:
    """Each optional package, and the smallest extra that installs it."""
    packages: dict[str, list[str]] = {}
    for package, extra in _requirements():
        if extra is not None and extra not in _NOT_FOR_USERS:
            packages.setdefault(extra, []).append(package)
    smallest_last = sorted(packages, key=lambda extra: len(packages[extra]), reverse=True)
    return {package: extra for extra in smallest_last for package in packages[extra]}


def extra_of(module: str) -> str | None:
    """The extra that installs a top-level module, or None where none does."""
    return extras().get(_IMPORTED_AS.get(module, module))


def _requirements() -> list[tuple[str, str | None]]:
    """Each required package with the extra that requires it; None for those that are always required."""
    found = []
    for requirement in metadata.requires("levi-deploy") or ():
        package = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"""extra == ['"]([\w-]+)['"]""", requirement)
        if package and package[0] != "levi-deploy":  # an extra made of others, before an installer flattens it
            found.append((package[0], extra[1] if extra else None))
    return found
