"""One command's worth: a training run in, a proven bundle out, or nothing at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch

from levi_deploy.model import Levi
from levi_deploy.training.checkpoint import Run
from levi_export.card import card
from levi_export.convert import OPSET, convert, inputs, outputs
from levi_export.graph import Structure, check, clean
from levi_export.hub import write_hub_files
from levi_export.optimize import cut_to_first_token, tokens_first
from levi_export.precision import check_precisions, derive
from levi_export.verify import check_drop, golden, metric, spread
from levi_serving.bundle import (
    CARD,
    CERTIFICATE,
    CPU_GRAPH,
    GOLDEN,
    GRAPH,
    REAL_ROWS,
    WEIGHTS,
    Bundle,
    Graph,
    GraphDevice,
    Manifest,
    Precision,
    Tensor,
)
from levi_serving.errors import ParityError, UsageError
from levi_serving.parity import Golden, RealRows, answer, replay, standard
from levi_serving.preprocess import TOKENIZER, Preprocessing
from levi_serving.runner import Runner
from levi_serving.session import providers

__all__ = ["export"]

Progress = Callable[[str], None]
_MADE_FOR: dict[Precision, GraphDevice] = {"fp16": "any", "bf16": "cuda", "int8": "cpu", "int4": "cpu"}
_INLINE = 256  # bytes; smaller constants lie in the graph itself


def export(
    run: Path,
    output: Path,
    *,
    backbone: str | None = None,
    precisions: Sequence[Precision] = ("fp32",),
    min_agreement: float = 0.95,
    max_drop: float = 0.5,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a training run as one proven graph, or as one for each precision.

    Everything is written aside and moved to ``output`` only when the proof holds.

    Args:
        run: the folder of a finished training run.
        output: the bundle's folder.
        backbone: where the backbone lies now; where it lay in training when None.
        precisions: of the graphs, the preferred one first.
        min_agreement: the least share of real rows whose prediction a less precise graph must keep.
        max_drop: by how many points such a graph may lose the task's first metric on these rows
            (regression: by how many percent its error may rise).
        overwrite: replace an ``output`` that exists.
        progress: told what is being done.

    Raises:
        ParityError: a graph is not what the model is; ``output`` is as it was.
        ProviderError: a precision cannot be proven on this machine.
        RunError, UsageError: the run, the backbone or a precision cannot be used.
    """
    tell = progress or (lambda _: None)
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise UsageError(f"{output} exists and is not empty. Choose another folder, or add --overwrite.")
    check_precisions(precisions, providers())
    trained = Run.open(run)
    tell("loading the model")
    reference = trained.reference(backbone=backbone)
    # A large backbone is loaded in its own half precision, which few CPU operators have: widened, its values stay.
    reference.levi.float()
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-exporting-", dir=output.parent))
    try:
        tell("asking the torch model about the golden rows")
        rows = trained.samples
        golden(reference, spread(rows)).save(aside / GOLDEN)
        if set(precisions) != {"fp32"}:
            RealRows(rows, reference.run(reference.prepare(rows))).save(aside / REAL_ROWS, trained.preprocessing)
        bundle = _write(trained, reference.levi, aside, precisions, tell)
        certificates = {}
        for graph in bundle.manifest.graphs:
            tell(f"proving {graph.file}")
            certificates[graph.file] = _prove(aside, graph, trained, min_agreement=min_agreement, max_drop=max_drop)
        (aside / CERTIFICATE).write_text(json.dumps(certificates, indent=1) + "\n", encoding="utf-8")
        (aside / CARD).write_text(card(bundle.manifest, certificates), encoding="utf-8")
        sealed = Bundle.write(aside, bundle.manifest)
        if output.exists():
            shutil.rmtree(output)
        aside.chmod(0o755)  # mkdtemp's own mode would keep a service's user out
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Bundle(output, sealed.manifest)


