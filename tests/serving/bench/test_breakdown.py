"""A profile's times have their parts, whatever was fused or quantised, and its work is what a model's is."""

from __future__ import annotations

import copy
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from families import IMAGES, write
from onnx import numpy_helper

from levi_deploy.config import ModelConfig
from levi_deploy.model import Levi
from levi_deploy.model.backbone import Backbone
from levi_deploy.model.build import build
from levi_deploy.model.novelty import CENTROIDS
from levi_export.convert import convert
from levi_export.graph import clean
from levi_export.optimize import tokens_first
from levi_serving import bench
from levi_serving.bench.breakdown import Peak, flame_page, measure, measure_peak, peak, profile
from levi_serving.bench.breakdown.modules import AVERAGE, NOVELTY, UNKNOWN, Modules
from levi_serving.bench.breakdown.onnx_file import matrix_product, read_graph
from levi_serving.bench.breakdown.trace import read_runs
from levi_serving.bench.breakdown.work import moved, operations
from levi_serving.engine.session import OPTIMIZED, Session
from levi_serving.errors import BenchmarkError, BundleError, UsageError
from levi_serving.predictions import Task
from levi_serving.rows.images import ImageSettings
from levi_serving.rows.preprocess import Encoded, Preprocessing
from levi_serving.rows.text import TextSettings

pytestmark = pytest.mark.slow

PEAK = Peak(threads=1, products=1e11, by="a stand-in", stream=1e10)


@pytest.fixture(scope="module")
def profiled(runner, texts):
    rows = [{"text": text} for text in texts]
    workload = bench.fixed(runner.preprocessor, rows, batch_sizes=[3], lengths=[16])[0]
    return profile(runner, workload, peak=PEAK, duration_s=0.1)


def names(part):
    return [inner.name for inner in part.parts if not inner.node]


def nodes(part):
    return [part] if part.node else [node for inner in part.parts for node in nodes(inner)]


def test_a_request_is_its_parts(profiled):
    request = profiled.request
    assert names(request) == ["prepare", "run", "finish"]
    run = request.parts[1]
    assert names(run) == [
        "padding and copies", "backbone", "branch 1", "head 1 (tap 1)", "head 2 (tap 3)", "novelty", "average",
        "onnxruntime itself",
    ]  # fmt: skip
    backbone = run.parts[1]
    assert names(backbone) == ["embeddings", "mask and shapes", "layer 1", "layer 2", "layer 3"]
    assert all(names(layer) == ["attention", "feed-forward", "norms"] for layer in backbone.parts[2:])
    assert all(names(head) == ["pooling", "adapting layer"] for head in profiled.heads)
    everything = [request, *request.parts, *run.parts, *backbone.parts]
    for part in everything:
        if part.parts:
            assert part.ms == pytest.approx(sum(inner.ms for inner in part.parts))
    assert all(part.ms > 0 for part in everything if part.name != "onnxruntime itself")


def test_nearly_all_of_the_kernels_time_has_its_part(profiled):
    """One ratio within one run, most of it by the nodes' own names."""
    assert 0.95 <= profiled.attributed <= 1
    assert 0.5 < profiled.named < profiled.attributed
    assert not {node.name for node in nodes(profiled.request) if "/" not in node.name}  # no fusion took a name away


def test_operators_share_the_kernels_time(profiled):
    assert sum(profiled.operators.values()) == pytest.approx(sum(node.ms for node in nodes(profiled.request)))
    assert {"MatMul", "Softmax", "LayerNormalization", "Gelu"} <= set(profiled.operators)
    assert list(profiled.operators.values()) == sorted(profiled.operators.values(), reverse=True)
    longest = next(iter(profiled.operators))
    assert f"By operator: {longest} " in str(profiled)


def test_the_work_is_counted_by_hand(profiled):
    """3 rows of 16 tokens through 3 layers of width 32 and 64, two poolings of 3 and 2 queries, and the heads."""
    tokens, width, inner = 16, 32, 64
    layer = 2 * tokens * (4 * width * width + 2 * width * inner) + 4 * tokens * tokens * width
    low = 3 * 3 * layer
    assert low < profiled.work.operations < 1.15 * low  # the ensemble is the rest
    assert profiled.work.useful == profiled.work.operations  # no padding
    assert profiled.work.bytes > 3 * 3 * tokens * width * 4
    document = json.loads(json.dumps(profiled.to_dict()))
    assert document["matrix_products"]["share_of_peak"] == pytest.approx(
        profiled.work.operations / (profiled.run_ms / 1e3) / 1e11
    )
    heads = [head.ms for head in profiled.heads]
    assert document["one_more_head"]["ms"] == pytest.approx(sum(heads) / 2)


