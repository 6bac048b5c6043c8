"""Where a request's time goes, as a tree, and what follows from it, for people and as JSON.

``measure`` makes it, ``flame`` draws the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from levi_serving.bench.breakdown.modules import AVERAGE, NOVELTY, UNKNOWN
from levi_serving.bench.breakdown.peak import Peak
from levi_serving.bench.measurement import Workload

__all__ = ["Breakdown", "Part", "Work"]

_LISTED = 10  # operators

_ORDER = (
    "padding and copies", "backbone", "embeddings", "mask and shapes", "layer", "attention", "feed-forward", "norms",
    "rest", "branch", "head", "pooling", "adapting layer", *NOVELTY, *AVERAGE, *UNKNOWN, "onnxruntime itself",
)  # fmt: skip


@dataclass
class Part:
    """A part of a request's time and the parts it consists of.

    Attributes:
        name: as in tables.
        ms: milliseconds of a request; the sum of its parts where it has any.
        parts: what it consists of; the innermost are the graph's nodes.
        node: whether it is one node.
    """

    name: str
    ms: float = 0.0
    parts: list[Part] = field(default_factory=list)
    node: bool = False

    def part(self, name: str) -> Part:
        """The part of that name within this one, added when it is missing."""
        found = next((part for part in self.parts if part.name == name and not part.node), None)
        if found is None:
            found = Part(name)
            self.parts.append(found)
        return found

    def settle(self) -> None:
        """Sum its time from its innermost parts, and order these: modules as the model runs them, nodes by time."""
        for inner in self.parts:
            if inner.parts:
                inner.settle()
        self.ms = sum(inner.ms for inner in self.parts)
        self.parts.sort(key=lambda inner: (inner.node, -inner.ms) if inner.node else (inner.node, *_place(inner.name)))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"name": self.name, "ms": self.ms} | ({"parts": [p.to_dict() for p in self.parts]} if self.parts else {})


@dataclass(frozen=True)
class Work:
    """How much work a request is for the machine.

    Attributes:
        operations: of matrix products, padding included; a multiplication and an addition are two.
        useful: the same without padding: every row run on its own, at its own length.
        bytes: that nodes read and write at least: inputs, weights and results, each once per node.
        product_ms: time in the nodes that are matrix products.
    """

    operations: float
    useful: float
    bytes: float
    product_ms: float


@dataclass(frozen=True)
class Breakdown:
    """Where the time of one workload's requests goes.

    Attributes:
        workload: the requests.
        request: the whole, as a tree; medians over the traced passes, of the mean over a pass's requests.
        passes: how often every request was sent, with the trace and without.
        requests: how many different ones.
        run_ms: the model's part of a request without the trace, median.
        overhead: how many times longer a traced pass takes, pair by pair, see ``stats.ratio``.
        attributed: share of the kernels' time whose module is known.
        named: share of the kernels' time whose module is known by the nodes' own names.
        operators: milliseconds of a request by the graph's operators, the longest first.
        work: how much work a request is.
        peak: what the machine can do.
        provider: that ran it.
        precision: of the graph.
    """

    workload: Workload
    request: Part
    passes: int
    requests: int
    run_ms: float
    overhead: Mapping[str, float]
    attributed: float
    named: float
    operators: Mapping[str, float]
    work: Work
    peak: Peak
    provider: str
    precision: str

    @property
    def name(self) -> str:
        """As in tables."""
        threads = f"{self.peak.threads} thread" + ("s" if self.peak.threads > 1 else "")
        return f"{self.workload.name}, {self.precision}, {threads}"

    @property
    def heads(self) -> list[Part]:
        """The adapting layers with their poolings."""
        return [part for part in self.request.part("run").parts if part.name.startswith("head ")]

    def to_dict(self) -> dict[str, Any]:
        """For JSON. Times in ms of a request; shares of the machine's peak use the run without the trace."""
        heads = [part.ms for part in self.heads]
        run, seconds = self.request.part("run").ms, self.run_ms / 1e3
        return {
            "workload": self.workload.name,
            "batch_size": self.workload.batch_size,
            "length": self.workload.length,
            "provider": self.provider,
            "precision": self.precision,
            "threads": self.peak.threads,
            "passes": self.passes,
            "requests": self.requests,
            "tree": self.request.to_dict(),
            "run_untraced_ms": self.run_ms,
            "traced_over_untraced": dict(self.overhead),
            "attributed": self.attributed,
            "attributed_by_own_name": self.named,
            "operators": dict(self.operators),
            "one_more_head": {
                "ms": sum(heads) / len(heads) if heads else 0.0,
                "share": sum(heads) / len(heads) / run if heads else 0.0,
            },
            "matrix_products": {
                "operations": self.work.operations,
                "useful_operations": self.work.useful,
                "peak_per_s": self.peak.products,
                "peak_by": self.peak.by,
                "share_of_peak": self.work.operations / seconds / self.peak.products,
                "useful_share_of_peak": self.work.useful / seconds / self.peak.products,
                "share_of_peak_within_products": self.work.operations
                / max(1e-12, self.work.product_ms / 1e3)
                / self.peak.products,
            },
            "memory": {
                "bytes": self.work.bytes,
                "peak_bytes_per_s": self.peak.stream,
                "share_of_peak": self.work.bytes / seconds / self.peak.stream,
            },
        }

    def __str__(self) -> str:
        """The tree and what follows from it."""
        return "\n".join([*_drawn(self.request), "", *self.facts()])

    def facts(self) -> list[str]:
        """What the numbers mean, in sentences."""
        about = self.to_dict()
        products, memory, head = about["matrix_products"], about["memory"], about["one_more_head"]
        kernels = sum(self.operators.values())
        lines = [
            f"{self.name}: {self.requests} requests, each sent {self.passes} times; medians. The trace itself "
            f"added {100 * (self.overhead['median'] - 1):+.1f} % "
            f"[{100 * (self.overhead['low'] - 1):+.1f}, {100 * (self.overhead['high'] - 1):+.1f}]; it is subtracted.",
            f"{100 * self.attributed:.2f} % of the kernels' time is attributed to modules: {100 * self.named:.2f} % by "
            "the nodes' own names, the rest by the weights and nodes around them.",
            "By operator: "
            + ", ".join(f"{name} {100 * ms / kernels:.1f} %" for name, ms in list(self.operators.items())[:_LISTED])
            + " of the kernels' time.",
        ]
        if self.heads:
            lines.append(
                f"One more head costs {head['ms']:.3f} ms, {100 * head['share']:.2f} % of the run: pooling, norm and "
                f"adapting layer, the mean of {len(self.heads)}."
            )
        lines += [
            f"Matrix products: {products['operations'] / 1e9:.2f} GFLOP a request, "
            f"{products['useful_operations'] / 1e9:.2f} without padding. By the latter the run, without the trace, "
            f"reaches {100 * products['useful_share_of_peak']:.0f} % of the machine's "
            f"{products['peak_per_s'] / 1e9:.0f} GFLOP/s ({products['peak_by']}, float32); the nodes that "
            f"are matrix products reach {100 * products['share_of_peak_within_products']:.0f} %.",
            f"Memory: nodes read and write {memory['bytes'] / 1e6:.1f} MB a request, "
            f"{100 * memory['share_of_peak']:.0f} % of the {memory['peak_bytes_per_s'] / 1e9:.1f} GB/s of a copy; "
            "what comes from the caches is included.",
        ]
        if self.provider != "CPUExecutionProvider":
            lines.append(f"{self.provider} runs asynchronously: a node's time is that of its launch.")
        return lines


def _place(name: str) -> tuple[int, int]:
    """A part's place among its siblings: by its kind, then by its number."""
    kind, _, number = name.partition(" ")
    place = _ORDER.index(name) if name in _ORDER else _ORDER.index(kind)
    return place, int(number.split()[0]) if kind in ("layer", "branch", "head") else 0


def _drawn(whole: Part) -> list[str]:
    """The tree down to the parts of a layer, with milliseconds and shares of the whole."""
    lines = list(_branches(whole, "", "", ""))
    width = max(len(name) for name, _ in lines)
    return [
        f"{'':<{width}}{'ms':>11}{'%':>8}",
        *(f"{name:<{width}}{part.ms:>11.3f}{100 * part.ms / whole.ms:>8.2f}" for name, part in lines),
    ]


def _branches(part: Part, before: str, tick: str, below: str) -> Iterator[tuple[str, Part]]:
    yield before + tick + part.name, part
    parts = [inner for inner in part.parts if not inner.node]
    for inner in parts:
        last = inner is parts[-1]
        yield from _branches(inner, before + below, "└─ " if last else "├─ ", "   " if last else "│  ")
