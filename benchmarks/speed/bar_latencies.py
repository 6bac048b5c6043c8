"""Latencies of bars.py: two sides in turns, one thread pinned to one core; and what int8 keeps of the answers."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from bar_models import LAYERS, Line, data_file, flops
from graph import Bare
from openvino_side import OpenVinoSide

from levi_deploy.demo.steps import find_backbone
from levi_deploy.model import Backbone
from levi_deploy.run import Run
from levi_export.convert import convert
from levi_export.graph import clean
from levi_export.optimize import tokens_first
from levi_serving import Runner
from levi_serving.bench.breakdown import Peak, measure_peak
from levi_serving.bench.stats import ratio
from levi_serving.bundle import Bundle
from levi_serving.engine.session import Session

SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))
TURNS = {32: 40, 128: 16, 1024: 5, 4096: 2}  # by tokens in a query, for each making of the sessions
MAKINGS = 4
PAIRS = (
    ("levi", "bare"), ("ladder", "bare"), ("mean", "bare"), ("levi", "torch"), ("levi", "torch-compile"),
    ("levi", "openvino"),
    ("int8", "openvino-default"), ("int8", "levi"), ("cut", "uncut"),
)  # fmt: skip
BUDGET = 1024  # padded tokens of a batch, the runner's own default


def uncut(model: Any, preprocessing: Any, path: Path) -> Path:
    """A graph as the export makes it for CPUs, but whole: not cut to the first token."""
    if not path.is_file():
        graph = convert(model.eval(), preprocessing)
        clean(graph)
        tokens_first(graph)
        ir.save(graph, path, external_data=f"{path.name}.data")
    return path


def clocked(side: Callable[[], object]) -> Callable[[], float]:
    """A side that says how many seconds it took."""

    def seconds() -> float:
        started = time.perf_counter()
        side()
        return time.perf_counter() - started

    return seconds


def runs(session: Session, parts: Sequence[Mapping[str, np.ndarray]]) -> object:
    """A query in parts, one after another."""
    return [session.run(part) for part in parts]


def turns(sides: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Seconds of each side in each turn, the order rotating; two turns warm up."""
    names, found = list(sides), {name: list[float]() for name in sides}
    for turn in range(count + 2):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            taken = sides[name]()
            if turn >= 2:
                found[name].append(taken)
    return found


def latencies(bundles: dict[str, Path], work: Path, effort: float) -> tuple[list[Line], dict[Any, Any]]:
    """All sides at all shapes, one thread each, pinned to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    run = Run.open(work / "attention-run")
    reference = run.reference()
    text = Runner(bundles["attention"], threads=1, precision="fp32").preprocessor
    assert text.tokenization is not None
    bare = Backbone.load(find_backbone(), lambda _: (LAYERS,))
    first = Run.open(work / "first-run")

    def of(name: str, precision: str = "fp32") -> Path:
        return bundles[name] / Bundle.read(bundles[name]).graph(precision).file

    paths = {
        "levi": of("attention"),
        "ladder": of("ladder"),
        "mean": of("mean"),
        "bare": uncut(Bare(bare), run.preprocessing, work / "bare.onnx"),
        "int8": of("attention", "int8"),
        "cut": of("first"),
        "uncut": uncut(first.levi(), first.preprocessing, work / "uncut.onnx"),
    }
    compiled = torch.compile(reference.levi, dynamic=False)
    others = {
        "openvino": OpenVinoSide(bundles["attention"], work, exact=True),
        "openvino-default": OpenVinoSide(bundles["attention"], work, exact=False),
    }
    rows = pq.read_table(work / "rows.parquet")["text"].to_pylist()[:64]
    shares: list[tuple[float, Peak]] = []
    found: dict[Any, Any] = {shape: {pair: {name: [] for name in pair} for pair in PAIRS} for shape in SHAPES}
    for making in range(MAKINGS):
        # Where weights and buffers come to lie moves a ratio a little: all are made anew, in another order.
        names = [*paths][making:] + [*paths][:making]
        ours = {name: Session(paths[name], device="cpu", threads=1) for name in names}
        for shape in SHAPES:
            batch = text.encode([text.tokenization.text_of(shape[1], rows[n:]) for n in range(shape[0])])
            feeds = batch.batch(range(shape[0]))
            assert feeds["input_ids"].shape == shape
            tensors = {name: torch.from_numpy(array) for name, array in feeds.items()}

            def asked(model: Any, tensors: Any = tensors) -> Any:
                with torch.inference_mode():
                    return model(**{name: tensors[name] for name in reference.levi.inputs if name in tensors})

            rows_each = max(1, BUDGET // shape[1])  # ours are cut as the runner cuts a query; the others take it whole
            parts = [batch.batch(range(n, min(n + rows_each, shape[0]))) for n in range(0, shape[0], rows_each)]
            sides = {name: clocked(partial(runs, session, parts)) for name, session in ours.items()}
            sides["torch"] = clocked(partial(asked, reference.levi))
            sides["torch-compile"] = clocked(partial(asked, compiled))
            for name, other in others.items():
                other.take(feeds)
                sides[name] = other.seconds
            count = max(2, round(effort * TURNS[shape[0] * shape[1]]))
            # Two at a time: between two turns of one side, nothing but the other has used the caches.
            for pair in PAIRS:
                for name, times in turns({name: sides[name] for name in pair}, count).items():
                    found[shape][pair][name] += times
                    if (shape, pair, name) == ((8, 128), ("levi", "bare"), "levi"):
                        useful = flops(np.full(shape[0], shape[1])) / median(times)
                        shares.append((useful, measure_peak(1)))
        print("sessions made", making + 1, "of", MAKINGS, "times", flush=True)
    os.sched_setaffinity(0, cores)
    line = share_of_peak("LEVI at (8, 128), one thread: useful operations", shares, 0.88)
    return [*bars(found), line], found


def share_of_peak(what: str, shares: Sequence[tuple[float, Peak]], bar: float) -> Line:
    """Useful operations a second over the machine's own rate of matrix products, each measured beside the other."""
    found = [useful / rate.products for useful, rate in shares]
    rates, by = [rate.products / 1e9 for _, rate in shares], ", ".join(sorted({rate.by for _, rate in shares}))
    return Line(
        what,
        f"the machine's SGEMM peak, measured in turns, {min(rates):.0f} to {max(rates):.0f} GFLOP/s ({by})",
        f"≥ {bar:.0%}".replace("%", " %"),
        f"{median(found):.1%} [{min(found):.1%}, {max(found):.1%}]",
        median(found) >= bar,
    )


