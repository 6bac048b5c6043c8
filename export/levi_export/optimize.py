"""Passes that make a traced graph cheaper and leave its answers as they are.

Each works on the graph in memory, with standard operators, and says how much it changed:

- ``cut_to_first_token`` computes the last layer for token 0 only, where nothing else of it is read;
- ``tokens_first`` changes the layout of hidden states from (B, T, D) to (T, B, D), which saves transposes on CPUs.

B rows, T tokens, D width, H heads. One attention layer before and after ``tokens_first``, for B = 2, T = 5, D = 8,
H = 2 (the digits behind a Transpose are its ``perm``)::

        layout (B, T, D)                                  layout (T, B, D)

           x (2, 5, 8)                                       x (5, 2, 8)
      +---------+---------+                             +---------+---------+
    MatMul    MatMul    MatMul      (2, 5, 8)         MatMul    MatMul    MatMul      (5, 2, 8)
    Reshape   Reshape   Reshape     (2, 5, 2, 4)      Reshape   Reshape   Reshape     (5, 2, 2, 4)
    T 0213    T 0231    T 0213      (2, 2, 5, 4) *    t 1203    t 1230    t 1203      (2, 2, 5, 4) *
      |         |         |                             |         |         |
      +-MatMul--+         |         (2, 2, 5, 5)        +-MatMul--+         |         (2, 2, 5, 5)
        Softmax           |                               Softmax           |
        MatMul------------+         (2, 2, 5, 4)          MatMul------------+         (2, 2, 5, 4)
        T 0213                      (2, 5, 2, 4)          T 2013                      (5, 2, 2, 4)
        Reshape                     (2, 5, 8)             Reshape                     (5, 2, 8)
        MatMul                                            MatMul
        Add x                                             Add x

    T: copied in memory    t: folded into the MatMul that reads it    * keys: (2, 2, 4, 5)

Why ``t`` needs no copy: the queries of row b and head h are a matrix (T, D / H) = (5, 4). After the Reshape to
(T, B, H, D / H) = (5, 2, 2, 4), element (t, b, h, d) lies at 16 t + 8 b + 4 h + d, so the four matrices begin at
0, 4, 8 and 12: one constant step, D / H, which a batched product can follow by its stride. onnxruntime folds such a
Transpose into its ``FusedMatMul`` (``transBatchA``, ``transBatchB``). From (B, T, H, D / H) = (2, 5, 2, 4) the element
lies at 40 b + 8 t + 4 h + d and the matrices begin at 0, 4, 40 and 44: no constant step, so the Transpose is a copy.
So four transposes a layer become one.

Neither pass descends into subgraphs (the branches of an ``If``): both reason about all consumers of a value in one
graph. A value that leaves the graph, into a subgraph or as its output, keeps its layout and all its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

__all__ = ["cut_to_first_token", "tokens_first"]

_ELEMENTWISE = {
    "Add", "Sub", "Mul", "Div", "Pow", "Sqrt", "Reciprocal", "Neg", "Abs", "Exp", "Erf", "Tanh", "Sigmoid", "Relu",
    "Gelu", "Clip", "Min", "Max", "Where", "Cast", "Identity", "HardSwish", "Swish",
}  # fmt: skip
_NORMALIZING = {"LayerNormalization", "RMSNormalization", "Softmax"}  # over the last axes, from ``axis`` on
_REDUCING = {"ReduceMean", "ReduceSum", "ReduceMax"}
_HEAD_SPLITS = ((0, 2, 1, 3), (0, 2, 3, 1))  # (B, T, H, D / H) to (B, H, T, D / H), and keys to (B, H, D / H, T)
_EXCHANGED = {0: 1, 1: 0}

_Use = tuple[ir.Node, int]  # a consumer of a value, and which of its inputs the value is


def cut_to_first_token(model: ir.Model) -> int:
    """Compute what follows the last layer's keys and values for the first token only, where no other is read.

    The pass starts at each node that reads token 0 of a value, as ``hidden[:, 0]``, and propagates that from consumer
    to producer, through operators that treat tokens one by one, as long as every consumer of a value needs only
    token 0. At the boundary of this region the residual and the query are sliced to one token. Keys and values
    stay whole, since the first token attends to all. The graph is unchanged where the region has no matrix product.

    Returns:
        How many nodes now compute one token instead of T.
    """
    needs: dict[_Use, int] = {}  # the uses that need only place 0, and along which axis of the value
    region: dict[ir.Node, int] = {}  # the nodes that compute one token, and the token axis of their output
    for node in reversed(list(model.graph)):
        if _reads_first_token(node):
            needs[node, 0] = 1
            continue
        axis = _axis_needed(node, needs)
        if axis is not None and (inputs := _propagated_axes(node, axis)) is not None:
            region[node] = axis
            needs |= {(node, index): own for index, own in inputs.items()}
    if not any(node.op_type == "MatMul" for node in region):
        return 0
    slices: dict[tuple[ir.Value, int], ir.Value] = {}
    for node in reversed(list(region)):
        for index, value in enumerate(node.inputs):
            axis = needs.get((node, index))
            if axis is None or value is None or value.producer() in region:
                continue
            if (value, axis) not in slices:
                slices[value, axis] = _slice(model.graph, node, value, axis, name=f"{node.name}_first_{index}")
            node.replace_input_with(index, slices[value, axis])
    for node, axis in region.items():
        if node.op_type == "Reshape":
            sizes = _sizes_with_one(node.outputs[0], axis)
            target = [size if isinstance(size, int) else -1 for size in sizes]  # -1: B, the only symbolic size left
            node.replace_input_with(1, _constant(model.graph, target))
        for value in node.outputs:
            value.shape = _sizes_with_one(value, axis)
    RemoveUnusedNodesPass()(model)  # those that computed the former targets of Reshapes
    return len(region)


def _reads_first_token(node: ir.Node) -> bool:
    """Whether the node reads place 0 of its first input along axis 1 and nothing else: ``hidden[:, 0]``."""
    if node.op_type != "Gather" or node.inputs[0] is None or node.inputs[0].shape is None:
        return False
    index = ir.convenience.get_const_tensor(node.inputs[1]) if node.inputs[1] is not None else None
    if index is None or index.numpy().size != 1 or int(index.numpy().reshape(())) != 0:
        return False
    return node.attributes.get_int("axis", 0) == 1


def _axis_needed(node: ir.Node, needs: dict[_Use, int]) -> int | None:
    """The axis along which all consumers of the node's outputs need only place 0; None where one needs more."""
    if node.domain not in ("", "ai.onnx") or _leaves_graph(node):
        return None
    axes = {needs.get((use.node, use.idx)) for value in node.outputs for use in value.uses()}
    return axes.pop() if len(axes) == 1 else None


