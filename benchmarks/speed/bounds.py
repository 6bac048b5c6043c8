"""What bounds the bars that are not met: the time of a run by part, at the shapes of the bars. Writes docs/bounds.md.

    python benchmarks/speed/bounds.py FOLDER [-o docs/bounds.md]

FOLDER holds the bundles that benchmarks/speed/bars.py made. One thread.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from levi_serving.environment import environment


def taken_apart(bundle: Path, precision: str, rows: int, tokens: int) -> str:
    """The profile of one shape, as the command prints it."""
    command = [
        str(Path(sys.executable).with_name("levi")), "profile", str(bundle), "--batch-size", str(rows), "--length",
        str(tokens), "--precision", precision, "--threads", "1", "--duration", "8",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/bounds.md"))
    options = parser.parse_args()
    about: dict[str, Any] = environment()
    model = json.loads((options.folder / "attention-bundle" / "levi.json").read_text(encoding="utf-8"))["model"]
    parameters = model["parameters"]
    lines = [
        "# What bounds the bars that are not met",
        "",
        "Written by `python benchmarks/speed/bounds.py FOLDER`; the bars are in [speed.md](speed.md).",
        "",
        f"{about['cpu']}, {about['usable_cores']} cores, load {about['load_average']}; Python {about['python']}, "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + f"; memory from {about['allocator']}. One thread.",
        "",
        f"The model trains {parameters['trained']:,} parameters beside {parameters['backbone']:,} in the backbone.",
        "",
        "| bar | what bounds it |",
        "|---|---|",
        "| mean pooling beside the bare backbone | At (1, 32) branch, heads and average take what the tree says, next "
        "to the bar's whole 2 %: many small nodes, each with few numbers to make. |",
        "| OpenVINO in f32 | In a short run products of few rows read each weight once and reach about half of the "
        "peak. In a long one they do well, and softmax, mask, GELU and transposes are passes of their own over all "
        "scores or all inner features. |",
        "| share of the SGEMM peak | The same passes: the products alone reach what the last lines of (8, 128) say. |",
        "| int8 beside fp32 | Only products with a weight are in int8; scores, softmax, GELU, norms and transposes "
        "take as long as in fp32. A faster fp32 makes the ratio smaller. |",
        "| K + 1 models | Each of the three backbones is served by this runner too, so three cost at most three times "
        "what LEVI costs, and the branch alone is next to nothing. |",
    ]
    for pooling, precision, rows, tokens in (
        ("attention", "fp32", 1, 32), ("mean", "fp32", 1, 32), ("attention", "fp32", 8, 128),
        ("attention", "int8", 8, 128),
    ):  # fmt: skip
        text = taken_apart(options.folder / f"{pooling}-bundle", precision, rows, tokens)
        print(text, flush=True)
        lines += ["", f"## {pooling} pooling, {precision}, ({rows}, {tokens})", "", "```", text, "```"]
    options.output.write_text("\n".join([*lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
