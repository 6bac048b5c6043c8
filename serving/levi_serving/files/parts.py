"""The finished windows of a run beside its output, so that a killed run can be resumed.

``OUTPUT.partial`` holds ``job.json``, the request, and a part file a window; a file that has its name is whole.
A format is known by its verbs alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from levi_serving import atomic, job
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

    def begin(self, request: dict[str, Any], *, resume: bool, overwrite: bool) -> int:
        """Take over what an interrupted run left, or start. Returns the rows already done."""
        if overwrite:
            shutil.rmtree(self._folder, ignore_errors=True)
        if job.resumes(self._folder / _JOB, request, resume=resume):
            done = 0
            for part in self._parts():
                first, last, predicted, failed = map(int, part.stem.split("-"))
                if first != done + 1:
                    raise UsageError(f"{self._folder} lacks the rows before {first}. Set `overwrite` to start again.")
                done, self.predicted, self.failed = last, self.predicted + predicted, self.failed + failed
            return done
        if self._output.exists() and not overwrite:
            raise UsageError(f"{self._output} exists. Choose another file, or set `overwrite`.")
        job.start(self._folder / _JOB, request)
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
        atomic.write(part.with_suffix(".bad"), b"".join(row.to_json() for row in bad))
        with atomic.replacing(part) as file:
            self._format.write(file, chunk, added, header=True)

    def leave(self) -> None:
        """Stop early: what was done stays for ``resume``; where nothing was, nothing stays."""
        if not self._parts():
            shutil.rmtree(self._folder)

    def end(self, failed: int) -> Path | None:
        """Join the parts as OUTPUT and remove them. Returns the errors file, if there is one."""
        parts = self._parts()
        errors = self._errors or self._output.with_name(self._output.name + ".errors.jsonl")
        if failed or self._errors:
            with atomic.replacing(errors) as file:
                for part in parts:
                    file.write(part.with_suffix(".bad").read_bytes())
        else:
            errors.unlink(missing_ok=True)  # of an earlier run: it would be taken for this one's
        with atomic.replacing(self._output) as file:
            self._format.join(parts, file)
        shutil.rmtree(self._folder)
        return errors if failed or self._errors else None
