"""From a torch LEVI model to one ONNX graph in memory, and what that graph is expected to have.

The exporter is torch's dynamo path with the backbone's attention in eager form: the combination that
exports every architecture tried, and whose result is right at shapes never seen in tracing.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import torch
from optimum.utils import (
    DummyTextInputGenerator,
    DummyVisionInputGenerator,
    NormalizedTextConfig,
    NormalizedVisionConfig,
)

from levi_deploy.model import Ensemble, Levi
from levi_serving.bundle import Tensor
from levi_serving.errors import ParityError
from levi_serving.rows.preprocess import Encoded, Preprocessing

__all__ = ["OPSET", "convert", "inputs", "outputs", "weight_bytes"]

OPSET = 20
_OUTPUTS = ("logits", "head_logits", "novelty")  # without a backbone there is no third one
_TEXT = ("input_ids", "attention_mask", "token_type_ids")


def inputs(levi: Levi, preprocessing: Preprocessing) -> tuple[Tensor, ...]:
    """The graph's inputs: those arrays of such rows that any part of the model reads."""
    declared = []
    blank = Encoded.blank(preprocessing, rows=2).batch([0, 1])
    for name in levi.inputs:
        if name in blank:
            shape = ("sequence",) if name in _TEXT else blank[name].shape[1:]
            declared.append(Tensor(name=name, dtype=blank[name].dtype.name, shape=("batch", *shape)))
    return tuple(declared)


def outputs(ensemble: Ensemble) -> tuple[Tensor, ...]:
    """The graph's outputs, for K heads and C classes."""
    heads, classes = len(ensemble.heads), ensemble.task.outputs
    declared = [
        Tensor(name="logits", dtype="float32", shape=("batch", classes)),
        Tensor(name="head_logits", dtype="float32", shape=("batch", heads, classes)),
    ]
    if ensemble.novelty is not None:
        declared.append(Tensor(name="novelty", dtype="float32", shape=("batch",)))
    return tuple(declared)


@torch.no_grad()
def weight_bytes(levi: Levi, preprocessing: Preprocessing) -> int:
    """The most bytes that the graph's constants may take.

    These are the model's weights and, for images of another size than the backbone's own, the table of positions that
    is interpolated to it.
    """
    weights: int = sum(t.numel() * t.element_size() for t in levi.state_dict(keep_vars=True).values())
    backbone, image = levi.backbone, preprocessing.image
    if backbone is None or image is None or backbone.identity.image_size in (None, image.height):
        return weights
    taps = backbone({"pixel_values": torch.zeros(1, 3, image.height, image.width)})  # (1, T, D) each
    return weights + max(int(tap.numel() * tap.element_size()) for tap in taps)


def convert(levi: Levi, preprocessing: Preprocessing) -> ir.Model:
    """Trace a model into one graph with a symbolic batch and sequence.

    Args:
        levi: in evaluation mode; its backbone's attention is switched to the eager form.
        preprocessing: what the rows have.

    Raises:
        ParityError: torch cannot trace this model.
    """
    tensors = inputs(levi, preprocessing)
    example = _example(preprocessing)
    if levi.backbone is not None:
        levi.backbone.model.set_attn_implementation("eager")
    dynamic = {
        tensor.name: {n: size for n, size in enumerate(tensor.shape) if isinstance(size, str)} for tensor in tensors
    }
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                levi,
                kwargs={tensor.name: torch.from_numpy(example[tensor.name]) for tensor in tensors},
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=[tensor.name for tensor in tensors],
                output_names=_OUTPUTS,
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = _innermost(error)
            raise ParityError(
                f"torch cannot trace this model into a graph: {reason}. Nothing was written. "
                "Choose another backbone or branch, and report this one."
            ) from error
    if program is None:
        raise ParityError("torch's exporter gave no graph. Nothing was written.")
    return program.model


def _innermost(error: BaseException) -> str:
    """The first cause: the exporter's own message only names its steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{type(error).__name__}: {lines[0]}".rstrip(".")


def _example(preprocessing: Preprocessing) -> dict[str, Any]:
    """Two rows of random tokens and pixels, as optimum draws them, and blank further columns.

    Two, since the exporter takes a size of 1 for a constant: the graph would be wrong at every other size.
    """
    example: dict[str, Any] = Encoded.blank(preprocessing, rows=2, tokens=16).batch([0, 1])
    text = DummyTextInputGenerator(
        "feature-extraction", NormalizedTextConfig(SimpleNamespace(vocab_size=2)), batch_size=2, sequence_length=16
    )
    for name in _TEXT:
        if name in example:
            example[name] = text.generate(name, framework="np", int_dtype="int64")
    if image := preprocessing.image:
        pixels = DummyVisionInputGenerator(
            "feature-extraction",
            NormalizedVisionConfig(SimpleNamespace(num_channels=3, image_size=(image.height, image.width))),
            batch_size=2,
        )
        example["pixel_values"] = pixels.generate("pixel_values", framework="np", float_dtype="fp32")
    return example


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's progress and its remarks on packages that it could also use."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
