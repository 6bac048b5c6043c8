"""The provider in use is the one requested, or there is an error. A fake onnxruntime stands in for a GPU's."""

from __future__ import annotations

import sys
from importlib import metadata
from types import SimpleNamespace

import numpy as np
import pytest

from levi_serving.engine import session as module
from levi_serving.engine.session import Session, providers
from levi_serving.errors import BundleError, LeviError, MissingExtraError, ProviderError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


def installed(monkeypatch, *names):
    monkeypatch.setattr(module, "_version", lambda name: "1.31.0" if name in names else None)


def onnxruntime(monkeypatch, *, built_with, starts):
    """A module whose sessions run on ``starts``, whatever is requested."""
    made = []

    class InferenceSession:
        def __init__(self, path, options, *, providers, disabled_optimizers):
            made.append({"providers": providers, "disabled": disabled_optimizers, "options": options})

        def disable_fallback(self):
            made[-1]["fallback"] = False

        def get_providers(self):
            return starts

        def get_provider_graph_assignment_info(self):
            node = SimpleNamespace(op_type="MatMul")
            return [SimpleNamespace(ep_name=starts[0], get_nodes=lambda: [node])]

        def get_inputs(self):
            return [SimpleNamespace(name="input_ids", shape=["batch", "sequence"])]

        def get_outputs(self):
            return [SimpleNamespace(name="logits", shape=["batch", 2])]

        def run(self, names, feeds, options=None):
            made[-1]["gives back"] = options
            raise RuntimeError("out of memory")

    class SessionOptions(SimpleNamespace):
        def add_session_config_entry(self, key, value):
            vars(self)[key] = value

    class RunOptions(dict):
        def add_run_config_entry(self, key, value):
            self[key] = value

    fake = SimpleNamespace(
        __version__="1.31.0",
        get_available_providers=lambda: built_with,
        SessionOptions=SessionOptions,
        RunOptions=RunOptions,
        InferenceSession=InferenceSession,
        preload_dlls=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    return made


def test_cuda_is_used_where_the_gpu_build_is_installed(monkeypatch, tmp_path):
    installed(monkeypatch, "onnxruntime-gpu")
    made = onnxruntime(monkeypatch, built_with=[CUDA, CPU], starts=[CUDA, CPU])
    session = Session(tmp_path / "model.onnx")
    assert (session.provider, session.device) == (CUDA, "cuda")
    assert [name for name, _ in made[0]["providers"]] == [CUDA, CPU]
    assert made[0]["fallback"] is False
    with pytest.raises(LeviError, match=r"failed on a batch of input_ids \(2, 3\): out of memory"):
        session.run({"input_ids": np.zeros((2, 3))})


def test_only_a_large_batch_gives_its_memory_back(monkeypatch, tmp_path):
    installed(monkeypatch, "onnxruntime")
    made = onnxruntime(monkeypatch, built_with=[CPU], starts=[CPU])
    session = Session(tmp_path / "model.onnx")
    for shape, given_back in (((8, 128), None), ((32, 128), {"memory.enable_memory_arena_shrinkage": "cpu:0"})):
        with pytest.raises(LeviError, match="out of memory"):
            session.run({"input_ids": np.zeros(shape)})
        assert made[0]["gives back"] == given_back


def test_a_provider_that_does_not_start_is_an_error(monkeypatch, tmp_path):
    installed(monkeypatch, "onnxruntime-gpu")
    onnxruntime(monkeypatch, built_with=[CUDA, CPU], starts=[CPU])
    with pytest.raises(ProviderError, match=f"the session runs on {CPU}: {CUDA} did not start"):
        Session(tmp_path / "model.onnx")


def test_a_device_that_is_not_there(bundle):
    with pytest.raises(ProviderError, match=r"needs CUDAExecutionProvider, but onnxruntime .* has only .*\[gpu\]"):
        Session(bundle / "model.onnx", device="cuda")


def test_both_builds_at_once(monkeypatch):
    installed(monkeypatch, "onnxruntime", "onnxruntime-gpu")
    with pytest.raises(ProviderError, match="they overwrite each other"):
        providers()


def test_no_onnxruntime(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"pip install 'levi-deploy\[cpu\]'"):
        providers()


def test_no_graph(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(BundleError, match="cannot load .*model.onnx"):
        Session(tmp_path / "model.onnx")


def test_the_real_session_says_what_it_is(runner):
    described = runner.describe()
    assert described["provider"] == CPU
    assert described["onnxruntime"] == metadata.version("onnxruntime")
    assert described["threads"] >= 1
