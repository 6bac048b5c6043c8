"""What keeping a session's buffers saves in time and costs in memory: writes docs/memory.md.

    python benchmarks/speed/memory.py BUNDLE [--turns 15] [-o docs/memory.md]

Three sessions on the bundle's graph, one thread, measured in turns: buffers returned to the system after each run,
kept, and kept with a plan of buffers for each shape. Page faults are the process's own count. Memory in fresh
processes: after 150 shapes of at most 1024 padded tokens, after one batch of 8192, and after ten small ones more.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime

from levi_serving.bench.stats import ratio
from levi_serving.bundle import Bundle
from levi_serving.engine.cpu import SLOWER
from levi_serving.environment import environment

FORMS = {  # arena, plan of buffers, memory of a large batch given back
    "returned after each run": (False, False, False),
    "kept": (True, False, False),
    "kept, a plan for each shape": (True, True, False),
    "kept, a large batch's given back": (True, False, True),
}
SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))


def session(path: str, form: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_cpu_mem_arena, options.enable_mem_pattern, _ = FORMS[form]
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(path, options, providers=providers, disabled_optimizers=list(SLOWER))


def feeds(draw: np.random.Generator, rows: int, tokens: int) -> dict[str, np.ndarray]:
    return {
        "input_ids": draw.integers(5, 1000, (rows, tokens)),
        "attention_mask": np.ones((rows, tokens), dtype=np.int64),
    }


def resident() -> int:
    """MiB that the process holds now."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) // 1024


def held(path: str, form: str) -> None:
    """Print what a fresh process holds."""
    one, draw = session(path, form), np.random.default_rng(0)
    options = onnxruntime.RunOptions()
    if FORMS[form][2]:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def small(count: int) -> int:
        for _ in range(count):
            tokens = int(draw.integers(3, 257))
            one.run(None, feeds(draw, max(1, 1024 // tokens), tokens))
        return resident()

    first = small(150)
    one.run(None, feeds(draw, 32, 256), options)
    print(first, resident(), small(10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/memory.md"))
    parser.add_argument("--held", help=argparse.SUPPRESS)
    options = parser.parse_args()
    path = str(options.bundle / Bundle.read(options.bundle).graph("fp32").file)
    if options.held:
        held(path, options.held)
        return
    about = environment()
    lines = [
        "# A session's memory",
        "",
        f"Written by `python benchmarks/speed/memory.py BUNDLE --turns {options.turns}`; nothing here was typed in.",
        "",
        f"{about['cpu']}, {about['usable_cores']} cores, load {about['load_average']}; Python {about['python']}, "
        f"onnxruntime {onnxruntime.__version__}, memory from {about['allocator']}. One thread.",
        "",
        "Each form's time, and how many times faster than buffers that are returned (median of the turns' ratios, 95 %",
        "interval); page faults of a run.",
        "",
        "| buffers | " + " | ".join(map(str, SHAPES)) + " |",
        "|---|" + "---|" * len(SHAPES),
    ]
    forms = list(FORMS)[:3]
    sessions, draw = {form: session(path, form) for form in forms}, np.random.default_rng(0)
    cells: dict[str, list[str]] = {form: [] for form in forms}
    for shape in SHAPES:
        given = feeds(draw, *shape)
        times: dict[str, list[float]] = {form: [] for form in forms}
        faults: dict[str, list[int]] = {form: [] for form in forms}
        for turn in range(options.turns + 2):
            for form, one in sessions.items():
                before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
                one.run(None, given)
                if turn > 1:
                    times[form].append(time.perf_counter() - started)
                    faults[form].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        for form in forms:
            found = ratio(times[form], times[forms[0]])
            gain = f", {found['median']:.2f} × [{found['low']:.2f}, {found['high']:.2f}]" if form != forms[0] else ""
            cells[form].append(f"{1000 * median(times[form]):.1f} ms{gain}; {median(faults[form]):.0f} faults")
    lines += [f"| {form} | " + " | ".join(row) + " |" for form, row in cells.items()]
    lines += [
        "",
        "MiB held by a process:",
        "",
        "| buffers | after 150 shapes | after 8192 tokens | then |",
        "|---|---|---|---|",
    ]
    for form in FORMS:
        command = [sys.executable, __file__, str(options.bundle), "--held", form]
        mib = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        lines.append(f"| {form} | " + " | ".join(mib) + " |")
    options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
