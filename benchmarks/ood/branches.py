"""Which branch beside a frozen backbone, and whether one at all: writes docs/branches.md.

    python benchmarks/ood/branches.py [--seeds 3] [--work FOLDER]

Two studies with real weights, each with three branches, no branch, a linear probe and the branch alone: PACS with
MobileNetV2 (photos → art and cartoons) and amazon_reviews with all-MiniLM-L6-v2 (media → goods → sentences); each
beside full fine-tuning. Reads both sets from the folder in LEVI_DATA (default ../shared/data). Every method trains on
``train`` at the learning rates named beside it; the better one on ``id_val`` is kept. No OOD row chooses anything.
Runs kept in ``--work`` are not trained again.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from commands import machine

from levi_deploy.config import Config, DataConfig, ModelConfig, TrainingConfig
from levi_deploy.data import encode_targets, read
from levi_deploy.demo.steps import find_backbone
from levi_deploy.evaluation import metrics
from levi_deploy.methods import branch_alone, full_fine_tuning, linear_probe
from levi_deploy.run import Run
from levi_deploy.training import train
from levi_deploy.training.fit import predict
from levi_deploy.training.prepare import Examples
from levi_deploy.training.taps import compute
from levi_serving.predictions import finish
from levi_serving.rows.preprocess import Preprocessor

PAGE = Path(__file__).parents[2] / "docs" / "branches.md"
RATES = (3e-4, 3e-3)  # the better on ID validation is kept
PACS = """Seven classes of images of 112 pixels (Li et al. 2017; no terms stated, so it is not passed on). Training, ID
validation and ID test are photos; OOD are art paintings and cartoons. Backbone: MobileNetV2 with ImageNet weights
(Apache-2.0), frozen, three taps, attention pooling but for the probe's mean. Accuracy, and macro accuracy: the mean
recall of the classes. The three branches are the same small CNN from scratch: shown mirrored and shifted images (the
default), shown them as they are, and of twice the width. Text branches do not fit images."""
REVIEWS = """Sentiment of reviews, two classes (FDU-MTL: Liu et al. 2017, from Blitzer et al. 2007 and Pang & Lee; no
terms stated, so it is not passed on). Training, ID validation and ID test are books, dvd, magazines, music and video;
OOD are six kinds of goods, and one-sentence film reviews. Backbone: all-MiniLM-L6-v2 (Apache-2.0), frozen, three taps,
texts of at most 128 tokens. Accuracy, the mean over domains. The branch alone is the mlp."""
INTRODUCTION = f"""# Which branch, and whether one at all