def _propagated_axes(node: ir.Node, axis: int) -> dict[int, int] | None:
    """Propagate "place 0 along ``axis``" from a node's output to its inputs.

    Returns:
        By input, the axis along which place 0 is enough; inputs that are needed whole are left out. None where the
        operator mixes places along the axis, or is not known to keep them separate.
    """
    out = node.outputs[0].shape
    if out is None or any(value is not None and value.shape is None for value in node.inputs):
        return None
    rank, kind = len(out), node.op_type
    if kind in _ELEMENTWISE:
        return dict(_broadcast_axes(node, axis, rank))
    if kind in _NORMALIZING:
        first = node.attributes.get_int("axis", -1) % rank
        return {0: axis} if axis < first else None
    if kind in _REDUCING:
        kept = node.attributes.get_int("keepdims", 1) == 1
        return {0: axis} if kept and axis not in _axes(node, 1, rank) else None
    if kind == "Slice":
        return {0: axis} if axis not in _axes(node, 3, rank) else None
    if kind in ("Split", "Concat"):
        separate = node.attributes.get_int("axis", 0) % rank != axis
        return dict.fromkeys(range(len(node.inputs) if kind == "Concat" else 1), axis) if separate else None
    if kind == "MatMul" and axis == rank - 2:
        left = _shape(node, 0)
        return {0: len(left) - 2} if len(left) > 1 else None
    if kind == "Transpose":
        return {0: node.attributes["perm"].as_ints()[axis]}
    if kind == "Reshape":
        symbolic = [n for n, size in enumerate(out) if not isinstance(size, int) and n != axis]
        return {0: axis} if _same_leading_sizes(_shape(node, 0), out, axis + 1) and len(symbolic) <= 1 else None
    return None


