"""The whole path on real reviews, and LEVI beside its baselines: writes docs/amazon_reviews.md.

    python benchmarks/ood/amazon_reviews.py [--seeds 3] [--work FOLDER]

Reads ``amazon_reviews/reviews.parquet`` from the folder in LEVI_DATA (default ../shared/data). Trains on ``train``
(media reviews), chooses on ``id_val``, reports ``id_test`` and ``ood_test`` (goods and film sentences) by domain.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from levi_deploy.config import Config, DataConfig, ModelConfig
from levi_deploy.dataset import encode_targets, read
from levi_deploy.demo import find_backbone
from levi_deploy.evaluation import metrics
from levi_deploy.model import Backbone
from levi_deploy.training import Run, branch_alone, linear_probe, train
from levi_deploy.training.fit import Examples, predict
from levi_deploy.training.taps import compute
from levi_serving.bench.environment import environment
from levi_serving.predictions import Outputs, finish
from levi_serving.preprocess import Preprocessor

PAGE = Path(__file__).parents[2] / "docs" / "amazon_reviews.md"
SENTENCES = "MR"  # Rotten Tomatoes; the other unseen domains are goods
COMMANDS = [
    "levi train reviews.parquet --text text --target label --split-column split --backbone minilm --cache cache -o run",
    "levi evaluate run reviews.parquet --split id_test --split ood_test --by domain",
    "levi export run -o bundle",
    "levi verify bundle",
    "levi evaluate bundle reviews.parquet --split id_test --split ood_test --by domain",
    "levi predict bundle reviews.parquet -o predictions.csv",
    "levi bench bundle --batch-size 1,8 --length 32,128 --duration 20 --against torch --run run",
    "levi bench bundle --scenario offline --duration 20",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="a folder for runs and taps, kept; a temporary one when not given")
    options = parser.parse_args()
    data = Path(os.environ.get("LEVI_DATA", "../shared/data")) / "amazon_reviews" / "reviews.parquet"
    if not data.is_file():
        sys.exit(f"There is no {data}. Set LEVI_DATA to the folder that holds amazon_reviews/.")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        for name, target in (("reviews.parquet", data), ("minilm", Path(find_backbone()))):
            (work / name).unlink(missing_ok=True)
            (work / name).symlink_to(target.resolve())
        before = environment()
        blocks = [path_block(command, work) for command in COMMANDS]
        table = compared(work, options.seeds)
        PAGE.write_text(page(before, blocks, table, options.seeds), encoding="utf-8")


def path_block(command: str, work: Path) -> str:
    """One command of the path as a user types it, with what it printed and its time."""
    print(f"$ {command}", flush=True)
    words = shlex.split(command) + (["--overwrite"] if " -o " in command else [])
    program = str(Path(sys.executable).with_name("levi"))
    started = time.perf_counter()
    done = subprocess.run([program, *words[1:]], cwd=work, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 4):
        sys.exit(f"{command} ended with {done.returncode}: {done.stderr}")
    said = done.stdout.rstrip() + (f"\n{done.stderr.rstrip()}" if done.returncode else "")
    print(said, flush=True)
    return f"```console\n$ {command}\n{said}\n```\n{seconds:.0f} s."


def compared(work: Path, seeds: int) -> str:
    """LEVI, what is left of it without a part, and two baselines; taps of every row are computed once."""
    levi = ModelConfig(backbone=str(work / "minilm"))
    depth = 6
    methods = {
        "LEVI": levi,
        "LEVI, mean pooling": replace(levi, pooling="mean"),
        "… cnn branch": replace(levi, pooling="mean", branches=("cnn",)),
        "… transformer branch": replace(levi, pooling="mean", branches=("transformer",)),
        "taps without branch": replace(levi, branches=()),
        "linear probe": linear_probe(levi, depth),
        "branch alone": branch_alone(levi),
    }
    lines = []
    for name, model in methods.items():
        found: list[dict[str, float]] = []
        for seed in range(seeds):
            config = Config(model=model, data=DataConfig(split_column="split"))
            config = replace(config, training=replace(config.training, seed=seed))
            run = train(work / "reviews.parquet", work / "compared", config, overwrite=True, cache=work / "cache")
            found.append(measured(run, work))
            print(name, seed, found[-1], flush=True)
        cells = [spread([one[key] for one in found]) for key in ("id_val", "id_test", "goods", "sentences")]
        fit = mean(one["fit_s"] for one in found)
        lines.append(f"| {name} | {found[0]['parameters']:,} | {fit:.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def measured(run: Run, work: Path) -> dict[str, Any]:
    """Accuracy in and out of distribution, from stored taps."""
    table = read(work / "reviews.parquet", inputs=["text"], target="label", further=["split", "domain"])
    splits, domains = np.asarray(table.columns["split"]), np.asarray(table.columns["domain"])
    preprocessor = Preprocessor(run.folder, run.preprocessing)
    ensemble = run.ensemble()
    backbone = Backbone.load(run.config.model.backbone, lambda _: run.taps) if run.taps else None
    result: dict[str, Any] = {
        "parameters": run.record["parameters"]["trained"],
        "fit_s": run.record["seconds"]["fit"],
        "id_val": run.record["validation"]["accuracy"],
    }
    for split in ("id_test", "ood_test"):
        rows = np.flatnonzero(splits == split)
        part = table.take(rows.tolist())
        encoded = preprocessor.encode(part.rows)
        taps = compute(backbone, encoded, run.config.model.pooling, folder=work / "cache") if backbone else None
        targets = encode_targets(part.targets, run.task, run.labels, column="label")
        outputs = predict(ensemble, Examples(encoded, taps, targets))
        accuracy = {}
        for domain in sorted(set(domains[rows].tolist())):
            own = np.flatnonzero(domains[rows] == domain)
            answers = finish(Outputs(outputs.logits[own], outputs.head_logits[own]), task=run.task, labels=run.labels)
            accuracy[domain] = metrics(answers, targets[own], task=run.task, labels=run.labels)["accuracy"]
        if split == "id_test":
            result["id_test"] = mean(accuracy.values())
        else:
            result["sentences"] = accuracy.pop(SENTENCES)
            result["goods"] = mean(accuracy.values())
    return result


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def page(about: dict[str, Any], blocks: list[str], table: str, seeds: int) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    path = "\n\n".join(blocks)
    return f"""# Real reviews: media to goods, the whole path

