"""Files that are whole or not there: written aside, synced, renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from levi_serving.errors import UsageError

__all__ = ["replacing", "require_folder", "write"]

SUFFIX = ".aside"
"""Of a file that is being written; left behind by a kill, it is never read."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write; it takes ``path``'s place when the block ends, and is removed when the block fails."""
    aside = path.with_name(path.name + SUFFIX)
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def write(path: Path, content: str | bytes) -> None:
    """Write a whole file; text as UTF-8."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


def require_folder(path: Path) -> None:
    """Refuse a file that could not be written, before the work whose result it is to hold.

    Raises:
        UsageError: its folder is missing, or a folder has its name.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder; expected the name of a file.")
    if not path.parent.is_dir():
        raise UsageError(f"There is no folder {path.parent} to write {path.name} in.")
