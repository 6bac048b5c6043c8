"""What onnxruntime's trace says: which node ran how long in which run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from levi_serving.bench.breakdown.onnx_file import Graph

__all__ = ["Event", "read_runs"]


@dataclass(frozen=True)
class Event:
    """One node in one run of the graph.

    Attributes:
        name: the node's in the graph.
        seconds: of its kernel.
        arguments: what else the trace has: the operator, and its inputs' and outputs' shapes and sizes.
    """

    name: str
    seconds: float
    arguments: Mapping[str, Any]


def read_runs(trace: Path, graph: Graph) -> list[list[Event]]:
    """The nodes of every run of the graph: the trace lists a run's nodes, then the run.

    The trace invents a name for a node that has none; such nodes run in the order in which the graph lists them.
    """
    runs: list[list[Event]] = [[]]
    nameless = iter(graph.nameless)
    for event in json.loads(trace.read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            if name not in graph.nodes:
                name = next(nameless, name)
            runs[-1].append(Event(name, event["dur"] / 1e6, event["args"]))
        elif event["name"] == "model_run":
            runs.append([])
            nameless = iter(graph.nameless)
    return runs[:-1]
