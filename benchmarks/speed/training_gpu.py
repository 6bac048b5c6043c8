"""What a GPU saves in training: taps, ten epochs on stored taps, and an epoch of full fine-tuning, beside the CPU.

    python benchmarks/speed/training_gpu.py [--device cuda] [--rows 6000] [--cpu-rows 256] [--tiny]

A BERT-base of random weights (times do not depend on them) on rows of 128 tokens; taps 4, 8 and 12. The CPU's times are
of ``--cpu-rows`` rows. Prints one markdown table of rows a second, each the better of two runs, in turns.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from levi_deploy.config import Config
from levi_deploy.model import Backbone, Levi
from levi_deploy.model.build import build
from levi_deploy.training.device import settle, title
from levi_deploy.training.fit import fit, linear
from levi_deploy.training.prepare import Examples
from levi_deploy.training.taps import compute
from levi_serving.environment import environment
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Encoded, Preprocessing
from levi_serving.rows.text import TextSettings, Tokens

TOKENS, EPOCHS = 128, 10
TASK = Task(kind="classification", labels=("negative", "positive"))
TINY: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 2, "intermediate_size": 128}


def rows(count: int) -> Examples:
    draw, text = np.random.default_rng(0), TextSettings()
    tokens = Tokens.of([draw.integers(1000, 30000, size=TOKENS).tolist() for _ in range(count)], text)
    return Examples(Encoded(Preprocessing(text=text), tokens), np.arange(count) % 2)


def side(source: str, device: torch.device, count: int, folder: Path) -> dict[str, Callable[[], float]]:
    """The three acts on a device, each giving its rows a second."""
    examples, few = rows(count), rows(8)
    frozen = Backbone.load(source, lambda _: (4, 8, 12)).to(device)
    calls = 0

    def timed(work: Callable[[], object], done: int) -> float:
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return done / (time.perf_counter() - started)

    def taps() -> float:
        nonlocal calls
        calls += 1
        place = folder / f"{device.type}-{calls}"
        return timed(lambda: compute(frozen, examples.encoded, "ladder", folder=place, exact=False), count)

    stored = [replace(e, taps=compute(frozen, e.encoded, "ladder", folder=folder / "kept")) for e in (examples, few)]

    def trained(config: Config, backbone: Backbone, given: list[Examples]) -> None:
        torch.manual_seed(0)
        made = build(config.model, backbone.identity, examples.encoded.settings, backbone.taps, task=TASK)
        state = folder / f"{device.type}.safetensors"
        state.unlink(missing_ok=True)
        fit(Levi(backbone, made).to(device), given[0], given[1], config.training, state=state, schedule=linear)

    def on_stored() -> float:
        config = Config.read(None, model={"pooling": "ladder"}, training={"epochs": EPOCHS, "patience": 99})
        return timed(lambda: trained(config, frozen, stored), EPOCHS * count)

    def fine_tuning() -> float:
        whole = Backbone.load(source, lambda depth: (depth,))
        whole.unfreeze()
        config = Config.read(
            None,
            model={"taps": [whole.taps[-1]], "pooling": "mean", "branches": []},
            training={"epochs": 1, "batch_size": 32, "learning_rate": 2e-5, "train_backbone": True},
        )
        return timed(lambda: trained(config, whole, [examples, few]), count)

    return {
        "taps of training rows, computed and stored": taps,
        f"{EPOCHS} epochs of the ladder on stored taps": on_stored,
        "an epoch of full fine-tuning": fine_tuning,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--cpu-rows", type=int, default=256)
    parser.add_argument("--tiny", action="store_true", help="64 wide: to try the script")
    options = parser.parse_args()
    about: dict[str, Any] = environment()
    device = settle(options.device)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        source = str(folder / "backbone")
        transformers.BertModel(transformers.BertConfig(**(TINY if options.tiny else {}))).save_pretrained(source)
        ours = side(source, device, options.rows, folder)
        theirs = side(source, torch.device("cpu"), options.cpu_rows, folder / "cpu")
        print(
            f"{title(device)}; {about['cpu']}, {about['usable_cores']} cores, torch {about['versions']['torch']}; "
            f"rows of {TOKENS} tokens, BERT-base\n\n"
            f"| what | {device.type}, rows/s | cpu, rows/s | ratio |\n|---|---|---|---|"
        )
        for name in ours:
            pairs = [(ours[name](), theirs[name]()) for _ in range(2)]
            fast, slow = (max(values) for values in zip(*pairs, strict=True))
            print(f"| {name} | {fast:,.0f} | {slow:,.1f} | {fast / slow:.1f} |", flush=True)


if __name__ == "__main__":
    main()
