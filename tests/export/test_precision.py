"""Less precise graphs beside the fp32 one: proven on real rows, or refused with nothing kept."""

from __future__ import annotations

import shutil

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from levi_export import export, pipeline
from levi_export.golden import choose
from levi_export.precision import check_precisions
from levi_export.proof import check_drop, metric
from levi_serving import Bundle, Runner, verify
from levi_serving.bundle import Manifest, read_certificate
from levi_serving.errors import ParityError, ProviderError, UsageError
from levi_serving.predictions import Outputs, Task

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def several(run, tmp_path_factory):
    """The run in three precisions, int8 preferred."""
    folder = tmp_path_factory.mktemp("several") / "bundle"
    return export(run.folder, folder, precisions=("int8", "fp32", "fp16"), min_agreement=0.9, max_drop=5).folder


def test_the_manifest_lists_the_graphs_in_order(several):
    manifest = Bundle.open(several).manifest
    assert [(g.file, g.precision, g.device) for g in manifest.graphs] == [
        ("model.int8.onnx", "int8", "cpu"),
        ("model.cpu.onnx", "fp32", "cpu"),
        ("model.onnx", "fp32", "any"),
        ("model.fp16.onnx", "fp16", "any"),
    ]
    saved = {"transposes left to products": 9}
    assert [graph.changes for graph in manifest.graphs[:3]] == [saved | {"MatMul in int8": 18}, saved, {}]
    assert manifest.graphs[3].changes.keys() == {"nodes in fp16"}
    assert Runner(several).describe()["precision"] == "int8"
    assert Runner(several, precision="fp32").graph.file == "model.cpu.onnx"
    assert Bundle.open(several).graph("fp32", device="cuda").file == "model.onnx"
    assert (
        "| `model.int8.onnx` | int8 | cpu | 9 transposes left to products, 18 MatMul in int8 |"
        in (several / "README.md").read_text()
    )


def test_each_has_its_own_certificate(several, run):
    int8, fp32, fp16 = (read_certificate(several, f"model{part}.onnx") for part in (".int8", "", ".fp16"))
    assert fp32["standard"] == {"tolerance": 1e-4, "min_agreement": 1.0}
    assert "real_rows" not in fp32
    assert int8["standard"] == {"tolerance": None, "min_agreement": 0.9}
    assert fp16["standard"] == {"tolerance": 1e-2, "min_agreement": 0.9}
    assert fp32["worst_scaled_error"] < 1e-5 < min(one["worst_scaled_error"] for one in (fp16, int8))
    real = int8["real_rows"]
    assert real["count"] == len(run.samples) == len(run.targets)
    assert 0.9 <= real["agreement"] <= 1
    assert len(real["heads"]["agreement"]) == len(real["heads"]["rms_scaled_error"]) == 2
    assert int8["metric"]["name"] == "accuracy"
    reference = run.reference()
    right = reference.run(reference.prepare(run.samples)).logits.argmax(axis=1) == run.targets
    assert int8["metric"]["torch"] == pytest.approx(right.mean())


def outside(folder, file):
    """Where each constant that is not in the graph itself lies: file, offset and length."""
    model = onnx.load(folder / file, load_external_data=False)
    inside = [i for i in model.graph.initializer if i.data_location != onnx.TensorProto.EXTERNAL]
    assert sum(len(i.raw_data) for i in inside) < 20_000
    return {
        i.name: tuple(e.value for e in i.external_data if e.key != "checksum")
        for i in model.graph.initializer
        if i.data_location == onnx.TensorProto.EXTERNAL
    }


