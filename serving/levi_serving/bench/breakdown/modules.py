"""Which part of a LEVI model a node of the optimised graph belongs to.

The exporter names a node ``module.path/Operator``. onnxruntime's fusions keep that name, or make up another;
then the node belongs to the module of its largest weight, else to that of the node that reads its
result, else to that of the node whose result it reads: weights keep their names through every fusion.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from levi_serving.bench.breakdown.onnx_file import Graph, Node

__all__ = ["AVERAGE", "NOVELTY", "UNKNOWN", "Modules"]

Path = tuple[str, ...]

NOVELTY: Path = ("novelty",)
AVERAGE: Path = ("average",)
UNKNOWN: Path = ("unknown",)

_SHARED = 64  # bytes; a few numbers (an axis, a factor) may serve many modules under the name of one

_NAMED = re.compile(r"(?:fused )?((?:backbone|ensemble)[^/]*)/")
_INSIDE = re.compile(r"backbone|ensemble\.(branches|pools|heads|novelty)\b")
_EMBEDDING = re.compile(r"embed|emb$|wte|wpe|patch|shared|stem", re.IGNORECASE)
_NORM = re.compile(r"norm|^ln|_ln", re.IGNORECASE)
_ATTENTION = re.compile(r"att", re.IGNORECASE)
_FEED_FORWARD = re.compile(
    r"mlp|ffn|feed|intermediate|output|dense|^fc|^lin\d|^w[io]|pwconv|conv|expand|reduce", re.IGNORECASE
)


class Modules:
    """The module of every node of a graph.

    Args:
        graph: as the session runs it.
        taps: which layer each head of one member reads, None for none; those that read one come first.
    """

    def __init__(self, graph: Graph, taps: Sequence[int | None]) -> None:
        self._graph, self._taps = graph, tuple(taps) or (None,)
        self._made = {value: node for node in graph.nodes.values() for value in node.outputs if value}
        self._read: dict[str, list[Node]] = {}
        for node in graph.nodes.values():
            for value in node.inputs:
                self._read.setdefault(value, []).append(node)

    def path(self, name: str) -> tuple[Path, bool]:
        """Where a node belongs, from the largest part to the smallest, and whether its own name says so."""
        named = _named(name)
        if _says(named):
            return self._path(named), True
        node = self._graph.nodes.get(name)
        if node is not None and (module := self._below(node)):
            return self._path(module), False
        if named.startswith("ensemble"):  # what remains of the ensemble's own nodes stacks and averages the heads
            return AVERAGE, True
        if node is not None and (module := self._above(node)):
            return self._path(module), False
        return UNKNOWN, False

    def _below(self, node: Node) -> str:
        """The module that the node itself names, or its weights, or the nodes that read it."""
        readers = (self._below(reader) for value in node.outputs for reader in self._read.get(value, ()))
        return self._own(node) or next(filter(None, readers), "")

    def _above(self, node: Node) -> str:
        """The module that the node itself names, or its weights, or the nodes that it reads."""
        makers = (self._above(self._made[value]) for value in node.inputs if value in self._made)
        return self._own(node) or next(filter(None, makers), "")

    def _own(self, node: Node) -> str:
        if _says(named := _named(node.name)):
            return named
        modules = []
        for name in node.inputs:
            module, weight = name.rpartition(".")[0], self._graph.weights.get(name)
            if weight is not None and weight.size > _SHARED and _says(module):
                modules.append((weight.size, module))
        return max(modules)[1] if modules else ""

    def _path(self, module: str) -> Path:
        if module.startswith("backbone"):
            return ("backbone", *_in_backbone(module.split(".")[1:]))
        kind, *within = module.split(".")[1:]
        if kind == "novelty":
            return NOVELTY
        number = int(within[0])
        if kind == "branches":
            return (f"branch {number + 1}",)
        head, heads = number, len(self._taps)
        if kind == "pools":  # a member has one for each tap
            pools = heads - self._taps.count(None)
            head = head // pools * heads + head % pools
        tap = self._taps[head % heads]
        name = f"head {head + 1}" + ("" if tap is None else f" (tap {tap})")
        return name, "pooling" if kind == "pools" else "adapting layer"


def _named(name: str) -> str:
    found = _NAMED.match(name)
    return found[1] if found else ""


def _says(module: str) -> bool:
    """Whether a module is one of the parts, and not what is around them."""
    return bool(_INSIDE.match(module))


def _in_backbone(path: Sequence[str]) -> Path:
    """A layer (or stage) by its number from 1, as taps count, and what it is in it; else what comes around them."""
    place = next((n for n, word in enumerate(path) if word.isdigit()), None)
    if place is None:
        if any(map(_EMBEDDING.search, path)):
            return ("embeddings",)
        return ("norms",) if path and _NORM.search(path[-1]) else ("mask and shapes",)
    layer, within = f"layer {int(path[place]) + 1}", path[place + 1 :]
    if within and _NORM.search(within[-1]):
        return layer, "norms"
    if any(map(_ATTENTION.search, within)):
        return layer, "attention"
    return layer, "feed-forward" if any(map(_FEED_FORWARD.search, within)) else "rest"
