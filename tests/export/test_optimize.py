"""Passes leave every answer as it was, on every family, and leave alone what they do not fit."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from families import CAUSAL, FAMILIES, IMAGES, PINNED, as_if_fitted, write

from levi_deploy.config import ModelConfig
from levi_deploy.model import Levi
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.build import build
from levi_export.convert import convert
from levi_export.graph import clean
from levi_export.optimize import cut_to_first_token, tokens_first
from levi_export.precision import derive
from levi_serving.engine.cpu import SLOWER
from levi_serving.errors import UsageError
from levi_serving.predictions import Task
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import Preprocessing
from levi_serving.rows.text import TextSettings

pytestmark = pytest.mark.slow

UNCUT = ("convnext", "mobilenet_v2", "gpt2")  # no tokens; or tokens of all rows in one matrix


def made(name: str, folder, *, pooling: str = "first", taps=lambda depth: (1, depth)):
    """A model with random heads, and its traced graph."""
    backbone = Backbone.load(str(write(name, folder)), taps)
    rows = Preprocessing(text=TextSettings())
    if name in IMAGES:
        rows = Preprocessing(image=ImageSettings(resize=(32, 32)))
    torch.manual_seed(0)
    config = ModelConfig(pooling=pooling, queries=2, branch_width=8, branch_embedding=8)
    ensemble = build(
        config, backbone.identity, rows, backbone.taps, task=Task(kind="classification", labels=tuple("abc"))
    )
    as_if_fitted(ensemble.novelty)
    levi = Levi(backbone, ensemble).eval()
    model = convert(levi, rows)
    clean(model)
    return levi, model


@pytest.fixture(scope="module")
def traced(tmp_path_factory):
    """Each family's model and graph, traced once; the graph is a copy that a test may change."""

    @cache
    def once(name, pooling):
        folder = tmp_path_factory.mktemp("traced")
        levi, model = made(name, folder, pooling=pooling)
        ir.save(model, folder / "graph.onnx", external_data="graph.onnx.data")
        return levi, folder / "graph.onnx"

    return once


def feeds(name: str, rows: int, tokens: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    if name in IMAGES:
        return {"pixel_values": draw.standard_normal((rows, 3, 32, 32)).astype(np.float32)}
    lengths = draw.integers(1, tokens + 1, rows)
    lengths[0] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    if name in CAUSAL:
        mask[:] = 1  # padded on the left, the first token would be padding, which is nobody's answer
    return {"input_ids": draw.integers(3, 60, (rows, tokens)) * mask, "attention_mask": mask}


def session(model: ir.Model, folder, name: str = "model.onnx") -> onnxruntime.InferenceSession:
    ir.save(model, folder / name, external_data=f"{name}.data")
    onnx.checker.check_model(str(folder / name), full_check=True)
    return onnxruntime.InferenceSession(folder / name)


def answers(run: onnxruntime.InferenceSession, given: dict[str, np.ndarray]) -> list[np.ndarray]:
    return run.run(None, {i.name: given[i.name] for i in run.get_inputs()})


def agrees(run, levi: Levi, name: str, *, tolerance: float) -> None:
    """With torch, at sizes never traced."""
    for rows, tokens in ((1, 1), (2, 9), (5, 31)):
        given = feeds(name, rows, tokens, seed=rows)
        with torch.no_grad():
            expected = levi(**{key: torch.from_numpy(value) for key, value in given.items()})
        for a, b in zip(answers(run, given), expected, strict=True):
            unit = float(b.std(correction=0) + b.abs().max())
            np.testing.assert_allclose(a, b.numpy(), rtol=0, atol=tolerance * unit)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in UNCUT])
