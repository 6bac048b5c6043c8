"""The models that bars.py measures, and a line of its table."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from levi_deploy.config import Config, DataConfig, ModelConfig, Pooling
from levi_deploy.demo.steps import find_backbone
from levi_deploy.methods import branch_alone, linear_probe
from levi_deploy.training import train
from levi_export import export

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


POOLINGS: tuple[Pooling, ...] = ("attention", "ladder", "mean", "first")


def models(work: Path) -> dict[str, Path]:
    """The bundles, trained and exported where they are not there yet."""
    table = work / "train.parquet"
    if not table.is_file():
        whole = pq.read_table(data_file())
        pq.write_table(whole.filter(pc.is_in(whole["split"], pa.array(["train", "id_val"]))), table)
        pq.write_table(whole.select(["text", "domain"]).slice(0, 20_000), work / "rows.parquet")
    levi = ModelConfig(backbone=find_backbone())
    configs = {
        **{str(name): replace(levi, pooling=name) for name in POOLINGS},
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


def flops(lengths: np.ndarray) -> float:
    """Operations of the backbone's matrix products for rows of these lengths; padding does not count."""
    per_token = 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * INNER)
    return float(LAYERS * (per_token * lengths.sum() + 4 * WIDTH * (lengths.astype(np.float64) ** 2).sum()))
