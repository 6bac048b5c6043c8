"""Opening a bundle: whatever is wrong with it is said by name, and nothing damaged is ever run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from levi_serving import Bundle, Runner, verify
from levi_serving.bundle import GraphFile, Manifest, read_certificate
from levi_serving.errors import BundleError, ParityError, ProviderError
from levi_serving.parity import Golden


def edit(folder, change, *, reseal):
    """Change the manifest, with or without making its digests right again."""
    path = folder / "levi.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    if reseal:
        document.pop("format_version")
        document["digest"] = _digest(document)
        path.write_text(json.dumps({"format_version": 1, **document}))


def _digest(document):
    content = {name: value for name, value in document.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def reseal(folder):
    Bundle.write(folder, Manifest.from_json((folder / "levi.json").read_text(), name="levi.json"))


def test_round_trip(bundle):
    opened = Bundle.open(bundle)
    again = Manifest.from_json(opened.manifest.to_json(), name="levi.json")
    assert again == opened.manifest
    assert again.digest == opened.manifest.digest
    assert set(opened.manifest.files) == {path.name for path in bundle.iterdir()} - {"levi.json"}


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data", "tokenizer.json", "golden.npz", "parity.json"])
def test_one_changed_byte_is_found(bundle_copy, name):
    content = bytearray((bundle_copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle_copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=rf"{name} is damaged .* SHA-256"):
        Runner(bundle_copy)


@pytest.mark.parametrize("name", ["model.onnx.data", "tokenizer.json"])
def test_truncated_and_missing_files_are_found(bundle_copy, name):
    content = (bundle_copy / name).read_bytes()
    (bundle_copy / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        Bundle.open(bundle_copy)
    (bundle_copy / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.open(bundle_copy)


def test_an_edited_manifest_is_found(bundle_copy):
    edit(bundle_copy, lambda document: document["labels"].reverse(), reseal=False)
    with pytest.raises(BundleError, match="changed after export"):
        Bundle.open(bundle_copy)


def test_newer_foreign_and_broken_manifests(bundle_copy, tmp_path):
    edit(bundle_copy, lambda document: document.update(format_version=2), reseal=False)
    with pytest.raises(BundleError, match=r"version 2; this levi-deploy reads version 1\. Upgrade"):
        Bundle.open(bundle_copy)
    (bundle_copy / "levi.json").write_text('{"name": "something else"}')
    with pytest.raises(BundleError, match="no format_version"):
        Bundle.open(bundle_copy)
    (bundle_copy / "levi.json").write_text('{"format_version": 1, ')
    with pytest.raises(BundleError, match="not valid JSON"):
        Bundle.open(bundle_copy)
    with pytest.raises(BundleError, match="no such folder"):
        Bundle.open(tmp_path / "nowhere")


def test_a_run_is_not_a_bundle(run):
    with pytest.raises(BundleError, match="training run: 'levi export' makes a bundle"):
        Bundle.open(run.folder)


# The digests can be made right again by whoever changes a file; the golden rows still tell.


def test_the_proof_catches_changed_labels(bundle_copy):
    edit(bundle_copy, lambda document: document["labels"].reverse(), reseal=True)
    with pytest.raises(ParityError, match="predictions have another name: golden row 0 is"):
        verify(bundle_copy)


def test_the_proof_catches_another_tokenizer(bundle_copy):
    path = bundle_copy / "tokenizer.json"
    document = json.loads(path.read_text())
    words = document["model"]["vocab"]
    words["kettle"], words["lamp"] = words["lamp"], words["kettle"]
    path.write_text(json.dumps(document))
    reseal(bundle_copy)
    with pytest.raises(ParityError, match="tokenizer gives other token ids for"):
        verify(bundle_copy)


def test_the_proof_catches_changed_weights(bundle_copy):
    import onnx
    from onnx import numpy_helper

    for file in ("model.onnx", "model.cpu.onnx"):
        model = onnx.load(bundle_copy / file, load_external_data=False)
        for tensor in model.graph.initializer:
            if tensor.name.startswith("ensemble.heads.0") and not tensor.external_data and tensor.dims:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1e-2, tensor.name))
        whole = (bundle_copy / file).read_bytes()
        onnx.save(model, bundle_copy / file)
        reseal(bundle_copy)
        with pytest.raises(
            ParityError, match=rf"{file} (.*\n)+.*largest error .* of the logits' standard deviation, allowed 1e-04"
        ):
            verify(bundle_copy)
        (bundle_copy / file).write_bytes(whole)


def test_the_proof_catches_renamed_outputs(bundle_copy):
    import onnx

    model = onnx.load(bundle_copy / "model.onnx", load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "head_logits" else name for name in node.output]
        node.input[:] = ["scores" if name == "head_logits" else name for name in node.input]
    model.graph.output[1].name = "scores"
    onnx.save(model, bundle_copy / "model.onnx")
    reseal(bundle_copy)
    with pytest.raises(ParityError, match=r"its outputs are \['logits', 'novelty', 'scores'\], expected"):
        verify(bundle_copy)


def test_an_untouched_bundle_verifies(bundle):
    certificate = verify(bundle)["graphs"]["model.onnx"]
    assert certificate["worst_scaled_error"] < 1e-5
    assert certificate["rows"]["agreement"] == 1
    assert {(shape["batch"], shape["length"]) for shape in certificate["shapes"]} == {
        (batch, length) for batch in (1, 2, 7, 32) for length in (1, 2, 6, 24, 48)
    }
    assert {shape["padded"] for shape in certificate["shapes"]} == {True, False}


def test_golden_rows_hold_nothing_pickled(bundle, runner):
    with np.load(bundle / "golden.npz", allow_pickle=False) as file:
        assert len(dict(file)) > 10
    golden = Golden.load(bundle / "golden.npz", runner.preprocessor.settings)
    assert len(golden.rows) == len(golden.predictions) == len(golden.encoded) > 20


def with_graphs(folder, *graphs):
    """List further graphs, each with the first one's file as its content and that one's certificate."""
    manifest = Manifest.from_json((folder / "levi.json").read_text(), name="levi.json")
    path = folder / "parity.json"
    certificates = json.loads(path.read_text())
    for graph in graphs:
        (folder / graph.file).write_bytes((folder / "model.onnx").read_bytes())
        certificates[graph.file] = {**certificates["model.onnx"], "precision": graph.precision}
    path.write_text(json.dumps(certificates))
    return Bundle.write(folder, replace(manifest, graphs=(*graphs, *manifest.graphs)))


def test_the_first_graph_for_the_device_is_taken(bundle_copy):
    made = with_graphs(
        bundle_copy, GraphFile(file="a.onnx", precision="fp16", device="cuda"), GraphFile(file="b.onnx", device="cpu")
    )
    assert Bundle.open(bundle_copy).manifest == made.manifest
    assert made.graph().file == "b.onnx"
    assert made.graph("fp32").file == "b.onnx"
    assert made.graph(device="cuda").file == "a.onnx"
    assert made.graph("fp32", device="cuda").file == "model.onnx"
    assert Runner(bundle_copy).graph.file == "b.onnx"
    with pytest.raises(BundleError, match="no fp16 graph for the device 'cpu'; it has fp16 for cuda device, fp32"):
        made.graph("fp16", device="cpu")


def test_every_graph_that_can_run_here_is_verified(bundle_copy):
    made = with_graphs(
        bundle_copy, GraphFile(file="a.onnx", precision="fp16", device="cuda"), GraphFile(file="b.onnx", device="cpu")
    )
    found = verify(bundle_copy)
    assert list(found["graphs"]) == ["b.onnx", "model.cpu.onnx", "model.onnx"]
    assert found["not_run"] == {"a.onnx": "it is made for cuda, and the device here is cpu"}
    with pytest.raises(ProviderError, match="can run here: a.onnx: it is made for cuda"):
        verify(bundle_copy, precision="fp16")
    with pytest.raises(BundleError, match="has no int4 graph"):
        verify(bundle_copy, precision="int4")
    assert read_certificate(bundle_copy, "b.onnx")["standard"] == {"tolerance": 1e-4, "min_agreement": 1.0}
    with pytest.raises(
        BundleError, match="no certificate for c.onnx; it has model.cpu.onnx, model.onnx, a.onnx, b.onnx"
    ):
        read_certificate(made.folder, "c.onnx")


def test_the_broken_one_of_two_graphs_is_named(bundle_copy):
    import onnx

    with_graphs(bundle_copy, GraphFile(file="b.onnx", device="cpu"))
    model = onnx.load(bundle_copy / "b.onnx", load_external_data=False)
    next(node for node in model.graph.node if node.name == "ensemble.heads.0.net.1/Relu").op_type = "Abs"
    onnx.save(model, bundle_copy / "b.onnx")
    reseal(bundle_copy)
    with pytest.raises(ParityError, match=r"b\.onnx does not answer as its model does"):
        verify(bundle_copy)


@pytest.mark.parametrize("change", [{"precision": "int5"}, {"device": "tpu"}, {"shape": "static"}])
def test_a_graph_of_a_kind_unknown_here_is_refused(bundle_copy, change):
    edit(bundle_copy, lambda document: document["graphs"][0].update(change), reseal=True)
    with pytest.raises(BundleError, match=f"lacks or misnames an entry .*{next(iter(change))}"):
        Bundle.open(bundle_copy)
