"""A folder of images as a table: one row a file, and the file's own folder as its label. Nothing is decoded here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from levi_serving.errors import TableError, UsageError
from levi_serving.tables.table import Chunk, Records

__all__ = ["ImageFolder"]

_FOR_READING = "A folder of images is for reading. Write predictions as csv, jsonl or parquet."
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class ImageFolder:
    """Every image file below a folder, by path; hidden files and folders are left out.

    Columns: ``image``, the path below the folder (whoever opens it finds it from there), and ``label``,
    the name of the folder that the file lies in, where files lie in folders.
    """

    name = "images"

    def read(self, source: Path | BinaryIO, *, rows: int, skip: int = 0) -> Iterator[Chunk]:
        """Read windows of rows.

        Raises:
            TableError: there is no image in the folder.
        """
        if not isinstance(source, Path):
            raise UsageError("A folder of images cannot come through a pipe. Name the folder.")
        found = sorted(path for path in source.rglob("*") if self._is_image(path, source))
        if not found:
            raise TableError(f"There is no image in {source}; looked for {', '.join(sorted(_SUFFIXES))}.")
        labelled = all(path.parent != source for path in found)
        columns = ["image", "label"] if labelled else ["image"]
        names = [path.relative_to(source).as_posix() for path in found]
        folders = [path.parent.name for path in found]
        cells = [dict(zip(columns, pair, strict=False)) for pair in zip(names, folders, strict=True)]
        records: list[dict[str, object]] = [dict(row) for row in cells]
        for start in range(skip, max(len(records), skip + 1), rows):
            window = records[start : start + rows]
            yield Records(list(range(start + 1, start + 1 + len(window))), window, columns, [])

    @staticmethod
    def _is_image(path: Path, root: Path) -> bool:
        hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
        return path.suffix.lower() in _SUFFIXES and not hidden and path.is_file()

    def write(self, file: BinaryIO, chunk: Chunk, added: Mapping[str, Sequence[object]], *, header: bool) -> None:  # noqa: ARG002
        """Not for output.

        Raises:
            UsageError: always.
        """
        raise UsageError(_FOR_READING)

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:  # noqa: ARG002
        """Not for output.

        Raises:
            UsageError: always.
        """
        raise UsageError(_FOR_READING)
