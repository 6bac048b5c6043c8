"""Writing a graph to the bundle: large weights in a data file beside it, those that graphs share stored once."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir

from levi_export.graph import graphs
from levi_serving.errors import ParityError

__all__ = ["save"]

_INLINE = 256  # bytes; smaller constants lie in the graph itself


def save(model: ir.Model, folder: Path, file: str, *, share_with: str | None = None) -> None:
    """Write a graph to ``file`` and its weights to ``file.data``.

    Args:
        model: the graph.
        folder: the bundle's.
        file: the graph's name.
        share_with: a graph that is already there; weights that it has too are read from its data file.

    Raises:
        ParityError: onnx finds the graph invalid.
    """
    there = _constants(ir.load(folder / share_with)) if share_with else {}
    own = []
    for name, value in _constants(model).items():
        if name in there and _equal(value.const_value, shared := there[name].const_value):
            value.const_value = shared
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


def _constants(model: ir.Model) -> dict[str, ir.Value]:
    return {name: value for graph in graphs(model) for name, value in graph.initializers.items()}


def _equal(one: ir.TensorProtocol | None, other: ir.TensorProtocol | None) -> bool:
    """Whether two constants are the same to the bit."""
    if one is None or other is None or (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return one.tobytes() == other.tobytes()
