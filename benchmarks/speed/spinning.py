"""What it saves and costs that a session's threads look for work before they sleep: writes docs/spinning.md.

    python benchmarks/speed/spinning.py BUNDLE [--turns 15] [-o docs/spinning.md]

The graph that the runner takes, on all usable cores, one query at a time: back to back, and with a pause after each, as
a service has between requests. Each way of waiting has its blocks of queries in turns with the others, a rest before
each so that no thread of the block before is still looking. A block's time is the median of its queries' times, and its
CPU time the process's own, pauses included.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnxruntime

from levi_serving.bench.stats import ratio
from levi_serving.bundle import Bundle
from levi_serving.engine.cpu import SLOWER, SPIN_US
from levi_serving.environment import environment, usable_cores

WAYS: dict[str, dict[str, str]] = {
    "sleep at once": {"session.intra_op.allow_spinning": "0"},
    **{
        f"{us} us{', as served' if us == SPIN_US else ''}": {"session.intra_op.spin_duration_us": us}
        for us in ("50", "200", "1000")
    },
    "onnxruntime's own default": {},
}
ONE = "one thread, which waits for none"
SHAPES = ((1, 32), (1, 128))
PAUSES = (0.0, 0.005, 0.02)  # seconds
QUERIES = {0.0: 30, 0.005: 20, 0.02: 12}
REST = 0.1


def session(path: Path, threads: int, entries: dict[str, str]) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    return onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"], disabled_optimizers=list(SLOWER))


def block(one: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray], pause: float) -> tuple[float, float]:
    """Milliseconds of a query, and of the process's CPU time for it."""
    time.sleep(REST)
    one.run(None, feeds)
    times = []
    cpu = time.process_time()
    for _ in range(QUERIES[pause]):
        started = time.perf_counter()
        one.run(None, feeds)
        times.append(1000 * (time.perf_counter() - started))
        if pause:
            time.sleep(pause)
    return median(times), 1000 * (time.process_time() - cpu) / len(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/spinning.md"))
    options = parser.parse_args()
    cores, path = usable_cores(), options.bundle / Bundle.read(options.bundle).graph("fp32").file
    sessions = {way: session(path, cores, entries) for way, entries in WAYS.items()}
    sessions[ONE] = session(path, 1, {})
    draw, about = np.random.default_rng(0), environment()
    found: dict[Any, dict[str, list[tuple[float, float]]]] = {}
    for shape in SHAPES:
        feeds = {"input_ids": draw.integers(5, 1000, shape), "attention_mask": np.ones(shape, dtype=np.int64)}
        for pause in PAUSES:
            blocks = found[shape, pause] = defaultdict(list)
            for turn in range(options.turns + 1):
                names = list(sessions)
                for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
                    measured = block(sessions[name], feeds, pause)
                    if turn:
                        blocks[name].append(measured)
            print(shape, pause, {name: median(ms for ms, _ in values) for name, values in blocks.items()}, flush=True)
    text = page(about, cores, options.turns, found)
    options.output.write_text(text, encoding="utf-8")
    print(text)


def page(about: dict[str, Any], cores: int, turns: int, found: dict[Any, dict[str, list[tuple[float, float]]]]) -> str:
    first = next(iter(WAYS))
    lines = [
        "# How threads wait",
        "",
        f"Written by `python benchmarks/speed/spinning.py BUNDLE --turns {turns}`; nothing here was typed in.",
        "",
        f"{about['cpu']}, {about['usable_cores']} cores, load {about['load_average']}; {about['system']}, Python "
        f"{about['python']}, onnxruntime {about['versions']['onnxruntime']}, memory from {about['allocator']}. "
        f"{cores} threads.",
        "",
        "Between two operators a thread may look for work for a while before it sleeps; to wake it takes time. The",
        "first line has times, the others how many times faster they are (median of the turns' ratios, 95 % interval);",
        "in brackets the process's CPU time for a query, that between queries included.",
        "",
    ]
    head = [f"({b}, {t}), {f'{1000 * pause:g} ms between' if pause else 'back to back'}" for (b, t), pause in found]
    lines += ["| how long a thread looks for work | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for name in (*WAYS, ONE):
        cells = []
        for blocks in found.values():
            own, reference = ([ms for ms, _ in blocks[n]] for n in (name, first))
            gain = ratio(own, reference)
            shown = f"{gain['median']:.2f} × [{gain['low']:.2f}, {gain['high']:.2f}]"
            cpu = median(taken for _, taken in blocks[name])
            cells.append(f"{f'{median(own):.1f} ms' if name == first else shown} ({cpu:.1f} ms)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
