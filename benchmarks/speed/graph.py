"""What the graph's form and precision cost or save, by family; and what LEVI costs beside its bare backbone.

    python benchmarks/speed/graph.py [--threads 1] [--effort 1] [--families text,t5,vit] [--run RUN] [-o docs/graph.md]

Shapes of real models from their configuration classes, weights random: times do not depend on them. All variants
of a shape are measured in turns in one process, each as the ratio of the reference's time to its own in the same
turn. With a training run, its graphs of each precision are held against torch on its validation rows. Writes a page;
about eight minutes on two quiet cores.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
import transformers
from onnx_ir.passes.common import ShapeInferencePass
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxscript.optimizer import optimize
from onnxscript.rewriter.ort_fusions import shape_optimization
from onnxscript.rewriter.ort_fusions.attention import fuse_attention
from onnxscript.rewriter.ort_fusions.mha import fuse_mha1, fuse_mha2
from onnxscript.rewriter.ort_fusions.mha_bias import fuse_mha_bias
from onnxscript.rewriter.ort_fusions.sdpa import fuse_sdpa
from torch import Tensor, nn

from levi_deploy.config import ModelConfig
from levi_deploy.model import Backbone, Levi
from levi_deploy.model.build import build
from levi_deploy.run import Run
from levi_export import export
from levi_export.convert import convert
from levi_export.graph import clean, nodes
from levi_export.optimize import cut_to_first_token, tokens_first
from levi_export.precision import int4, int8, quantised
from levi_export.proof import metric
from levi_serving import Runner
from levi_serving.bench.stats import ratio
from levi_serving.bundle import REAL_ROWS, read_certificate
from levi_serving.engine.cpu import SLOWER
from levi_serving.engine.session import Session
from levi_serving.environment import environment
from levi_serving.parity import RealRows, agreement
from levi_serving.predictions import Task
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import Preprocessing
from levi_serving.rows.text import TextSettings

Shape = tuple[int, int]
TEXT, IMAGE = Preprocessing(text=TextSettings()), Preprocessing(image=ImageSettings(resize=(224, 224)))
FAMILIES: dict[str, tuple[str, Any, Preprocessing, tuple[int, ...], tuple[Shape, ...]]] = {
    "text": (
        "text encoder (MiniLM-L6: 6 layers, 384 wide)",
        lambda: transformers.BertModel(
            transformers.BertConfig(
                hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
            )
        ),
        TEXT,
        (2, 4, 6),
        ((1, 32), (1, 128), (8, 128), (32, 128)),
    ),
    "t5": (
        "T5 encoder (t5-small: 6 layers, 512 wide)",
        lambda: transformers.T5EncoderModel(transformers.T5Config()),
        TEXT,
        (2, 4, 6),
        ((1, 32), (1, 128), (8, 128)),
    ),
    "vit": (
        "ViT (ViT-Ti/16 at 224: 12 layers, 192 wide)",
        lambda: transformers.ViTModel(
            transformers.ViTConfig(hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768)
        ),
        IMAGE,
        (4, 8, 12),
        ((1, 197), (8, 197)),
    ),
}
ROUNDS = {32: 60, 128: 30, 197: 20, 1024: 9, 1576: 7, 4096: 5}  # by tokens in a batch
_LEVELS = onnxruntime.GraphOptimizationLevel


class Bare(nn.Module):
    """The backbone alone, cut above the same depth, traced by the same code: its last hidden state."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.inputs = backbone.inputs

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "pixel_values": pixel_values}
        hidden = self.backbone({name: value for name, value in given.items() if value is not None})[-1]
        return hidden, hidden[:, 0]