def bars(found: dict[Any, Any]) -> list[Line]:
    lines = []

    def compare(
        what: str, against: str, own: str, other: str, least: Sequence[float | None], *, most: bool = False
    ) -> None:
        cells, met = [], []
        for shape, bar in zip(SHAPES, least, strict=True):
            pair = found[shape][own, other]
            own_s, other_s = pair[own], pair[other]
            pairs = ratio(other_s, own_s) if most else ratio(own_s, other_s)
            cells.append(f"{pairs['median']:.3f} [{pairs['low']:.3f}, {pairs['high']:.3f}]")
            if bar is not None:
                met.append(pairs["median"] <= bar if most else pairs["median"] >= bar)
            else:
                cells[-1] = f"({cells[-1]})"
        bars = [("≤ " if most else "≥ ") + f"{bar:g}" if bar else "–" for bar in least]
        stated = bars[0] if len(set(bars)) == 1 else ", ".join(bars)
        lines.append(Line(what, against, stated + " ×", "; ".join(cells), all(met)))

    compare("LEVI, attention pooling: time", "the bare backbone", "levi", "bare", [1.05] * 4, most=True)
    compare("LEVI, ladder: time", "the bare backbone", "ladder", "bare", [None, 1.10, 1.10, None], most=True)
    compare("LEVI, mean pooling: time", "the bare backbone", "mean", "bare", [1.02] * 4, most=True)
    compare("LEVI: speed", "the same model in torch", "levi", "torch", [2.0, 1.4, 1.2, 1.15])
    compare("LEVI: speed", "torch.compile, warm, a graph a shape", "levi", "torch-compile", [1.3, 1, 1, 1])
    compare("LEVI: speed", "OpenVINO, the traced graph, f32", "levi", "openvino", [0.97] * 4)
    compare("LEVI int8: speed", "OpenVINO as it likes, the traced fp32 graph", "int8", "openvino-default", [1.2] * 4)
    compare("LEVI int8: speed", "our fp32", "int8", "levi", [None, 2.4, 2.4, None])
    compare("first-token pooling, cut: speed", "the same, not cut", "cut", "uncut", [None, None, 1.12, None])
    return lines


def quality(bundle: Path) -> Line:
    """What int8 keeps of fp32's predictions and accuracy, on all ID test rows."""
    table = pq.read_table(data_file())
    table = table.filter(pc.equal(table["split"], "id_test"))
    texts, targets = table["text"].to_pylist(), np.asarray([str(label) for label in table["label"].to_pylist()])
    fp32, int8 = (
        Runner(bundle, scenario="offline", precision=precision).predict(texts).labels for precision in ("fp32", "int8")
    )
    agreement = float((fp32 == int8).mean())
    drop = 100 * float((fp32 == targets).mean() - (int8 == targets).mean())
    return Line(
        "LEVI int8: agreement; accuracy lost",
        f"our fp32, {len(texts):,} ID test rows",
        "≥ .97; ≤ 0.5 points",
        f"{agreement:.3f}; {drop:.2f} points",
        agreement >= 0.97 and drop <= 0.5,
    )
