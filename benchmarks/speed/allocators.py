"""What the process's memory allocator costs or saves: writes docs/allocators.md.

    python benchmarks/speed/allocators.py BUNDLE ROWS [--turns 5] [-o docs/allocators.md]

onnxruntime asks the allocator for large regions and places its buffers in them at multiples of 256 bytes. glibc maps
such a region and begins 64 bytes into its first page, so no buffer begins on a pair of cache lines (128 bytes);
mimalloc and tcmalloc begin on a page. A turn runs each allocator in fresh processes, one after another: one
thread pinned to one core for the shapes, all cores for ``levi predict``. ROWS are for the latter. The allocators are
preloaded where the system has them (Debian: libmimalloc2.0, libtcmalloc-minimal4, libjemalloc2).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from ctypes.util import find_library
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from levi_serving.bench.stats import ratio
from levi_serving.bundle import Bundle
from levi_serving.engine.session import Session
from levi_serving.environment import environment

SHAPES = ((1, 32), (1, 128), (8, 128))
LIBRARIES = ("mimalloc", "tcmalloc_minimal", "jemalloc")


def timed(bundle: Path) -> None:
    """Print the median milliseconds of each graph and shape, and how far past 128 bytes an answer begins."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    draw, found = np.random.default_rng(0), {}
    opened = Bundle.read(bundle)
    for precision in dict.fromkeys(graph.precision for graph in opened.manifest.graphs):
        graph = opened.graph(precision)
        session = Session(bundle / graph.file, device="cpu", threads=1, precision=graph.precision)
        for rows, tokens in SHAPES:
            feeds = {
                "input_ids": draw.integers(5, 1000, (rows, tokens)),
                "attention_mask": np.ones((rows, tokens), dtype=np.int64),
            }
            times: list[float] = []
            began = time.perf_counter()
            while time.perf_counter() - began < 1.5 or len(times) < 8:
                started = time.perf_counter()
                session.run(feeds)
                times.append(1000 * (time.perf_counter() - started))
            found[f"{graph.precision}, ({rows}, {tokens})"] = median(times[2:])
    print(json.dumps(found))


def begins(bundle: Path) -> None:
    """Print how far past a multiple of 128 bytes the session's buffers begin."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        str(bundle / Bundle.read(bundle).graph("fp32").file), providers=["CPUExecutionProvider"]
    )
    feeds = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ones((8, 128), dtype=np.int64))
        for name in ("input_ids", "attention_mask")
    }
    print(session.run_with_ort_values(["logits"], feeds)[0].data_ptr() % 128)


def child(variables: dict[str, str], *command: str) -> str:
    given = {**os.environ, **variables}
    return subprocess.run(command, env=given, capture_output=True, text=True, check=True).stdout


def measure(bundle: Path, rows: Path, variables: dict[str, str]) -> dict[str, float]:
    """Seconds of ``levi predict``, milliseconds of each shape."""
    found: dict[str, float] = json.loads(child(variables, sys.executable, __file__, str(bundle), "timed"))
    with tempfile.TemporaryDirectory() as folder:
        levi = str(Path(sys.executable).with_name("levi"))
        report = json.loads(
            child(variables, levi, "predict", str(bundle), str(rows), "-o", f"{folder}/o.csv", "--json")
        )
    return found | {"levi predict": report["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("rows")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/allocators.md"))
    options = parser.parse_args()
    if options.rows in ("timed", "begins"):
        (timed if options.rows == "timed" else begins)(options.bundle)
        return
    settings: dict[str, dict[str, str]] = {
        "glibc": {},
        "glibc, nothing mapped": {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=1073741824"},
    } | {name: {"LD_PRELOAD": library} for name in LIBRARIES if (library := find_library(name))}
    found: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in settings}
    for _ in range(options.turns):
        for name, variables in settings.items():
            for what, value in measure(options.bundle, Path(options.rows), variables).items():
                found[name][what].append(value)
            print(name, {what: round(values[-1], 2) for what, values in found[name].items()}, flush=True)
    offsets = {
        name: child(variables, sys.executable, __file__, str(options.bundle), "begins").strip()
        for name, variables in settings.items()
    }
    text = page(environment(), options.turns, found, offsets)
    options.output.write_text(text, encoding="utf-8")
    print(text)


def page(about: dict[str, Any], turns: int, found: dict[str, dict[str, list[float]]], offsets: dict[str, str]) -> str:
    columns = list(found["glibc"])
    lines = [
        "# The memory allocator",
        "",
        f"Written by `python benchmarks/speed/allocators.py BUNDLE ROWS --turns {turns}`; nothing here was typed in.",
        "",
        f"{about['cpu']}, {about['usable_cores']} cores, load {about['load_average']}; {about['system']}, Python "
        f"{about['python']}, onnxruntime {about['versions']['onnxruntime']}. Shapes with one thread on one core, "
        "`levi predict` on all cores.",
        "",
        "onnxruntime places its buffers at multiples of 256 bytes in regions that the allocator gives it. glibc maps a",
        "large region, and it begins 64 bytes into a page, so every buffer straddles the pairs of cache lines in which",
        "it is read and written. From its heap (nothing mapped) a region begins so or well, as chance has it. That",
        "this is the cause follows from no column here; the second one says where one answer's buffer lay.",
        "",
        "The first line has times, the others how many times faster than it (median of the turns' ratios, and the",
        "widest interval the turns allow).",
        "",
        "| allocator | where a buffer began, bytes past a multiple of 128 | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, values in found.items():
        cells = []
        for what in columns:
            if name == "glibc":
                cells.append(f"{median(values[what]):.1f} {'s' if what == 'levi predict' else 'ms'}")
                continue
            gain = ratio(values[what], found["glibc"][what])
            cells.append(f"{gain['median']:.2f} × [{gain['low']:.2f}, {gain['high']:.2f}]")
        lines.append(f"| {name} | {offsets[name]} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
