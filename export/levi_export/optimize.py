"""Passes that make a traced graph cheaper and leave its answers as they are. Knows no torch, no files and no precision.

Each works on the graph in memory with standard operators, and says how many nodes it changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["cut_to_first_token", "tokens_first"]

_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu",
    "Gelu", "Clip", "Min", "Max", "Where", "Cast", "Identity", "HardSwish", "Swish",
}  # fmt: skip
_BY_ROW = {"LayerNormalization", "RMSNormalization", "Softmax"}  # over the last axes
_REDUCING = {"ReduceMean", "ReduceSum", "ReduceMax"}
_SPLITS = ((0, 2, 1, 3), (0, 2, 3, 1))  # of queries and values by head, and of keys, turned over too
_OTHER = {0: 1, 1: 0}


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
        return {0: axis} if _begin_alike(_shape(node, 0), out, axis + 1) and len(symbolic) <= 1 else None
    return None


def tokens_first(model: ir.Model) -> int:
    """Hold hidden states as (T, B, D) instead of (B, T, D), where that saves transposes.

    Attention splits queries, keys and values into H heads and transposes each to (B, H, T, D / H). From
    (T, B, D) that moves the first axis behind the others and no more, and onnxruntime's products read such a
    matrix where it lies, by its stride (``transBatchA`` and ``transBatchB`` of its ``FusedMatMul``).

    From each split, walk up through the operators that keep rows and tokens apart: what they give gets its first
    two axes exchanged. A transpose is put where such a value leaves the walk, and where another enters it. A second
    walk starts from all that reads either order at the same cost too, as pooling reads the taps: the better one is
    taken. The graph is left alone where that takes as many transposes as it saves.

    Returns:
        How many transposes are left to the products that read them.
    """
    splits = [node.inputs[0] for node in model.graph if _is_split(node)]
    readers = [value for node in model.graph for n, value in enumerate(node.inputs) if _reads_either(node, n)]
    walk = max((_Walk.up(model.graph, starts) for starts in (splits, splits + readers)), key=lambda walk: walk.gain)
    if walk.gain <= 0:
        return 0
    region, inside = walk.region, walk.inside
    for node in model.graph:
        if _takes_either(node):
            _turn(node, before=node.inputs[0] in inside, after=node in region)
    for node in region:
        if node.op_type == "Reshape":
            sizes = [size if isinstance(size, int) else -1 for size in (node.outputs[0].shape or ())[2:]]
            node.replace_input_with(1, _constant(model.graph, [0, 0, *sizes]))
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        elif node.op_type == "Slice":
            axes = _axes(node, 3, len(_shape(node, 0)))
            node.replace_input_with(3, _constant(model.graph, [_OTHER.get(axis, axis) for axis in axes]))
    for value in inside:
        value.shape = _with_axes_exchanged(value)
    for value, uses in walk.turned.items():
        result = _transposed(model.graph, uses[0][0], value)
        for node, index in uses:
            node.replace_input_with(index, result)
    RemoveUnusedNodesPass()(model)  # what made the Reshapes' targets
    return walk.saved


def _is_split(node: ir.Node) -> bool:
    """Whether it transposes (B, T, H, D / H) for matrix products alone."""
    return (
        node.op_type == "Transpose"
        and tuple(node.attributes["perm"].as_ints()) in _SPLITS
        and all(use.node.op_type == "MatMul" for use in node.outputs[0].uses())
    )


@dataclass(frozen=True)
class _Walk:
    """What exchanging the first two axes of some nodes' outputs takes.

    Attributes:
        region: the nodes, and for which inputs they need the same.
        inside: their outputs.
        turned: what crosses the region's edge, and where it is read.
        saved: splits left to their products.
    """

    region: dict[ir.Node, set[int]]
    inside: set[ir.Value]
    turned: dict[ir.Value, list[tuple[ir.Node, int]]]
    saved: int

    @property
    def gain(self) -> int:
        """By how many transposes the graph becomes cheaper."""
        return self.saved - sum(not all(_reads_by_stride(*use) for use in uses) for uses in self.turned.values())

    @classmethod
    def up(cls, graph: ir.Graph, starts: list[ir.Value | None]) -> _Walk:
        """All that lies above some values, less what would only move a transpose further up."""
        region = _exchangeable(graph, starts)
        inside = {value for node in region for value in node.outputs}
        turned: dict[ir.Value, list[tuple[ir.Node, int]]] = {}
        for node in graph:
            for index, value in enumerate(node.inputs):
                if value is None or _takes_either(node) or (value in inside) == (index in region.get(node, ())):
                    continue
                turned.setdefault(value, []).append((node, index))
        saved = sum(_is_split(node) and node.inputs[0] in inside for node in graph)
        return cls(region, inside, turned, saved)


def _exchangeable(graph: ir.Graph, starts: list[ir.Value | None]) -> dict[ir.Node, set[int]]:
    """The region of a walk from ``starts``."""
    region: dict[ir.Node, set[int]] = {}
    wanted = list(starts)
    while wanted:
        value = wanted.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in region and (needed := _needs_exchanged(node)) is not None:
            region[node] = needed
            wanted += [node.inputs[index] for index in needed]
    for node in graph:
        values = {node.inputs[index] for index in region.get(node, ())}
        entering = {v for v in values if v is not None and v.producer() not in region}
        spared = {v for v in entering if all(use.node is node for use in v.uses() if use.node in region)}
        if entering == values and values and len(spared) >= len(node.outputs):
            del region[node]
    return region


def _needs_exchanged(node: ir.Node) -> set[int] | None:
    """The inputs whose first two axes must be exchanged for the outputs' to be; None where that is not enough."""
    out, kind = node.outputs[0].shape, node.op_type
    if node.domain not in ("", "ai.onnx") or out is None or len(out) < 3:
        return None
    if kind == "Transpose":
        return set()
    if any(value is not None and value.shape is None for value in node.inputs):
        return None
    rank = len(out)
    if kind in _ELEMENTWISE:
        shapes = {n: list(_shape(node, n)) for n, value in enumerate(node.inputs) if value is not None}
        if any(len(shape) == rank - 1 and shape[0] != 1 for shape in shapes.values()):
            return None
        return {n for n, shape in shapes.items() if len(shape) == rank and shape[:2] != [1, 1]}
    if kind in _BY_ROW:
        return {0} if node.attributes.get_int("axis", -1) % rank > 1 else None
    if kind in _REDUCING:
        return {0} if node.attributes.get_int("keepdims", 1) == 1 and min(_axes(node, 1, rank)) > 1 else None
    if kind == "Slice":
        return {0} if len(_axes(node, 3, rank)) < rank else None
    if kind in ("Split", "Concat"):
        apart = node.attributes.get_int("axis", 0) % rank > 1
        return set(range(len(node.inputs) if kind == "Concat" else 1)) if apart else None
    if kind == "MatMul":
        return {0} if len(_shape(node, 0)) == rank and len(_shape(node, 1)) == 2 else None
    if kind == "Reshape":
        same = len(_shape(node, 0)) > 2 and _begin_alike(_shape(node, 0), out, 2)
        return {0} if same and sum(not isinstance(size, int) for size in list(out)[2:]) < 2 else None
    return None


