"""How much work a node of the graph is: operations of its matrix products, and bytes.

One multiplication and one addition are two operations; only matrix products and convolutions count, as in the
rate that they are compared with. Bytes are what a node must read and write at least: its inputs, its weights
and its result, each once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from levi_serving.bench.breakdown.onnx_file import Graph

__all__ = ["moved", "operations"]

Shape = tuple[int, ...]

_PRODUCTS = {
    "MatMul", "FusedMatMul", "Gemm", "FusedGemm", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "MatMulNBits", "QLinearMatMul", "QGemm",
}  # fmt: skip
_CONVOLUTIONS = {"Conv", "FusedConv", "NhwcFusedConv", "ConvInteger", "QLinearConv"}
_VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size"}  # they copy nothing
_LOOK_UPS = {"Gather", "GatherElements", "GatherND", "EmbedLayerNormalization"}  # they read a few rows of a table


def operations(arguments: Mapping[str, Any], graph: Graph, name: str) -> float:
    """Operations of a node's matrix products, 0 for a node that has none.

    Args:
        arguments: what onnxruntime's profile says of the node: ``op_name``, ``input_type_shape`` and
            ``output_type_shape``.
        graph: as the session runs it.
        name: the node's.
    """
    operator = arguments["op_name"]
    inputs, outputs = _inputs(arguments, graph, name), _shapes(arguments["output_type_shape"])
    if not outputs or len(inputs) < 2 or not inputs[0]:
        return 0.0
    result = math.prod(outputs[0])
    if operator in _PRODUCTS:
        return 2.0 * result * _inner(operator, inputs, outputs[0])
    if operator in _CONVOLUTIONS:
        weight = inputs[3] if operator == "QLinearConv" else inputs[1]  # (channels out, channels in a group, …)
        return 2.0 * result * math.prod(weight[1:])
    if operator in ("Attention", "QAttention") and len(inputs[1]) == 2:  # com.microsoft: it projects too
        rows, tokens, width = inputs[0]
        return 2.0 * rows * tokens * width * inputs[1][1] + 4.0 * rows * tokens * tokens * outputs[0][2]
    if operator in ("Attention", "MultiHeadAttention"):  # queries times keys, and weights times values
        queries, keys = inputs[0], inputs[1]
        return 4.0 * math.prod(queries) * keys[-2]
    if operator in ("GRU", "LSTM", "RNN"):  # X (tokens, rows, width), W and R (directions, gates, width)
        tokens, rows = inputs[0][:2]
        return 2.0 * tokens * rows * (math.prod(inputs[1]) + math.prod(inputs[2]))
    return 0.0


def moved(arguments: Mapping[str, Any], graph: Graph, name: str) -> float:
    """Bytes that a node reads and writes at least; arguments as for ``operations``, with the profile's sizes."""
    operator = arguments["op_name"]
    if operator in _VIEWS:
        return 0.0
    written = float(arguments.get("output_size", 0))
    if operator in _LOOK_UPS:
        return 2 * written
    node = graph.nodes.get(name)
    weights = sum(graph.weights[value].size for value in node.inputs if value in graph.weights) if node else 0
    return float(arguments.get("activation_size", 0)) + weights + written


def _inner(operator: str, inputs: Sequence[Shape], result: Shape) -> float:
    """The dimension that a matrix product sums over."""
    if operator not in ("FusedMatMul", "Gemm", "FusedGemm"):
        return inputs[0][-1]
    # Either side may be transposed, with its batch's axes too; one that is not broadcast has batch · mk or batch · kn.
    *batch, m, n = result
    left, right = (math.prod(shape) / math.prod(batch) for shape in inputs[:2])
    return max(left / m, right / n)


def _inputs(arguments: Mapping[str, Any], graph: Graph, name: str) -> list[Shape]:
    """The shapes of a node's inputs; the profile leaves out weights that the session has repacked."""
    given = _shapes(arguments["input_type_shape"])
    node = graph.nodes.get(name)
    names = [value for value in node.inputs if value] if node else []
    if len(given) >= len(names):
        return given
    shapes = []
    for place, value in enumerate(names):
        weight = graph.weights.get(value)
        missing = len(names) - place > len(given)
        if weight is not None and missing and (not given or given[0] != weight.shape):
            shapes.append(weight.shape)
        elif given:
            shapes.append(given.pop(0))
    return shapes


def _shapes(typed: Sequence[Mapping[str, Sequence[int]]]) -> list[Shape]:
    return [tuple(shape) for one in typed for shape in one.values()]
