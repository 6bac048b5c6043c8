"""Every bar of speed in one table: LEVI beside its backbone, torch, OpenVINO and the usual ways. Writes docs/speed.md.

    python benchmarks/speed/bars.py --work FOLDER [--sentence-transformers-python PATH] [--effort 1] [-o docs/speed.md]

Trains on amazon_reviews (LEVI_DATA, default ../shared/data) with all-MiniLM-L6-v2, taps 2, 4 and 6 and an mlp branch,
once; FOLDER keeps runs and bundles. Latencies: one thread, two sides in turns in this process, as the ratio of their
times in the same turn. Files: fresh processes in turns. Rows are the data's own. Some forty minutes on two quiet
cores. PATH is the Python of an environment made by

    python -m venv st && st/bin/pip install 'sentence-transformers[onnx]' torch pyarrow
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from graph import Bare

from levi_deploy.config import Config, DataConfig, ModelConfig
from levi_deploy.demo import find_backbone
from levi_deploy.model import Backbone
from levi_deploy.training import Run, branch_alone, linear_probe, train
from levi_export import export
from levi_export.convert import convert
from levi_export.graph import clean
from levi_serving import Runner
from levi_serving.batching import plan
from levi_serving.bench import peak
from levi_serving.bench.environment import environment
from levi_serving.bench.openvino import OpenVino
from levi_serving.bench.stats import ratio
from levi_serving.session import Session

PAGE = Path(__file__).parents[2] / "docs" / "speed.md"
SHAPES = ((1, 32), (1, 128), (8, 128), (32, 128))
TURNS = {32: 120, 128: 50, 1024: 15, 4096: 6}
PAIRS = (
    ("levi", "bare"), ("mean", "bare"), ("levi", "torch"), ("levi", "torch-compile"), ("levi", "openvino"),
    ("int8", "openvino-default"), ("int8", "levi"), ("cut", "uncut"),
)  # fmt: skip
BUDGET = 1024  # padded tokens of a batch, the runner's own default
LAYERS, WIDTH, INNER = 6, 384, 1536  # of all-MiniLM-L6-v2


@dataclass(frozen=True)
class Line:
    """One row of the table: ``found`` has the median and its interval; ``met`` is None for what has no bar."""

    what: str
    against: str
    bar: str
    found: str
    met: bool | None


def data_file() -> Path:
    data = Path(os.environ.get("LEVI_DATA", "../shared/data")) / "amazon_reviews" / "reviews.parquet"
    if not data.is_file():
        sys.exit(f"There is no {data}. Set LEVI_DATA to the folder that holds amazon_reviews/.")
    return data


def models(work: Path) -> dict[str, Path]:
    """The bundles, trained and exported where they are not there yet."""
    table = work / "train.parquet"
    if not table.is_file():
        whole = pq.read_table(data_file())
        pq.write_table(whole.filter(pc.is_in(whole["split"], pa.array(["train", "id_val"]))), table)
        pq.write_table(whole.select(["text", "domain"]).slice(0, 20_000), work / "rows.parquet")
    levi = ModelConfig(backbone=find_backbone())
    configs = {
        "attention": levi,
        "mean": ModelConfig(backbone=levi.backbone, pooling="mean"),
        "first": ModelConfig(backbone=levi.backbone, pooling="first"),
        "probe": linear_probe(levi, LAYERS),
        "branch": branch_alone(levi),
    }
    bundles = {}
    for name, model in configs.items():
        bundles[name] = work / f"{name}-bundle"
        if not bundles[name].is_dir():
            run = work / f"{name}-run"
            if not (run / "run.json").is_file():
                print(f"training {name}", flush=True)
                config = Config(model=model, data=DataConfig(split_column="split"))
                train(table, run, config, cache=work / "cache", overwrite=True)
            # What int8 may lose is judged below, on more rows than an export has.
            export(run, bundles[name], precisions=("fp32", "int8") if name == "attention" else ("fp32",), max_drop=2)
    return bundles


def traced(model: Any, preprocessing: Any, path: Path) -> Path:
    """A graph as the exporter traces it, without what is done to it afterwards."""
    if not path.is_file():
        graph = convert(model.eval(), preprocessing)
        clean(graph)
        ir.save(graph, path, external_data=f"{path.name}.data")
    return path


def turns(sides: dict[str, Callable[[], object]], count: int) -> dict[str, list[float]]:
    """Seconds of each side in each turn, the order rotating; two turns warm up."""
    names, found = list(sides), {name: list[float]() for name in sides}
    for turn in range(count + 2):
        for name in (*names[turn % len(names) :], *names[: turn % len(names)]):
            started = time.perf_counter()
            sides[name]()
            if turn >= 2:
                found[name].append(time.perf_counter() - started)
    return found


def latencies(bundles: dict[str, Path], work: Path, effort: float) -> tuple[list[Line], dict[Any, Any]]:
    """All sides at all shapes, one thread each, pinned to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    torch.set_num_threads(1)
    run = Run.open(work / "attention-run")
    reference = run.reference()
    runner = Runner(bundles["attention"], threads=1, precision="fp32")
    text = runner.preprocessor
    bare = Backbone.load(find_backbone(), lambda _: (LAYERS,))
    uncut = Run.open(work / "first-run")

    def session(path: Path) -> Session:
        return Session(path, device="cpu", threads=1)

    ours = {
        "levi": runner.session,
        "mean": session(bundles["mean"] / "model.onnx"),
        "bare": session(traced(Bare(bare), run.preprocessing, work / "bare.onnx")),
        "int8": session(bundles["attention"] / "model.int8.onnx"),
        "cut": session(bundles["first"] / "model.onnx"),
        "uncut": session(traced(uncut.levi(), uncut.preprocessing, work / "uncut.onnx")),
    }
    compiled = torch.compile(reference.levi, dynamic=False)
    others = {"openvino": OpenVino(runner), "openvino-default": OpenVino(runner, exact=False)}
    rows = pq.read_table(work / "rows.parquet")["text"].to_pylist()[:64]
    found: dict[Any, Any] = {}
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
        sides: dict[str, Callable[[], object]] = {
            name: (lambda one=one, parts=parts: [one.run(part) for part in parts]) for name, one in ours.items()
        }
        sides["torch"] = lambda: asked(reference.levi)
        sides["torch-compile"] = lambda: asked(compiled)
        sides |= {
            name: (lambda one=one, feeds=feeds: one._request.infer(feeds, share_inputs=True))
            for name, one in others.items()
        }
        count = max(4, round(effort * TURNS[shape[0] * shape[1]]))
        # Two at a time: between two turns of one side, nothing but the other has used the caches.
        found[shape] = {pair: turns({name: sides[name] for name in pair}, count) for pair in PAIRS}
        print(shape, {pair: [round(1000 * median(t), 2) for t in x.values()] for pair, x in found[shape].items()})
    os.sched_setaffinity(0, cores)
    return bars(found), found


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
        bar = bars[0] if len(set(bars)) == 1 else ", ".join(bars)
        lines.append(Line(what, against, bar + " ×", "; ".join(cells), all(met)))

    compare("LEVI, attention pooling: time", "the bare backbone", "levi", "bare", [1.05] * 4, most=True)
    compare("LEVI, mean pooling: time", "the bare backbone", "mean", "bare", [1.02] * 4, most=True)
    compare("LEVI: speed", "the same model in torch", "levi", "torch", [2.0, 1.4, 1.2, 1.15])
    compare("LEVI: speed", "torch.compile, warm, a graph a shape", "levi", "torch-compile", [1.3, 1, 1, 1])
    compare("LEVI: speed", "OpenVINO, the same graph, f32", "levi", "openvino", [0.97] * 4)
    compare("LEVI int8: speed", "OpenVINO as it likes, the fp32 graph", "int8", "openvino-default", [1.2] * 4)
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