class Variants:
    """Graphs of one family in a folder, and sessions on them."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        self.title, make, self.rows, self.taps, self.shapes = FAMILIES[name]
        self.folder, self.threads = folder, threads
        self.source = folder / "backbone"
        torch.manual_seed(0)
        make().save_pretrained(self.source)
        self.text = self.rows.text is not None

    def traced(self, pooling: str | None) -> Path:
        """The graph of a model with this pooling and an mlp branch; of the bare backbone when None."""
        path = self.folder / f"{pooling}.onnx"
        if not path.exists():
            taps = self.taps if pooling else self.taps[-1:]
            backbone = Backbone.load(str(self.source), lambda _: taps)
            model: nn.Module = Bare(backbone)
            if pooling:
                config = ModelConfig(pooling=cast("Any", pooling))
                task = Task(kind="classification", labels=("a", "b"))
                parts = build(config, backbone.identity, self.rows, taps, task=task)
                model = Levi(backbone, parts)
            graph = convert(cast("Levi", model.eval()), self.rows)
            clean(graph)
            ir.save(graph, path, external_data=f"{path.name}.data")
        return path

    def changed(self, path: Path, name: str, change: Callable[[Path], ir.Model]) -> Path:
        """A graph made from another."""
        target = self.folder / f"{path.stem}-{name}.onnx"
        if not target.exists():
            ir.save(change(path), target, external_data=f"{target.name}.data")
        return target

    def served(self, pooling: str | None) -> Path:
        """As the export makes it for CPUs."""
        return self.changed(self.traced(pooling), "served", arranged)

    def transposes(self, path: Path) -> int:
        """How many a session has left."""
        options = onnxruntime.SessionOptions()
        target = path.with_suffix(".optimised.onnx")
        options.optimized_model_filepath = str(target)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", target.name + ".w")
        onnxruntime.InferenceSession(path, options, disabled_optimizers=list(SLOWER))
        return sum(node.op_type == "Transpose" for node in ir.load(target).graph)

    def session(
        self, path: Path, *, disabled: tuple[str, ...] = SLOWER, level: Any = _LEVELS.ORT_ENABLE_ALL
    ) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.enable_mem_pattern = False  # buffers as the runner has them
        options.graph_optimization_level = level
        return onnxruntime.InferenceSession(path, options, disabled_optimizers=list(disabled))

    def feeds(self, shape: Shape) -> dict[str, np.ndarray]:
        draw = np.random.default_rng(0)
        if not self.text:
            return {"pixel_values": draw.standard_normal((shape[0], 3, 224, 224)).astype(np.float32)}
        return {"input_ids": draw.integers(5, 30_000, shape), "attention_mask": np.ones(shape, dtype=np.int64)}


def arranged(path: Path) -> ir.Model:
    model = ir.load(path)
    if not tokens_first(model):
        raise SystemExit(f"{path.name} keeps its rows first: its attention is not what this page is about.")
    return model


def cut(path: Path) -> ir.Model:
    model = ir.load(path)
    if not cut_to_first_token(model):
        raise SystemExit(f"{path.name} was not cut: its pooling or its attention is not what this page is about.")
    tokens_first(model)
    return model


def packed(path: Path) -> ir.Model:
    """The library's attention fusion alone: one com.microsoft.Attention a layer, where the pattern matches."""
    model = ir.load(path)
    ShapeInferencePass()(model)
    optimize(model)
    shape_optimization.rules.apply_to_model(model)
    optimize(model)
    fuse_sdpa(model, apply_shape_inference=True)
    for fuse in (fuse_mha1, fuse_mha2, fuse_mha_bias, fuse_attention):
        fuse(model)
    optimize(model)
    return model


def other_int8(path: Path, *, kinds: Sequence[str] = ("MatMul",), bits: int = 7) -> ir.Model:
    """As the export's ``int8`` quantises, but other operators, or weights of another width."""
    chosen = [str(node.name) for node in of_backbone(path) if node.op_type in kinds]

    def quantise(model: onnx.ModelProto, target: Path) -> None:
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=list(kinds),
            nodes_to_quantize=chosen,
            per_channel=True,
            reduce_range=bits == 7,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )

    return quantised(path, quantise)


def weight_only_int8(path: Path) -> ir.Model:
    """As the export's ``int4`` stores weights, but in 8 bits."""
    kept = {str(node.name) for node in nodes(ir.load(path))} - {str(node.name) for node in of_backbone(path)}

    def quantise(model: onnx.ModelProto, target: Path) -> None:
        quantizer = MatMulNBitsQuantizer(
            model, bits=8, block_size=32, is_symmetric=True, accuracy_level=4, nodes_to_exclude=sorted(kept)
        )
        quantizer.process()
        quantizer.model.save_model_to_file(target, True)

    return quantised(path, quantise)


