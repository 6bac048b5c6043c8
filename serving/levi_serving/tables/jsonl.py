"""JSON Lines, in and out, a window at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from levi_serving.tables.table import BadRow, Chunk, Records, line, opened

__all__ = ["Jsonl"]


class Jsonl:
    """One JSON object a line."""

    name = "jsonl"

    def read(self, source: Path | BinaryIO, *, rows: int, skip: int = 0) -> Iterator[Chunk]:
        """Read windows; rows may have different keys."""
        with opened(source) as file:
            number, good, numbers, bad = 0, list[dict[str, object]](), list[int](), list[BadRow]()
            yielded = False
            for place, raw in enumerate(file, start=1):
                content = raw.removeprefix(b"\xef\xbb\xbf") if place == 1 else raw
                if not content.strip():
                    continue
                number += 1
                if number <= skip:
                    continue
                record, problem = self._parse(content)
                if record is None:
                    bad.append(
                        BadRow(
                            number,
                            f"line {place}: {problem}",
                            content.decode(errors="backslashreplace").strip(),
                        )
                    )
                else:
                    numbers.append(number)
                    good.append(record)
                if len(numbers) + len(bad) == rows:
                    yield self._chunk(numbers, good, bad)
                    yielded, good, numbers, bad = True, [], [], []
            if numbers or bad or not yielded:
                yield self._chunk(numbers, good, bad)

    @staticmethod
    def _chunk(numbers: list[int], rows: list[dict[str, object]], bad: list[BadRow]) -> Records:
        return Records(numbers, rows, list(dict.fromkeys(name for row in rows for name in row)), bad)

    @staticmethod
    def _parse(content: bytes) -> tuple[dict[str, object] | None, str]:
        try:
            record = json.loads(content.decode())
        except UnicodeDecodeError as error:
            return None, f"not UTF-8 at byte {error.start}"
        except (ValueError, RecursionError) as error:
            return None, f"not valid JSON ({error})"
        if not isinstance(record, dict):
            return None, f"a JSON {type(record).__name__}; expected an object with the columns as keys"
        return record, ""

    def write(self, file: BinaryIO, chunk: Chunk, added: Mapping[str, Sequence[object]], *, header: bool) -> None:  # noqa: ARG002
        """Write rows, nested values and all; each row keeps just its own keys."""
        for n, record in enumerate(chunk.records()):
            file.write(line({**record, **{name: values[n] for name, values in added.items()}}))

    def join(self, parts: Sequence[Path], file: BinaryIO) -> None:
        """Join parts."""
        for part in parts:
            with part.open("rb") as source:
                while block := source.read(1 << 20):
                    file.write(block)