def tokens_first(model: ir.Model) -> int:
    """Change the layout of hidden states from (B, T, D) to (T, B, D), where that saves transposes.

    Attention splits queries, keys and values into H heads by a Transpose to (B, H, T, D / H). From (T, B, D) that
    Transpose only moves the first axis behind the others, and onnxruntime folds it into the product that reads it
    (the example at the top of this file).

    The layout is propagated from each head split, consumer to producer, through operators that keep rows and tokens
    separate: the first two axes of all values in this region are exchanged. A Transpose is inserted where a value
    crosses the region's boundary, into it or out of it. A second region also starts at each consumer that reads
    either layout at the same cost, as pooling reads the taps; the one that saves more is chosen. The graph is
    unchanged where neither saves any.

    Returns:
        How many transposes are folded into the products that read them.
    """
    graph = model.graph
    splits = [node.inputs[0] for node in graph if _is_head_split(node)]
    indifferent = [value for node in graph for n, value in enumerate(node.inputs) if _reads_either_layout(node, n)]
    region = max((_Region.above(graph, starts) for starts in (splits, splits + indifferent)), key=lambda r: r.gain)
    if region.gain <= 0:
        return 0
    for node in graph:
        if _folds_exchange(node):
            _fold_exchange(node, of_input=node.inputs[0] in region.values, of_output=node in region.nodes)
    for node in region.nodes:
        if node.op_type == "Reshape":
            sizes = [size if isinstance(size, int) else -1 for size in (node.outputs[0].shape or ())[2:]]
            node.replace_input_with(1, _constant(graph, [0, 0, *sizes]))  # 0: as the input
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)
        elif node.op_type == "Slice":
            axes = _axes(node, 3, len(_shape(node, 0)))
            node.replace_input_with(3, _constant(graph, [_EXCHANGED.get(axis, axis) for axis in axes]))
    for value in region.values:
        value.shape = _sizes_exchanged(value)
    for value, uses in region.boundary.items():
        exchanged = _transposed(graph, uses[0][0], value)
        for node, index in uses:
            node.replace_input_with(index, exchanged)
    RemoveUnusedNodesPass()(model)  # those that computed the former targets of Reshapes
    return region.saved


def _is_head_split(node: ir.Node) -> bool:
    """Whether it transposes (B, T, H, D / H) to heads, and only matrix products read the result."""
    return (
        node.op_type == "Transpose"
        and tuple(node.attributes["perm"].as_ints()) in _HEAD_SPLITS
        and all(use.node.op_type == "MatMul" for use in node.outputs[0].uses())
    )


@dataclass(frozen=True)
class _Region:
    """A part of the graph whose values get their first two axes exchanged, and what that costs.

    Attributes:
        nodes: whose outputs are exchanged; of each, the inputs that must be exchanged for that.
        values: the outputs of these nodes.
        boundary: the values that need a Transpose, and their uses that read it: a value of the region that is read
            outside of it, or one from outside that is read in it.
        saved: head splits that can be folded into their products.
    """

    nodes: dict[ir.Node, set[int]]
    values: set[ir.Value]
    boundary: dict[ir.Value, list[_Use]]
    saved: int

    @property
    def gain(self) -> int:
        """Transposes saved less transposes inserted; one that its consumers read by stride costs nothing."""
        return self.saved - sum(not all(_reads_by_stride(*use) for use in uses) for uses in self.boundary.values())

    @classmethod
    def above(cls, graph: ir.Graph, starts: list[ir.Value | None]) -> _Region:
        """The region of all producers that the exchange propagates to from some values."""
        nodes = _without_useless(graph, _propagated(starts))
        values = {value for node in nodes for value in node.outputs}
        boundary: dict[ir.Value, list[_Use]] = {}
        for node in graph:
            for index, value in enumerate(node.inputs):
                exchanged, expected = value in values, index in nodes.get(node, ())
                if value is not None and exchanged != expected and not _folds_exchange(node):
                    boundary.setdefault(value, []).append((node, index))
        saved = sum(_is_head_split(node) and node.inputs[0] in values for node in graph)
        return cls(nodes, values, boundary, saved)


