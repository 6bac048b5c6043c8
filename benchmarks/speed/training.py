"""What training costs: ten epochs, a step of full fine-tuning beside it, and taps beside plain inference.

    python benchmarks/speed/training.py [--rounds 5]

Prints one markdown table. Texts are the demo's generated reviews, joined until they are as long as product reviews
(about 150 tokens); what is learned does not matter here. Sides are measured in turns in this process.
"""

from __future__ import annotations

import argparse
import csv
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import AutoModel

from levi_deploy.config import Config
from levi_deploy.demo.reviews import write_reviews
from levi_deploy.demo.steps import find_backbone
from levi_deploy.model import Backbone, Levi
from levi_deploy.model.build import build
from levi_deploy.model.tokenizer import save_tokenizer
from levi_deploy.training.fit import fit
from levi_deploy.training.prepare import Examples
from levi_deploy.training.taps import Taps, compute
from levi_serving.bench.stats import ratio
from levi_serving.engine.batching import Limits, plan
from levi_serving.environment import environment
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Encoded, Preprocessing, Preprocessor
from levi_serving.rows.text import TextSettings, Tokens

FIXED_ROWS, EPOCHS, ROWS = 20_000, 10, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    source = find_backbone()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        text = save_tokenizer(source, folder / "tokenizer.json", column="text", max_length=256)
        preprocessor = Preprocessor(folder, Preprocessing(text=text))
        encoded = preprocessor.encode(texts(folder, ROWS))
        backbone = Backbone.load(source, lambda _: (2, 4, 6))
        print(heading(encoded))
        print("| what | result |\n|---|---|")
        time_fixed = fixed(backbone, preprocessor.settings, folder)
        print(f"| {EPOCHS} epochs over {FIXED_ROWS:,} rows, mean pooling, taps stored | {time_fixed} |")
        for line in against_fine_tuning(source, backbone, encoded, folder, rounds):
            print(line)
        print(against_inference(source, backbone, encoded, folder, rounds))


def heading(encoded: Encoded) -> str:
    about: dict[str, Any] = environment()
    return (
        f"{about['cpu']}, {about['usable_cores']} cores, torch {about['versions']['torch']}, all-MiniLM-L6-v2, "
        f"taps 2, 4, 6, mlp branch, heads of 128 units; rows of {encoded.costs.mean():.0f} tokens on average.\n"
    )


def texts(folder: Path, count: int) -> list[str]:
    with write_reviews(folder / "reviews.csv").open(newline="") as file:
        reviews = [row["text"] for row in csv.DictReader(file)]
    draw = random.Random(0)
    return [" ".join(draw.choices(reviews, k=draw.randint(1, 9))) for _ in range(count)]


def configuration(pooling: str, *, epochs: int) -> Config:
    return Config.read(None, model={"taps": [2, 4, 6], "pooling": pooling}, training={"epochs": epochs, "patience": 99})


def untrained(config: Config, backbone: Backbone) -> Levi:
    torch.manual_seed(0)
    rows, task = Preprocessing(text=TextSettings()), Task(kind="classification", labels=("negative", "positive"))
    return Levi(backbone, build(config.model, backbone.identity, rows, backbone.taps, task=task))


def train(config: Config, backbone: Backbone, examples: Examples, held_out: Examples, folder: Path) -> float:
    model, state = untrained(config, backbone), folder / "state.safetensors"
    state.unlink(missing_ok=True)
    started = time.perf_counter()
    fit(model, examples, held_out, config.training, state=state)
    return time.perf_counter() - started


def fixed(backbone: Backbone, settings: Preprocessing, folder: Path) -> str:
    """Taps of random values: the cost does not depend on them."""
    draw = np.random.default_rng(0)
    config = configuration("mean", epochs=EPOCHS)
    rows = [draw.integers(1000, 30000, size=n).tolist() for n in draw.integers(20, 256, size=FIXED_ROWS)]
    assert settings.text is not None
    encoded = Encoded(settings, Tokens.of(rows, settings.text))
    taps = Taps([draw.standard_normal((FIXED_ROWS, 384), dtype=np.float32) for _ in range(3)], encoded, True)
    examples = Examples(encoded, draw.integers(0, 2, size=FIXED_ROWS), taps)
    return f"{train(config, backbone, examples, examples_of(examples, 256), folder):.1f} s"


