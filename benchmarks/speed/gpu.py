"""The bars on an NVIDIA GPU: LEVI on ViT-B/16 and BERT-base in fp16, beside torch with SDPA and CUDA graphs.

    python benchmarks/speed/gpu.py [--device cuda] [--batches 1,8,32,128,256] [--seconds 3] [-o gpu.md]

Shapes from the models' configuration classes, weights random: times do not depend on them. Needs onnxruntime-gpu and
a torch with CUDA; ``--device cpu --tiny`` goes through the same steps anywhere, to try the script. Both sides are
measured in turns in this process: onnxruntime plainly and with captured CUDA graphs, torch's model in half precision
replayed as a CUDA graph. The rate of matrix products that they are held against is torch's own, in fp16, in the same
process.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers

from levi_deploy.config import ModelConfig
from levi_deploy.model import Backbone, Levi
from levi_deploy.model.build import build
from levi_export.convert import convert
from levi_export.graph import clean
from levi_export.precision import derive
from levi_serving.bench.stats import ratio
from levi_serving.engine.gpu import GpuSettings
from levi_serving.engine.session import Session
from levi_serving.environment import environment
from levi_serving.predictions import Task
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import Preprocessing
from levi_serving.rows.text import TextSettings

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
TOKENS = 128


def model(family: str, folder: Path, *, tiny: bool) -> tuple[Levi, Preprocessing, float]:
    """A LEVI model on three taps, its rows, and the operations of a row's matrix products in the backbone."""
    sizes: dict[str, Any] = TINY if tiny else BASE
    torch.manual_seed(0)
    if family == "ViT-B/16":
        made: Any = transformers.ViTModel(transformers.ViTConfig(**sizes))
        rows, tokens = Preprocessing(image=ImageSettings(resize=(224, 224))), 197
    else:
        made = transformers.BertModel(transformers.BertConfig(**sizes))
        rows, tokens = Preprocessing(text=TextSettings()), TOKENS
    made.save_pretrained(folder)
    depth = sizes["num_hidden_layers"]
    taps = tuple(sorted({max(1, depth // 3), max(1, 2 * depth // 3), depth}))
    backbone = Backbone.load(str(folder), lambda _: taps)
    branches = ("cnn",) if family == "ViT-B/16" else ("mlp",)
    config = ModelConfig(branches=branches, pooling="attention")
    task = Task(kind="classification", labels=tuple("abcdefghij"))
    parts = build(config, backbone.identity, rows, taps, task=task)
    width, inner = sizes["hidden_size"], sizes["intermediate_size"]
    work = depth * tokens * (2 * (4 * width * width + 2 * width * inner) + 4 * tokens * width)
    return Levi(backbone, parts).eval(), rows, float(work)


def feeds(rows: Preprocessing, batch: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    if rows.image is not None:
        return {"pixel_values": draw.standard_normal((batch, 3, 224, 224), dtype=np.float32)}
    ids = draw.integers(5, 30_000, (batch, TOKENS))
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def torch_side(levi: Levi, given: dict[str, np.ndarray], device: str) -> Callable[[], object]:
    """The model in half precision with SDPA; on a GPU replayed as a CUDA graph, inputs copied in and answers out."""
    tensors = {name: torch.from_numpy(array).to(device) for name, array in given.items()}
    if device == "cpu":
        return lambda: _asked(levi, tensors)
    warm = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it without types
    with torch.cuda.stream(warm):
        for _ in range(3):
            _asked(levi, tensors)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answers = _asked(levi, tensors)
    staged = {name: torch.from_numpy(array).pin_memory() for name, array in given.items()}

    def replay() -> object:
        for name, tensor in tensors.items():
            tensor.copy_(staged[name], non_blocking=True)
        graph.replay()
        return [answer.cpu() for answer in answers]

    return replay


@torch.inference_mode()
def _asked(levi: Levi, tensors: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(levi(**{name: tensors[name] for name in levi.inputs if name in tensors}))


def products(device: str, size: int) -> float:
    """Operations a second of torch's matrix product in fp16 (fp32 on a CPU): the fastest of twenty."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        started = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def turns(sides: dict[str, Callable[[], object]], seconds: float) -> dict[str, list[float]]:
    found = {name: list[float]() for name in sides}
    for side in sides.values():
        for _ in range(3):
            side()
    began = time.perf_counter()
    while time.perf_counter() - began < seconds * len(sides) or len(found[next(iter(sides))]) < 5:
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            found[name].append(time.perf_counter() - started)
    return found


def family(name: str, folder: Path, options: argparse.Namespace, peak: float) -> list[str]:
    """One family's table."""
    levi, rows, work = model(name, folder / "backbone", tiny=options.tiny)
    graph = convert(levi, rows)
    clean(graph)
    ir.save(graph, folder / "model.onnx", external_data="model.onnx.data")
    precision: Any = "fp16" if options.device == "cuda" else "fp32"
    path = folder / "model.onnx"
    if precision == "fp16":
        narrowed, _ = derive(path, "fp16")
        path = folder / "model.fp16.onnx"
        ir.save(narrowed, path, external_data="model.fp16.onnx.data")
    session = Session(path, device=options.device, precision=precision)
    sessions = {"onnxruntime": session}
    if options.device == "cuda":
        captures = GpuSettings(capture_tokens=10**6)
        sessions["onnxruntime, CUDA graphs"] = Session(path, device="cuda", precision=precision, gpu=captures)
        levi.backbone.model.set_attn_implementation("sdpa")  # type: ignore[union-attr]
        levi.cuda().backbone.model.half()  # type: ignore[union-attr]  # the small ensemble stays in fp32
    lines = [
        f"## {name}, {precision}",
        "",
        f"Nodes by provider: {session.nodes}.",
        "",
        "| batch | " + " | ".join([*sessions, "torch"]) + " | torch ÷ ours | share of the peak |",
        "|---|" + "---|" * (len(sessions) + 3),
    ]
    for batch in map(int, options.batches.split(",")):
        given = feeds(rows, batch)
        sides: dict[str, Callable[[], object]] = {
            side: partial(session.run, given) for side, session in sessions.items()
        }
        sides["torch"] = torch_side(levi, given, options.device)
        found = turns(sides, options.seconds)
        best = min(sessions, key=lambda side: median(found[side]))
        faster = ratio(found[best], found["torch"])
        cells = [f"{1000 * median(times):.2f} ms" for times in found.values()]
        share = batch * work / median(found[best]) / peak
        lines.append(
            f"| {batch} | " + " | ".join(cells) + f" | {faster['median']:.2f} [{faster['low']:.2f}, "
            f"{faster['high']:.2f}] | {share:.1%} |"
        )
        print(lines[-1], flush=True)
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--batches", default="1,8,32,128,256")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each side and batch")
    parser.add_argument("--tiny", action="store_true", help="two layers, 64 wide: to try the script")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.md"))
    options = parser.parse_args()
    about: dict[str, Any] = environment()
    peak = products(options.device, 8192 if options.device == "cuda" else 512)
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else "no GPU"
    lines = [
        "# On a GPU",
        "",
        f"Written by `python benchmarks/speed/gpu.py --device {options.device} --batches {options.batches}"
        f"{' --tiny' if options.tiny else ''}`; nothing here was typed in.",
        "",
        f"{gpu}; {about['cpu']}, {about['usable_cores']} cores; Python {about['python']}, "
        + ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        + f". Matrix products: {peak / 1e12:.2f} TFLOP/s measured.",
        "",
        "Times: median, inputs on the host before and answers on the host after. Bars: p50 at batch 1 ≤ 1.5 ms; at the",
        "best batch ≥ 50 % of the measured rate of matrix products.",
        "",
    ]
    for name in ("BERT-base", "ViT-B/16"):
        with tempfile.TemporaryDirectory() as temporary:
            lines += family(name, Path(temporary), options, peak)
    options.output.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