def of_backbone(path: Path) -> list[ir.Node]:
    return [node for node in nodes(ir.load(path)) if str(node.name).startswith("backbone.")]


def family(name: str, folder: Path, threads: int, effort: float) -> list[str]:
    """One family's section of the page."""
    made = Variants(name, folder, threads)
    mean, first, attention = made.served("mean"), made.served("first"), made.served("attention")
    lines = [f"## {made.title}", ""]

    # Each table's sessions are made together: where memory comes from early or late is worth a percent or two.
    sessions = {
        "bare backbone": made.session(made.served(None)),
        "LEVI, mean pooling": made.session(mean),
        "LEVI, attention pooling": made.session(attention),
    }
    lines += ["LEVI's time over the bare backbone's, three taps and a branch:", ""]
    lines += table(made, sessions, effort, invert=True)

    traced = made.traced("mean")
    fused = made.changed(traced, "packed", packed)
    sessions = {
        "as served: tokens before rows, all of onnxruntime's fusions but these two": made.session(mean),
        "rows before tokens, as traced": made.session(traced),
        **{f"{fusion} too": made.session(mean, disabled=(other,)) for fusion, other in (SLOWER, SLOWER[::-1])},
        "all fusions": made.session(mean, disabled=()),
        "level BASIC": made.session(mean, level=_LEVELS.ORT_ENABLE_BASIC),
        "packed attention, rows before tokens": made.session(fused),
    }
    found = Counter(node.op_type for node in ir.load(fused).graph if node.domain == "com.microsoft")
    lines += ["", f"Fusions, mean pooling, fp32 (packed attention matched: {dict(found) or 'nowhere'}):", ""]
    lines += table(made, sessions, effort)
    lines += [
        "",
        f"Transposes in the session: {made.transposes(traced)} as traced, {made.transposes(mean)} as served. A file "
        "with packed attention would be worth its place from 3 % on over the one that is served.",
    ]

    sessions = {
        "first-token pooling, whole": made.session(first),
        "cut to the first token": made.session(made.changed(made.traced("first"), "cut", cut)),
    }
    lines += ["", "The exact cut of the last layer to its first token:", ""]
    lines += table(made, sessions, effort)

    forms: dict[str, Callable[[Path], ir.Model]] = {
        "int8: MatMul and Gather": lambda path: other_int8(path, kinds=("MatMul", "Gather")),
        "int8: MatMul": lambda path: int8(path)[0],
        "int8: MatMul, 8 bits of weight (wrong without VNNI)": lambda path: other_int8(path, bits=8),
        "int4 weights": lambda path: int4(path)[0],
        "int8 weights": weight_only_int8,
    }
    paths = {form: made.changed(mean, str(n), change) for n, (form, change) in enumerate(forms.items())}
    lines += ["", "Precision, mean pooling; heads and branch in fp32 in all:", ""]
    sessions = {"fp32": made.session(mean)} | {form: made.session(path) for form, path in paths.items()}
    sessions["int8: MatMul, all fusions"] = made.session(paths["int8: MatMul"], disabled=())
    lines += table(made, sessions, effort)
    sizes = {"fp32": mean, **paths}
    lines += ["", "Size, MB: " + "; ".join(f"{form} {megabytes(path):.1f}" for form, path in sizes.items()) + "."]
    return [*lines, ""]


