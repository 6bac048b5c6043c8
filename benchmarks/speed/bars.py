"""Every bar of speed in one table: LEVI beside its backbone, torch, OpenVINO and the usual ways. Writes docs/speed.md.

    python benchmarks/speed/bars.py --work FOLDER [--sentence-transformers-python PATH] [--effort 1] [-o docs/speed.md]

Trains on amazon_reviews (LEVI_DATA, default ../shared/data) with all-MiniLM-L6-v2, taps 2, 4 and 6 and an mlp branch,
once; FOLDER keeps runs and bundles. Latencies: one thread, two sides in turns in this process, as the ratio of their
times in the same turn. Files: fresh processes in turns. Rows are the data's own. Some forty minutes on two quiet
cores. LD_PRELOAD is passed on to every side. PATH is the Python of an environment made by

    python -m venv st && st/bin/pip install 'sentence-transformers[onnx]' torch pyarrow
"""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bar_files import files, memory, overhead
from bar_latencies import MAKINGS, PAIRS, SHAPES, latencies, quality
from bar_models import Line, models

from levi_serving.environment import environment

PAGE = Path(__file__).parents[2] / "docs" / "speed.md"


INTRODUCTION = f"""# The bars of speed

Speed depends on the processor more than one table can show, so there is a table for each class of processor, keyed by
the instruction sets that decide how fast matrix products are. Each is written by the command that stands above it, on
a machine of that class; the others stay as they are. Nothing here was typed in.

Model: all-MiniLM-L6-v2, taps 2, 4 and 6, attention pooling and an mlp branch unless said otherwise, trained
on amazon_reviews. Latencies with one thread pinned to one core, two sides in turns in one process (OpenVINO
in its own), at (1, 32), (1, 128), (8, 128) and (32, 128); a number is the median of the ratios turn by
turn, with its 95 % interval, over sessions made {MAKINGS} times; in brackets where no bar is set. At
(32, 128) ours are cut into four batches, as the runner cuts a query; the others take it whole. Files: two
cores, nothing pinned, fresh processes in turns; there the interval is the widest that the runs allow.
"""


def section(lines: Sequence[Line], found: dict[Any, Any], command: str, load: float, seconds: float) -> str:
    """What was found on this machine, below a heading that names its class of processor."""
    about: dict[str, Any] = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = [
        heading(about["instruction_sets"]),
        "",
        f"Written by `{command}`.",
        "",
        f"Machine: {about['cpu']}, {about['usable_cores']} cores, {about['memory_gib']} GiB, shared; load {load:.1f} "
        f"at the start. {about['system']}, Python {about['python']}, {versions}; memory of every side from "
        f"{about['allocator']} ([allocators.md](allocators.md)). It took {seconds:.0f} s.",
        "",
        "| what | against | bar | found | |",
        "|---|---|---|---|---|",
    ]
    said = {True: "met", False: "**missed**", None: ""}
    body = [f"| {x.what} | {x.against} | {x.bar} | {x.found} | {said[x.met]} |" for x in lines]
    times = [
        "",
        "Milliseconds, median:",
        "",
        "| | " + " | ".join(map(str, SHAPES)) + " |",
        "|---|" + "---|" * len(SHAPES),
    ]
    for pair in PAIRS:
        cells = [" / ".join(f"{1000 * median(t):.2f}" for t in found[shape][pair].values()) for shape in SHAPES]
        times.append(f"| {' / '.join(pair)} | " + " | ".join(cells) + " |")
    return "\n".join([*head, *body, *times, ""])


def heading(instruction_sets: Sequence[str]) -> str:
    """A class of processor's heading."""
    return f"## {', '.join(instruction_sets) or 'no instruction sets known'}"


def page(before: str, own: str) -> str:
    """The page with this class of processor's section in place of its former one, or at the end."""
    sections = {
        part.partition("\n")[0]: part.rstrip() for part in re.split(r"^(?=## )", before, flags=re.MULTILINE)[1:]
    }
    sections[own.partition("\n")[0]] = own.rstrip()
    return "\n\n".join([INTRODUCTION.rstrip(), *sections.values()]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for runs and bundles, kept")
    parser.add_argument("--sentence-transformers-python", type=Path)
    parser.add_argument("--effort", type=float, default=1.0, help="turns and rows, as a share of the usual numbers")
    parser.add_argument("-o", "--output", type=Path, default=PAGE)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    bundles = models(options.work)
    started, load = time.perf_counter(), os.getloadavg()[0]
    lines, found = latencies(bundles, options.work, options.effort)
    lines.append(quality(bundles["attention"]))
    lines += files(bundles, options.work, options.sentence_transformers_python, options.effort)
    lines += overhead(bundles, options.work, options.effort)
    lines.append(memory(bundles, options.work, options.effort))
    preloaded = f"LD_PRELOAD={Path(library).name} " if (library := os.environ.get("LD_PRELOAD")) else ""
    command = f"{preloaded}python benchmarks/speed/bars.py --work FOLDER --sentence-transformers-python PATH"
    command += f" --effort {options.effort:g}"
    own = section(lines, found, command, load, time.perf_counter() - started)
    before = options.output.read_text(encoding="utf-8") if options.output.is_file() else ""
    options.output.write_text(page(before, own), encoding="utf-8")
    print(own)


if __name__ == "__main__":
    main()
