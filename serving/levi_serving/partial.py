"""The finished windows of a run beside its output, so that a killed run can be gone on from.

``OUTPUT.partial`` holds ``job.json``, what was asked, and a part file a window; a file that has its name is whole.
It knows formats by their verbs; it knows no model.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from levi_serving.errors import UsageError
from levi_serving.tables import BadRow, Chunk, Format

__all__ = ["Parts"]

_JOB = "job.json"


class Parts:
    """The folder of finished windows beside OUTPUT. A part that has its name is whole."""

    def __init__(self, output: Path, writes: Format, errors: Path | None) -> None:
        self._output, self._format, self._errors = output, writes, errors
        self._folder = output.with_name(output.name + ".partial")
        self.predicted = self.failed = 0

    def begin(self, job: dict[str, Any], *, resume: bool, overwrite: bool) -> int:
        """Take over what an interrupted run left, or start. Returns the rows already done."""
        if overwrite:
            shutil.rmtree(self._folder, ignore_errors=True)
        left = self._folder / _JOB
        if left.is_file():
            before = json.loads(left.read_text(encoding="utf-8"))
            if not resume:
                raise UsageError(
                    f"{self._folder} holds an interrupted run. Add --resume to go on, or --overwrite to start again."
                )
            for name, value in json.loads(json.dumps(job)).items():
                if before.get(name) != value:
                    raise UsageError(
                        f"The interrupted run in {self._folder} had another {name}: {before.get(name)}, now {value}. "
                        "Give the same input, bundle and options, or --overwrite to start again."
                    )
            done = 0
            for part in self._parts():
                first, last, predicted, failed = map(int, part.stem.split("-"))
                if first != done + 1:
                    raise UsageError(f"{self._folder} lacks the rows before {first}. Start again with --overwrite.")
                done, self.predicted, self.failed = last, self.predicted + predicted, self.failed + failed
            return done
        if self._output.exists() and not overwrite:
            raise UsageError(f"{self._output} exists. Choose another file, or add --overwrite.")
        if self._output.parent != Path() and not self._output.parent.is_dir():
            raise UsageError(f"There is no folder {self._output.parent} to write {self._output.name} in.")
        self._folder.mkdir(exist_ok=True)
        _whole(left, [json.dumps(job, indent=1).encode()])
        return 0

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("*.part"))

    def add(
        self,
        chunk: Chunk,
        added: Mapping[str, Sequence[object]],
        *,
        first: int,
        last: int,
        bad: Sequence[BadRow],
    ) -> None:
        """Keep one window. Its failed rows come first: the part's own name is what says that it is done."""
        counts = (first, last, len(chunk.numbers), len(bad))
        part = self._folder / ("-".join(f"{count:012d}" for count in counts) + ".part")
        _whole(part.with_suffix(".bad"), (row.to_json() for row in bad))
        aside = part.with_suffix(".aside")
        with aside.open("wb") as file:
            self._format.write(file, chunk, added, header=True)
            _sync(file)
        aside.replace(part)

    def leave(self) -> None:
        """Stop early: what was done stays for ``resume``; where nothing was, nothing stays."""
        if not self._parts():
            shutil.rmtree(self._folder)

    def end(self, failed: int) -> Path | None:
        """Join the parts as OUTPUT and remove them. Returns the errors file, if there is one."""
        parts = self._parts()
        errors = self._errors or self._output.with_name(self._output.name + ".errors.jsonl")
        if failed or self._errors:
            _whole(errors, (part.with_suffix(".bad").read_bytes() for part in parts))
        else:
            errors.unlink(missing_ok=True)  # of an earlier run: it would be taken for this one's
        aside = self._folder / "joined.aside"
        with aside.open("wb") as file:
            self._format.join(parts, file)
            _sync(file)
        aside.replace(self._output)
        shutil.rmtree(self._folder)
        return errors if failed or self._errors else None


def _whole(path: Path, blocks: Iterable[bytes]) -> None:
    """Write a file aside and rename it: it is whole or it is not there."""
    aside = path.with_name(path.name + ".aside")
    with aside.open("wb") as file:
        for block in blocks:
            file.write(block)
        _sync(file)
    aside.replace(path)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
