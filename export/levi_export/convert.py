"""From a torch LEVI model to one ONNX graph in memory. Knows torch's exporter; knows no files and no proof.

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

import onnx_ir as ir
import torch
from optimum.utils import DummyTextInputGenerator, NormalizedTextConfig

from levi_deploy.model import Levi
from levi_serving.bundle import Tensor
from levi_serving.errors import ParityError

__all__ = ["INPUTS", "OPSET", "convert", "outputs"]

OPSET = 20

INPUTS = (
    Tensor(name="input_ids", dtype="int64", shape=("batch", "sequence")),
    Tensor(name="attention_mask", dtype="int64", shape=("batch", "sequence")),
)


def outputs(*, heads: int, classes: int) -> tuple[Tensor, ...]:
    """The graph's outputs for K heads and C classes."""
    return (
        Tensor(name="logits", dtype="float32", shape=("batch", classes)),
        Tensor(name="head_logits", dtype="float32", shape=("batch", heads, classes)),
    )


def convert(levi: Levi, *, vocabulary: int) -> ir.Model:
    """Trace a model into one graph with a symbolic batch and sequence.

    Args:
        levi: in evaluation mode; its backbone's attention is switched to the eager form.
        vocabulary: how many token ids there are.

    Raises:
        ParityError: torch cannot trace this model.
    """
    # Sizes of 1 in tracing would be taken for constants: the graph would be wrong at every other size.
    generator = DummyTextInputGenerator(
        "feature-extraction",
        NormalizedTextConfig(SimpleNamespace(vocab_size=vocabulary)),
        batch_size=2,
        sequence_length=16,
    )
    example = {tensor.name: generator.generate(tensor.name, int_dtype=tensor.dtype) for tensor in INPUTS}
    if levi.backbone is not None:
        levi.backbone.model.set_attn_implementation("eager")  # type: ignore[operator]
    dynamic = {tensor.name: dict(enumerate(tensor.shape)) for tensor in INPUTS}
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                levi,
                kwargs=example,
                dynamo=True,
                dynamic_shapes=dynamic,
                input_names=[tensor.name for tensor in INPUTS],
                output_names=[tensor.name for tensor in outputs(heads=1, classes=1)],
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error).strip().splitlines()[0]
            raise ParityError(
                f"torch cannot trace this model into a graph: {reason} Nothing was written. "
                "Choose another backbone or branch, and report this one."
            ) from error
    if program is None:
        raise ParityError("torch's exporter gave no graph. Nothing was written.")
    return program.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its remarks on packages it could also use out of the output."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
