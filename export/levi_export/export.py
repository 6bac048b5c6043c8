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
from levi_export.graph import check, clean
from levi_export.verify import golden
from levi_serving.bundle import CARD, CERTIFICATE, GOLDEN, GRAPH, WEIGHTS, Bundle, Graph, Manifest
from levi_serving.errors import ParityError, UsageError
from levi_serving.parity import replay, standard
from levi_serving.preprocess import TOKENIZER
from levi_serving.runner import Runner

__all__ = ["export"]

Progress = Callable[[str], None]


def export(
    run: Path,
    output: Path,
    *,
    backbone: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Bundle:
    """Export a training run as one proven graph.

    Everything is written aside and moved to ``output`` only when the proof holds.

    Args:
        run: the folder of a finished training run.
        output: the bundle's folder.
        backbone: where the backbone lies now; where it lay in training when None.
        overwrite: replace an ``output`` that exists.
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
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-exporting-", dir=output.parent))
    try:
        tell("asking the torch model about the golden rows")
        golden(reference, trained.samples).save(aside / GOLDEN)
        bundle = _write(trained, reference.levi, aside, tell)
        tell("proving the graph")
        certificates = {graph.file: _prove(aside, graph) for graph in bundle.manifest.graphs}
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


def _write(trained: Run, levi: Levi, folder: Path, tell: Progress) -> Bundle:
    tell("tracing the graph")
    model = convert(levi, trained.preprocessing)
    clean(model)
    answers = outputs(heads=len(levi.ensemble.heads), classes=len(trained.labels))
    asked = inputs(levi, trained.preprocessing)
    structure = check(model, inputs=asked, outputs=answers, weights=_bytes(levi))
    ir.save(model, folder / GRAPH, external_data=WEIGHTS)
    try:
        onnx.checker.check_model(str(folder / GRAPH), full_check=True)
    except onnx.checker.ValidationError as error:
        raise ParityError(f"onnx finds the graph invalid: {error}. Nothing was written.") from error
    if trained.preprocessing.text is not None:
        shutil.copyfile(trained.folder / TOKENIZER, folder / TOKENIZER)
    (folder / "config.json").write_text(json.dumps(_config(trained, levi), indent=1) + "\n", encoding="utf-8")
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
        graphs=(Graph(opset=OPSET),),
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


def _prove(folder: Path, graph: Graph) -> dict[str, Any]:
    """Judge one graph of the folder through the runner that serves."""
    from levi_serving.parity import Golden

    runner = Runner(folder, device="cpu", graph=graph)
    return replay(runner, Golden.load(folder / GOLDEN, runner.preprocessor.settings), standard(graph.precision))


def _bytes(levi: Levi) -> int:
    return sum(t.numel() * t.element_size() for t in levi.state_dict(keep_vars=True).values())


def _config(trained: Run, levi: Levi) -> dict[str, Any]:
    """The backbone's configuration with this task's labels, for programs that expect a ``config.json``."""
    config: dict[str, Any] = levi.backbone.model.config.to_dict() if levi.backbone is not None else {}
    kinds = {
        "classification": "single_label_classification",
        "multilabel": "multi_label_classification",
        "regression": "regression",
    }
    return {
        **{name: value for name, value in config.items() if not name.startswith("_")},
        "id2label": dict(enumerate(trained.labels)),
        "label2id": {label: c for c, label in enumerate(trained.labels)},
        "problem_type": kinds[trained.task],
    }
