"""What a graph must look like: named by module, free of private traces, every weight once.

Everything here sees subgraphs (the branches of an ``If``) as well as the main graph.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx_ir as ir

from levi_serving.bundle import Tensor
from levi_serving.errors import ParityError

__all__ = ["Structure", "check", "clean", "graphs", "nodes"]

_SCOPES = "pkg.torch.onnx.name_scopes"
_TRAINING_ONLY = {
    "Dropout",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
}
_SMALL = 1024  # bytes; below this, equal constants are chance and not a weight stored twice


def nodes(model: ir.Model) -> Iterator[ir.Node]:
    """All nodes of a model; those of a subgraph follow the node that holds it."""
    return model.graph.all_nodes()


def graphs(model: ir.Model) -> list[ir.Graph]:
    """The main graph and all subgraphs."""
    return [model.graph, *model.graph.subgraphs()]


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a model is made of.

    Attributes:
        nodes: how many there are.
        weights: bytes of all constants.
        modules: matrix products with a weight, by the module they come from.
    """

    nodes: int
    weights: int
    modules: Counter[str]


def clean(model: ir.Model) -> None:
    """Name nodes and weights by module, and remove what the exporter noted of this machine.

    A node becomes ``module.path/Operator``, numbered where a module has several, so that a profile can be
    read by module. The exporter's metadata holds source paths of the exporting machine and is removed.
    """
    for graph in graphs(model):
        _share_masks(graph)
    names = {name for graph in graphs(model) for name in graph.initializers}
    counts: Counter[str] = Counter()
    for node in nodes(model):
        module = _module(node)
        name = f"{module}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"
        for value in node.inputs:
            if value is not None and value.is_initializer() and "." not in str(value.name):
                _rename(value, module, names)
    for node in nodes(model):
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for graph in graphs(model):
        for value in [*graph.inputs, *graph.initializers.values()]:
            value.metadata_props.clear()
            value.doc_string = None
        graph.metadata_props.clear()
        graph.doc_string = None
    model.metadata_props.clear()
    model.graph.name = "levi"
    model.doc_string = None
    model.producer_name = "levi-deploy"
    model.producer_version = None


def _module(node: ir.Node) -> str:
    """The module that a node was traced from.

    The exporter lists the scopes from the outermost in. The last one is the call itself, and those that begin with _
    are the exporter's own; a node without any other is named ``levi``.
    """
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), "levi")


def _share_masks(graph: ir.Graph) -> None:
    """Keep one of a graph's equal Boolean constants: in transformers 4, each layer of GPT-2 has its own causal mask."""
    first: dict[tuple[str, bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if (mask := value.const_value) is not None and mask.dtype == ir.DataType.BOOL:
            shared = first.setdefault((str(mask.shape), mask.tobytes()), value)
            if shared is not value:
                value.replace_all_uses_with(shared)
                del graph.initializers[name]


def _rename(value: ir.Value, module: str, names: set[str]) -> None:
    """Name a folded constant (a transposed weight, say) by the module that uses it, other than all in ``names``."""
    kind = "weight" if value.shape is not None and len(value.shape) > 1 else "constant"
    name, number = f"{module}.{kind}", 1
    while name in names:
        number += 1
        name = f"{module}.{kind}_{number}"
    names.add(name)
    initializers = cast("ir.Graph", value.graph).initializers
    del initializers[str(value.name)]
    value.name = name
    initializers[name] = value


def check(model: ir.Model, *, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], weights: int) -> Structure:
    """Compare the graph with its contract.

    Args:
        model: after ``clean``.
        inputs: expected names, types and shapes.
        outputs: likewise.
        weights: the most bytes that its constants may take.

    Raises:
        ParityError: listing all that is wrong.
    """
    failures = []
    for kind, expected, found in (("input", inputs, model.graph.inputs), ("output", outputs, model.graph.outputs)):
        described = [(value.name, _dtype(value), _shape(value)) for value in found]
        if described != [(tensor.name, tensor.dtype, tensor.shape) for tensor in expected]:
            failures.append(f"the {kind}s are {described}, expected {[(t.name, t.dtype, t.shape) for t in expected]}")
    if training := sorted({node.op_type for node in nodes(model) if node.op_type in _TRAINING_ONLY}):
        failures.append(f"it has nodes that only training needs: {', '.join(training)}")
    if dead := [node.name for node in nodes(model) if not any(map(_is_read, node.outputs))]:
        failures.append(f"{len(dead)} nodes lead nowhere, {dead[0]} first")
    contents: dict[str, str] = {}
    total = 0
    for name, value in ((name, value) for graph in graphs(model) for name, value in graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not _is_read(value):
            failures.append(f"the constant {name} has no value or no use")
            continue
        total += tensor.nbytes
        digest = _digest(tensor) if tensor.nbytes >= _SMALL else name
        if digest in contents:
            failures.append(f"the weight {name} is stored twice, also as {contents[digest]}")
        contents[digest] = name
    modules = Counter(
        str(node.name).partition("/")[0]
        for node in nodes(model)
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and any(value is not None and value.is_initializer() for value in node.inputs)
    )
    if repeated := [module for module, count in modules.items() if module.startswith("backbone.") and count > 1]:
        failures.append(f"the backbone runs more than once: {repeated[0]} has {modules[repeated[0]]} matrix products")
    if total > weights + 64 * _SMALL:
        failures.append(f"its constants take {total:,} bytes, but the model needs only {weights:,}")
    if failures:
        raise ParityError(
            "The exported graph breaks its contract:\n"
            + "\n".join(f"- {failure}" for failure in failures)
            + "\nNothing was written. Please report this with the versions that 'levi doctor' prints."
        )
    return Structure(nodes=sum(1 for _ in nodes(model)), weights=total, modules=modules)


def _is_read(value: ir.Value) -> bool:
    return value.is_graph_output() or bool(value.uses())


def _digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a constant's values, without a copy of them: a large one has no room for it."""
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data).hexdigest()


def _dtype(value: ir.Value) -> str:
    return value.dtype.numpy().name if value.dtype is not None else "unknown"


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    shape = value.shape or ()
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in shape)
