"""What serving costs beside the graph itself: import time, batch budget, and memory over file size.

    python benchmarks/speed/predict.py BUNDLE [--rows 1000000] [--rounds 7]

Prints markdown tables. Fresh processes and budgets are measured in turns.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from levi_serving import Runner
from levi_serving.bench.stats import ratio
from levi_serving.bundle import GOLDEN
from levi_serving.environment import environment
from levi_serving.parity import Golden

IMPORTS = ["pass", "import numpy, tokenizers", "import levi_serving"]
BUDGETS = [256, 512, 1024, 2048, 4096, 8192]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    about = environment()
    print(f"{about['cpu']}, {about['usable_cores']} cores, Python {about['python']}, {about['versions']}\n")
    print("| fresh process | s, median | fastest | slowest |\n|---|---|---|---|")
    for code, times in zip(IMPORTS, imports(options.rounds), strict=True):
        print(f"| `{code}` | {median(times):.3f} | {min(times):.3f} | {max(times):.3f} |")
    print("\n| max_batch_tokens | time of 4096 ÷ its time, the bundle's own rows |\n|---|---|")
    for budget, found in budgets(options.bundle, options.rounds).items():
        print(f"| {budget} | {found['median']:.3f} × [{found['low']:.3f}, {found['high']:.3f}] |")
    print("\n| rows predicted, file to file | peak memory, MiB | rows/s |\n|---|---|---|")
    for count in (options.rows // 100, options.rows):
        peak, seconds = memory(options.bundle, count)
        print(f"| {count:,} | {peak / 2**20:.0f} | {count / seconds:.0f} |")


def imports(rounds: int) -> list[list[float]]:
    found: list[list[float]] = [[] for _ in IMPORTS]
    for _ in range(rounds + 1):
        for code, times in zip(IMPORTS, found, strict=True):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - started)
    return [times[1:] for times in found]  # the first fills the disk cache


def budgets(bundle: Path, rounds: int) -> dict[int, dict[str, float]]:
    runners = {budget: Runner(bundle, device="cpu", max_batch_tokens=budget) for budget in BUDGETS}
    one = runners[4096]
    rows = list(Golden.load(one.bundle.folder / GOLDEN, one.preprocessor.settings).rows) * 4
    encoded = one.prepare(rows)
    found: dict[int, list[float]] = {budget: [] for budget in BUDGETS}
    for _ in range(rounds + 1):
        for budget, runner in runners.items():
            started = time.perf_counter()
            runner.run(encoded)
            found[budget].append(time.perf_counter() - started)
    return {budget: ratio(times[1:], found[4096][1:]) for budget, times in found.items()}


def memory(bundle: Path, count: int) -> tuple[int, float]:
    """Peak resident memory in bytes and seconds of ``levi predict`` on generated rows of one to six words."""
    draw = random.Random(0)
    words = ["good", "bad", "kettle", "lamp", "tent", "broke", "works", "lovely", "poor", "value", "solid"]
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "rows.csv"
        with source.open("w") as file:
            file.write("text\n")
            file.writelines(" ".join(draw.choices(words, k=draw.randint(1, 6))) + "\n" for _ in range(count))
        program = Path(sys.executable).with_name("levi")
        command = [str(program), "predict", str(bundle), str(source), "-o", str(source.with_suffix(".out.csv"))]
        started, peak = time.perf_counter(), 0
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            status = Path(f"/proc/{process.pid}/status")
            while process.poll() is None:
                for line in status.read_text().splitlines():
                    if line.startswith("VmHWM"):
                        peak = max(peak, int(line.split()[1]) * 1024)
                time.sleep(0.05)
        if process.returncode:
            sys.exit(f"levi predict ended with {process.returncode}")
        return peak, time.perf_counter() - started


if __name__ == "__main__":
    main()