def test_a_weight_of_two_graphs_is_stored_once(several):
    fp32 = outside(several, "model.onnx")
    assert {place[0] for place in fp32.values()} == {"model.onnx.data"}
    assert outside(several, "model.cpu.onnx") == fp32
    assert not (several / "model.cpu.onnx.data").exists()
    for file in ("model.int8.onnx", "model.fp16.onnx"):
        own = outside(several, file)
        assert {place[0] for place in own.values()} == {f"{file}.data", "model.onnx.data"}
        assert own[WORDS] == fp32[WORDS]
        shared = [name for name, place in own.items() if place[0] == "model.onnx.data"]
        assert {name: own[name] for name in shared} == {name: fp32[name] for name in shared}
        lengths = sum(int(place[-1]) for place in own.values() if place[0] == f"{file}.data")
        assert (several / f"{file}.data").stat().st_size == lengths < (several / "model.onnx.data").stat().st_size


def test_a_graph_alone_has_all_its_weights(run, tmp_path):
    export(run.folder, tmp_path / "bundle", precisions=("int8",), min_agreement=0.9, max_drop=100)
    assert {place[0] for place in outside(tmp_path / "bundle", "model.int8.onnx").values()} == {"model.int8.onnx.data"}
    assert not (tmp_path / "bundle" / "model.onnx.data").exists()


def test_verify_replays_each(several):
    found = verify(several)
    assert list(found["graphs"]) == ["model.int8.onnx", "model.cpu.onnx", "model.onnx", "model.fp16.onnx"]
    assert found["not_run"] == {}
    assert found["graphs"]["model.int8.onnx"]["real_rows"]["agreement"] >= 0.9
    assert list(verify(several, precision="fp16")["graphs"]) == ["model.fp16.onnx"]


def damaged(several, folder, file, chosen, change):
    """A copy of the bundle in which one weight of one graph is another."""
    shutil.copytree(several, folder)
    model = onnx.load(folder / file)
    weight = next(i for i in model.graph.initializer if chosen(i))
    weight.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weight)), weight.name))
    (folder / f"{file}.data").unlink()
    onnx.save(model, folder / file, save_as_external_data=True, location=f"{file}.data")
    Bundle.write(folder, Manifest.from_json((folder / "levi.json").read_text(), name="levi.json"))


NORM = "backbone.model.embeddings.LayerNorm.weight"
WORDS = "ensemble.branches.0.embedding.weight"  # this tiny backbone knows nothing: the branch decides


def test_a_corrupted_int8_graph_is_refused(several, tmp_path):
    damaged(several, tmp_path / "bundle", "model.int8.onnx", lambda i: i.name == WORDS, np.negative)
    with pytest.raises(ParityError, match=r"model\.int8\.onnx does not answer .*\n(.*\n)*.*real rows keep their pred"):
        verify(tmp_path / "bundle")
    assert list(verify(tmp_path / "bundle", precision="fp32")["graphs"]) == ["model.cpu.onnx", "model.onnx"]


def test_an_fp16_graph_that_overflows_is_refused(several, tmp_path):
    def large(values):
        return np.full_like(values, 6e4)

    damaged(several, tmp_path / "bundle", "model.fp16.onnx", lambda i: i.name == f"{NORM}.float16", large)
    with pytest.raises(ParityError, match="an answer is not finite"):
        verify(tmp_path / "bundle", precision="fp16")


def test_below_the_agreement_nothing_is_kept(run, tmp_path, monkeypatch):
    """The int8 graph is damaged before it is proven."""
    derive = pipeline.derive

    def coarse(path, precision):
        model, changes = derive(path, precision)
        weight = model.graph.initializers[WORDS]
        weight.const_value = ir.tensor(-weight.const_value.numpy(), name=WORDS)
        return model, changes

    monkeypatch.setattr(pipeline, "derive", coarse)
    with pytest.raises(ParityError, match=r"of 80 real rows keep their prediction, expected 95\.0%"):
        export(run.folder, tmp_path / "bundle", precisions=("int8",))
    assert list(tmp_path.iterdir()) == []


