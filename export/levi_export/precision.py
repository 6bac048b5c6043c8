"""The same graph in less precision: only the backbone; pooling, branches, heads and average stay in fp32.

Quantisation is onnxruntime's own. Nothing is judged here: the certificate does that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast, get_args

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from levi_export.graph import nodes
from levi_serving.bundle import Precision
from levi_serving.errors import ProviderError, UsageError

__all__ = ["check_precisions", "derive", "int4", "int8", "narrow", "quantised"]

_BLOCK = 32  # weights that share a scale in int4
_STATISTICS = {"Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Range", "CumSum"}
"""Squares and sums of many values overflow fp16, so norms that are written out keep these in fp32."""


def check_precisions(precisions: Sequence[str], providers: Sequence[str]) -> None:
    """Refuse what cannot be made, or cannot be proven on this machine.

    Args:
        precisions: of the graphs to make.
        providers: onnxruntime's, on this machine.

    Raises:
        UsageError: a precision is unknown or listed twice, or none is listed.
        ProviderError: a precision has no kernels here.
    """
    known = get_args(Precision)
    if not precisions or set(precisions) - set(known) or len(set(precisions)) < len(precisions):
        raise UsageError(
            f"`precisions` are {', '.join(precisions) or 'none'}; expected some of {', '.join(known)}, each once."
        )
    if "bf16" in precisions and "CUDAExecutionProvider" not in providers:
        raise ProviderError(
            "`precisions` has bf16, which cannot be proven here: onnxruntime has no bf16 kernels for "
            f"{', '.join(providers)}. Export on a machine with a CUDA GPU and 'levi-deploy[gpu]', "
            "or choose fp16 or int8."
        )


def derive(path: Path, precision: Precision) -> tuple[ir.Model, dict[str, int]]:
    """The graph of a file in another precision.

    Args:
        path: the fp32 graph's file.
        precision: any but fp32.

    Returns:
        The graph, and what was changed how often.

    Raises:
        UsageError: the backbone has nothing that this precision changes.
    """
    if precision == "int8":
        return int8(path)
    if precision == "int4":
        return int4(path)
    model = ir.load(path)
    return model, narrow(model, ir.DataType.FLOAT16 if precision == "fp16" else ir.DataType.BFLOAT16)


def int8(path: Path) -> tuple[ir.Model, dict[str, int]]:
    """Quantise the backbone's matrix products to 8 bits, activations at run time, weights for each output channel.

    Weights take 7 bits: on a CPU without VNNI instructions two products are summed in 16 bits, and 2 · 255 · 64 fits
    there while 2 · 255 · 127 does not. So one file is right on both. Embedding tables stay in fp32: quantising them
    makes the file smaller, but no faster, and fewer predictions agree (docs/graph.md).

    Args:
        path: the fp32 graph's file.

    Returns:
        The graph, and how many of each operator were quantised.

    Raises:
        UsageError: the backbone has no such operator.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    chosen = _weighted(ir.load(path), {"MatMul", "Gemm"})

    def quantise(model: onnx.ModelProto, target: Path) -> None:
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["Gemm", "MatMul"],
            nodes_to_quantize=[f"{node.name}_MatMul" if node.op_type == "Gemm" else node.name for node in chosen],
            per_channel=True,
            reduce_range=True,  # 7 bits
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
            extra_options={"EnableSubgraph": True},
        )

    return quantised(path, quantise), _counted(chosen, "in int8")


