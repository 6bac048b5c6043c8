"""The same graph in less precision: its backbone alone; pooling, branches, heads and average stay in fp32.

Quantisation is onnxruntime's own. It knows no torch and judges nothing: the certificate does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from levi_serving.bundle import Precision
from levi_serving.errors import ProviderError, UsageError

__all__ = ["BLOCK", "check_precisions", "derive", "int4", "int8", "narrow"]

BLOCK = 32
"""Weights that share a scale, where weights alone are quantised."""

_STATISTICS = {"Pow", "ReduceMean", "ReduceSum", "Sqrt", "Reciprocal", "Range", "CumSum"}
"""Squares and sums of many values overflow fp16, so norms that are written out keep these in fp32."""


def check_precisions(asked: Sequence[str], providers: Sequence[str]) -> None:
    """Refuse what cannot be made, or cannot be proven on this machine.

    Raises:
        UsageError: there is no such precision, it is asked for twice, or none is.
        ProviderError: it has no kernels here.
    """
    known = get_args(Precision)
    if not asked or set(asked) - set(known) or len(set(asked)) < len(asked):
        raise UsageError(
            f"The precisions are {', '.join(asked) or 'none'}; expected some of {', '.join(known)}, each once."
        )
    if "bf16" in asked and "CUDAExecutionProvider" not in providers:
        raise ProviderError(
            f"--precision bf16 cannot be proven here: onnxruntime has no bf16 kernels for {', '.join(providers)}. "
            "Export on a machine with a CUDA GPU and 'levi-deploy[gpu]', or take fp16 or int8."
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


def int8(path: Path, *, gather: bool = False, reduce_range: bool = True) -> tuple[ir.Model, dict[str, int]]:
    """Quantise the backbone's matrix products to 8 bits, activations at run time, weights for each output channel.

    Weights take 7 bits: on a CPU without VNNI instructions two products are summed in 16 bits, and
    2 · 255 · 64 fits there while 2 · 255 · 127 does not. So one file is right on both.

    Args:
        path: the fp32 graph's file.
        gather: quantise the embedding tables too: a smaller file, no faster, and fewer predictions agree.
        reduce_range: 7 bits; 8 are for measuring.

    Returns:
        The graph, and how many of each operator were quantised.

    Raises:
        UsageError: the backbone has no such operator.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = _loaded(path)
    kinds = {"MatMul", "Gemm", *(["Gather"] if gather else [])}
    chosen = _weighted(model, kinds)
    target = path.with_name("quantised.onnx")
    names = [node.name + ("_MatMul" if node.op_type == "Gemm" else "") for node in chosen]
    with _quiet():
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=sorted(kinds),
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
    return _taken(target), _counted(chosen, "in int8")


def int4(path: Path, *, bits: int = 4) -> tuple[ir.Model, dict[str, int]]:
    """Store the backbone's matrices in 4 bits, a scale for each ``BLOCK`` weights; products stay in floating point.

    Args:
        path: the fp32 graph's file.
        bits: 8 are for measuring.

    Returns:
        The graph, and how many products were changed.

    Raises:
        UsageError: the backbone has no matrix product with a weight.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    model = _loaded(path)
    chosen = _weighted(model, {"MatMul"})
    others = {node.name for node in model.graph.node} - {node.name for node in chosen}
    with _quiet():
        quantizer = MatMulNBitsQuantizer(
            model, bits=bits, block_size=BLOCK, is_symmetric=True, accuracy_level=4, nodes_to_exclude=sorted(others)
        )
        quantizer.process()
    target = path.with_name("quantised.onnx")
    quantizer.model.save_model_to_file(target, True)
    return _taken(target), _counted(chosen, "in int4")


def _loaded(path: Path) -> onnx.ModelProto:
    """The graph for onnxruntime's quantisers, which take a stated type of a constant for its type afterwards."""
    model = onnx.load(path)
    constants = {constant.name for constant in model.graph.initializer}
    kept = [value for value in model.graph.value_info if value.name not in constants]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return model


def _weighted(model: onnx.ModelProto, kinds: set[str]) -> list[onnx.NodeProto]:
    """The backbone's nodes of some kinds whose weight is a constant.

    Raises:
        UsageError: there is no matrix product among them.
    """
    constants = {constant.name: len(constant.dims) for constant in model.graph.initializer}
    place = {"Gather": 0, "MatMul": 1, "Gemm": 1}
    chosen = [
        node
        for node in model.graph.node
        if node.op_type in kinds and _of_backbone(node.name) and constants.get(node.input[place[node.op_type]]) == 2
    ]
    if all(node.op_type == "Gather" for node in chosen):
        others = {n.op_type for n in model.graph.node if constants.keys() & set(n.input)} & {"Conv", "Gemm"}
        raise UsageError(
            f"The backbone has no {' or '.join(sorted(kinds - {'Gather'}))} with a weight to quantise; its products "
            f"are {' and '.join(sorted(others)) or 'of another kind'}. Export it in fp32 or fp16."
        )
    return chosen


