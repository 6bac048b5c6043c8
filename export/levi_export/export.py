"""One command's worth: a training run in, a proven bundle out, or nothing at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
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
from levi_export.verify import golden
from levi_serving.bundle import CARD, CERTIFICATE, GOLDEN, GRAPH, WEIGHTS, Bundle, Graph, Manifest
from levi_serving.errors import ParityError, UsageError
from levi_serving.parity import TOLERANCE, replay
from levi_serving.preprocess import TOKENIZER, Preprocessing
from levi_serving.runner import Runner

__all__ = ["export"]

Progress = Callable[[str], None]


def export(
    run: Path,
    output: Path,
    *,
    backbone: str | None = None,
    overwrite: bool = False,
    tolerance: float = TOLERANCE,
    progress: Progress | None = None,
) -> Bundle:
    """Export a training run as one proven graph.

    Everything is written aside and moved to ``output`` only when the proof holds.

    Args:
        run: the folder of a finished training run.
        output: the bundle's folder.
        backbone: where the backbone lies now; where it lay in training when None.
        overwrite: replace an ``output`` that exists.
        tolerance: the largest error of a logit, as a share of the logits' spread.
        progress: told what is being done.

    Raises:
        ParityError: the graph is not what the model is; ``output`` is as it was.
        RunError, UsageError: the run or the backbone cannot be used.
    """
    tell = progress or (lambda _: None)
    if output.exists() and any(output.iterdir()) and not overwrite:
        raise UsageError(f"{output} exists and is not empty. Choose another folder, or add --overwrite.")
    trained = Run.open(run)
    tell("loading the model")
    reference = trained.reference(backbone=backbone)
    # A large backbone is loaded in its own half precision, which few CPU operators have: widened, its values stay.
    reference.levi.float()
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-exporting-", dir=output.parent))
    try:
        tell("asking the torch model about the golden rows")
        golden(reference, trained.samples).save(aside / GOLDEN)
        bundle = _write(trained, reference.levi, aside, tell)
        tell("proving the graph")
        certificate = _prove(aside, tolerance)
        (aside / CERTIFICATE).write_text(json.dumps(certificate, indent=1) + "\n", encoding="utf-8")
        (aside / CARD).write_text(card(bundle.manifest, certificate), encoding="utf-8")
        sealed = Bundle.write(aside, bundle.manifest)
        if output.exists():
            shutil.rmtree(output)
        aside.chmod(0o755)  # mkdtemp's own mode would keep a service's user out
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Bundle(output, sealed.manifest)


def _write(trained: Run, levi: Levi, folder: Path, tell: Progress) -> Bundle:
    tell("tracing the graph")
    model = convert(levi, trained.preprocessing)
    clean(model)
    answers = outputs(heads=len(levi.ensemble.heads), classes=len(trained.labels))
    asked = inputs(levi, trained.preprocessing)
    structure = check(model, inputs=asked, outputs=answers, weights=_bytes(levi, trained.preprocessing))
    ir.save(model, folder / GRAPH, external_data=WEIGHTS)
    try:
        onnx.checker.check_model(str(folder / GRAPH), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"onnx finds the graph invalid: {error}. Nothing was written.") from error
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
        model=_described(trained, levi, structure),
        graphs=(Graph(opset=OPSET),),
        provenance={
            **trained.record,
            "versions": {
                **trained.record["versions"],
                **{name: metadata.version(name) for name in ("onnx", "onnxscript", "onnx-ir", "onnxruntime")},
                "torch": torch.__version__,
            },
        },
    )
    return Bundle.write(folder, manifest)


def _prove(folder: Path, tolerance: float) -> dict[str, Any]:
    """Judge the folder through the runner that serves."""
    from levi_serving.parity import Golden

    runner = Runner(folder, device="cpu")
    return replay(runner, Golden.load(folder / GOLDEN, runner.preprocessor.settings), tolerance=tolerance)


@torch.no_grad()
def _bytes(levi: Levi, rows: Preprocessing) -> int:
    """What the graph's constants may take: the weights, and a table of positions interpolated to another image size."""
    own: int = sum(t.numel() * t.element_size() for t in levi.state_dict(keep_vars=True).values())
    backbone, image = levi.backbone, rows.image
    if backbone is None or image is None or backbone.identity.image_size in (None, image.height):
        return own
    taps = backbone({"pixel_values": torch.zeros(1, 3, image.height, image.width)})  # (1, T, D) each
    return own + max(int(tap.numel() * tap.element_size()) for tap in taps)


def _described(trained: Run, levi: Levi, structure: Structure) -> dict[str, Any]:
    model = trained.config.model
    return {
        "backbone": {
            "name": trained.backbone.name,
            "digest": trained.backbone.digest,
            "layers": trained.backbone.depth,
            "widths": trained.backbone.widths,
        },
        "pooling": model.pooling,
        "queries": model.queries if model.pooling == "attention" else 0,
        "branches": [type(branch).__name__ for branch in levi.ensemble.branches],
        "head_hidden": model.head_hidden,
        "parameters": trained.record["parameters"],
        "nodes": structure.nodes,
        "weights_bytes": structure.weights,
    }