def int4(path: Path) -> tuple[ir.Model, dict[str, int]]:
    """Store the backbone's matrices in 4 bits, a scale for each 32 weights; products stay in floating point.

    Args:
        path: the fp32 graph's file.

    Returns:
        The graph, and how many products were changed.

    Raises:
        UsageError: the backbone has no matrix product with a weight.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    source = ir.load(path)
    chosen = _weighted(source, {"MatMul"})
    others = {str(node.name) for node in nodes(source)} - {str(node.name) for node in chosen}

    def quantise(model: onnx.ModelProto, target: Path) -> None:
        quantizer = MatMulNBitsQuantizer(
            model, bits=4, block_size=_BLOCK, is_symmetric=True, accuracy_level=4, nodes_to_exclude=sorted(others)
        )
        quantizer.process()
        quantizer.model.save_model_to_file(target, True)

    return quantised(path, quantise), _counted(chosen, "in int4")


def quantised(path: Path, quantise: Callable[[onnx.ModelProto, Path], None]) -> ir.Model:
    """Run one of onnxruntime's quantisers on a file.

    Args:
        path: the fp32 graph's file.
        quantise: called with the graph, and with the file to write; that file is removed again.

    Returns:
        The quantised graph, its weights in memory.
    """
    model = onnx.load(path)
    # The quantisers take a constant's stated type for its type afterwards too, so it may not be stated.
    constants = {constant.name for constant in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    target = path.with_name("quantised.onnx")
    with _quiet():
        quantise(model, target)
    result = ir.load(target)
    ir.external_data.load_to_model(result)
    result.graph.sort()  # the int8 quantiser puts an ``If`` before the nodes whose values only its branches read
    for file in target.parent.glob(target.name + "*"):
        file.unlink()
    return result


def _weighted(model: ir.Model, kinds: set[str]) -> list[ir.Node]:
    """The backbone's matrix products of some kinds whose weight is a constant.

    Raises:
        UsageError: there is none.
    """
    chosen = [
        node
        for node in nodes(model)
        if node.op_type in kinds and _of_backbone(node) and _rank_of_constant(node.inputs[1]) == 2
    ]
    if not chosen:
        others = {n.op_type for n in nodes(model) if any(_rank_of_constant(v) is not None for v in n.inputs)}
        products = sorted(others & {"Conv", "Gemm"})
        raise UsageError(
            f"The backbone has no {' or '.join(sorted(kinds))} with a weight to quantise; its products are "
            f"{' and '.join(products) or 'of another kind'}. Export it in fp32 or fp16."
        )
    return chosen


def _rank_of_constant(value: ir.Value | None) -> int | None:
    """How many axes a constant has; None for what is computed."""
    constant = value.const_value if value is not None and value.producer() is None else None
    return len(constant.shape) if constant is not None else None


def _counted(chosen: list[ir.Node], how: str) -> dict[str, int]:
    kinds = sorted({node.op_type for node in chosen})
    return {f"{kind} {how}": sum(node.op_type == kind for node in chosen) for kind in kinds}


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the quantisers' remarks."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def narrow(model: ir.Model, dtype: ir.DataType) -> dict[str, int]:
    """Change the backbone's computation to fp16 or bf16, in place; inputs, outputs and everything else stay float32.

    Returns:
        How many nodes compute in the narrow type.

    Raises:
        UsageError: the backbone's own values are the graph's outputs.
    """
    wide = ir.DataType.FLOAT
    chosen = {node for node in nodes(model) if _narrows(node)}
    narrowed: dict[ir.Value, ir.Value] = {}  # by the float32 value
    widened: dict[ir.Value, ir.Value] = {}  # by the narrow value
    constants: dict[ir.Value, ir.Value] = {}
    for node in list(nodes(model)):
        for index, value in enumerate(node.inputs):
            if value is None or (node.op_type == "Resize" and index == 2):
                continue
            if node in chosen and value.dtype == wide:
                if _is_constant(value):
                    if value not in constants:
                        constants[value] = _rounded(value, dtype)
                    node.replace_input_with(index, constants[value])
                else:
                    node.replace_input_with(index, _cast(value, dtype, narrowed, consumer=node))
            elif node not in chosen and value.dtype == dtype:
                node.replace_input_with(index, _cast(value, wide, widened, consumer=node))
        if node in chosen:
            _retype(node, dtype)
    if any(value.dtype == dtype for value in model.graph.outputs):
        raise UsageError("The graph's outputs come from the backbone itself; expected heads behind it.")
    for subgraph in model.graph.subgraphs():  # its outputs are those of the node that holds it, which stay float32
        for index, value in enumerate(subgraph.outputs):
            if value.dtype == dtype:
                subgraph.outputs[index] = _cast(value, wide, widened, consumer=None)
    model.graph.opset_imports[""] = max(model.graph.opset_imports[""], 22 if dtype == ir.DataType.BFLOAT16 else 0)
    RemoveUnusedNodesPass()(model)
    return {f"nodes in {'bf16' if dtype == ir.DataType.BFLOAT16 else 'fp16'}": len(chosen)}


def _narrows(node: ir.Node) -> bool:
    """Whether a node can compute in the narrow type; one that holds a subgraph only passes values on."""
    return (
        _of_backbone(node)
        and not _is_statistic(node)
        and not any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        and any(value is not None and value.dtype == ir.DataType.FLOAT for value in (*node.inputs, *node.outputs))
    )


def _of_backbone(node: ir.Node) -> bool:
    return (node.name or "").startswith(("backbone.", "backbone/"))


def _is_constant(value: ir.Value) -> bool:
    return value.const_value is not None and value.producer() is None


def _is_statistic(node: ir.Node) -> bool:
    """Whether it is part of a norm's mean square, including the addition of the small number under the root."""
    return node.op_type in _STATISTICS or any(use.node.op_type == "Sqrt" for v in node.outputs for use in v.uses())


