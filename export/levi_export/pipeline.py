"""The whole export: a training run in, a proven bundle out, or nothing at all.

``export`` reads top to bottom: reference answers, graphs, manifest, proof. Every step has a file of its own.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import torch

from levi_deploy.model import Levi
from levi_deploy.run import Run
from levi_export.card import card
from levi_export.convert import OPSET, convert, inputs, outputs, weight_bytes
from levi_export.golden import choose, golden
from levi_export.graph import Structure, check, clean
from levi_export.hub import write_hub_files
from levi_export.optimize import cut_to_first_token, tokens_first
from levi_export.precision import check_precisions, derive
from levi_export.proof import prove
from levi_export.storage import save
from levi_serving import atomic
from levi_serving.bundle import (
    CARD,
    CERTIFICATE,
    CPU_GRAPH,
    GOLDEN,
    GRAPH,
    REAL_ROWS,
    WEIGHTS,
    Bundle,
    GraphDevice,
    GraphFile,
    Manifest,
    Precision,
)
from levi_serving.engine.session import providers
from levi_serving.environment import versions
from levi_serving.errors import UsageError
from levi_serving.parity import RealRows
from levi_serving.rows.preprocess import TOKENIZER

__all__ = ["export"]

Progress = Callable[[str], None]
_DEVICES: dict[Precision, GraphDevice] = {"fp16": "any", "bf16": "cuda", "int8": "cpu", "int4": "cpu"}


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

    Everything is written to a folder beside ``output``, which takes its place only when the proof holds.

    Args:
        run: the folder of a finished training run.
        output: the bundle's folder.
        backbone: where the backbone lies now; where it lay in training when None.
        precisions: of the graphs, the preferred one first.
        min_agreement: the least share of real rows whose prediction a less precise graph must keep.
        max_drop: how many points of the task's first metric such a graph may lose on these rows
            (regression: by how many percent its error may rise).
        overwrite: replace an ``output`` that exists.
        progress: called with each step's name as it begins.

    Raises:
        ParityError: a graph does not answer as the model does; ``output`` is as it was.
        ProviderError: a precision cannot be proven on this machine.
        RunError, UsageError: the run, the backbone or a precision cannot be used.
    """
    report = progress or (lambda _: None)
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise UsageError(f"{output} exists and is not empty. Choose another folder, or set `overwrite`.")
    check_precisions(precisions, providers())
    trained = Run.open(run)
    report("loading the model")
    reference = trained.reference(backbone=backbone)
    # A large backbone is loaded in its own half precision, which few CPU operators have. Widening keeps its values.
    reference.levi.float()
    with _replacing(output) as folder:
        report("computing the torch model's answers to the golden rows")
        rows = trained.samples
        golden(reference, choose(rows)).save(folder / GOLDEN)
        if set(precisions) != {"fp32"}:
            RealRows(rows, reference.run(reference.prepare(rows))).save(folder / REAL_ROWS, trained.preprocessing)
        report("tracing the graph")
        fp32, structure = _fp32(trained, reference.levi, folder)
        graphs: list[GraphFile] = []
        for precision in precisions:
            if precision == "fp32":
                graphs += fp32
            else:
                report(f"making the {precision} graph")
                graphs.append(_derived(fp32, precision, folder, share="fp32" in precisions))
        if "fp32" not in precisions:
            for name in (GRAPH, WEIGHTS, CPU_GRAPH):
                (folder / name).unlink(missing_ok=True)
        if trained.preprocessing.text is not None:
            shutil.copyfile(trained.folder / TOKENIZER, folder / TOKENIZER)
        write_hub_files(folder, trained, reference.levi)
        manifest = _manifest(trained, reference.levi, structure, graphs)
        # Sealed twice: the runner that proves the graphs opens only a sealed bundle, and the proof becomes part of it.
        Bundle.write(folder, manifest)
        certificates = {}
        for graph in graphs:
            report(f"proving {graph.file}")
            certificates[graph.file] = prove(folder, graph, trained, min_agreement=min_agreement, max_drop=max_drop)
        atomic.write(folder / CERTIFICATE, json.dumps(certificates, indent=1) + "\n")
        atomic.write(folder / CARD, card(manifest, certificates))
        sealed = Bundle.write(folder, manifest)
    return Bundle(output, sealed.manifest)


@contextmanager
def _replacing(output: Path) -> Iterator[Path]:
    """A folder to fill; it takes ``output``'s place when the block ends, and is removed when the block fails."""
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-exporting-", dir=output.parent))
    try:
        yield aside
        if output.exists():
            shutil.rmtree(output)
        aside.chmod(0o755)  # mkdtemp's own mode would keep a service's user out
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _fp32(trained: Run, levi: Levi, folder: Path) -> tuple[list[GraphFile], Structure]:
    """Trace, check and save the fp32 graphs.

    Returns:
        The graph that CPUs run, where it saves transposes, before the portable one, with the same weights; and what
        the portable one is made of.
    """
    model = convert(levi, trained.preprocessing)
    clean(model)
    cut = cut_to_first_token(model)
    expected_inputs = inputs(levi, trained.preprocessing)
    expected_outputs = outputs(levi.ensemble)
    weights = weight_bytes(levi, trained.preprocessing)
    structure = check(model, inputs=expected_inputs, outputs=expected_outputs, weights=weights)
    save(model, folder, GRAPH)
    portable = GraphFile(opset=OPSET, changes={"nodes cut to the first token": cut} if cut else {})

    model = ir.load(folder / GRAPH)
    saved = tokens_first(model)
    if not saved:
        return [portable], structure
    check(model, inputs=expected_inputs, outputs=expected_outputs, weights=structure.weights)
    save(model, folder, CPU_GRAPH, share_with=GRAPH)
    changes = {**portable.changes, "transposes left to products": saved}
    return [replace(portable, file=CPU_GRAPH, device="cpu", changes=changes), portable], structure


def _derived(fp32: Sequence[GraphFile], precision: Precision, folder: Path, *, share: bool) -> GraphFile:
    """Write the graph in another precision: from the fp32 graph for its device, and with its weights (``share``)."""
    source = fp32[0] if _DEVICES[precision] == "cpu" else fp32[-1]
    model, changes = derive(folder / source.file, precision)
    file = f"model.{precision}.onnx"
    save(model, folder, file, share_with=GRAPH if share else None)
    return GraphFile(
        file=file,
        precision=precision,
        device=_DEVICES[precision],
        opset=model.opset_imports[""],
        changes={**source.changes, **changes},
    )


def _manifest(trained: Run, levi: Levi, structure: Structure, graphs: Sequence[GraphFile]) -> Manifest:
    """What the bundle says of itself, before it is sealed."""
    record = dict(trained.record)
    architecture = record.pop("model")
    exported_with = versions(("onnx", "onnxscript", "onnx-ir", "onnxruntime", "onnxruntime-gpu"))
    return Manifest(
        task=trained.task,
        preprocessing=trained.preprocessing,
        inputs=inputs(levi, trained.preprocessing),
        outputs=outputs(levi.ensemble),
        average=trained.config.model.average_of,
        taps=trained.taps,
        model={
            **architecture,
            "parameters": record["parameters"],
            "nodes": structure.nodes,
            "weights_bytes": structure.weights,
        },
        graphs=tuple(graphs),
        provenance={
            **record,
            "versions": {**record["versions"], **exported_with, "torch": torch.__version__},
        },
    )