def flops(lengths: np.ndarray) -> float:
    """Operations of the backbone's matrix products for rows of these lengths; padding does not count."""
    per_token = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    return float(LAYERS * (per_token * lengths.sum() + 4 * WIDTH * (lengths.astype(np.float64) ** 2).sum()))


def peaks(found: dict[Any, Any], whole: tuple[float, float]) -> list[Line]:
    """Useful operations a second over the machine's own rate of matrix products."""
    one, both = peak.measure(1), peak.measure(2)
    seconds = median(found[8, 128]["levi", "bare"]["levi"])
    share = flops(np.full(8, 128)) / seconds / one.products
    operations, taken = whole
    files = operations / taken / both.products
    return [
        Line(
            "LEVI at (8, 128), one thread: useful operations",
            f"the machine's SGEMM peak, {one.products / 1e9:.0f} GFLOP/s ({one.by})", "≥ 88 %", f"{share:.1%}",
            share >= 0.88,
        ),
        Line(
            "`levi predict`, both cores, file to file: useful operations",
            f"the machine's SGEMM peak, {both.products / 1e9:.0f} GFLOP/s ({both.by})", "≥ 75 %", f"{files:.1%}",
            files >= 0.75,
        ),
    ]  # fmt: skip


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
    count = max(200, round(2000 * effort))
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