Written by `python benchmarks/ood/amazon_reviews.py --seeds {seeds}`; nothing here was typed in.

Machine: {about["cpu"]}, {about["usable_cores"]} cores, {", ".join(about["instruction_sets"])},
{about["memory_gib"]} GiB, shared with other work, so the times are upper bounds. Python {about["python"]}, {versions}.

Data: FDU-MTL reviews (Liu et al. 2017, from Blitzer et al. 2007 and Pang & Lee), sentiment, two classes. Training,
ID validation and ID test are books, dvd, magazines, music and video. The OOD test has six kinds of goods and, as `MR`,
one-sentence film reviews. The terms of the data do not allow passing it on; it is read from the folder in `LEVI_DATA`.
Backbone: all-MiniLM-L6-v2 (Apache-2.0), frozen. Everything was chosen on `id_val`; no OOD row chose anything.

## LEVI beside its parts and its baselines

Accuracy, the mean over domains; mean ± standard deviation over {seeds} seeds. Fit is the training time once the taps
are stored.

| method | trained parameters | fit, s | id_val | id_test | ood_test, goods | ood_test, film sentences |
|---|---|---|---|---|---|---|
{table}

`linear probe` and `branch alone` are the paper's simplest baselines. Full fine-tuning is not among these rows.

## The path, command by command

`reviews.parquet` is any table with a text, a label and a split column; `minilm` is the folder of the backbone, and a
hub id does as well.

{path}
"""


if __name__ == "__main__":
    main()