def test_novelty_is_next_to_nothing_of_the_work(bundle, runner, tmp_path):
    """A row has two products, of D x D and of D x 64, however many tokens it has: below 1 % of a tiny backbone's."""
    rows, width = 3, 32
    feeds = Encoded.blank(runner.preprocessor.settings, rows=rows, tokens=16).batch(list(range(rows)))
    session = Session(bundle / "model.onnx", device="cpu", threads=1, trace=tmp_path)
    session.run(feeds)
    graph = read_graph(tmp_path / OPTIMIZED)
    modules = Modules(graph, (1, 3))
    run = read_runs(session.end_trace(), graph)[-1]
    own = measure._operations([event for event in run if modules.path(event.name)[0] == NOVELTY], graph)
    assert own == rows * 2 * width * (width + CENTROIDS)
    assert own < 0.01 * measure._operations(run, graph)


def test_useful_work_leaves_padding_out(runner):
    """Two texts, one of 3 tokens and one of 30: alone they would cost what two runs of their lengths cost."""

    def work(*batch):
        return profile(runner, bench.Workload([batch], len(batch)), peak=PEAK, duration_s=0).work

    short, long = "lamp", " ".join(["lamp"] * 28)
    together = work(short, long)
    assert together.useful == pytest.approx(work(short).operations + work(long).operations)
    assert together.operations == pytest.approx(work(long, long).operations)
    assert together.useful < 0.7 * together.operations


def test_a_trace_that_lost_runs_does_not_count(runner, monkeypatch):
    monkeypatch.setattr(measure, "read_runs", lambda *given: read_runs(*given)[1:])
    with pytest.raises(BenchmarkError, match=r"trace holds \d+ runs of the graph, but \d+ were made"):
        profile(runner, bench.Workload([["a lamp"]], 1), peak=PEAK, duration_s=0)


def test_several_workers_are_refused(runner):
    busy = copy.copy(runner)
    busy.workers = 2
    with pytest.raises(UsageError, match=r"a runner with one worker, .* but this one has 2\. .* workers=1"):
        profile(busy, bench.Workload([["a lamp"]], 1), peak=PEAK, duration_s=0)


def attributed(path, feeds, taps, folder):
    """Of a graph in a file: the share of the kernels' time with a part, the parts, and operations of a run."""
    session = Session(path, device="cpu", threads=1, trace=folder)
    for _ in range(3):
        session.run(feeds)
    graph = read_graph(folder / OPTIMIZED)
    modules = Modules(graph, taps)
    known = total = 0
    found = set()
    run = read_runs(session.end_trace(), graph)[-1]
    for event in run:
        part, _ = modules.path(event.name)
        found.add(part)
        total += event.seconds
        known += event.seconds if part != UNKNOWN else 0
    return known / total, found, measure._operations(run, graph)