def _retype(node: ir.Node, dtype: ir.DataType) -> None:
    """Change the node's float32 outputs to the narrow type, and the attributes that state them."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", dtype)
    if node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", _tensor(tensor.numpy(), dtype, tensor.name or ""))
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = dtype


def _rounded(value: ir.Value, dtype: ir.DataType) -> ir.Value:
    """A constant in the narrow type, in the same graph."""
    name = f"{value.name}.{dtype.name.lower()}"
    numbers = cast("ir.TensorProtocol", value.const_value).numpy()
    tensor = _tensor(numbers, dtype, name)
    result = ir.Value(name=name, const_value=tensor, shape=value.shape, type=ir.TensorType(dtype))
    cast("ir.Graph", value.graph).register_initializer(result)
    return result


def _tensor(numbers: np.ndarray, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    """Numbers in the narrow type; one beyond its range becomes its largest number, not infinity."""
    largest = float(np.finfo(np.float16).max) if dtype == ir.DataType.FLOAT16 else 3.3895e38
    clipped = np.where(np.isfinite(numbers), np.clip(numbers, -largest, largest), numbers)
    return ir.tensor(clipped.astype(dtype.numpy()), name=name, dtype=dtype)


def _cast(value: ir.Value, dtype: ir.DataType, made: dict[ir.Value, ir.Value], *, consumer: ir.Node | None) -> ir.Value:
    """The value in another type; one Cast for all who need it, before the first of them.

    It is inserted in the value's own graph, where every consumer sees it. Where the first one is in a subgraph, or is
    a graph's output (``consumer`` is None), the Cast follows the value's producer.
    """
    if value not in made:
        producer, graph = value.producer(), cast("ir.Graph", value.graph)
        user = consumer or producer
        node = ir.node(
            "Cast", [value], attributes={"to": dtype}, name=f"{user.name if user else ''}_{dtype.name.lower()}"
        )
        if consumer is not None and consumer.graph is graph:
            graph.insert_before(consumer, node)
        elif producer is not None:
            graph.insert_after(producer, node)
        else:
            graph.insert_before(graph[0], node)
        result = node.outputs[0]
        result.name, result.shape, result.dtype = f"{value.name}.{dtype.name.lower()}", value.shape, dtype
        made[value] = result
    return made[value]
