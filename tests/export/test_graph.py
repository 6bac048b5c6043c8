"""The exported graph: the backbone once, nothing above the deepest tap, nothing of the machine that made it."""

from __future__ import annotations

import getpass
import json
import socket
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import transformers
from families import write
from onnx import numpy_helper
from safetensors.numpy import load_file

from levi_deploy.config import ModelConfig
from levi_deploy.model import Backbone, Levi
from levi_deploy.model.build import build
from levi_export.convert import convert, inputs, outputs, weight_bytes
from levi_export.graph import check, clean
from levi_serving.bundle import Tensor
from levi_serving.errors import ParityError
from levi_serving.predictions import Task
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import Preprocessing

pytestmark = pytest.mark.slow

INPUTS = tuple(
    Tensor(name=name, dtype="int64", shape=("batch", "sequence")) for name in ("input_ids", "attention_mask")
)
OUTPUTS = (
    Tensor(name="logits", dtype="float32", shape=("batch", 2)),
    Tensor(name="head_logits", dtype="float32", shape=("batch", 2, 2)),
    Tensor(name="novelty", dtype="float32", shape=("batch",)),
)


@pytest.fixture(scope="module")
def graph(bundle):
    return onnx.load(bundle / "model.onnx")


def test_names_types_and_symbolic_shapes(graph):
    def described(values):
        return {
            v.name: (v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
            for v in values
        }

    assert described(graph.graph.input) == {
        "input_ids": (onnx.TensorProto.INT64, ["batch", "sequence"]),
        "attention_mask": (onnx.TensorProto.INT64, ["batch", "sequence"]),
    }
    assert described(graph.graph.output) == {
        "logits": (onnx.TensorProto.FLOAT, ["batch", 2]),
        "head_logits": (onnx.TensorProto.FLOAT, ["batch", 2, 2]),
        "novelty": (onnx.TensorProto.FLOAT, ["batch"]),
    }
    assert [o.version for o in graph.opset_import if o.domain == ""] == [20]


def test_each_backbone_layer_once_and_none_above_the_deepest_tap(graph):
    """Taps 1 and 3 of 4 layers: three layers of six matrix products, and no trace of the fourth or the pooler."""
    names = {i.name for i in graph.graph.initializer}
    products = Counter(
        node.name.rpartition("/")[0]
        for node in graph.graph.node
        if node.op_type in ("MatMul", "Gemm") and set(node.input) & names
    )
    backbone = {name: count for name, count in products.items() if name.startswith("backbone.")}
    assert len(backbone) == 3 * 6
    assert set(backbone.values()) == {1}
    text = " ".join([*names, *(node.name for node in graph.graph.node)])
    assert "layer.2." in text
    assert "layer.3." not in text
    assert "pooler" not in text
    assert not [node.name for node in graph.graph.node if node.name.startswith("_")]  # the exporter's own scopes
    assert not {node.op_type for node in graph.graph.node} & {"Dropout", "RandomUniform", "RandomNormal"}


def test_each_weight_once(graph, backbone):
    """Every matrix of the first three layers stands among the initialisers exactly once, as is or transposed."""
    stored = [numpy_helper.to_array(i) for i in graph.graph.initializer]
    weights = load_file(next(backbone.glob("*.safetensors")))
    for name, weight in weights.items():
        if weight.ndim < 2 or weight.size < 1000 or "position_embeddings" in name:
            continue
        found = sum(
            (s.shape == weight.shape and np.array_equal(s, weight))
            or (s.shape == weight.T.shape and np.array_equal(s, weight.T))
            for s in stored
        )
        above = "layer.3." in name or "pooler" in name
        assert found == (0 if above else 1), name


def test_the_branch_and_the_heads_are_named_by_module(graph):
    modules = {node.name.rpartition("/")[0] for node in graph.graph.node}
    for part in ("ensemble.branches.0", "ensemble.heads.0", "ensemble.heads.1", "ensemble.pools.0"):
        assert any(module.startswith(part) for module in modules), part


def test_nothing_of_this_machine_is_in_the_files(bundle, backbone):
    """No path, host or user name; the certificate says which kind of machine, and no more."""
    private = [str(Path(__file__).parents[2]), str(backbone), str(bundle.parent), "site-packages", "/home/"]
    private += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
    for path in bundle.iterdir():
        content = path.read_bytes()
        if path.suffix in (".json", ".onnx", ".md"):
            for name in private:
                assert name.encode() not in content, (path.name, name)
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    assert not model.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_weights_lie_beside_the_graph(bundle):
    model = onnx.load(bundle / "model.onnx", load_external_data=False)
    outside = [i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    assert outside
    assert {e.value for i in outside for e in i.external_data if e.key == "location"} == {"model.onnx.data"}


def test_other_programs_find_the_labels(bundle):
    config = json.loads((bundle / "config.json").read_text())
    assert config["model_type"] == "bert"
    assert config["id2label"] == {"0": "negative", "1": "positive"}
    assert config["problem_type"] == "single_label_classification"


def loaded(bundle) -> ir.Model:
    return ir.load(bundle / "model.onnx")


def judge(model):
    return check(model, inputs=INPUTS, outputs=OUTPUTS, weights=350_000)


def test_the_check_accepts_what_is_exported(bundle):
    assert judge(loaded(bundle)).nodes > 50


def twice(model):
    """A second copy of one of the backbone's products."""
    node = next(n for n in model.graph if "layer.1" in n.name and n.op_type == "MatMul")
    again = ir.Node("", "MatMul", node.inputs, name=node.name + "_2")
    model.graph.insert_after(node, again)
    product = ir.Node("", "Add", [node.outputs[0], again.outputs[0]], name="twice")
    user, place = next((u.node, u.idx) for u in node.outputs[0].uses() if u.node is not product)
    model.graph.insert_after(again, product)
    user.replace_input_with(place, product.outputs[0])


def dead(model):
    model.graph.append(ir.Node("", "Relu", [model.graph.outputs[0]], name="dead/Relu"))


def dropout(model):
    node = next(n for n in model.graph if n.op_type == "Relu")
    node.op_type = "Dropout"


def stored_twice(model):
    value = next(v for v in model.graph.initializers.values() if v.const_value.nbytes > 4096)
    copy = ir.Value(name="copy", const_value=ir.tensor(value.const_value.numpy(), name="copy"))
    copy.shape, copy.dtype = value.shape, value.dtype
    model.graph.register_initializer(copy)
    user = next(iter(value.uses()))
    user.node.replace_input_with(user.idx, copy)
    other = ir.Node("", "Shape", [value], name="other/Shape")
    model.graph.append(other)


def renamed(model):
    model.graph.outputs[0].name = "scores"


def unused(model):
    big = ir.tensor(np.zeros(2000, np.float32), name="left")
    model.graph.register_initializer(ir.Value(name="left", const_value=big))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (twice, "the backbone runs more than once"),
        (dead, "1 nodes lead nowhere, dead/Relu first"),
        (dropout, "only training needs: Dropout"),
        (stored_twice, "is stored twice"),
        (renamed, "the outputs are .*'scores'"),
        (unused, "the constant left has no value or no use"),
    ],
)
def test_the_check_fails_on_a_broken_graph(bundle, damage, says):
    model = loaded(bundle)
    damage(model)
    with pytest.raises(ParityError, match=says):
        judge(model)


