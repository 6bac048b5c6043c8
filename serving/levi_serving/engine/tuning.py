"""How a bundle runs best on this machine: what ``levi tune`` found, and what the runner then uses.

A layout changes how fast an answer comes and not which, and it holds for one kind of machine. So it is no part
of the bundle: it lies in the cache, under the bundle's digest. This file measures nothing.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from levi_serving import atomic
from levi_serving.environment import cache_folder, machine, versions

__all__ = ["Layout", "Tuning"]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a runner shares out the machine.

    Attributes:
        threads: of one batch.
        workers: batches at the same time.
        max_batch_tokens: the most padded tokens of a batch.
    """

    threads: int
    workers: int
    max_batch_tokens: int


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The layouts found for one bundle on this machine, by scenario, device and graph.

    Attributes:
        file: where they are kept: ``tuning/`` and the bundle's digest in the cache, see ``cache_folder``.
        layouts: by scenario, device and graph.
    """

    file: Path
    layouts: dict[str, Layout] = field(default_factory=dict)

    @classmethod
    def read(cls, digest: str) -> Self:
        """Read what was found for a bundle; nothing where no file is there, can be read, or is of this machine."""
        file = cache_folder() / "tuning" / f"{digest[:32]}.json"
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
            if document["machine"] != _machine():
                return cls(file=file)
            return cls(file=file, layouts={name: Layout(**layout) for name, layout in document["layouts"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return cls(file=file)  # it only says what is fast: without it the defaults serve

    def get(self, *, scenario: str, device: str, graph: str) -> Layout | None:
        """What was found for one graph."""
        return self.layouts.get(f"{scenario} {device} {graph}")

    def put(self, layout: Layout, *, scenario: str, device: str, graph: str) -> None:
        """Keep one more layout, in place of what was found for this graph before."""
        self.layouts[f"{scenario} {device} {graph}"] = layout
        self.file.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": _machine(), "layouts": {name: asdict(own) for name, own in self.layouts.items()}}
        atomic.write(self.file, json.dumps(document, indent=1) + "\n")


def _machine() -> dict[str, Any]:
    """What a layout was found on and holds for: the machine and onnxruntime's version."""
    return machine() | versions(("onnxruntime", "onnxruntime-gpu"))