Each method was trained at the learning rates {RATES[0]:g} and {RATES[1]:g} with the first seed, full fine-tuning at
those that its section names; the one with the lower loss on `id_val` was kept. No OOD row chose anything. Fit is the
training time once the taps are stored (full fine-tuning stores none), an upper bound: the machine did other work too.
`linear probe` and `branch alone` are the paper's simplest baselines. A section without full fine-tuning was measured
before that method was there.
"""
PARTS = ("taps without branch", "linear probe", "branch alone", "full fine-tuning")


@dataclass(frozen=True, kw_only=True)
class Column:
    """One number of the table: a metric on a split, the mean over its domains."""

    title: str
    split: str
    metric: str = "accuracy"
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Method:
    """One row of the table; ``beside`` are the rows that it is held against."""

    model: ModelConfig
    training: TrainingConfig
    beside: tuple[str, ...] = ()
    rates: tuple[float, ...] = RATES


@dataclass(frozen=True, kw_only=True)
class Study:
    """A set, a backbone, and the rows and columns of its table."""

    title: str
    about: str
    file: str
    data: DataConfig
    methods: Mapping[str, Method]
    columns: tuple[Column, ...]
    found: dict[str, list[dict[str, float]]] = field(default_factory=dict)


def pacs(backbone: Path) -> Study:
    levi = ModelConfig(backbone=str(backbone), branches=("cnn",), image_size=112)
    training = TrainingConfig(epochs=12, patience=4)  # few rows, so more passes than the other study has
    bare = replace(levi, branches=())
    methods = {
        "LEVI, cnn": Method(model=levi, training=training, beside=PARTS),
        "LEVI, cnn without augmentation": Method(model=levi, training=replace(training, augment="none"), beside=PARTS),
        "LEVI, cnn of twice the width": Method(model=replace(levi, branch_width=128), training=training, beside=PARTS),
        "taps without branch": Method(model=bare, training=training),
        "linear probe": Method(model=linear_probe(levi, 16), training=training),
        "branch alone": Method(model=branch_alone(levi), training=training),
        "full fine-tuning": fine_tuned(levi, training, rates=(5e-5, 3e-4)),
    }
    columns = [Column(title="id_val", split="id_val")]
    for split, domain, name in (
        ("id_test", "photo", "id_test, photos"),
        ("ood_test", "art_painting", "OOD, art"),
        ("ood_test", "cartoon", "OOD, cartoons"),
    ):
        columns += [
            Column(title=name, split=split, only=(domain,)),
            Column(title=f"{name}, macro", split=split, only=(domain,), metric="macro_accuracy"),
        ]
    return Study(
        title="PACS, MobileNetV2: photos to art and cartoons",
        about=PACS,
        file="pacs/images.parquet",
        data=DataConfig(image="image", target="label_name", split_column="split"),
        methods=methods,
        columns=tuple(columns),
    )


def amazon_reviews(backbone: Path) -> Study:
    levi = ModelConfig(backbone=str(backbone), branches=("mlp",), pooling="mean", max_length=128)
    attention, bare = replace(levi, pooling="attention"), replace(levi, branches=())
    models = {
        "LEVI, mlp": levi,
        "LEVI, cnn": replace(levi, branches=("cnn",)),
        "LEVI, transformer": replace(levi, branches=("transformer",)),
        "taps without branch": bare,
        "linear probe": linear_probe(levi, 6),
        "branch alone": branch_alone(levi),
        "LEVI, mlp, attention pooling": attention,
        "taps without branch, attention pooling": replace(attention, branches=()),
    }
    beside = {
        "LEVI, mlp": PARTS,
        "LEVI, cnn": (*PARTS[:2], PARTS[3]),
        "LEVI, transformer": (*PARTS[:2], PARTS[3]),
        "LEVI, mlp, attention pooling": ("taps without branch, attention pooling", *PARTS[1:]),
    }
    return Study(
        title="amazon_reviews, all-MiniLM-L6-v2: media to goods to sentences",
        about=REVIEWS,
        file="amazon_reviews/reviews.parquet",
        data=DataConfig(text="text", split_column="split"),
        methods={
            name: Method(model=model, training=TrainingConfig(), beside=beside.get(name, ()))
            for name, model in models.items()
        }
        | {"full fine-tuning": fine_tuned(levi, TrainingConfig(epochs=2, batch_size=32), rates=(5e-5,))},
        columns=(
            Column(title="id_val", split="id_val"),
            Column(title="id_test", split="id_test"),
            Column(title="OOD, goods", split="ood_test", without=("MR",)),
            Column(title="OOD, sentences", split="ood_test", only=("MR",)),
        ),
    )


def fine_tuned(levi: ModelConfig, training: TrainingConfig, *, rates: tuple[float, ...]) -> Method:
    config = full_fine_tuning(Config(model=levi, training=training))
    return Method(model=config.model, training=config.training, rates=rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--study", choices=("all", "pacs", "amazon_reviews"), default="all", help="the others stay")
    parser.add_argument("--work", type=Path, help="a folder for runs and taps, kept; a temporary one when not given")
    options = parser.parse_args()
    data = Path(os.environ.get("LEVI_DATA", "../shared/data"))
    studies = {
        "pacs": pacs(data / "backbones" / "mobilenet_v2"),
        "amazon_reviews": amazon_reviews(Path(find_backbone())),
    }
    for name, study in studies.items():
        if options.study not in ("all", name):
            continue
        if not (data / study.file).is_file():
            sys.exit(f"There is no {data / study.file}. Set LEVI_DATA to the folder that holds it.")
        about = machine()
        with tempfile.TemporaryDirectory() as temporary:
            for method in study.methods:
                study.found[method] = trained(study, method, data, options.work or Path(temporary), options.seeds)
        own = section(study, about, name, options.seeds)
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), own), encoding="utf-8")


def trained(study: Study, name: str, data: Path, work: Path, seeds: int) -> list[dict[str, float]]:
    """A method's numbers, a seed each: the learning rate that is better on ID validation with the first seed."""
    method, folder = study.methods[name], work / study.file.partition("/")[0]

    def one(rate: float, seed: int) -> Run:
        training = replace(method.training, learning_rate=rate, seed=seed)
        config = Config(model=method.model, data=study.data, training=training)
        output = folder / f"{name}, {rate}, {seed}"
        if (output / "run.json").is_file() and (kept := Run.open(output)).config == config:
            return kept
        return train(data / study.file, output, config, overwrite=True, cache=work / "cache")

    first = min((one(rate, 0) for rate in method.rates), key=lambda run: run.record["validation"]["log_loss"])
    rate = first.config.training.learning_rate
    found = []
    for run in [first, *(one(rate, seed) for seed in range(1, seeds))]:
        found.append({**measured(study, run, data, work / "cache"), "rate": rate})
        print(name, found[-1], flush=True)
    return found


