"""One tiny backbone, one run and one bundle for the whole session; nothing is downloaded."""

from __future__ import annotations

import csv
import random
import shutil
from pathlib import Path

import pytest
from words import FILLER, WORDS


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Nothing is read from, or left in, the cache of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LEVI_CACHE", str(tmp_path_factory.mktemp("levi-cache")))
        yield


@pytest.fixture(scope="session")
def backbone(tmp_path_factory) -> Path:
    """A BERT of 4 layers, width 32, with random weights and a tokenizer of whole words."""
    import torch
    from families import write_tokenizer
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("backbone")
    vocabulary = write_tokenizer(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=4, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


def write_table(path: Path, *, rows: int = 400, seed: int = 0) -> Path:
    """Short texts whose words tell the label; splits train, id_val, ood_test; further columns."""
    draw = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "score", "topics", "split", "price", "shop", "user", "item"])
        for n in range(rows):
            label = ("negative", "positive")[n % 2]
            words = draw.choices(FILLER, k=draw.randint(1, 25)) + draw.choices(WORDS[label], k=2)
            draw.shuffle(words)
            topics = "|".join(sorted({word for word in words if word in ("kettle", "lamp", "tent")}))
            split = ("train", "train", "train", "id_val", "ood_test")[n // 2 % 5]
            score = f"{n % 2 * 3 + draw.random():.3f}"
            further = [f"{n % 7}.5" if n % 10 else "", ("north", "south", "east")[n % 3], f"u{n % 11}", f"i{n % 17}"]
            writer.writerow([" ".join(words), label, score, topics or "kettle", split, *further])
    return path


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Path:
    return write_table(tmp_path_factory.mktemp("table") / "reviews.csv")


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def config(backbone):
    from levi_deploy.config import Config

    return Config.read(
        None,
        model={
            "backbone": str(backbone),
            "taps": [1, 3],
            "max_length": 48,
            "queries": 2,
            "branch_depth": 2,
            "pooling": "attention",
        },
        training={"epochs": 8, "batch_size": 32, "learning_rate": 0.01, "ema_decay": 0.0},
        data={"split_column": "split"},
    )


@pytest.fixture(scope="session")
def run(tmp_path_factory, table, config, cache):
    """A finished classification run: taps 1 and 3 of 4 layers, attention pooling, an mlp branch."""
    from levi_deploy.training import train

    return train(table, tmp_path_factory.mktemp("runs") / "run", config, cache=cache)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory, run) -> Path:
    """The run, exported. Shared: a test that changes files takes ``bundle_copy``."""
    from levi_export import export

    return export(run.folder, tmp_path_factory.mktemp("bundles") / "bundle").folder


@pytest.fixture
def bundle_copy(bundle, tmp_path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


@pytest.fixture(scope="session")
def runner(bundle):
    from levi_serving import Runner

    return Runner(bundle)


@pytest.fixture(scope="session")
def texts(table) -> list[str]:
    with table.open(newline="") as file:
        return [row["text"] for row in csv.DictReader(file)]