@pytest.mark.parametrize("name", ["bert", "modernbert", "t5", "gpt2", "vit", "swin"])
def test_every_familys_time_has_its_modules(name, tmp_path):
    """In fp32, with tokens before rows, and in int8."""
    backbone = Backbone.load(str(write(name, tmp_path / "backbone")), lambda depth: (1, depth))
    rows = Preprocessing(image=ImageSettings(resize=(32, 32))) if name in IMAGES else Preprocessing(text=TextSettings())
    config = ModelConfig(pooling="attention", queries=2, branches=())
    task = Task(kind="classification", labels=("a", "b", "c"))
    ensemble = build(config, backbone.identity, rows, backbone.taps, task=task)
    model = convert(Levi(backbone, ensemble).eval(), rows)
    clean(model)
    ir.save(model, tmp_path / "fp32.onnx")
    quantise(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    tokens_first(model)
    ir.save(model, tmp_path / "cpu.onnx")
    feeds = Encoded.blank(rows, rows=2, tokens=12).batch([0, 1])
    work = {}
    for form in ("fp32", "cpu", "int8"):
        (tmp_path / form).mkdir()
        share, parts, work[form] = attributed(tmp_path / f"{form}.onnx", feeds, backbone.taps, tmp_path / form)
        assert share >= 0.95, form
        assert AVERAGE in parts
        assert {path[:2] for path in parts if path[0].startswith("head")} == {
            (f"head {n} (tap {tap})", kind)
            for n, tap in enumerate(backbone.taps, start=1)
            for kind in ("pooling", "adapting layer")
        }
        for n in range(1, 3 if name == "swin" else 4):  # swin: stages
            inside = {path[2] for path in parts if path[1:2] == (f"layer {n}",)}
            assert {"attention", "feed-forward", "norms"} <= inside, (form, n)
    assert work["int8"] == pytest.approx(work["fp32"])
    assert work["cpu"] == pytest.approx(work["fp32"])


def quantise(source, target):
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = onnx.load(source)
    constants = {tensor.name for tensor in model.graph.initializer}
    for value in [value for value in model.graph.value_info if value.name in constants]:
        model.graph.value_info.remove(value)
    quantize_dynamic(model, target, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul"])
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(target).graph.node)


def test_without_the_structure_less_is_known(bundle, runner, tmp_path):
    """The check can fail: names alone do not tell where a fused activation belongs."""
    feeds = Encoded.blank(runner.preprocessor.settings, rows=2, tokens=12).batch([0, 1])
    session = Session(bundle / "model.onnx", device="cpu", threads=1, trace=tmp_path)
    session.run(feeds)
    graph = read_graph(tmp_path / OPTIMIZED)
    fused = "as a fusion names it"
    graph.nodes[fused] = graph.nodes.pop(next(name for name in graph.nodes if name.endswith("/Gelu")))
    assert Modules(graph, (1, 3)).path(fused) == (("backbone", "layer 1", "feed-forward"), False)
    graph.nodes.clear()
    assert Modules(graph, (1, 3)).path(fused) == (UNKNOWN, False)
    session.end_trace()


@pytest.mark.parametrize(
    ("taps", "expected"),
    [
        ((1, 3), {"heads.1": "head 2 (tap 3)", "heads.2": "head 3 (tap 1)", "pools.3": "head 4 (tap 3)"}),
        ((1, 3, None), {"heads.2": "head 3", "heads.3": "head 4 (tap 1)", "pools.2": "head 4 (tap 1)"}),
        ((), {"heads.0": "head 1", "heads.1": "head 2"}),
    ],
)
def test_heads_of_several_members_and_those_without_a_tap(taps, expected):
    modules = Modules(SimpleNamespace(nodes={}, weights={}), taps)
    assert {module: modules.path(f"ensemble.{module}.net/Gemm")[0][0] for module in expected} == expected


def test_nodes_without_names_are_known_by_their_order(bundle, runner, tmp_path):
    """As functions leave them that onnxruntime writes out."""
    model = onnx.load(bundle / "model.onnx")
    for node in model.graph.node:
        if node.op_type in ("Softmax", "Transpose"):
            node.name = ""
    onnx.save(model, tmp_path / "model.onnx")
    feeds = Encoded.blank(runner.preprocessor.settings, rows=2, tokens=12).batch([0, 1])
    share, parts, _ = attributed(tmp_path / "model.onnx", feeds, (1, 3), tmp_path)
    assert share >= 0.95
    assert UNKNOWN not in parts


def test_the_reader_reads_what_onnx_reads(bundle):
    ours, theirs = read_graph(bundle / "model.onnx"), onnx.load(bundle / "model.onnx").graph
    assert [(n.name, n.operator, n.inputs, n.outputs) for n in ours.nodes.values()] == [
        (n.name, n.op_type, tuple(n.input), tuple(n.output)) for n in theirs.node
    ]
    assert {name: (weight.shape, weight.size) for name, weight in ours.weights.items()} == {
        tensor.name: (tuple(tensor.dims), numpy_helper.to_array(tensor).nbytes) for tensor in theirs.initializer
    }


def test_a_file_that_is_no_graph(bundle, tmp_path):
    content = (bundle / "model.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"half\.onnx is no ONNX model \(it ends inside of a field"):
        read_graph(tmp_path / "half.onnx")


def test_the_written_product_is_a_model_that_multiplies(tmp_path):
    weight = np.arange(12, dtype=np.float32).reshape(3, 4)
    path = tmp_path / "product.onnx"
    path.write_bytes(matrix_product(2, 3, 4, weight.tobytes()))
    onnx.checker.check_model(str(path), full_check=True)
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    (y,) = onnxruntime.InferenceSession(path).run(None, {"x": x})
    np.testing.assert_array_equal(y, x @ weight)


@pytest.mark.parametrize(
    ("operator", "inputs", "output", "expected"),
    [
        ("MatMul", [(2, 5, 8), (8, 3)], (2, 5, 3), 2 * 2 * 5 * 8 * 3),
        ("FusedMatMul", [(2, 8, 5), (2, 8, 3)], (2, 5, 3), 2 * 2 * 5 * 8 * 3),  # the left one transposed
        ("FusedMatMul", [(4, 8), (2, 7, 8)], (2, 4, 7), 2 * 2 * 4 * 8 * 7),  # the right one, broadcast
        (
            "FusedMatMul",
            [(7, 2, 3, 8), (6, 2, 3, 8)],
            (2, 3, 7, 6),
            2 * 2 * 3 * 7 * 8 * 6,
        ),  # tokens first on both
        ("FusedMatMul", [(2, 3, 7, 6), (6, 2, 3, 8)], (2, 3, 7, 8), 2 * 2 * 3 * 7 * 6 * 8),  # on the right
        ("Gemm", [(5, 8), (3, 8), (3,)], (5, 3), 2 * 5 * 8 * 3),
        ("Conv", [(1, 6, 9, 9), (4, 3, 5, 5)], (1, 4, 5, 5), 2 * (4 * 5 * 5) * 3 * 5 * 5),  # two groups
        ("Attention", [(2, 5, 8), (8, 24), (24,)], (2, 5, 8), 2 * 2 * 5 * 8 * 24 + 4 * 2 * 5 * 5 * 8),
        ("MultiHeadAttention", [(2, 5, 8), (2, 6, 8), (2, 6, 8)], (2, 5, 8), 4 * 2 * 5 * 6 * 8),
        ("Add", [(2, 5), (2, 5)], (2, 5), 0),
    ],
)
def test_operations(operator, inputs, output, expected, tmp_path):
    path = tmp_path / "product.onnx"
    path.write_bytes(matrix_product(1, 1, 1, bytes(4)))
    arguments = {
        "op_name": operator,
        "input_type_shape": [{"float": list(shape)} for shape in inputs],
        "output_type_shape": [{"float": list(output)}],
        "activation_size": "10",
        "output_size": "20",
    }
    assert operations(arguments, read_graph(path), "elsewhere") == pytest.approx(expected)
    assert moved(arguments, read_graph(path), "elsewhere") == 30


def test_a_weight_that_was_repacked_is_known_from_the_graph(tmp_path):
    path = tmp_path / "product.onnx"
    path.write_bytes(matrix_product(5, 8, 3, bytes(4 * 8 * 3)))
    arguments = {
        "op_name": "MatMul",
        "input_type_shape": [{"float": [5, 8]}],
        "output_type_shape": [{"float": [5, 3]}],
        "activation_size": str(4 * 5 * 8),
        "output_size": str(4 * 5 * 3),
    }
    assert operations(arguments, read_graph(path), "MatMul at 0") == 2 * 5 * 8 * 3
    assert moved(arguments, read_graph(path), "MatMul at 0") == 4 * (5 * 8 + 8 * 3 + 5 * 3)


def test_the_page_holds_everything_and_loads_nothing(profiled):
    html = flame_page([profiled], {"cpu": "a <cpu>", "usable_cores": 2, "system": "Linux", "python": "3"}, "a & b")
    assert "a &lt;cpu&gt;" in html
    assert "a &amp; b: where the time goes" in html
    for node in nodes(profiled.request):
        assert f'title="{node.name}: {node.ms:.3f} ms' in html
    assert "http" not in html
    assert "src=" not in html
    widths = [float(part.partition('"')[0]) for part in html.split('data-width="')[1:]]
    assert widths[0] == 1
    assert all(0 < width <= 1 for width in widths)


def test_the_tree_is_aligned(profiled):
    lines = str(profiled).split("\n\n")[0].splitlines()
    assert len({len(line) for line in lines}) == 1
    shares = [float(line.split()[-1]) for line in lines if line.startswith(("├─", "└─"))]
    assert sum(shares) == pytest.approx(100, abs=0.02)


@pytest.mark.parametrize(("numpys", "by"), [("1e30", "numpy, 64 x 64"), ("1.0", "onnxruntime, 64 x 64")])
def test_the_peak_is_the_best_of_both_with_the_sessions_threads(numpys, by, monkeypatch):
    environment = {}

    def run(command, *, env, **settings):
        environment.update(env)
        return SimpleNamespace(stdout=numpys + "\n")

    monkeypatch.setattr(peak, "_SIZES", (64,))
    monkeypatch.setattr(peak, "_SECONDS", 0.0)
    monkeypatch.setattr(peak, "_STREAM_BYTES", 2**20)
    monkeypatch.setattr(peak.subprocess, "run", run)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Prescott")  # would slow numpy down and so flatter ours
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    found = measure_peak(2)
    assert (found.threads, found.by) == (2, by)
    assert found.products == 1e30 if by.startswith("numpy") else found.products > 1.0
    assert found.stream > 0
    assert {environment[name] for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")} == {"2"}
    assert "OPENBLAS_CORETYPE" not in environment
    (rate,) = peak.numpy_products()
    assert rate > 0


def test_passes_alternate(runner, monkeypatch):
    """Neither side is always first: a machine that slows down hits both."""
    sent = []
    monkeypatch.setattr(measure, "_pass", lambda one, batches: sent.append(one) or measure._Pass(1, 1, 1))
    measure._measure("plain", "traced", [], 0.0, lambda: True)
    assert len(sent) == 6
    assert {sent[n] for n in (0, 2, 4)} == {"plain", "traced"}
    assert all(set(pair) == {"plain", "traced"} for pair in list(pairwise(sent))[::2])