def answers(run: Path) -> list[str]:
    """What each precision keeps of a trained model's answers, by an export that refuses nothing."""
    trained = Run.open(run)
    with tempfile.TemporaryDirectory() as temporary:
        bundle = export(
            run, Path(temporary) / "bundle", precisions=("fp32", "fp16", "int8", "int4"), min_agreement=0, max_drop=1e9
        )
        found: dict[str, dict[str, Any]] = {
            g.precision: read_certificate(bundle.folder, g.file) for g in bundle.manifest.graphs
        }
        graph = bundle.folder / "model.gather.onnx"
        model = other_int8(bundle.folder / bundle.graph("fp32").file, kinds=("MatMul", "Gather"))
        ir.save(model, graph, external_data=f"{graph.name}.data")
        runner = Runner(bundle.folder, precision="int8")
        runner.session = Session(graph, device="cpu")
        real = RealRows.load(bundle.folder / REAL_ROWS, trained.preprocessing)
        outputs = runner.run(runner.prepare(real.rows))
        found["int8, Gather too"] = {
            "real_rows": agreement(real.reference, outputs, kind=trained.task.kind),
            "metric": metric(real.reference, outputs, trained.targets, trained.task),
        }
    lines = [
        "## What each precision keeps of the answers",
        "",
        f"{trained.record['data']['file']}, {trained.backbone.name}, taps {', '.join(map(str, trained.taps))}, "
        f"{trained.config.model.pooling} pooling; {len(trained.targets)} validation rows.",
        "",
        "| precision | predictions as torch's | rms error, of the logits' standard deviation | by head | metric | "
        "torch's |",
        "|---|---|---|---|---|---|",
    ]
    for precision, certificate in found.items():
        if real_rows := certificate.get("real_rows"):
            heads = ", ".join(f"{error:.4f}" for error in real_rows["heads"]["rms_scaled_error"])
            own = certificate["metric"]
            lines.append(
                f"| {precision} | {real_rows['agreement']:.1%} | {real_rows['rms_scaled_error']:.4f} | {heads} | "
                f"{own['name']} {own['value']:.4f} | {own['torch']:.4f} |"
            )
    return [*lines, ""]


def megabytes(path: Path) -> float:
    return sum(part.stat().st_size for part in path.parent.glob(path.name + "*")) / 1e6


def table(
    made: Variants, sessions: Mapping[str, onnxruntime.InferenceSession], effort: float, *, invert: bool = False
) -> list[str]:
    """Each session's speed over the first's (``invert``: its time), by shape: median and 95 % interval."""
    columns = {shape: measured(sessions, made.feeds(shape), shape, effort) for shape in made.shapes}
    lines = ["| | " + " | ".join(f"({b}, {t})" for b, t in made.shapes) + " |", "|---|" + "---|" * len(made.shapes)]
    for name in sessions:
        cells = []
        for times in columns.values():
            own, reference = times[name], times[next(iter(sessions))]
            found = ratio(reference, own) if invert else ratio(own, reference)
            cells.append(
                f"{1000 * median(own):.1f} ms"
                if own is reference
                else f"{found['median']:.3f} × [{found['low']:.3f}, {found['high']:.3f}]"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def measured(
    sessions: Mapping[str, onnxruntime.InferenceSession], given: dict[str, np.ndarray], shape: Shape, effort: float
) -> dict[str, list[float]]:
    """Seconds of each session in each turn; the first turn warms up."""
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(1 + max(3, round(effort * ROUNDS[shape[0] * shape[1]]))):
        for name, session in sessions.items():
            started = time.perf_counter()
            session.run(None, given)
            if turn:
                times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--effort", type=float, default=1.0, help="turns, as a share of the usual number")
    parser.add_argument("--families", default=",".join(FAMILIES))
    parser.add_argument("--run", type=Path, help="a finished training run, to hold its precisions against torch")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/graph.md"))
    options = parser.parse_args()
    started, load = time.perf_counter(), os.getloadavg()[0]
    about = environment()
    versions = ", ".join(f"{name} {version}" for name, version in cast("dict[str, str]", about["versions"]).items())
    command = (
        "--run RUN " if options.run else ""
    ) + f"--threads {options.threads} --effort {options.effort:g} --families {options.families}"
    lines = [
        "# What the graph's form and precision cost",
        "",
        f"Written by `python benchmarks/speed/graph.py {command}`; nothing here was typed in.",
        "",
        f"Machine: {about['cpu']}, {about['usable_cores']} cores, load {load:.1f} at the start, {platform.machine()}.",
        f"Python {about['python']}, {versions}; memory from {about['allocator']}.",
        f"Threads of one run: {options.threads}.",
        "",
        "Shapes are (rows, tokens); weights are random. The first line of a table is a time, the others are how many",
        "times faster than it (median of the ratios taken turn by turn, and its 95 % interval).",
        "",
    ]
    for name in options.families.split(","):
        with tempfile.TemporaryDirectory() as temporary:
            lines += family(name, Path(temporary), options.threads, options.effort)
    if options.run:
        lines += answers(options.run)
    lines += [f"All of it took {time.perf_counter() - started:.0f} s.", ""]
    options.output.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