def test_the_last_layer_is_cut_to_its_first_token(name, traced, tmp_path):
    levi, path = traced(name, "first")
    model = ir.load(path)
    assert cut_to_first_token(model)
    cut = [node for node in model.graph if node.op_type == "MatMul" and _places(node) == 1]
    # DeBERTa's attention mixes rows and heads, and Swin's windows mix places: only what follows can be cut.
    assert len(cut) >= {"deberta-v2": 3, "swin": 2}.get(name, 6)
    agrees(session(model, tmp_path), levi, name, tolerance=2e-5)


def _places(node: ir.Node):
    shape = node.outputs[0].shape
    return shape[-2] if shape is not None and len(shape) > 2 else None


@pytest.mark.parametrize(
    ("name", "pooling"),
    [("bert", "mean"), ("bert", "attention"), ("bert", "last"), *((name, "first") for name in UNCUT)],
)
def test_what_cannot_be_cut_is_left_as_it_is(name, pooling, traced):
    _, path = traced(name, pooling)
    model = ir.load(path)
    before = [(node.name, node.op_type, [v.name for v in node.inputs if v is not None]) for node in model.graph]
    assert cut_to_first_token(model) == 0
    assert before == [(n.name, n.op_type, [v.name for v in n.inputs if v is not None]) for n in model.graph]


def test_one_reader_of_all_tokens_stops_the_cut(traced, tmp_path):
    """The last layer's output gets a second reader, which takes its largest value over all tokens."""
    _, path = traced("bert", "first")
    model = ir.load(path)
    last = [n for n in model.graph if n.op_type == "Gather" and n.attributes.get_int("axis", 0) == 1][-1]
    axes = ir.Value(name="axes", const_value=ir.tensor(np.asarray([1]), name="axes"))
    model.graph.register_initializer(axes)
    pooled = ir.node("ReduceMax", [last.inputs[0], axes], attributes={"keepdims": 0}, name="second/ReduceMax")
    total = ir.node("Add", [last.outputs[0], pooled.outputs[0]], name="second/Add")
    last.outputs[0].replace_all_uses_with(total.outputs[0])
    total.replace_input_with(0, last.outputs[0])
    model.graph.insert_after(last, [pooled, total])
    assert cut_to_first_token(model) == 0


ROWS_FIRST = ("deberta-v2", "modernbert", "llama", "qwen3", "convnext", "mobilenet_v2")
"""Rows and heads in one axis; heads turned before their products; no attention."""


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("bert", "mean"),
        ("bert", "attention"),
        ("bert", "tokens"),
        ("bert", "ladder"),
        *(
            pytest.param(name, "first", marks=PINNED if name == "distilbert" else ())
            for name in FAMILIES
            if name not in ROWS_FIRST
        ),
    ],
)
def test_with_tokens_first_every_split_is_left_to_its_product(name, pooling, traced, tmp_path):
    levi, path = traced(name, pooling)
    model = ir.load(path)
    cut_to_first_token(model)
    before = transposes(model, tmp_path)
    masks = int(pooling in ("tokens", "ladder"))
    saved = 15 if pooling == "ladder" else 9  # of three layers, and of two rungs
    assert tokens_first(model) == saved
    # Three splits a layer are gone. One is there where the walk begins, but SigLIP's patches come transposed as it
    # is; what reads the taps reads either order, but for the mask under which a largest value is taken. GPT-2's keys
    # and Swin's windows end the walk more often.
    assert transposes(model, tmp_path) == before - saved + {"siglip": 0, "gpt2": 3, "swin": 3}.get(name, 1 + masks)
    agrees(session(model, tmp_path), levi, name, tolerance=2e-5)


def transposes(model: ir.Model, folder) -> int:
    """How many are left in the graph that onnxruntime runs."""
    ir.save(model, folder / "counted.onnx", external_data="counted.onnx.data")
    return operators(folder / "counted.onnx", folder).get("Transpose", 0)


@pytest.mark.parametrize("name", ROWS_FIRST)
def test_where_it_saves_nothing_rows_stay_first(name, traced):
    _, path = traced(name, "first")
    model = ir.load(path)
    before = [
        (node.name, [v.name for v in node.inputs if v is not None], dict(node.attributes)) for node in model.graph
    ]
    assert tokens_first(model) == 0
    assert before == [(n.name, [v.name for v in n.inputs if v is not None], dict(n.attributes)) for n in model.graph]


