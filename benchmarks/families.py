"""One row a family and branch, each really trained, exported, proven and run: writes docs/families.md.

    python benchmarks/families.py [--all]

A tiny backbone with random weights of each family (``tests/families.py``, the table that the tests use too) with its
default branch, and every branch on BERT, T5, Llama and ViT; with ``--all`` every fitting pair. Then a table, a graph
and several branches at once, and the two real backbones: all-MiniLM-L6-v2, and MobileNetV2 from the folder in LEVI_DATA
(default ../shared/data). What fails is a row that says why.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from families import CAUSAL, FAMILIES, IMAGES, write
from words import FILLER, WORDS

from levi_deploy.config import Config
from levi_deploy.demo.steps import find_backbone
from levi_deploy.training import train
from levi_export import export
from levi_serving import Runner
from levi_serving.bundle import read_certificate
from levi_serving.environment import environment

PAGE = Path(__file__).parents[1] / "docs" / "families.md"
TEXT_BRANCHES = ("mlp", "cnn", "gru", "transformer")
EVERY_BRANCH = ("bert", "t5", "llama", "vit")
TABLE = {"numeric": ("price",), "categorical": ("shop",)}
SEVERAL: list[tuple[str, tuple[str, ...], dict[str, Any]]] = [
    ("bert", ("tabular",), TABLE),
    ("bert", ("graph",), {"nodes": ("user", "item")}),
    ("bert", ("mlp", "tabular"), TABLE),
    ("bert", ("mlp", "tabular", "graph"), {**TABLE, "nodes": ("user", "item")}),
    ("vit", ("cnn", "tabular"), TABLE),
]
BATCH, ROWS, TOKENS = 8, 120, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="every text branch on every text family")
    options = parser.parse_args()
    vision = Path(os.environ.get("LEVI_DATA", "../shared/data")) / "backbones" / "mobilenet_v2"
    if not vision.is_dir():
        sys.exit(f"There is no {vision}. Set LEVI_DATA to the folder that holds backbones/.")
    about, rows = environment(), []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = write_rows(work)
        for family, branches, columns in pairs(every=options.all):
            backbone = work / "backbones" / family.replace(" ", "-")
            if not backbone.exists():
                side = "left" if family in CAUSAL else "right"
                write(family, backbone, tokenizer=family not in IMAGES, padding_side=side)
            rows.append(row(family, backbone, branches, columns, data, work, image=family in IMAGES))
        rows.append(row("all-MiniLM-L6-v2, real", Path(find_backbone()), ("mlp",), {}, data, work, image=False))
        rows.append(row("MobileNetV2, real", vision, ("cnn",), {}, data, work, image=True))
    PAGE.write_text(page(about, rows, " --all" if options.all else ""), encoding="utf-8")
    sys.exit(any("| fails, " in line for line in rows))


def pairs(*, every: bool) -> list[tuple[str, tuple[str, ...], dict[str, Any]]]:
    """Families, branches, and the columns that these read beside the text or image."""
    found: list[tuple[str, tuple[str, ...], dict[str, Any]]] = []
    for family in FAMILIES:
        fitting = ("cnn",) if family in IMAGES else TEXT_BRANCHES
        found += [(family, (branch,), {}) for branch in fitting[: None if every or family in EVERY_BRANCH else 1]]
        found += [one for one in SEVERAL if one[0] == family]
    return found


def write_rows(work: Path) -> Path:
    """A generated table: texts whose words tell the label, images whose brightness does, further columns."""
    draw = np.random.default_rng(0)
    with (work / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "image", "label", "price", "shop", "user", "item"])
        for n in range(ROWS):
            label = ("negative", "positive")[n % 2]
            words = [*draw.choice(FILLER, draw.integers(2, TOKENS)), *draw.choice(WORDS[label], 2)]
            pixels = draw.integers(0, 128, (*draw.integers(24, 64, 2), 3)) + 100 * (n % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(work / f"{n}.png")
            further = [n % 7, ("north", "south", "east")[n % 3], f"u{n % 11}", f"i{n % 17}"]
            writer.writerow([" ".join(words), f"{n}.png", label, *further])
    return work / "rows.csv"


def row(
    name: str,
    backbone: Path,
    branches: tuple[str, ...],
    columns: dict[str, Any],
    data: Path,
    work: Path,
    *,
    image: bool,
) -> str:
    """One line of the table, by the functions behind levi train, levi export and levi predict."""
    cells = f"| {name} | {' + '.join(branches)} | "
    tiny = {"image_size": 32} if image and name in FAMILIES else {}
    config = Config.read(
        None,
        model={"backbone": str(backbone), "taps": 2, "branches": branches, "max_length": 32, **tiny},
        training={"epochs": 5, "learning_rate": 0.01, "batch_size": 32},
        data={"image" if image else "text": "image" if image else "text", **columns},
    )
    try:
        run = train(data, work / "run", config, overwrite=True, cache=work / "cache")
        started = time.perf_counter()
        bundle = export(run.folder, work / "bundle", overwrite=True)
        export_s = time.perf_counter() - started
        batch_ms, length = timed(bundle.folder, run.samples)
    except Exception as error:
        traceback.print_exc()
        return f"{cells}fails, {type(error).__name__}: {str(error).splitlines()[0]} | | | | | |"
    model, certificate = bundle.manifest.model, read_certificate(bundle.folder, bundle.graph("fp32").file)
    numbers = [
        f"{model['parameters']['trained']:,}",
        f"{model['parameters']['backbone']:,}",
        str(model["nodes"]),
        f"{certificate['worst_scaled_error']:.1e}",
        f"{export_s:.1f}",
        f"{batch_ms:.2f} ({length})",
    ]
    line = cells + " | ".join(numbers) + " |"
    print(line, flush=True)
    return line


def timed(bundle: Path, samples: list[dict[str, Any]]) -> tuple[float, str]:
    """Milliseconds of one batch in the graph, the median of 21, and what a row of it was."""
    runner = Runner(bundle, device="cpu")
    prepared = runner.prepare((samples * BATCH)[:BATCH])
    feeds = prepared.batch(np.arange(BATCH))
    times = []
    for _ in range(21):
        started = time.perf_counter()
        runner.session.run(feeds)
        times.append(1000 * (time.perf_counter() - started))
    if "pixel_values" in feeds:
        height, width = feeds["pixel_values"].shape[2:]
        return median(times), f"{height} x {width} pixels"
    return median(times), f"{feeds['input_ids'].shape[1]} tokens" if "input_ids" in feeds else "columns"


def page(about: dict[str, Any], rows: list[str], asked: str) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = "\n".join(rows)
    return f"""# Every family, every branch

Written by `python benchmarks/families.py{asked}`; nothing here was typed in.

Machine: {about["cpu"]}, {about["usable_cores"]} cores, {", ".join(about["instruction_sets"])},
{about["memory_gib"]} GiB, load average {about["load_average"]} when it began. Python {about["python"]},
{versions}.

Each row is a model that was trained for five epochs on {ROWS} generated rows, exported, and proven: `levi train`,
`levi export`, and a batch of {BATCH} rows through the runner. The backbones are tiny, with random weights from their
family's own configuration, but for the last two, which are real. The certificate's error is the largest of any logit
over all golden rows and shapes, as a share of the logits' spread; at most 1e-04 is allowed. Decoders are padded on the
left. Trained and frozen are parameters, nodes those of the graph; the batch is timed in the graph alone, the median of
21 runs.

| family | branch | trained | frozen | nodes | certificate error | export, s | batch, ms |
|---|---|---|---|---|---|---|---|
{lines}
"""


if __name__ == "__main__":
    main()
