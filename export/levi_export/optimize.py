"""Passes that make a traced graph cheaper and leave its answers as they are. Knows no torch, no files and no precision.

Each works on the graph in memory with standard operators, and says how many nodes it changed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["cut_to_first_token"]

_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu",
    "Gelu", "Clip", "Min", "Max", "Where", "Cast", "Identity", "HardSwish", "Swish",
}  # fmt: skip
_BY_ROW = {"LayerNormalization", "RMSNormalization", "Softmax"}  # over the last axes
_REDUCING = {"ReduceMean", "ReduceSum", "ReduceMax"}


def cut_to_first_token(model: ir.Model) -> int:
    """Compute what comes after the last layer's keys and values for the first token alone, where no other is read.

    From each place that reads token 0 and nothing else of a value, walk up through the operators that treat
    tokens one by one, as long as everything that reads a value is in the walk; there the residual and the
    query are sliced. Keys and values stay whole, since the first token attends to all. The graph is left
    alone where the walk meets no matrix product.

    Returns:
        How many nodes now see one token instead of T.
    """
    reads: dict[tuple[ir.Node, int], int] = {}  # a use of a value, as (node, input): the axis whose place 0 it needs
    cone: dict[ir.Node, int] = {}  # the nodes that need one token alone: the axis of their output
    for node in reversed(list(model.graph)):
        if (axis := _first_token_read(node)) is not None:
            reads[node, 0] = axis
            continue
        needed = _needed(node, reads)
        if needed is not None and (found := _through(node, needed)) is not None:
            cone[node] = needed
            reads |= {(node, index): own for index, own in found.items()}
    if not any(node.op_type == "MatMul" for node in cone):
        return 0
    slices: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in reversed(list(cone)):
        for index, value in enumerate(node.inputs):
            axis = reads.get((node, index))
            if axis is None or value is None or value.producer() in cone:
                continue
            if (value, axis) not in slices:
                slices[value, axis] = _slice(model.graph, node, value, axis, name=f"{node.name}_first_{index}")
            node.replace_input_with(index, slices[value, axis])
    for node, axis in cone.items():
        if node.op_type == "Reshape":
            _retarget(model.graph, node, axis)
        for value in node.outputs:
            value.shape = _with_one(value, axis)
    RemoveUnusedNodesPass()(model)  # what made the Reshapes' targets
    return len(cone)


def _first_token_read(node: ir.Node) -> int | None:
    """The axis, where the node takes place 0 of its first input along one axis: ``hidden[:, 0]``."""
    if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[0].shape is None:
        return None
    index = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    axis = node.attributes.get_int("axis", 0)
    if index is None or index.numpy().size != 1 or int(index.numpy().reshape(())) != 0 or axis != 1:
        return None
    return axis


def _needed(node: ir.Node, reads: dict[tuple[ir.Node, int], int]) -> int | None:
    """The axis along which all that read the node's outputs need place 0 alone; None where they need more."""
    if node.domain not in ("", "ai.onnx") or any(value.is_graph_output() for value in node.outputs):
        return None
    axes = {reads.get((use.node, use.idx)) for value in node.outputs for use in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _through(node: ir.Node, axis: int) -> dict[int, int] | None:
    """The inputs, and the axis of each, whose place 0 is enough for the output's place 0 along ``axis``.

    None where the operator mixes places along it, or is not known to keep them apart.
    """
    out = node.outputs[0].shape
    if out is None or any(value is not None and value.shape is None for value in node.inputs):
        return None
    rank, kind = len(out), node.op_type
    if kind in _ELEMENTWISE:
        return dict(_aligned(node, range(len(node.inputs)), axis, rank))
    if kind in _BY_ROW:
        first = node.attributes.get_int("axis", -1) % rank
        return {0: axis} if axis < first else None
    if kind in _REDUCING:
        kept = node.attributes.get_int("keepdims", 1) == 1
        return {0: axis} if kept and axis not in _axes(node, 1, rank) else None
    if kind == "Slice":
        return {0: axis} if axis not in _axes(node, 3, rank) else None
    if kind in ("Split", "Concat"):
        apart = node.attributes.get_int("axis", 0) % rank != axis
        return dict.fromkeys(range(len(node.inputs) if kind == "Concat" else 1), axis) if apart else None
    if kind == "MatMul" and axis == rank - 2:
        left = _shape(node, 0)
        return {0: len(left) - 2} if len(left) > 1 else None
    if kind == "Transpose":
        return {0: node.attributes["perm"].as_ints()[axis]}
    if kind == "Reshape":
        symbolic = [n for n, size in enumerate(out) if not isinstance(size, int) and n != axis]
        same = list(_shape(node, 0))[: axis + 1] == list(out)[: axis + 1]
        return {0: axis} if same and len(symbolic) <= 1 else None
    return None


def _axes(node: ir.Node, index: int, rank: int) -> list[int]:
    """The axes that an input names; all of them where they cannot be known."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return list(range(rank)) if tensor is None else [int(axis) % rank for axis in tensor.numpy()]


def _aligned(node: ir.Node, indices: range, axis: int, rank: int) -> Iterator[tuple[int, int]]:
    """Inputs that broadcasting does not repeat along the output's axis, each with its own number of it."""
    for index in indices:
        if node.inputs[index] is not None:
            own = axis - (rank - len(_shape(node, index)))
            if own >= 0 and _shape(node, index)[own] != 1:
                yield index, own


def _shape(node: ir.Node, index: int) -> ir.Shape:
    value = node.inputs[index]
    return (value.shape if value is not None else None) or ir.Shape([])


def _slice(graph: ir.Graph, before: ir.Node, value: ir.Value, axis: int, *, name: str) -> ir.Value:
    """``value[…, 0:1, …]`` along an axis."""
    bounds = [_constant(graph, [n]) for n in (0, 1, axis)]
    node = ir.node("Slice", [value, *bounds], name=name)
    graph.insert_before(before, node)
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{value.name}_first_{axis}", value.type, _with_one(value, axis)
    return result


def _retarget(graph: ir.Graph, node: ir.Node, axis: int) -> None:
    """Let a Reshape make one place along the axis; the batch is whatever remains."""
    shape = _with_one(node.outputs[0], axis)
    target = [size if isinstance(size, int) else -1 for size in shape]
    node.replace_input_with(1, _constant(graph, target))


def _with_one(value: ir.Value, axis: int) -> ir.Shape:
    return ir.Shape([1 if n == axis else size for n, size in enumerate(value.shape or ())])


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """An initialiser with these whole numbers, one for all who need it."""
    name = "levi.numbers." + "_".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(numbers, dtype=np.int64), name=name)
        graph.register_initializer(
            ir.Value(
                name=name, const_value=tensor, shape=ir.Shape([len(numbers)]), type=ir.TensorType(ir.DataType.INT64)
            )
        )
    return graph.initializers[name]
