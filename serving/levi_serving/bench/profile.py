"""Where a query's time goes, by part of the model: measured with onnxruntime's own trace, read by module.

A pass asks every query of a workload once. Passes with and without the trace take turns, so that the trace's
own cost is known. It knows no page and no file format: ``parts`` says what a node belongs to, ``work`` how much
a node is, ``peak`` what the machine can do.
"""

from __future__ import annotations

import copy
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_serving.bench.breakdown import Breakdown, Part, Work
from levi_serving.bench.onnx_file import Graph, read_graph
from levi_serving.bench.parts import AVERAGE, UNKNOWN, Parts
from levi_serving.bench.peak import Peak
from levi_serving.bench.scenarios import Workload
from levi_serving.bench.stats import ratio
from levi_serving.bench.work import moved, operations
from levi_serving.errors import BenchmarkError, UsageError
from levi_serving.preprocess import Encoded, Row
from levi_serving.runner import Runner
from levi_serving.session import OPTIMIZED, Session
from levi_serving.tuning import TUNING

__all__ = ["profile"]

_QUERIES = 8  # of a workload, at most: a trace holds a million events
_FEWEST = 3  # passes
_MOST_RUNS = 1500  # of the graph

_ORDER = (
    "padding and copies", "backbone", "embeddings", "mask and shapes", "layer", "attention", "feed-forward", "norms",
    "rest", "branch", "head", "pooling", "adapting layer", *AVERAGE, *UNKNOWN, "onnxruntime itself",
)  # fmt: skip


@dataclass(frozen=True)
class _Event:
    """A node's turn in one run of the graph, with what the trace says of it."""

    name: str
    seconds: float
    arguments: Mapping[str, Any]


class _Watched(Session):
    """A traced session that notes how long each run took and how long its rows are."""

    def __init__(self, model: Path, **settings: Any) -> None:
        super().__init__(model, **settings)
        self.seconds: list[float] = []
        self.lengths: list[NDArray[np.int64]] = []  # (B,) of each run; none without text

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        started = time.perf_counter()
        answers = super().run(feeds)
        self.seconds.append(time.perf_counter() - started)
        if "attention_mask" in feeds:
            self.lengths.append(feeds["attention_mask"].sum(axis=1))
        return answers


@dataclass
class _Pass:
    """Seconds of one pass over the queries, by verb; for a traced one also inside of the session, and by node."""

    prepare: float = 0.0
    run: float = 0.0
    finish: float = 0.0
    session: float = 0.0
    nodes: dict[str, float] = field(default_factory=dict)

    @property
    def whole(self) -> float:
        return self.prepare + self.run + self.finish


def profile(runner: Runner, workload: Workload, *, peak: Peak, duration_s: float) -> Breakdown:
    """Measure where the time of a workload's queries goes.

    Args:
        runner: its own session is measured beside a traced one of the same settings.
        workload: its first batches are asked in turn.
        peak: what the machine can do with as many threads.
        duration_s: how long to measure; three passes are made in any case.

    Raises:
        UsageError: the runner has several workers, whose runs would overlap.
        BenchmarkError: the trace does not hold every run.
    """
    if runner.workers > 1:
        raise UsageError(
            f"--profile takes a query apart on one worker, but {runner.bundle.folder / TUNING} asks for "
            f"{runner.workers}. Say how many threads it has, with --threads."
        )
    batches = workload.batches[:_QUERIES]
    with tempfile.TemporaryDirectory() as folder:
        session = _Watched(
            runner.bundle.folder / runner.graph.file,
            device=runner.session.device,
            threads=runner.session.threads,
            trace=Path(folder),
        )
        graph = read_graph(Path(folder) / OPTIMIZED)
        traced = copy.copy(runner)
        traced.session = session
        for either in (runner, traced):
            _ask(either, batches)  # untimed; covers every shape
        each = len(session.seconds)  # runs of the graph in a pass
        plain, passes = _measure(runner, traced, batches, duration_s, lambda: len(session.seconds) < _MOST_RUNS)
        lengths = np.concatenate(session.lengths[:each]) if session.lengths else np.empty(0, np.int64)
        alone = np.unique(lengths)
        for length in alone:
            session.run(Encoded.blank(runner.preprocessor.settings, rows=1, tokens=int(length)).batch([0]))
        runs = _runs(session.end_trace(), graph)
    if len(runs) != len(session.seconds):
        raise BenchmarkError(
            f"onnxruntime's trace holds {len(runs)} runs of the graph, but {len(session.seconds)} were made. "
            "Measure shorter, with --duration, or smaller queries, with --batch-size."
        )
    for n, one in enumerate(passes, start=1):  # the first was untimed
        span = slice(n * each, (n + 1) * each)
        one.session = sum(session.seconds[span])
        for event in (event for run in runs[span] for event in run):
            one.nodes[event.name] = one.nodes.get(event.name, 0.0) + event.seconds
    by_length = {length: _operations(run, graph) for length, run in zip(alone, runs[-len(alone) :], strict=False)}
    useful = sum(by_length[length] for length in lengths) if len(lengths) else None
    work = _work([event for run in runs[each : 2 * each] for event in run], passes, graph, useful, len(batches))
    parts = Parts(graph, runner.bundle.manifest.taps)
    query, attributed, named = _tree(passes, plain, parts, 1e3 / len(batches))
    return Breakdown(
        workload=workload,
        query=query,
        passes=len(passes),
        queries=len(batches),
        run_ms=1e3 / len(batches) * median(one.run for one in plain),
        overhead=ratio([one.whole for one in plain], [one.whole for one in passes]),
        attributed=attributed,
        named=named,
        operators=_by_operator(passes, graph, 1e3 / len(batches)),
        work=work,
        peak=peak,
        provider=runner.session.provider,
        precision=runner.graph.precision,
    )