def _write(trained: Run, levi: Levi, folder: Path, precisions: Sequence[Precision], tell: Progress) -> Bundle:
    tell("tracing the graph")
    model = convert(levi, trained.preprocessing)
    clean(model)
    cut = {"nodes cut to the first token": count} if (count := cut_to_first_token(model)) else {}
    answers = outputs(heads=len(levi.ensemble.heads), classes=len(trained.labels))
    asked = inputs(levi, trained.preprocessing)
    structure = check(model, inputs=asked, outputs=answers, weights=_bytes(levi, trained.preprocessing))
    _save(model, folder, GRAPH)
    portable = Graph(opset=OPSET, changes=cut)
    for_cpu = _for_cpu(portable, folder, asked, answers, structure)
    graphs: list[Graph] = []
    for precision in precisions:
        if precision == "fp32":
            graphs += [portable] if for_cpu is portable else [for_cpu, portable]
        else:
            tell(f"making the {precision} graph")
            source = for_cpu if _MADE_FOR[precision] == "cpu" else portable
            graphs.append(_narrowed(source, precision, folder, beside=GRAPH if "fp32" in precisions else None))
    if "fp32" not in precisions:
        for name in (GRAPH, WEIGHTS, CPU_GRAPH):
            (folder / name).unlink(missing_ok=True)
    if trained.preprocessing.text is not None:
        shutil.copyfile(trained.folder / TOKENIZER, folder / TOKENIZER)
    write_hub_files(folder, trained, levi)
    manifest = Manifest(
        task=trained.task,
        labels=trained.labels,
        preprocessing=trained.preprocessing,
        inputs=asked,
        outputs=answers,
        average=trained.config.model.average,
        taps=trained.taps,
        model={
            **trained.record["model"],
            "parameters": trained.record["parameters"],
            "nodes": structure.nodes,
            "weights_bytes": structure.weights,
        },
        graphs=tuple(graphs),
        abstain_above=trained.record["abstain_above"],
        provenance={
            **{name: value for name, value in trained.record.items() if name not in ("model", "abstain_above")},
            "versions": {
                **trained.record["versions"],
                **{name: metadata.version(name) for name in ("onnx", "onnxscript", "onnx-ir", "onnxruntime")},
                "torch": torch.__version__,
            },
        },
    )
    return Bundle.write(folder, manifest)


def _for_cpu(
    portable: Graph, folder: Path, asked: tuple[Tensor, ...], answers: tuple[Tensor, ...], structure: Structure
) -> Graph:
    """The fp32 graph that CPUs run, with the same weights: one of its own where it can do with fewer transposes."""
    model = ir.load(folder / portable.file)
    if not (saved := tokens_first(model)):
        return portable
    check(model, inputs=asked, outputs=answers, weights=structure.weights)
    _save(model, folder, CPU_GRAPH, beside=portable.file)
    changes = {**portable.changes, "transposes left to products": saved}
    return replace(portable, file=CPU_GRAPH, device="cpu", changes=changes)


def _narrowed(source: Graph, precision: Precision, folder: Path, *, beside: str | None) -> Graph:
    """Write an fp32 graph again in less precision."""
    model, changes = derive(folder / source.file, precision)
    file = f"model.{precision}.onnx"
    _save(model, folder, file, beside=beside)
    return Graph(
        file=file,
        precision=precision,
        device=_MADE_FOR[precision],
        opset=model.opset_imports[""],
        changes={**source.changes, **changes},
    )


def _save(model: ir.Model, folder: Path, file: str, *, beside: str | None = None) -> None:
    """Write a graph, its weights beside it; those that the graph ``beside`` has too are read from its file.

    Raises:
        ParityError: onnx finds it invalid.
    """
    there = ir.load(folder / beside).graph.initializers if beside else {}
    own = []
    for name, value in model.graph.initializers.items():
        if name in there and _same(value.const_value, twin := there[name].const_value):
            value.const_value = twin
        elif value.const_value is not None and value.const_value.nbytes > _INLINE:
            own.append(value)
    tensors = [value.const_value for value in own if value.const_value is not None]
    if tensors:
        written = ir.external_data.convert_tensors_to_external(tensors, folder, f"{file}.data")
        for value, tensor in zip(own, written, strict=True):
            value.const_value = tensor
    ir.save(model, folder / file)
    try:
        onnx.checker.check_model(str(folder / file), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"onnx finds the graph {file} invalid: {error}. Nothing was written.") from error


def _same(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    """Whether two constants are the same to the bit."""
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()


def _prove(folder: Path, graph: Graph, trained: Run, *, min_agreement: float, max_drop: float) -> dict[str, Any]:
    """Judge one graph of the folder through the runner that serves."""
    runner = Runner(folder, device="cuda" if graph.device == "cuda" else "cpu", graph=graph)
    asked = standard(graph.precision, min_agreement=min_agreement)
    real = answer(runner, graph)
    certificate = replay(runner, Golden.load(folder / GOLDEN, trained.preprocessing), asked, real=real)
    if real is not None:
        certificate["metric"] = metric(*real, trained.targets, task=trained.task, labels=trained.labels)
        check_drop(certificate["metric"], graph, allowed=max_drop)
    return certificate


@torch.no_grad()
def _bytes(levi: Levi, rows: Preprocessing) -> int:
    """What the graph's constants may take: the weights, and a table of positions interpolated to another image size."""
    own: int = sum(t.numel() * t.element_size() for t in levi.state_dict(keep_vars=True).values())
    backbone, image = levi.backbone, rows.image
    if backbone is None or image is None or backbone.identity.image_size in (None, image.height):
        return own
    taps = backbone({"pixel_values": torch.zeros(1, 3, image.height, image.width)})  # (1, T, D) each
    return own + max(int(tap.numel() * tap.element_size()) for tap in taps)