def _propagated(starts: list[ir.Value | None]) -> dict[ir.Node, set[int]]:
    """Propagate the exchange from some values to their producers, and on to theirs, as far as it goes."""
    nodes: dict[ir.Node, set[int]] = {}
    pending = list(starts)
    while pending:
        value = pending.pop()
        node = value.producer() if value is not None else None
        if node is not None and node not in nodes and (inputs := _exchanged_inputs(node)) is not None:
            nodes[node] = inputs
            pending += [node.inputs[index] for index in inputs]
    return nodes


def _without_useless(graph: ir.Graph, nodes: dict[ir.Node, set[int]]) -> dict[ir.Node, set[int]]:
    """Leave out the nodes at the region's upper end that only move a Transpose from their output to their inputs."""
    kept = dict(nodes)
    for node in graph:
        inputs = {node.inputs[index] for index in kept.get(node, ())}
        entering = {value for value in inputs if value is not None and value.producer() not in kept}
        only_here = {value for value in entering if all(use.node is node for use in value.uses() if use.node in kept)}
        if entering == inputs and inputs and len(only_here) >= len(node.outputs):
            del kept[node]
    return kept


def _exchanged_inputs(node: ir.Node) -> set[int] | None:
    """The inputs whose first two axes must be exchanged for those of the outputs to be; None where that is not enough.

    The sets are empty where an attribute of the node does it all.
    """
    out, kind = node.outputs[0].shape, node.op_type
    if node.domain not in ("", "ai.onnx") or out is None or len(out) < 3 or _leaves_graph(node):
        return None
    if kind == "Transpose":
        return set()
    if any(value is not None and value.shape is None for value in node.inputs):
        return None
    rank = len(out)
    if kind in _ELEMENTWISE:
        shapes = {n: list(_shape(node, n)) for n, value in enumerate(node.inputs) if value is not None}
        if any(len(shape) == rank - 1 and shape[0] != 1 for shape in shapes.values()):
            return None  # broadcast along the first axis, but not along the second
        return {n for n, shape in shapes.items() if len(shape) == rank and shape[:2] != [1, 1]}
    if kind in _NORMALIZING:
        return {0} if node.attributes.get_int("axis", -1) % rank > 1 else None
    if kind in _REDUCING:
        return {0} if node.attributes.get_int("keepdims", 1) == 1 and min(_axes(node, 1, rank)) > 1 else None
    if kind == "Slice":
        return {0} if len(_axes(node, 3, rank)) < rank else None
    if kind in ("Split", "Concat"):
        separate = node.attributes.get_int("axis", 0) % rank > 1
        return set(range(len(node.inputs) if kind == "Concat" else 1)) if separate else None
    if kind == "MatMul":
        return {0} if len(_shape(node, 0)) == rank and len(_shape(node, 1)) == 2 else None
    if kind == "Reshape":
        same = len(_shape(node, 0)) > 2 and _same_leading_sizes(_shape(node, 0), out, 2)
        return {0} if same and sum(not isinstance(size, int) for size in list(out)[2:]) < 2 else None
    return None


def _leaves_graph(node: ir.Node) -> bool:
    """Whether an output of the node is one of its graph, or is read in a subgraph, whose nodes no pass sees."""
    return any(
        value.is_graph_output() or any(use.node.graph is not node.graph for use in value.uses())
        for value in node.outputs
    )


def _folds_exchange(node: ir.Node) -> bool:
    """Whether an exchange of the first two axes folds into what the node says of them: ``perm``, ``axis``, or axes."""
    return node.op_type == "Transpose" or _reads_first_token(node) or _reduces_tokens(node)