def test_an_operator_between_rows_stays_outside(traced, tmp_path):
    """The first layer's input is changed by a sum over rows: the walk ends there, and the answers are as before."""
    _, path = traced("bert", "mean")
    model = ir.load(path)
    first = next(n for n in model.graph if n.op_type == "LayerNormalization")
    total = ir.node("CumSum", [first.outputs[0], axis(model, 0)], name="odd/CumSum")
    first.outputs[0].replace_all_uses_with(total.outputs[0])
    total.replace_input_with(0, first.outputs[0])
    total.outputs[0].name, total.outputs[0].type = "odd", first.outputs[0].type
    total.outputs[0].shape = first.outputs[0].shape
    model.graph.insert_after(first, total)
    given = feeds("bert", 3, 7)
    before = answers(session(model, tmp_path, "before.onnx"), given)
    assert tokens_first(model) == 9
    for a, b in zip(answers(session(model, tmp_path), given), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert [n.inputs[0].name for n in model.graph if n.op_type == "CumSum"] == [first.outputs[0].name]


def test_what_a_branch_reads_keeps_its_layout(traced, tmp_path):
    """A branch sums the second norm's output over rows, and the sum is added to the third's."""
    _, path = traced("bert", "mean")
    model = ir.load(path)
    second, third = [n for n in model.graph if n.op_type == "LayerNormalization"][1:3]
    read, added = second.outputs[0], third.outputs[0]
    total = ir.node("CumSum", [read, axis(model, 0)], name="odd/CumSum")
    same = ir.node("Identity", [read], name="odd/Identity")
    for node in (total, same):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, read.type, read.shape
    branches = {
        name: ir.AttrGraph(name, ir.Graph([], node.outputs, nodes=[node], name=name))
        for name, node in (("then_branch", total), ("else_branch", same))
    }
    deep = ir.Value(name="deep", const_value=ir.tensor(np.asarray(True), name="deep"))
    model.graph.register_initializer(deep)
    choice = ir.Node("", "If", [deep], branches.values(), name="odd/If")
    both = ir.node("Add", [added, choice.outputs[0]], name="odd/Add")
    for node in (choice, both):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = node.name, read.type, read.shape
    added.replace_all_uses_with(both.outputs[0])
    both.replace_input_with(0, added)
    model.graph.insert_after(third, [choice, both])
    given = feeds("bert", 3, 7)
    before = answers(session(model, tmp_path, "before.onnx"), given)
    assert tokens_first(model) == 9
    for a, b in zip(answers(session(model, tmp_path), given), before, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    assert total.inputs[0] is read


def test_the_layers_transposes_are_those_of_the_picture(traced):
    """At the top of ``optimize.py``: the permutations of an attention layer, before and after."""

    def permutations(model: ir.Model) -> Counter[tuple[int, ...]]:
        found = (tuple(n.attributes["perm"].as_ints()) for n in model.graph if n.op_type == "Transpose")
        return Counter(perm for perm in found if len(perm) == 4)

    model = ir.load(traced("bert", "mean")[1])
    assert permutations(model) == {(0, 2, 1, 3): 3 * 3, (0, 2, 3, 1): 3}
    tokens_first(model)
    assert permutations(model) == {(1, 2, 0, 3): 2 * 3, (1, 2, 3, 0): 3, (2, 0, 1, 3): 3}


def axis(model: ir.Model, number: int) -> ir.Value:
    value = ir.Value(name="axis", const_value=ir.tensor(np.asarray(number), name="axis"))
    model.graph.register_initializer(value)
    return value


@pytest.mark.parametrize("name", FAMILIES)
def test_fp16_answers_as_torch(name, traced, tmp_path):
    levi, path = traced(name, "first")
    model, changes = derive(path, "fp16")
    assert changes["nodes in fp16"] > 10
    assert "ensemble" not in {
        n.partition(".")[0] for n, v in model.graph.initializers.items() if v.dtype == ir.DataType.FLOAT16
    }
    agrees(session(model, tmp_path), levi, name, tolerance=5e-2 if name == "t5" else 1e-2)  # T5's scores are not scaled


@pytest.mark.parametrize("precision", ["int8", "int4"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_quantised_backbone_answers_nearly_as_torch(name, precision, traced, tmp_path):
    levi, path = traced(name, "first")
    if name == "mobilenet_v2" or (name, precision) == ("gpt2", "int4"):
        with pytest.raises(UsageError, match=r"no .*MatMul with a weight to quantise; its products are "):
            derive(path, precision)
        return
    model, changes = derive(path, precision)
    assert any(kind.startswith(("MatMul", "Gemm")) for kind in changes)
    for value in model.graph.initializers.values():  # 7 bits: two products fit 16 bits on a CPU without VNNI
        if precision == "int8" and value.dtype == ir.DataType.INT8:
            assert np.abs(value.const_value.numpy().astype(int)).max(initial=0) <= 64
    kinds = {"MatMulInteger", "DynamicQuantizeLinear", "MatMulNBits"}
    assert not [n.name for n in model.graph if (n.name or "").startswith("ensemble") and n.op_type in kinds]
    agrees(session(model, tmp_path), levi, name, tolerance=0.15 if precision == "int8" else 0.6)


def test_bf16_is_a_valid_graph(traced, tmp_path):
    """There are no kernels for it here: the checker and the types are all that can be seen."""
    _, path = traced("vit", "first")
    model, changes = derive(path, "bf16")
    assert changes["nodes in bf16"] > 10
    assert model.opset_imports[""] == 22
    ir.save(model, tmp_path / "model.onnx", external_data="model.onnx.data")
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=True)
    assert {v.dtype for v in (*model.graph.inputs, *model.graph.outputs)} == {ir.DataType.FLOAT}


# A fusion gained or lost on a version bump of torch, onnxscript or onnxruntime shows here, before any timing does.

EXPECTED = json.loads((Path(__file__).parent / "operators.json").read_text())
_TOLD = {"MatMul", "Gemm", "LayerNormalization", "Softmax", "Transpose", "Gather", "Gelu", "Slice", "Cast"}


def operators(path: Path, folder: Path, *, disabled: tuple[str, ...] = SLOWER) -> dict[str, int]:
    """The products, norms and fused operators of the graph that onnxruntime runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, disabled_optimizers=list(disabled))
    nodes = onnx.load(folder / "optimised.onnx", load_external_data=False).graph.node
    counts = Counter(n.op_type for n in nodes if n.domain or n.op_type in _TOLD)
    return {
        kind: counts[kind] for kind in sorted(counts) if not kind.startswith("Reorder")
    }  # by the CPU's vector width


def variants(name: str, path: Path, folder: Path) -> dict[str, dict[str, int]]:
    """What onnxruntime makes of each form of a family's graph."""
    forms = {"cut": ir.load(path), "tokens first": ir.load(path)}
    cut_to_first_token(forms["cut"])
    tokens_first(forms["tokens first"])
    for precision in ("fp16", "int8", "int4"):
        forms[precision] = derive(path, precision)[0]
    found = {"fp32": operators(path, folder), "fp32, all fusions": operators(path, folder, disabled=())}
    for form, model in forms.items():
        ir.save(model, folder / "form.onnx", external_data="form.onnx.data")
        found[form] = operators(folder / "form.onnx", folder)
    return found


@PINNED
@pytest.mark.parametrize("name", ["bert", "t5", "vit"])
def test_onnxruntime_fuses_what_it_did(name, traced, tmp_path):
    assert variants(name, traced(name, "first")[1], tmp_path) == EXPECTED[name]
