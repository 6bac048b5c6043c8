"""What the graph must look like: named by module, free of private traces, every weight once.

Works on the graph in memory; knows no torch, no files and no numbers' meaning.
"""

from __future__ import annotations

import ast
import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from levi_serving.bundle import Tensor
from levi_serving.errors import ParityError

__all__ = ["Structure", "check", "clean"]

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


@dataclass(frozen=True, kw_only=True)
class Structure:
    """What a graph is made of.

    Attributes:
        nodes: how many there are.
        weights: bytes of all its constants.
        modules: matrix products with a weight, by the module they come from.
    """

    nodes: int
    weights: int
    modules: Counter[str]


def clean(model: ir.Model) -> None:
    """Name nodes and weights by module, and strip what the exporter knew of this machine.

    A node becomes ``module.path/Operator``, numbered where a module has several, so that a profile can be
    read by module. The exporter's metadata holds source paths of the exporting machine and goes.
    """
    _share_masks(model.graph)
    taken: Counter[str] = Counter()
    for node in model.graph:
        scope = _module(node)
        name = f"{scope}/{node.op_type}"
        taken[name] += 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        for value in node.inputs:
            if value is not None and "." not in (name := str(value.name)) and name in model.graph.initializers:
                _rename(model.graph, value, scope)
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.name = "levi"
    model.graph.doc_string = None
    model.doc_string = None
    model.producer_name = "levi-deploy"
    model.producer_version = None


def _module(node: ir.Node) -> str:
    """The module a node was traced from; the exporter's last scope is the call itself, and one with _ is its own."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    return next((scope for scope in reversed(scopes[:-1]) if scope and not scope.startswith("_")), "levi")


def _share_masks(graph: ir.Graph) -> None:
    """Keep one of equal Boolean constants: with transformers 4, each layer of GPT-2 has a causal mask of its own."""
    first: dict[tuple[str, bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        if (mask := value.const_value) is not None and mask.dtype == ir.DataType.BOOL:
            shared = first.setdefault((str(mask.shape), mask.tobytes()), value)
            if shared is not value:
                value.replace_all_uses_with(shared)
                del graph.initializers[name]


def _rename(graph: ir.Graph, value: ir.Value, scope: str) -> None:
    """Give a folded constant (a transposed weight, say) the name of the module that uses it."""
    kind = "weight" if value.shape is not None and len(value.shape) > 1 else "constant"
    name, number = f"{scope}.{kind}", 1
    while name in graph.initializers:
        number += 1
        name = f"{scope}.{kind}_{number}"
    del graph.initializers[str(value.name)]
    value.name = name
    graph.initializers[name] = value


def check(model: ir.Model, *, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], weights: int) -> Structure:
    """Hold the graph to its contract.

    Args:
        model: after ``clean``.
        inputs: expected names, types and shapes.
        outputs: likewise.
        weights: bytes of all parameters and buffers that the outputs need.

    Raises:
        ParityError: listing all that is wrong.
    """
    graph = model.graph
    failures = []
    for kind, expected, found in (("input", inputs, graph.inputs), ("output", outputs, graph.outputs)):
        described = [(value.name, _dtype(value), _shape(value)) for value in found]
        if described != [(tensor.name, tensor.dtype, tensor.shape) for tensor in expected]:
            failures.append(f"the {kind}s are {described}, expected {[(t.name, t.dtype, t.shape) for t in expected]}")
    if training := sorted({node.op_type for node in graph if node.op_type in _TRAINING_ONLY}):
        failures.append(f"it has nodes that only training needs: {', '.join(training)}")
    kept = set(graph.outputs)
    if dead := [node.name for node in graph if not any(value in kept or value.uses() for value in node.outputs)]:
        failures.append(f"{len(dead)} nodes lead nowhere, {dead[0]} first")
    contents: dict[str, str] = {}
    total = 0
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is None or not value.uses():
            failures.append(f"the constant {name} has no value or no use")
            continue
        total += tensor.nbytes
        digest = _digest(tensor) if tensor.nbytes >= _SMALL else name
        if digest in contents:
            failures.append(f"the weight {name} is stored twice, also as {contents[digest]}")
        contents[digest] = name
    modules = Counter(
        str(node.name).partition("/")[0]
        for node in graph
        if node.op_type in ("MatMul", "Gemm", "Conv")
        and any(value is not None and value.name in graph.initializers for value in node.inputs)
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
    return Structure(nodes=len(graph), weights=total, modules=modules)


def _digest(tensor: ir.TensorProtocol) -> str:
    """SHA-256 of a constant's values, read where they lie: a large one has no room for a copy."""
    return hashlib.sha256(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data).hexdigest()


def _dtype(value: ir.Value) -> str:
    return value.dtype.numpy().name if value.dtype is not None else "unknown"


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    shape = value.shape or ()
    return tuple(dim if isinstance(dim, int) else str(dim.value) for dim in shape)