def _counted(nodes: list[onnx.NodeProto], how: str) -> dict[str, int]:
    kinds = sorted({node.op_type for node in nodes})
    return {f"{kind} {how}": sum(node.op_type == kind for node in nodes) for kind in kinds}


def _taken(target: Path) -> ir.Model:
    """Load what a quantiser wrote, its weights too, and remove its files."""
    model = ir.load(target)
    ir.external_data.load_to_model(model)
    for path in target.parent.glob(target.name + "*"):
        path.unlink()
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantisers' remarks out of the output."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def narrow(model: ir.Model, dtype: ir.DataType) -> dict[str, int]:
    """Let the backbone compute in fp16 or bf16, in place; inputs, outputs and all else stay float32.

    Returns:
        How many nodes now do.
    """
    graph, wide = model.graph, ir.DataType.FLOAT
    narrowed: dict[ir.Value, ir.Value] = {}  # by the float32 value
    widened: dict[ir.Value, ir.Value] = {}  # by the narrow value
    inside = [
        node
        for node in graph
        if _of_backbone(node.name or "")
        and not _statistic(node)
        and any(value is not None and value.dtype == wide for value in (*node.inputs, *node.outputs))
    ]
    chosen = set(inside)
    constants: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        for index, value in enumerate(node.inputs):
            if value is None or (node.op_type == "Resize" and index == 2):
                continue
            if node in chosen and value.dtype == wide:
                if value.const_value is not None and value.producer() is None:
                    if value not in constants:
                        constants[value] = _rounded(graph, value, value.const_value, dtype)
                    node.replace_input_with(index, constants[value])
                else:
                    node.replace_input_with(index, _cast(graph, node, value, dtype, narrowed))
            elif node not in chosen and value.dtype == dtype:
                node.replace_input_with(index, _cast(graph, node, value, wide, widened))
        if node in chosen:
            _retype(node, dtype)
    for value in graph.outputs:
        if value.dtype == dtype:
            raise UsageError("The graph's outputs come from the backbone itself; expected heads behind it.")
    graph.opset_imports[""] = max(graph.opset_imports[""], 22 if dtype == ir.DataType.BFLOAT16 else 0)
    RemoveUnusedNodesPass()(model)
    return {f"nodes in {'bf16' if dtype == ir.DataType.BFLOAT16 else 'fp16'}": len(inside)}


def _of_backbone(name: str) -> bool:
    return name.startswith(("backbone.", "backbone/"))


def _statistic(node: ir.Node) -> bool:
    """Whether it is part of a norm's mean square, the small number added to it included."""
    return node.op_type in _STATISTICS or any(use.node.op_type == "Sqrt" for v in node.outputs for use in v.uses())


def _retype(node: ir.Node, dtype: ir.DataType) -> None:
    """Let a node give the narrow type where it gave float32."""
    if node.op_type == "Cast" and node.attributes["to"].as_int() == ir.DataType.FLOAT:
        node.attributes["to"] = ir.AttrInt64("to", dtype)
    if node.op_type in ("Constant", "ConstantOfShape") and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype == ir.DataType.FLOAT:
            node.attributes["value"] = ir.AttrTensor("value", _tensor(tensor.numpy(), dtype, tensor.name or ""))
    for value in node.outputs:
        if value.dtype == ir.DataType.FLOAT:
            value.dtype = dtype


def _rounded(graph: ir.Graph, value: ir.Value, constant: ir.TensorProtocol, dtype: ir.DataType) -> ir.Value:
    """A constant in the narrow type; what is beyond its range becomes its largest number, not infinity."""
    name = f"{value.name}.{dtype.name.lower()}"
    result = ir.Value(
        name=name,
        const_value=_tensor(constant.numpy(), dtype, name),
        shape=value.shape,
        type=ir.TensorType(dtype),
    )
    graph.register_initializer(result)
    return result


def _tensor(numbers: np.ndarray, dtype: ir.DataType, name: str) -> ir.TensorProtocol:
    kind = dtype.numpy()
    largest = float(np.finfo(np.float16).max) if dtype == ir.DataType.FLOAT16 else 3.3895e38
    finite = np.isfinite(numbers)
    clipped = np.where(finite, np.clip(numbers, -largest, largest), numbers)
    return ir.tensor(clipped.astype(kind), name=name, dtype=dtype)


def _cast(
    graph: ir.Graph, before: ir.Node, value: ir.Value, dtype: ir.DataType, made: dict[ir.Value, ir.Value]
) -> ir.Value:
    """The value in another type; one cast for all who need it."""
    if value not in made:
        node = ir.node("Cast", [value], attributes={"to": dtype}, name=f"{before.name}_{dtype.name.lower()}")
        graph.insert_before(before, node)
        result = node.outputs[0]
        result.name, result.shape, result.dtype = f"{value.name}.{dtype.name.lower()}", value.shape, dtype
        made[value] = result
    return made[value]