def overhead(bundles: dict[str, Path], work: Path, effort: float) -> tuple[Line, tuple[float, float]]:
    """``levi predict`` whole beside its own sessions on ideal batches, made before; and its useful operations."""
    whole = pq.read_table(work / "rows.parquet")
    count = max(500, round(6000 * effort))
    table, out = work / "many.parquet", work / "many.csv"
    pq.write_table(whole.take(np.linspace(0, len(whole) - 1, count).astype(int)), table)
    runner = Runner(bundles["attention"], scenario="offline", precision="fp32")
    encoded = runner.prepare(pq.read_table(table)["text"].to_pylist())
    tokens: Any = runner.describe()["max_batch_tokens"]
    ideal = [encoded.batch(rows) for rows in plan(encoded.lengths, max_tokens=tokens, max_rows=128)]
    levi = Path(sys.executable).with_name("levi")
    found: dict[str, list[float]] = {"predict": [], "ideal": []}
    for _ in range(3):
        done = timed([levi, "predict", bundles["attention"], table, "-o", out, "--overwrite", "--precision", "fp32"])
        found["predict"].append(done)
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
    return line, (flops(encoded.lengths), median(found["predict"]))


MEMORY = """
import sys
from pathlib import Path
from levi_serving import Runner, predict_file
from levi_serving.bench.environment import peak_memory
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


def page(lines: Sequence[Line], found: dict[Any, Any], command: str, load: float, seconds: float) -> str:
    about: dict[str, Any] = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    head = [
        "# The bars of speed",
        "",
        f"Written by `python benchmarks/speed/bars.py {command}`; nothing here was typed in.",
        "",
        f"Machine: {about['cpu']}, {about['usable_cores']} cores, {', '.join(about['instruction_sets'])}, "
        f"{about['memory_gib']} GiB, shared; load {load:.1f} at the start. {about['system']}, Python "
        f"{about['python']}, {versions}. It took {seconds:.0f} s.",
        "",
        "Model: all-MiniLM-L6-v2, taps 2, 4 and 6, attention pooling and an mlp branch unless said otherwise, trained",
        "on amazon_reviews. Latencies with one thread pinned to one core, two sides in turns in one process, at (1,",
        "32), (1, 128), (8, 128) and (32, 128); a number is the median of the ratios turn by turn, with its 95 %",
        "interval; in brackets where no bar is set. At (32, 128) ours are cut into four batches, as the runner cuts a",
        "query; the others take it whole. Files: two cores, nothing pinned, fresh processes in turns; there the",
        "interval is the widest that the runs allow.",
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
    line, whole = overhead(bundles, options.work, options.effort)
    lines += [*files(bundles, options.work, options.sentence_transformers_python, options.effort), line]
    lines += [*peaks(found, whole), memory(bundles, options.work, options.effort)]
    command = f"--work FOLDER --sentence-transformers-python PATH --effort {options.effort:g}"
    text = page(lines, found, command, load, time.perf_counter() - started)
    options.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