def _takes_either(node: ir.Node) -> bool:
    """Whether its own attribute can say which of the first two axes is which: a transpose, or one place along one."""
    return node.op_type == "Transpose" or _first_token_read(node) is not None


def _reads_either(node: ir.Node, index: int) -> bool:
    """Whether the input's first two axes may lie either way round, at the same cost."""
    return _reads_by_stride(node, index) or (index == 0 and _takes_either(node))


def _reads_by_stride(node: ir.Node, index: int) -> bool:
    """Whether it is a batch's product, (B, N, T) by (B, T, D), and the input its right side."""
    ranks = [len(_shape(node, n)) for n in range(len(node.inputs))]
    return node.op_type == "MatMul" and index == 1 and ranks == [3, 3]


def _turn(node: ir.Node, *, before: bool, after: bool) -> None:
    """Fit such a node to an input whose first two axes are exchanged, and to an output that shall have them so."""
    if node.op_type == "Gather":
        node.attributes["axis"] = ir.AttrInt64("axis", 0 if before else 1)
        return
    order = [_OTHER.get(n, n) if before else n for n in node.attributes["perm"].as_ints()]
    node.attributes["perm"] = ir.AttrInt64s("perm", order[1::-1] + order[2:] if after else order)


def _with_axes_exchanged(value: ir.Value) -> ir.Shape:
    sizes = list(value.shape or ())
    return ir.Shape(sizes[1::-1] + sizes[2:])


def _transposed(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """The value with its first two axes exchanged, as part of the module that it comes from."""
    producer = value.producer() or before
    order = [1, 0, *range(2, len(value.shape or ()))]
    scope = (producer.name or "").partition("/")[0]
    node = ir.node("Transpose", [value], attributes={"perm": order}, name=f"{scope}/Transpose_of_{value.name}")
    graph.insert_before(before, node)
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{value.name}_turned", value.type, _with_axes_exchanged(value)
    return result


def _begin_alike(one: ir.Shape, other: ir.Shape, count: int) -> bool:
    """Whether two shapes have the same first sizes, each known by its number or its name."""
    sizes = list(one)[:count]
    return sizes == list(other)[:count] and all(isinstance(n, int) or n.value is not None for n in sizes)


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