def _measure(
    runner: Runner, traced: Runner, batches: Sequence[Sequence[Row]], duration_s: float, room: Callable[[], bool]
) -> tuple[list[_Pass], list[_Pass]]:
    """Passes without and with the trace, in turns, the first of each pair changing."""
    plain: list[_Pass] = []
    passes: list[_Pass] = []
    started = time.perf_counter()
    while len(passes) < _FEWEST or (time.perf_counter() - started < duration_s and room()):
        turns = [(runner, plain), (traced, passes)]
        for one, found in turns if len(passes) % 2 else reversed(turns):
            found.append(_ask(one, batches))
    return plain, passes


def _ask(runner: Runner, batches: Sequence[Sequence[Row]]) -> _Pass:
    one = _Pass()
    for rows in batches:
        due = time.perf_counter()
        prepared = runner.prepare(rows)
        tokenised = time.perf_counter()
        outputs = runner.run(prepared)
        ran = time.perf_counter()
        runner.finish(outputs)
        one.finish += time.perf_counter() - ran
        one.prepare += tokenised - due
        one.run += ran - tokenised
    return one


def _runs(trace: Path, graph: Graph) -> list[list[_Event]]:
    """The nodes of every run of the graph: the trace lists a run's nodes, then the run.

    It makes up a name for a node that has none; such nodes run in the order in which the graph lists them.
    """
    runs: list[list[_Event]] = [[]]
    nameless = iter(graph.nameless)
    for event in json.loads(trace.read_text(encoding="utf-8")):
        if event["cat"] == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            if name not in graph.nodes:
                name = next(nameless, name)
            runs[-1].append(_Event(name, event["dur"] / 1e6, event["args"]))
        elif event["name"] == "model_run":
            runs.append([])
            nameless = iter(graph.nameless)
    return runs[:-1]


def _operations(run: Sequence[_Event], graph: Graph) -> float:
    return sum(operations(event.arguments, graph, event.name) for event in run)


def _work(events: Sequence[_Event], passes: Sequence[_Pass], graph: Graph, useful: float | None, queries: int) -> Work:
    """The work of a mean query of one pass, whose events are given."""
    products = {event.name for event in events if operations(event.arguments, graph, event.name)}
    whole = _operations(events, graph)
    return Work(
        operations=whole / queries,
        useful=(whole if useful is None else useful) / queries,
        bytes=sum(moved(event.arguments, graph, event.name) for event in events) / queries,
        product_ms=1e3 / queries * median(sum(one.nodes[name] for name in products) for one in passes),
    )


def _by_operator(passes: Sequence[_Pass], graph: Graph, scale: float) -> dict[str, float]:
    """Milliseconds of a query by operator, as onnxruntime calls it, the longest first."""
    found: dict[str, float] = {}
    for name in passes[0].nodes:
        operator = graph.nodes[name].operator if name in graph.nodes else "unknown"
        found[operator] = found.get(operator, 0.0) + scale * median(one.nodes[name] for one in passes)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _tree(passes: Sequence[_Pass], plain: Sequence[_Pass], parts: Parts, scale: float) -> tuple[Part, float, float]:
    """The whole as a tree, and the shares of the kernels' time whose part is known, and known by name.

    Args:
        passes: the traced ones; every innermost time is their median.
        plain: those without the trace; what the trace adds stands between the kernels and is taken off there.
        parts: what a node belongs to.
        scale: from seconds of a pass to milliseconds of a query.
    """
    whole = Part("query")
    whole.part("prepare").ms = scale * median(one.prepare for one in passes)
    run = whole.part("run")
    run.part("padding and copies").ms = scale * median(one.run - one.session for one in passes)
    kernels = known = named = 0.0
    for name in passes[0].nodes:
        path, by_name = parts.of(name)
        ms = scale * median(one.nodes[name] for one in passes)
        place = run
        for step in path:
            place = place.part(step)
        place.parts.append(Part(name, ms, node=True))
        kernels += ms
        known += ms if path != UNKNOWN else 0
        named += ms if by_name else 0
    between = median(
        one.session - sum(one.nodes.values()) - (one.run - other.run) for one, other in zip(passes, plain, strict=True)
    )
    run.part("onnxruntime itself").ms = scale * max(0.0, between)  # below the machine's noise it is nothing
    whole.part("finish").ms = scale * median(one.finish for one in passes)
    _settle(run)
    whole.ms = sum(part.ms for part in whole.parts)
    return whole, known / kernels, named / kernels


def _settle(part: Part) -> None:
    """Sum a part's times from its innermost parts, and order these: parts as the model runs, nodes by time."""
    for inner in part.parts:
        if inner.parts:
            _settle(inner)
    part.ms = sum(inner.ms for inner in part.parts)
    part.parts.sort(key=lambda inner: (inner.node, -inner.ms) if inner.node else (inner.node, *_place(inner.name)))


def _place(name: str) -> tuple[int, int]:
    """Where a part stands: by its kind, then by its number."""
    kind, _, number = name.partition(" ")
    place = _ORDER.index(name) if name in _ORDER else _ORDER.index(kind)
    return place, int(number.split()[0]) if kind in ("layer", "branch", "head") else 0
