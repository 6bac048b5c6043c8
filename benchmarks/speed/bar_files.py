"""From file to file, for bars.py: fresh processes in turns, and their memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow.parquet as pq
from bar_latencies import share_of_peak
from bar_models import Line, flops

from levi_deploy.demo.steps import find_backbone
from levi_serving import Runner
from levi_serving.bench.breakdown import measure_peak
from levi_serving.bench.stats import ratio
from levi_serving.engine.batching import plan


def timed(command: Sequence[object]) -> float:
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))[:200]} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return time.perf_counter() - started


PIPELINE = """
import csv, sys, torch
import pyarrow.parquet as pq
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline
torch.set_num_threads(2)
source, rows, output = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(source, num_labels=2)
ask = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(source), batch_size=32)
texts = pq.read_table(rows)["text"].to_pylist()
with open(output, "w", newline="") as file:
    out = csv.writer(file)
    for text, answer in zip(texts, ask(texts, truncation=True, max_length=256), strict=True):
        out.writerow([text, answer["label"], answer["score"]])
"""

ENCODER = """
import csv, sys
import numpy as np, pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer
source, rows, output = sys.argv[1:]
model = SentenceTransformer(source, backend="onnx", local_files_only=True,
                            model_kwargs={"provider": "CPUExecutionProvider"})
texts = pq.read_table(rows)["text"].to_pylist()
heads = np.random.default_rng(0).standard_normal((3, 384, 2)).astype("float32")
logits = np.einsum("nd,kdc->nc", model.encode(texts, batch_size=32), heads) / 3
with open(output, "w", newline="") as file:
    csv.writer(file).writerows([text, int(one.argmax())] for text, one in zip(texts, logits))
"""


def files(bundles: dict[str, Path], work: Path, sentence_transformers: Path | None, effort: float) -> list[Line]:
    """From file to file in fresh processes, ours beside the usual ways, in turns; all on the same rows."""
    count = max(200, round(4000 * effort))
    rows = work / "few.parquet"
    # Every tenth row: as mixed as the whole file.
    whole = pq.read_table(work / "rows.parquet")
    pq.write_table(whole.take(np.linspace(0, len(whole) - 1, count).astype(int)), rows)
    levi, out = Path(sys.executable).with_name("levi"), work / "out.csv"

    def ours(bundle: str) -> float:
        return timed([levi, "predict", bundles[bundle], rows, "-o", out, "--overwrite", "--precision", "fp32"])

    sides: dict[str, Callable[[], float]] = {
        "levi": lambda: ours("attention"),
        "pipeline": lambda: timed([sys.executable, "-c", PIPELINE, find_backbone(), rows, out]),
        "models": lambda: 3 * ours("probe") + ours("branch"),
    }
    if sentence_transformers is not None:
        sides["encoder"] = lambda: timed([sentence_transformers, "-c", ENCODER, find_backbone(), rows, out])
    found = {name: list[float]() for name in sides}
    for _ in range(3):
        for name, side in sides.items():
            found[name].append(side())
            print(name, f"{count / found[name][-1]:.1f} rows/s", flush=True)
    named = {
        "pipeline": ("transformers' pipeline, batch 32, torch", 3.0),
        "encoder": ("sentence-transformers' onnx backend, batch 32, and heads", 1.2),
        "models": ("K + 1 models: three backbones with a head each, one after another, and the branch", 3.5),
    }
    lines = []
    for name, (against, bar) in named.items():
        if name in found:
            pairs = ratio(found["levi"], found[name])
            text = f"{pairs['median']:.2f} [{min(found[name]) / max(found['levi']):.2f}, "
            text += f"{max(found[name]) / min(found['levi']):.2f}], {count:,} rows"
            lines.append(Line("`levi predict`, cold: rows/s", against, f"≥ {bar:g} ×", text, pairs["median"] >= bar))
        else:
            lines.append(Line("`levi predict`, cold: rows/s", against, f"≥ {bar:g} ×", "not measured", None))
    return lines


def overhead(bundles: dict[str, Path], work: Path, effort: float) -> list[Line]:
    """``levi predict`` whole beside its own sessions on ideal batches, made before; and its useful operations."""
    whole = pq.read_table(work / "rows.parquet")
    count = max(500, round(20_000 * effort))
    table, out = work / "many.parquet", work / "many.csv"
    pq.write_table(whole.take(np.linspace(0, len(whole) - 1, count).astype(int)), table)
    runner = Runner(bundles["attention"], scenario="offline", precision="fp32")
    encoded = runner.prepare(pq.read_table(table)["text"].to_pylist())
    ideal = [encoded.batch(rows) for rows in plan(encoded.costs, runner.limits)]
    levi = Path(sys.executable).with_name("levi")
    found: dict[str, list[float]] = {"predict": [], "ideal": []}
    shares = []
    for _ in range(3):
        rate = measure_peak(2)
        done = timed([levi, "predict", bundles["attention"], table, "-o", out, "--overwrite", "--precision", "fp32"])
        found["predict"].append(done)
        shares.append((flops(encoded.costs) / done, rate))
        started = time.perf_counter()
        assert runner._pool is not None
        list(runner._pool.map(runner.session.run, ideal))
        found["ideal"].append(time.perf_counter() - started)
        print({name: f"{count / times[-1]:.1f} rows/s" for name, times in found.items()}, flush=True)
    pairs = [b / a for a, b in zip(found["predict"], found["ideal"], strict=True)]
    share = median(pairs)
    line = Line(
        f"`levi predict`, cold, {count:,} rows: rows/s",
        "its own sessions on ideal batches of the same rows, made before",
        "≥ 95 %",
        f"{share:.1%} [{min(pairs):.1%}, {max(pairs):.1%}]",
        share >= 0.95,
    )
    return [line, share_of_peak("`levi predict`, both cores, file to file: useful operations", shares, 0.75)]


MEMORY = """
import sys
from pathlib import Path
from levi_serving import Runner, predict_file
from levi_serving.environment import peak_memory
predict_file(Runner(sys.argv[1], scenario="offline"), Path(sys.argv[2]), Path(sys.argv[3]), overwrite=True)
print(peak_memory())
"""


def memory(bundles: dict[str, Path], work: Path, effort: float) -> Line:
    """Peak memory of a small and a large file; the branch alone answers, since the model does not matter here."""
    counts = (10_000, max(50_000, round(1_000_000 * min(1.0, effort))))
    texts = [text[:200] for text in pq.read_table(work / "rows.parquet")["text"].to_pylist()]
    peaks = []
    for count in counts:
        table = work / f"{count}.csv"
        with table.open("w", encoding="utf-8") as file:
            file.write("text\n")
            for n in range(count):
                file.write('"' + texts[n % len(texts)].replace('"', '""') + '"\n')
        command = [sys.executable, "-c", MEMORY, bundles["branch"], table, work / "memory.csv"]
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
        table.unlink()
        (work / "memory.csv").unlink()
        print(count, f"{peaks[-1] / 2**20:.0f} MiB", flush=True)
    grown = peaks[1] / peaks[0]
    found = f"{grown:.3f} ({peaks[0] / 2**20:.0f} and {peaks[1] / 2**20:.0f} MiB; the branch alone answers)"
    return Line(
        f"peak memory of `levi predict`, {counts[1]:,} rows", f"{counts[0]:,} rows", "≤ 1.1 ×", found, grown <= 1.1
    )