def test_a_drop_of_the_metric_is_refused(run, tmp_path):
    """Whatever int8 loses is more than minus a hundred points."""
    says = r"The int8 graph has the accuracy .* allowed -100\. Nothing was written\. .* raise `max_drop`\."
    with pytest.raises(ParityError, match=says):
        export(run.folder, tmp_path / "bundle", precisions=("int8",), min_agreement=0, max_drop=-100)
    assert list(tmp_path.iterdir()) == []


def test_int8_alone_makes_a_small_bundle(run, tmp_path):
    bundle = export(run.folder, tmp_path / "bundle", precisions=("int8",), min_agreement=0.9, max_drop=5)
    assert [path.name for path in sorted(bundle.folder.glob("model.*"))] == ["model.int8.onnx", "model.int8.onnx.data"]
    assert Runner(bundle.folder).predict(["good lamp"]).logits.shape == (1, 2)


def test_the_metric_and_its_drop():
    reference = Outputs(np.asarray([[1, 0], [0, 1], [1, 0], [0, 1]], np.float32), np.zeros((4, 1, 2), np.float32))
    found = Outputs(np.asarray([[1, 0], [0, 1], [1, 0], [1, 0]], np.float32), np.zeros((4, 1, 2), np.float32))
    lost = metric(reference, found, np.asarray([0, 1, 0, 1]), Task(kind="classification", labels=("a", "b")))
    assert lost == {"name": "accuracy", "torch": 1.0, "value": 0.75, "drop": 25.0}
    values = Outputs(np.asarray([[1.0], [3.0]], np.float32), np.zeros((2, 1, 1), np.float32))
    worse = Outputs(np.asarray([[0.9], [3.1]], np.float32), np.zeros((2, 1, 1), np.float32))
    more = metric(values, worse, np.asarray([2.0, 2.0]), Task(kind="regression", labels=("score",)))
    assert (more["name"], more["drop"]) == ("rmse", pytest.approx(10, rel=1e-4))
    check_drop(more, "int8", max_drop=10.01)
    with pytest.raises(ParityError, match=r"the rmse 1\.1000 .* torch 1\.0000: 10\.00 percent more, allowed 9\.9"):
        check_drop(more, "int8", max_drop=9.9)
    with pytest.raises(ParityError, match="accuracy"):
        check_drop({**lost, "drop": float("nan")}, "int8", max_drop=100)


def test_golden_rows_are_at_even_distances_among_the_runs():
    rows = [str(n) for n in range(512)]
    golden = choose(rows)
    assert (len(golden), golden[0], golden[-1]) == (64, "0", "511")
    assert choose(rows[:5]) == rows[:5]


@pytest.mark.parametrize(
    ("precisions", "error", "says"),
    [
        (["int5"], UsageError, "`precisions` are int5; expected some of fp32, fp16, bf16, int8, int4, each once"),
        (["int8", "int8"], UsageError, "each once"),
        ([], UsageError, "`precisions` are none"),
        (["fp32", "bf16"], ProviderError, "no bf16 kernels for CPUExecutionProvider. Export on a machine with a CUDA"),
    ],
)
def test_precisions_that_cannot_be_had(precisions, error, says):
    with pytest.raises(error, match=says):
        check_precisions(precisions, ["CPUExecutionProvider"])
    check_precisions(["bf16"], ["CUDAExecutionProvider", "CPUExecutionProvider"])


def test_image_rows_are_bounded(monkeypatch):
    from levi_deploy.training import record as module

    rows = [{"image": bytes(100)} for _ in range(600)]
    assert len(module._samples(rows, np.arange(600), ("image",))) == 512
    monkeypatch.setattr(module, "_SAMPLES_BYTES", 20_000)
    assert len(module._samples(rows, np.arange(600), ("image",))) == 128
    monkeypatch.setattr(module, "_SAMPLES_BYTES", 10)
    assert len(module._samples(rows, np.arange(600), ("image",))) == 64
    assert len(module._samples(rows, np.arange(600), ())) == 512
