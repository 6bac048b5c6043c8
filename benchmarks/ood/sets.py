"""Every method on a set with real shift: writes docs/ood/SET.md and docs/ood/SET.json.

    python benchmarks/ood/sets.py SET --work FOLDER [--methods …] [--seeds 2] [--budget 2] [--jobs 2]

SET is amazon_reviews, imdb_counterfactual, movielens, pacs or colored_mnist; SET.toml beside this file is its LEVI
model. Reads the sets from the folder in LEVI_DATA (default ../shared/data), cuts them to rows that full fine-tuning on
two cores bears, the same for every method, and runs ``levi compare``. Everything is chosen on ``id_val``. What lies
finished in ``--work`` is not trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from commands import machine
from pyarrow import parquet

from levi_deploy.compare import compare
from levi_deploy.config import Config
from levi_deploy.demo.steps import find_backbone

PAGES = Path(__file__).parents[2] / "docs" / "ood"


@dataclass(frozen=True, kw_only=True)
class Set:
    """A set: its file, how many rows of a split take part (all where none is named), and how rows are told apart."""

    file: str
    about: str
    rows: Mapping[str, int]
    splits: tuple[str, ...] = ("id_test", "ood_test")
    by: str | None = None
    pairs: str | None = None
    images: bool = False


SETS = {
    "amazon_reviews": Set(
        file="amazon_reviews/reviews.parquet",
        about="Sentiment of reviews (FDU-MTL: Liu et al. 2017, from Blitzer et al. 2007 and Pang & Lee; no terms "
        "stated, so it is not passed on). Books, dvd, magazines, music and video are in distribution; six kinds of "
        "goods, and one-sentence film reviews (MR), are not.",
        rows={"train": 2500, "id_val": 600, "id_test": 1000, "ood_test": 2784},
        by="domain",
    ),
    "imdb_counterfactual": Set(
        file="imdb_counterfactual/reviews.parquet",
        about="Sentiment of film reviews (Maas et al. 2011; rewrites: Kaushik et al. 2020, Apache-2.0; SST-2). People "
        "rewrote reviews with the fewest edits that flip the label; the rewrites, and sentences, are OOD.",
        rows={"train": 2500, "id_val": 600, "id_test": 1000},
        splits=("id_test", "id_test_pairs", "ood_test"),
        by="source",
        pairs="pair_id",
    ),
    "movielens": Set(
        file="movielens/ratings.parquet",
        about="Ratings of films from a user's earlier likes and dislikes (GroupLens ml-latest-small, Harper & Konstan "
        "2015: research use). Films of genres that no training row has are OOD; unseen films of seen genres are not.",
        rows={"train": 3000, "id_val": 800, "id_test": 1500, "id_test_newmovie": 1000, "ood_test": 3000},
        splits=("id_test", "id_test_newmovie", "ood_test"),
        by="genre_group",
    ),
    "pacs": Set(
        file="pacs/images.parquet",
        about="Seven classes of images (Li et al. 2017; no terms stated, so it is not passed on). Photos are in "
        "distribution, art paintings and cartoons are not.",
        rows={},
        by="domain",
        images=True,
    ),
    "colored_mnist": Set(
        file="colored_mnist/images.parquet",
        about="Digits below or above five, a quarter of the labels wrong, coloured so that the colour agrees with the "
        "label in 80 to 90 % of training rows and in 10 % of OOD rows (after Arjovsky et al. 2019).",
        rows={"train": 3000, "id_val": 800},
        images=True,
    ),
}
METHODS = (
    "scratch", "linear-probe", "fine-tune", "lp-ft", "wise-ft", "soup", "output-ensemble", "lora", "levi", "levi-lora",
    "levi-on-fine-tuned", "levi-on-wise-ft", "no-branch", "last-tap", "all-taps", "mean", "attention", "tokens",
    "weighed",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("set", choices=SETS)
    parser.add_argument("--work", type=Path, required=True, help="a folder for table, runs and report, kept")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--budget", type=int, default=2)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    name, own = options.set, SETS[options.set]
    data = Path(os.environ.get("LEVI_DATA", "../shared/data"))
    if not (data / own.file).is_file():
        sys.exit(f"There is no {data / own.file}. Set LEVI_DATA to the folder that holds {Path(own.file).parent}/.")
    work = options.work / name
    work.mkdir(parents=True, exist_ok=True)
    table = work / "rows.parquet"
    if not table.is_file():
        cut(data / own.file, table, own.rows)
    backbone = str((data / "backbones" / "mobilenet_v2").resolve()) if own.images else find_backbone()
    config = Config.read(Path(__file__).parent / f"{name}.toml", model={"backbone": backbone})
    document = compare(
        table,
        work / "report",
        config,
        methods=options.methods,
        seeds=options.seeds,
        budget=options.budget,
        jobs=options.jobs,
        splits=own.splits,
        by=own.by,
        pairs=own.pairs,
        resume=True,
        cache=options.work / "cache",
        progress=lambda what, done, total: print(f"{what} {done}/{total}", flush=True) if what == "trials" else None,
    )
    PAGES.mkdir(exist_ok=True)
    command = f"python benchmarks/ood/sets.py {name} --work FOLDER --seeds {options.seeds} --budget {options.budget}"
    report = (work / "report" / "report.md").read_text(encoding="utf-8").partition("\n")[2].strip()
    page = [f"# {name}: every method", own.about, f"Written by `{command} --jobs {options.jobs}`.", machine(), report]
    (PAGES / f"{name}.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    (PAGES / f"{name}.json").write_text(json.dumps(document["results"]) + "\n", encoding="utf-8")


def cut(source: Path, target: Path, rows: Mapping[str, int]) -> None:
    """Write at most so many rows of each split, drawn by a fixed seed, in the order of the file."""
    whole, draw = parquet.read_table(source), np.random.default_rng(0)
    names = np.asarray(whole["split"].to_pylist())
    kept = []
    for split in sorted(set(names.tolist())):
        places = np.flatnonzero(names == split)
        count = min(rows.get(split, len(places)), len(places))
        kept.append(draw.choice(places, count, replace=False))
    parquet.write_table(whole.take(np.sort(np.concatenate(kept))), target)


if __name__ == "__main__":
    main()
