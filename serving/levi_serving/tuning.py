"""How a bundle runs best on this machine: what ``levi bench --tune`` found, and the runner goes by.

``tuning.json`` lies in the bundle's folder and is no part of the bundle: it is found on one kind of machine,
and it changes how fast an answer comes and not which. It knows no model and measures nothing.
"""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from levi_serving.machine import processor, usable_cores

__all__ = ["TUNING", "Setting", "Tuning", "machine"]

TUNING = "tuning.json"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a runner is laid out.

    Attributes:
        threads: of one batch.
        workers: batches at the same time.
        max_batch_tokens: the most padded tokens of a batch.
    """

    threads: int
    workers: int
    max_batch_tokens: int


def machine() -> dict[str, Any]:
    """What a setting was found on and holds for: processor, usable cores, onnxruntime."""
    versions = {}
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {"processor": processor(), "machine": platform.machine(), "cores": usable_cores(), **versions}


@dataclass(frozen=True)
class Tuning:
    """The settings found, by scenario, device and graph; none where the file is of another machine."""

    settings: dict[str, Setting] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read a bundle's settings; a file that is not there, cannot be read or is of another machine has none."""
        try:
            document = json.loads((folder / TUNING).read_text(encoding="utf-8"))
            if document["machine"] != machine():
                return cls()
            return cls({name: Setting(**setting) for name, setting in document["settings"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls()  # it only says what is fast: without it the defaults serve

    def get(self, *, scenario: str, device: str, graph: str) -> Setting | None:
        """What was found for one graph."""
        return self.settings.get(f"{scenario} {device} {graph}")

    def put(self, setting: Setting, *, scenario: str, device: str, graph: str) -> Tuning:
        """With one more setting, in place of what was found before."""
        return Tuning({**self.settings, f"{scenario} {device} {graph}": setting})

    def write(self, folder: Path) -> Path:
        """Write them beside the bundle's files, whole or not at all."""
        document = {"machine": machine(), "settings": {name: asdict(s) for name, s in self.settings.items()}}
        aside = folder / (TUNING + ".aside")
        aside.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return aside.replace(folder / TUNING)