def examples_of(examples: Examples, count: int) -> Examples:
    """The first rows, as a small validation set."""
    tokens = examples.encoded.tokens
    assert examples.taps is not None
    assert tokens is not None
    fewer = Tokens.of([tokens.row(n).tolist() for n in range(count)], tokens.settings)
    encoded = Encoded(examples.encoded.settings, fewer)
    end = count if examples.taps.fixed else int(fewer.offsets[-1])
    values = [tap[:end] for tap in examples.taps.values]
    return Examples(encoded, examples.targets[:count], Taps(values, encoded, examples.taps.fixed))


def against_fine_tuning(source: str, backbone: Backbone, encoded: Encoded, folder: Path, rounds: int) -> list[str]:
    targets = np.arange(len(encoded)) % 2
    examples = Examples(encoded, targets, compute(backbone, encoded, "attention", folder=folder))
    held_out = examples_of(examples, 8)
    config = configuration("attention", epochs=1)
    tuned = AutoModel.from_pretrained(source).train()
    head = torch.nn.Linear(tuned.config.hidden_size, 2)
    optimizer = torch.optim.AdamW([*tuned.parameters(), *head.parameters()], lr=2e-5)
    order = np.argsort(encoded.costs, kind="stable")

    def fine_tune() -> float:
        started = time.perf_counter()
        for start in range(0, len(order), 32):
            rows = order[start : start + 32]
            feeds = {name: torch.from_numpy(array) for name, array in encoded.batch(rows).items()}
            hidden, mask = tuned(**feeds).last_hidden_state, feeds["attention_mask"].unsqueeze(2)
            pooled = (hidden * mask).sum(dim=1) / mask.sum(dim=1)
            loss = torch.nn.functional.cross_entropy(head(pooled), torch.from_numpy(targets[rows]))
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        return time.perf_counter() - started

    ours, theirs = interleaved(lambda: train(config, backbone, examples, held_out, folder), fine_tune, rounds)
    per_row = f"{1e3 * median(ours) / len(encoded):.2f} ms and {1e3 * median(theirs) / len(encoded):.1f} ms a row"
    found = ratio(ours, theirs)
    return [
        f"| one epoch: full fine-tuning ÷ LEVI with attention pooling, taps stored | {in_words(found)}; {per_row} |"
    ]


def against_inference(source: str, backbone: Backbone, encoded: Encoded, folder: Path, rounds: int) -> str:
    plain = AutoModel.from_pretrained(source).eval()
    batches = plan(encoded.costs, Limits(tokens=2048, rows=512))
    calls = 0

    def taps() -> float:
        nonlocal calls
        calls += 1
        started = time.perf_counter()
        compute(backbone, encoded, "attention", folder=folder / f"fresh-{calls}")
        return time.perf_counter() - started

    @torch.inference_mode()
    def inference() -> float:
        started = time.perf_counter()
        for rows in batches:
            plain(**{name: torch.from_numpy(array) for name, array in encoded.batch(rows).items()})
        return time.perf_counter() - started

    ours, theirs = interleaved(taps, inference, rounds)
    tokens = int(encoded.costs.sum())
    rate = f"{tokens / median(ours):,.0f} and {tokens / median(theirs):,.0f} tokens/s"
    found = in_words(ratio(ours, theirs))
    return f"| computing and storing taps: plain inference's time ÷ ours, same batches | {found}; {rate} |"


def interleaved(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    ours(), theirs()  # warm
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def in_words(found: dict[str, float]) -> str:
    return f"{found['median']:.2f} × [{found['low']:.2f}, {found['high']:.2f}]"


if __name__ == "__main__":
    main()