def test_the_check_fails_on_weights_that_no_model_has(bundle):
    with pytest.raises(ParityError, match="but the model needs only 10\n"):
        check(loaded(bundle), inputs=INPUTS, outputs=OUTPUTS, weights=10)


def test_layers_share_one_mask():
    """Equal Boolean constants become one; others, and equal weights (which ``check`` refuses), stay."""

    def constant(name, array):
        return ir.Value(name=name, const_value=ir.tensor(array, name=name))

    masks = [constant(f"mask_{n}", np.tril(np.ones((40, 40), bool), k)) for n, k in enumerate((0, 0, 1))]
    weights = [constant(f"weight_{n}", np.ones((40, 40), np.float32)) for n in range(2)]
    nodes = [ir.Node("", "Where", [mask, *weights]) for mask in masks]
    graph = ir.Graph([], [node.outputs[0] for node in nodes], nodes=nodes, initializers=[*masks, *weights])
    clean(ir.Model(graph, ir_version=10))
    assert len(graph.initializers) == 4
    used = [node.inputs[0] for node in nodes]
    assert (used[0] is used[1], used[0] is used[2]) == (True, False)


@pytest.mark.skipif(int(transformers.__version__.partition(".")[0]) < 5, reason="its ViT takes many minutes to trace")
def test_positions_interpolated_to_another_size_have_room(tmp_path):
    """A ViT made for 32 pixels that reads 192: its positions are folded into a table for 24 x 24 patches."""
    backbone = Backbone.load(str(write("vit", tmp_path)), lambda depth: (depth,))
    rows, own = (Preprocessing(image=ImageSettings(resize=(size, size))) for size in (192, 32))
    config = ModelConfig(pooling="mean", branches=())
    task = Task(kind="classification", labels=("a", "b"))
    levi = Levi(backbone, build(config, backbone.identity, rows, backbone.taps, task=task))
    model = convert(levi.eval(), rows)
    clean(model)
    contract = {"inputs": inputs(levi, rows), "outputs": outputs(levi.ensemble)}
    assert check(model, **contract, weights=weight_bytes(levi, rows)).weights > weight_bytes(levi, own)
    with pytest.raises(ParityError, match="its constants take"):
        check(model, **contract, weights=weight_bytes(levi, own))
