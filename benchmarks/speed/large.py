"""A backbone above protobuf's 2 GB: what loading, training, exporting and serving it take. Prints a markdown table.

    python benchmarks/speed/large.py [--work FOLDER]

Random weights, 2.2 GB in float32: a BERT of two layers whose vocabulary has half a million words, so that one
constant of the graph alone is above the limit. Each step is a fresh process, its memory measured at its highest.
Pages of weights that are mapped from a file count as memory here, though the system may take them back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from levi_serving.environment import environment, peak_memory

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
VOCABULARY, WIDTH = 530_000, 1024
STEPS = ("nothing", "load", "train", "export", "predict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a folder for all that is made, kept; a temporary one otherwise")
    parser.add_argument("--step", choices=STEPS, help="run one step in this process, for the table")
    options = parser.parse_args()
    if options.step:
        print(json.dumps(step(options.step, options.work)))
        return
    about = environment()
    print(f"{about['cpu']}, {about['usable_cores']} cores, {about['memory_gib']} GiB, {about['versions']}\n")
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        if not (work / "backbone").is_dir():
            write(work)
        size = (work / "backbone" / "model.safetensors").stat().st_size
        print(f"weights: {size / 1e9:.2f} GB\n")
        print("| step | s | peak memory, GB | ÷ weights |\n|---|---|---|---|")
        for name in STEPS:
            command = [sys.executable, __file__, "--work", str(work), "--step", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            peak = found["peak"]
            print(f"| {name} | {found['s']:.1f} | {peak / 1e9:.2f} | {peak / size:.2f} |", flush=True)
        print("\nfiles of the bundle, MB:")
        for path in sorted((work / "bundle").iterdir()):
            print(f"  {path.name} {path.stat().st_size / 1e6:.2f}")


def write(work: Path) -> None:
    """The backbone and a table."""
    import torch
    from families import write_tokenizer
    from transformers import BertConfig, BertModel

    (work / "backbone").mkdir(parents=True)
    write_tokenizer(work / "backbone")
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=16, intermediate_size=WIDTH,
        max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(work / "backbone", max_shard_size="10GB")
    lines = [f"the {'good' if n % 2 else 'bad'} kettle {'it was ' * (n % 7)},{n % 2}" for n in range(120)]
    (work / "rows.csv").write_text("\n".join(["text,label", *lines]) + "\n")


def step(name: str, work: Path) -> dict[str, float | None]:
    from levi_deploy.config import Config
    from levi_deploy.model import Backbone
    from levi_deploy.training import train
    from levi_export import export
    from levi_serving import Runner, predict_file

    started = time.perf_counter()
    source = str(work / "backbone")
    if name == "load":
        Backbone.load(source, lambda depth: (1, depth))
    elif name == "train":
        config = Config.read(
            None,
            model={"backbone": source, "taps": 2, "pooling": "mean", "branches": (), "max_length": 24},
            training={"epochs": 5, "learning_rate": 0.01},
        )
        train(work / "rows.csv", work / "run", config, overwrite=True, cache=work / "cache")
    elif name == "export":
        export(work / "run", work / "bundle", overwrite=True)
    elif name == "predict":
        predict_file(Runner(work / "bundle"), work / "rows.csv", work / "out.csv", overwrite=True)
    return {"s": time.perf_counter() - started, "peak": peak_memory()}


if __name__ == "__main__":
    main()
