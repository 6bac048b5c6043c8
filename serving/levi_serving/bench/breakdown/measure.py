"""Measure where a request's time goes, by module: with onnxruntime's own trace, and against runs without it.

A pass sends every request of a workload once. Passes with and without the trace alternate, so that the trace's
own cost is known.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from levi_serving.bench.breakdown.modules import UNKNOWN, Modules
from levi_serving.bench.breakdown.onnx_file import Graph, read_graph
from levi_serving.bench.breakdown.peak import Peak
from levi_serving.bench.breakdown.trace import Event, read_runs
from levi_serving.bench.breakdown.tree import Breakdown, Part, Work
from levi_serving.bench.breakdown.work import moved, operations
from levi_serving.bench.measurement import Workload
from levi_serving.bench.stats import ratio
from levi_serving.engine.runner import Runner
from levi_serving.engine.session import OPTIMIZED, Session
from levi_serving.errors import BenchmarkError, UsageError
from levi_serving.rows.preprocess import Encoded, Row

__all__ = ["profile"]

_REQUESTS = 8  # of a workload, at most: a trace holds a million events
_FEWEST = 3  # passes
_MOST_RUNS = 1500  # of the graph


class _TracedSession(Session):
    """A session with a trace, that records how long each run took and how long its rows are."""

    def __init__(self, model: Path, *, trace: Path, **settings: Any) -> None:
        super().__init__(model, trace=trace, **settings)
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
    """Seconds of one pass over the requests, by verb; for a traced one also within the session, and by node."""

    prepare: float = 0.0
    run: float = 0.0
    finish: float = 0.0
    session: float = 0.0
    nodes: dict[str, float] = field(default_factory=dict)

    @property
    def whole(self) -> float:
        return self.prepare + self.run + self.finish


@dataclass(frozen=True)
class _Recording:
    """What was measured of the requests.

    Attributes:
        graph: as the session runs it.
        plain: passes without the trace.
        passes: passes with it, paired with those.
        events: the nodes of one pass.
        operations: of one pass.
        useful: operations of a pass whose rows run on their own, at their own lengths.
    """

    graph: Graph
    plain: list[_Pass]
    passes: list[_Pass]
    events: list[Event]
    operations: float
    useful: float


def profile(runner: Runner, workload: Workload, *, peak: Peak, duration_s: float) -> Breakdown:
    """Measure where the time of a workload's requests goes.

    Args:
        runner: its own session is measured in turns with a traced one of the same settings.
        workload: its first batches are the requests.
        peak: what the machine can do with as many threads.
        duration_s: how long to measure; three passes are made in any case.

    Raises:
        UsageError: the runner has several workers, whose runs would overlap.
        BenchmarkError: the trace does not hold every run.
    """
    if runner.workers > 1:
        raise UsageError(
            f"A breakdown needs a runner with one worker, whose runs do not overlap, but this one has "
            f"{runner.workers}. Make it with workers=1."
        )
    batches = workload.batches[:_REQUESTS]
    with tempfile.TemporaryDirectory() as folder:
        recorded = _record(runner, batches, duration_s, Path(folder))
    graph, plain, passes = recorded.graph, recorded.plain, recorded.passes
    scale = 1e3 / len(batches)
    modules = Modules(graph, [head["tap"] for head in runner.bundle.manifest.model["heads"]])
    request, attributed, named = _tree(passes, plain, modules, scale)
    return Breakdown(
        workload=workload,
        request=request,
        passes=len(passes),
        requests=len(batches),
        run_ms=scale * median(one.run for one in plain),
        overhead=ratio([one.whole for one in plain], [one.whole for one in passes]),
        attributed=attributed,
        named=named,
        operators=_by_operator(passes, graph, scale),
        work=_work(recorded, len(batches)),
        peak=peak,
        provider=runner.session.provider,
        precision=runner.graph.precision,
    )


def _record(runner: Runner, batches: Sequence[Sequence[Row]], duration_s: float, folder: Path) -> _Recording:
    """Run the passes, and put what the trace says into the traced ones.

    Raises:
        BenchmarkError: the trace does not hold every run.
    """
    session = _TracedSession(
        runner.bundle.folder / runner.graph.file,
        device=runner.session.device,
        threads=runner.session.threads,
        trace=folder,
    )
    graph = read_graph(folder / OPTIMIZED)
    traced = Runner(
        runner.bundle.folder,
        graph=runner.graph,
        workers=1,
        max_batch_tokens=runner.limits.tokens,
        max_batch_rows=runner.limits.rows,
        session=session,
    )
    warm_up = len(session.seconds)  # the traced runner's own runs
    for either in (runner, traced):
        _pass(either, batches)  # untimed; covers every shape
    each = len(session.seconds) - warm_up  # runs of the graph in a pass
    lengths = np.concatenate(session.lengths[warm_up:]) if session.lengths else np.empty(0, np.int64)
    plain, passes = _measure(runner, traced, batches, duration_s, lambda: len(session.seconds) < _MOST_RUNS)
    different = np.unique(lengths)
    for length in different:
        session.run(Encoded.blank(runner.preprocessor.settings, rows=1, tokens=int(length)).batch([0]))
    runs = read_runs(session.end_trace(), graph)
    if len(runs) != len(session.seconds):
        raise BenchmarkError(
            f"onnxruntime's trace holds {len(runs)} runs of the graph, but {len(session.seconds)} were made. "
            "Measure for a shorter `duration_s`, or smaller `batch_sizes`."
        )
    for n, one in enumerate(passes, start=1):  # the first was untimed
        span = slice(warm_up + n * each, warm_up + (n + 1) * each)
        one.session = sum(session.seconds[span])
        for event in (event for run in runs[span] for event in run):
            one.nodes[event.name] = one.nodes.get(event.name, 0.0) + event.seconds
    events = [event for run in runs[warm_up + each : warm_up + 2 * each] for event in run]
    whole = _operations(events, graph)
    if not len(lengths):
        return _Recording(graph, plain, passes, events, whole, whole)
    alone = dict(zip(different, (_operations(run, graph) for run in runs[-len(different) :]), strict=True))
    return _Recording(graph, plain, passes, events, whole, sum(alone[length] for length in lengths))


def _measure(
    runner: Runner, traced: Runner, batches: Sequence[Sequence[Row]], duration_s: float, has_room: Callable[[], bool]
) -> tuple[list[_Pass], list[_Pass]]:
    """Passes without and with the trace, in pairs whose order alternates."""
    plain: list[_Pass] = []
    passes: list[_Pass] = []
    started = time.perf_counter()
    while len(passes) < _FEWEST or (time.perf_counter() - started < duration_s and has_room()):
        turns = [(runner, plain), (traced, passes)]
        for one, found in turns if len(passes) % 2 else reversed(turns):
            found.append(_pass(one, batches))
    return plain, passes


def _pass(runner: Runner, batches: Sequence[Sequence[Row]]) -> _Pass:
    """Send every request once."""
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


def _operations(run: Sequence[Event], graph: Graph) -> float:
    return sum(operations(event.arguments, graph, event.name) for event in run)


def _work(recorded: _Recording, requests: int) -> Work:
    """The work of a mean request."""
    graph, events = recorded.graph, recorded.events
    products = {event.name for event in events if operations(event.arguments, graph, event.name)}
    return Work(
        operations=recorded.operations / requests,
        useful=recorded.useful / requests,
        bytes=sum(moved(event.arguments, graph, event.name) for event in events) / requests,
        product_ms=1e3 / requests * median(sum(one.nodes[name] for name in products) for one in recorded.passes),
    )


def _by_operator(passes: Sequence[_Pass], graph: Graph, scale: float) -> dict[str, float]:
    """Milliseconds of a request by operator, by onnxruntime's name, the longest first."""
    found: dict[str, float] = {}
    for name in passes[0].nodes:
        operator = graph.nodes[name].operator if name in graph.nodes else "unknown"
        found[operator] = found.get(operator, 0.0) + scale * median(one.nodes[name] for one in passes)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _tree(passes: Sequence[_Pass], plain: Sequence[_Pass], modules: Modules, scale: float) -> tuple[Part, float, float]:
    """The whole as a tree, and the shares of the kernels' time whose module is known, and known by name.

    Args:
        passes: the traced ones; every innermost time is their median.
        plain: those without the trace; what the trace adds is time between the kernels, and is subtracted there.
        modules: what a node belongs to.
        scale: from seconds of a pass to milliseconds of a request.
    """
    whole = Part("request")
    whole.part("prepare").ms = scale * median(one.prepare for one in passes)
    run = whole.part("run")
    run.part("padding and copies").ms = scale * median(one.run - one.session for one in passes)
    kernels = known = named = 0.0
    for name in passes[0].nodes:
        path, by_name = modules.path(name)
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
    run.part("onnxruntime itself").ms = scale * max(0.0, between)  # the difference may be below the noise
    whole.part("finish").ms = scale * median(one.finish for one in passes)
    run.settle()
    whole.ms = sum(part.ms for part in whole.parts)
    return whole, known / kernels, named / kernels