def measured(study: Study, run: Run, data: Path, cache: Path) -> dict[str, float]:
    """Every column of the table for one run, from stored taps."""
    target = study.data.target
    table = read(data / study.file, inputs=run.preprocessing.names, target=target, further=["split", "domain"])
    splits, domains = np.asarray(table.columns["split"]), np.asarray(table.columns["domain"])
    levi, preprocessor = run.levi(), Preprocessor(run.folder, run.preprocessing)
    frozen = levi.backbone if not run.backbone.fine_tuned else None
    by_domain: dict[tuple[str, str], dict[str, Any]] = {}
    for split in dict.fromkeys(column.split for column in study.columns):
        rows = np.flatnonzero(splits == split)
        part = table.take(rows.tolist())
        encoded = preprocessor.encode(part.rows)
        taps = compute(frozen, encoded, run.config.model.pooling, folder=cache) if frozen is not None else None
        targets = encode_targets(part.targets, run.task, column=target)
        outputs = predict(levi, Examples(encoded, targets, taps))
        for domain in sorted(set(domains[rows].tolist())):
            own = np.flatnonzero(domains[rows] == domain)
            by_domain[split, domain] = metrics(finish(outputs.take(own), run.task), targets[own], run.task)
    values = {
        column.title: mean(
            found[column.metric]
            for (split, domain), found in by_domain.items()
            if split == column.split and domain not in column.without and (not column.only or domain in column.only)
        )
        for column in study.columns
    }
    return {**values, "parameters": run.record["parameters"]["trained"], "fit_s": run.record["seconds"]["fit"]}


def section(study: Study, about: str, name: str, seeds: int) -> str:
    titles = [column.title for column in study.columns]
    rates = " and ".join(f"{rate:g}" for rate in study.methods["full fine-tuning"].rates)
    lines = [
        f"## {study.title}",
        "",
        study.about,
        "",
        f"Written by `python benchmarks/ood/branches.py --study {name} --seeds {seeds}`, its sentences too.",
        "",
        about,
        "",
        f"{f'Mean ± standard deviation over {seeds} seeds' if seeds > 1 else 'One seed'}; full fine-tuning at {rates}.",
        "",
        "| method | trained parameters | learning rate | fit, s | " + " | ".join(titles) + " |",
        "|---" * (4 + len(titles)) + "|",
    ]
    for name, runs in study.found.items():
        cells = [spread([run[title] for run in runs]) for title in titles]
        fit = mean(run["fit_s"] for run in runs)
        head = f"| {name} | {runs[0]['parameters']:,} | {runs[0]['rate']:g} | {fit:.0f} | "
        lines.append(head + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *verdicts(study)])


def verdicts(study: Study) -> list[str]:
    """Where a LEVI row loses and where it does not, and what choosing by ID validation would have given."""
    said = []
    columns = [column.title for column in study.columns if column.split != "id_val"]

    def average(name: str, title: str) -> float:
        return mean(run[title] for run in study.found[name])

    for name, method in study.methods.items():
        lost = []
        for title in columns:
            own = average(name, title)
            better = [f"{other} ({found:.3f})" for other in method.beside if (found := average(other, title)) > own]
            if better:
                lost.append(f"on {title} ({own:.3f}) to {', '.join(better)}")
        if method.beside:
            against = ", ".join(method.beside)
            said.append(
                f"- **{name} loses** {'; '.join(lost)}."
                if lost
                else f"- {name} is at or above {against} in every test column."
            )
    chosen = max(study.found, key=lambda name: average(name, "id_val"))
    for title in columns:
        best = max(study.found, key=lambda name: average(name, title))
        said.append(
            f"- {title}: the row that is highest on id_val ({chosen}) has {average(chosen, title):.3f}; "
            + ("it is the highest here too." if best == chosen else f"{best} has {average(best, title):.3f}.")
        )
    return said


def spread(values: list[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")


def page(before: str, own: str) -> str:
    """The page with a study's section in place of its former one."""
    parts = re.split(r"^(?=## )", before, flags=re.MULTILINE)[1:]
    sections = {part.partition("\n")[0]: part.rstrip() for part in parts}
    sections[own.partition("\n")[0]] = own.rstrip()
    return "\n\n".join([INTRODUCTION.rstrip(), *sections.values()]) + "\n"


if __name__ == "__main__":
    main()
