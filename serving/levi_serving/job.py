"""An unfinished job: the request it was started with, so that it is resumed with the same one or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from levi_serving import atomic
from levi_serving.errors import UsageError

__all__ = ["resumes", "start"]


def resumes(record: Path, request: Mapping[str, Any], *, resume: bool) -> bool:
    """Whether an unfinished job is to be resumed.

    Args:
        record: the file in which ``start`` kept its request.
        request: everything that decides what comes of the job, as JSON has it.
        resume: whether an unfinished job may be resumed.

    Returns:
        False where there is no unfinished job.

    Raises:
        UsageError: there is one, and ``resume`` is false or it had another request.
    """
    if not record.is_file():
        return False
    if not resume:
        raise UsageError(
            f"{record.parent} holds an unfinished job. Set `resume` to continue it, or `overwrite` to start again."
        )
    before = json.loads(record.read_text(encoding="utf-8"))
    for name, value in json.loads(json.dumps(request)).items():
        if before.get(name) != value:
            raise UsageError(
                f"The unfinished job in {record.parent} had another {name}: {before.get(name)}, now {value}. "
                "Give the same request to resume it, or set `overwrite` to start again."
            )
    return True


def start(record: Path, request: Mapping[str, Any]) -> None:
    """Keep a job's request in its folder, which is made; remove the file when the job is finished."""
    record.parent.mkdir(parents=True, exist_ok=True)
    atomic.write(record, json.dumps(request, indent=1) + "\n")
