"""A model whose second layer lies in a branch of an ``If``, as an early exit has it: nothing overlooks the branch."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper, parser

from levi_export.graph import check, clean, nodes
from levi_export.precision import derive, narrow
from levi_export.storage import save
from levi_serving.bundle import Tensor
from levi_serving.errors import ParityError

pytestmark = pytest.mark.slow

WIDTH = 32
MODULES = {  # by a node's first output: the module that it was traced from
    "hidden": "backbone.layer.0", "total": "exit", "deep": "exit", "kept": "exit", "product": "backbone.layer.1",
    "shifted": "backbone.layer.1", "active": "backbone.layer.1", "chosen": "exit", "logits": "ensemble.heads.0",
}  # fmt: skip
TEXT = """
<ir_version: 10, opset_import: ["" : 20]>
traced (float[batch, 32] x) => (float[batch, 2] logits) {
    hidden = MatMul(x, w0)
    total = ReduceSum <keepdims = 0> (x)
    deep = Greater(total, zero)
    chosen = If (deep) <
        then_branch = second () => (float[batch, 32] active) {
            product = MatMul(hidden, w1)
            shifted = Add(product, b1)
            active = Relu(shifted)
        },
        else_branch = first () => (float[batch, 32] kept) {
            kept = Identity(hidden)
        }
    >
    logits = MatMul(chosen, w2)
}
"""
CONTRACT = {
    "inputs": (Tensor(name="x", dtype="float32", shape=("batch", WIDTH)),),
    "outputs": (Tensor(name="logits", dtype="float32", shape=("batch", 2)),),
    "weights": 4 * (2 * WIDTH * WIDTH + 3 * WIDTH + 1),
}


def constant(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name) + ord(name[-1])).normal(size=shape)
    return numpy_helper.from_array(np.asarray(values if shape else 0, np.float32), name)


@pytest.fixture
def model() -> ir.Model:
    """As the exporter gives it: each node with its scopes, one constant in the branch itself."""
    proto = parser.parse_model(TEXT)
    square = (WIDTH, WIDTH)
    proto.graph.initializer.extend([constant("w0", *square), constant("w1", *square), constant("w2", WIDTH, 2)])
    proto.graph.initializer.append(constant("zero"))
    branch = next(a.g for node in proto.graph.node for a in node.attribute if a.name == "then_branch")
    branch.initializer.append(constant("b1", WIDTH))
    model = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    for node in nodes(model):
        node.metadata_props["pkg.torch.onnx.name_scopes"] = repr(["", MODULES[node.outputs[0].name], "call"])
        node.doc_string = "a path of this machine"
    return model


def rows(*, deep: bool) -> np.ndarray:
    x = np.abs(np.random.default_rng(0).normal(size=(3, WIDTH))).astype(np.float32)
    return x if deep else -x


def answers(model: ir.Model, folder) -> list[np.ndarray]:
    """Of the written graph: with the second layer, and without it."""
    save(model, folder, "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    return [session.run(None, {"x": rows(deep=deep)})[0] for deep in (True, False)]


def inside(model: ir.Model) -> list[ir.Node]:
    return [node for node in nodes(model) if node.graph is not model.graph]


def test_clean_names_what_is_in_a_branch(model):
    clean(model)
    assert [node.name for node in inside(model)] == [
        "backbone.layer.1/MatMul", "backbone.layer.1/Add", "backbone.layer.1/Relu", "exit/Identity",
    ]  # fmt: skip
    assert not any(node.metadata_props or node.doc_string for node in nodes(model))
    names = {value.name for node in nodes(model) for value in node.inputs if value.is_initializer()}
    assert names == {
        "backbone.layer.0.weight", "backbone.layer.1.weight", "backbone.layer.1.constant", "exit.constant",
        "ensemble.heads.0.weight",
    }  # fmt: skip


def test_check_counts_what_is_in_a_branch(model):
    clean(model)
    found = check(model, **CONTRACT)
    assert (found.nodes, found.weights) == (9, 4 * (2 * WIDTH * WIDTH + 3 * WIDTH + 1))
    assert found.modules == {"backbone.layer.0": 1, "backbone.layer.1": 1, "ensemble.heads.0": 1}


def dropout(model):
    next(node for node in inside(model) if node.op_type == "Relu").op_type = "Dropout"


def dead(model):
    relu = next(node for node in inside(model) if node.op_type == "Relu")
    relu.append(ir.Node("", "Neg", [relu.outputs[0]], name="odd/Neg"))


def again(model):
    product = next(node for node in inside(model) if node.op_type == "MatMul")
    more = ir.Node("", "MatMul", [product.outputs[0], product.inputs[1]], name="backbone.layer.1/MatMul_2")
    product.append(more)
    next(node for node in inside(model) if node.op_type == "Add").replace_input_with(0, more.outputs[0])


def unused(model):
    branch = inside(model)[0].graph
    branch.register_initializer(ir.Value(name="left", const_value=ir.tensor(np.zeros(9, np.float32), name="left")))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (dropout, "only training needs: Dropout"),
        (dead, "1 nodes lead nowhere, odd/Neg first"),
        (again, "the backbone runs more than once: backbone.layer.1 has 2"),
        (unused, "the constant left has no value or no use"),
    ],
)
def test_check_fails_on_a_broken_branch(model, damage, says):
    clean(model)
    damage(model)
    with pytest.raises(ParityError, match=says):
        check(model, **CONTRACT)


def test_a_branch_is_narrowed_too(model, tmp_path):
    clean(model)
    before = answers(model, tmp_path)
    assert narrow(model, ir.DataType.FLOAT16) == {"nodes in fp16": 4}
    half = {node.name for node in nodes(model) if node.outputs[0].dtype == ir.DataType.FLOAT16}
    assert {"backbone.layer.1/MatMul", "backbone.layer.1/Add", "backbone.layer.1/Relu"} < half
    after = answers(model, tmp_path)
    for a, b in zip(after, before, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-2 * b.std())
    assert not np.array_equal(after[0], before[0])
    assert not np.allclose(before[0], -before[1])


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_branch_is_quantised_too(model, precision, tmp_path):
    clean(model)
    before = answers(model, tmp_path)
    quantised, changes = derive(tmp_path / "model.onnx", precision)
    assert changes == {f"MatMul in {precision}": 2}
    left = {node.name for node in nodes(quantised) if node.op_type == "MatMul"}
    assert left == {"ensemble.heads.0/MatMul"}
    for a, b in zip(answers(quantised, tmp_path), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=0.3 * b.std())