def _reduces_tokens(node: ir.Node) -> bool:
    """Whether it reduces (B, T, …) over tokens alone, and that axis goes: ``hidden.amax(dim=1)``."""
    if node.op_type not in _REDUCING or node.attributes.get_int("keepdims", 1) == 1:
        return False
    return len(_shape(node, 0)) > 2 and _axes(node, 1, len(_shape(node, 0))) == [1]


def _fold_exchange(node: ir.Node, *, of_input: bool, of_output: bool) -> None:
    """Let the node itself exchange the first two axes of its input, of its output, or of both."""
    if node.op_type in _REDUCING:
        node.replace_input_with(1, _constant(cast("ir.Graph", node.graph), [0 if of_input else 1]))
        return
    if node.op_type == "Gather":
        node.attributes["axis"] = ir.AttrInt64("axis", 0 if of_input else 1)
        return
    perm = [_EXCHANGED.get(n, n) if of_input else n for n in node.attributes["perm"].as_ints()]
    node.attributes["perm"] = ir.AttrInt64s("perm", perm[1::-1] + perm[2:] if of_output else perm)


def _reads_either_layout(node: ir.Node, index: int) -> bool:
    """Whether the node reads this input as (B, T, …) or as (T, B, …) at the same cost."""
    return _reads_by_stride(node, index) or (index == 0 and _folds_exchange(node))


def _reads_by_stride(node: ir.Node, index: int) -> bool:
    """Whether it is the right side of a batched product, (B, N, T) by (B, T, D), which reads either layout in place."""
    ranks = [len(_shape(node, n)) for n in range(len(node.inputs))]
    return node.op_type == "MatMul" and index == 1 and ranks == [3, 3]


def _transposed(graph: ir.Graph, before: ir.Node, value: ir.Value) -> ir.Value:
    """The value with its first two axes exchanged, named as part of the module that produces it.

    It is computed just before its first consumer, so that its live range is short.
    """
    producer = value.producer() or before
    perm = [1, 0, *range(2, len(value.shape or ()))]
    scope = (producer.name or "").partition("/")[0]
    node = ir.node("Transpose", [value], attributes={"perm": perm}, name=f"{scope}/Transpose_of_{value.name}")
    graph.insert_before(before, node)
    result = node.outputs[0]
    result.name, result.type, result.shape = f"{value.name}_exchanged", value.type, _sizes_exchanged(value)
    return result


def _sizes_exchanged(value: ir.Value) -> ir.Shape:
    sizes = list(value.shape or ())
    return ir.Shape(sizes[1::-1] + sizes[2:])


def _sizes_with_one(value: ir.Value, axis: int) -> ir.Shape:
    return ir.Shape([1 if n == axis else size for n, size in enumerate(value.shape or ())])


def _same_leading_sizes(one: ir.Shape, other: ir.Shape, count: int) -> bool:
    """Whether the first ``count`` sizes of two shapes are the same, each known by its number or its name."""
    sizes = list(one)[:count]
    return sizes == list(other)[:count] and all(isinstance(n, int) or n.value is not None for n in sizes)


def _axes(node: ir.Node, index: int, rank: int) -> list[int]:
    """The axes that an input of the node lists; all of them where it is not constant."""
    value = node.inputs[index] if index < len(node.inputs) else None
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return list(range(rank)) if tensor is None else [int(axis) % rank for axis in tensor.numpy()]


def _broadcast_axes(node: ir.Node, axis: int, rank: int) -> Iterator[tuple[int, int]]:
    """Inputs that are not broadcast along the output's axis, each with that axis in its own numbering."""
    for index, value in enumerate(node.inputs):
        if value is not None:
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
    result.name, result.type, result.shape = f"{value.name}_first_{axis}", value.type, _sizes_with_one(value, axis)
    return result


def _constant(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    """An int64 initialiser (N,) with these numbers, shared by all that need it."""
    name = "levi.numbers." + "_".join(map(str, numbers))
    if name not in graph.initializers:
        tensor = ir.tensor(np.asarray(numbers, dtype=np.int64), name=name)
        graph.register_initializer(
            ir.Value(
                name=name, const_value=tensor, shape=ir.Shape([len(numbers)]), type=ir.TensorType(ir.DataType.INT64)
            )
        )
    return graph.initializers[name]
