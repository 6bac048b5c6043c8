"""Where training computes: passed through to every act, half precision for training rows alone, and on a real GPU."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from levi_deploy.config import Config
from levi_deploy.training import device, fit, taps, train
from levi_serving.errors import ProviderError, UsageError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")
needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a CUDA GPU")


def changed(config, **further):
    document = config.to_dict()
    for section, settings in further.items():
        document[section] |= settings
    return Config.from_dict(document)


@needs_none
def test_auto_is_the_cpu_where_there_is_no_gpu():
    assert device.settle("auto").type == "cpu"
    assert device.title(device.settle("cpu")) == "cpu"


@needs_none
def test_a_device_that_torch_lacks_is_refused_before_anything_is_written(table, config, cache, tmp_path):
    with pytest.raises(ProviderError, match=r"'cuda', but torch .* finds only cpu here"):
        train(table, tmp_path / "run", changed(config, training={"device": "cuda"}), cache=cache)
    assert not (tmp_path / "run").exists()


def test_an_unknown_device_is_refused():
    with pytest.raises(UsageError, match="device"):
        Config.read(None, training={"device": "tpu"})


def test_the_record_says_which_device_made_it(run):
    assert run.record["device"] == device.title(device.settle("auto"))
    assert run.record["backbone_passes"] == ("bfloat16" if torch.cuda.is_available() else "float32")


def test_training_rows_alone_are_read_in_half_precision(table, config, tmp_path, monkeypatch):
    """On a CPU, autocast stands for the GPU's: training rows' taps change by its rounding, validation's do not."""
    seen = {}

    def remember(levi, *args, **kwargs):
        seen[len(seen)] = levi
        return fit.fit(levi, *args, **kwargs)

    def stored(folder):
        """The stored values of each set of rows, the larger (training) last."""
        about = sorted((folder / "taps").glob("*/1/values.bin"), key=lambda file: file.stat().st_size)
        return [np.fromfile(file, np.float16).astype(np.float32) for file in about]

    config = changed(config, training={"epochs": 1, "device": "cpu"})
    train(table, tmp_path / "exact", config, cache=tmp_path / "exact-cache")
    monkeypatch.setattr(taps, "half", lambda _: torch.autocast("cpu", torch.bfloat16))
    train(table, tmp_path / "half", config, cache=tmp_path / "half-cache")
    (validation, training), (validation_half, training_half) = (
        stored(tmp_path / "exact-cache"),
        stored(tmp_path / "half-cache"),
    )
    np.testing.assert_array_equal(validation, validation_half)
    assert 1e-4 < np.abs(training - training_half).max() < 0.1
    names = {file.name for file in (tmp_path / "exact-cache" / "taps").iterdir()}
    both = names | {file.name for file in (tmp_path / "half-cache" / "taps").iterdir()}
    assert len(both) == len(names) + 1, "taps in bfloat16 have another key"


def test_a_backbone_that_trains_is_in_half_precision_only_in_steps(table, config, cache, tmp_path, monkeypatch):
    dtypes = []
    monkeypatch.setattr(fit, "half", lambda _: torch.autocast("cpu", torch.bfloat16))
    from levi_deploy.model.backbone import Backbone

    forward = Backbone.forward

    def watched(self, inputs):
        dtypes.append((self.training, torch.is_autocast_enabled("cpu")))
        return forward(self, inputs)

    monkeypatch.setattr(Backbone, "forward", watched)
    training = {"epochs": 1, "train_backbone": True, "learning_rate": 1e-4, "device": "cpu"}
    train(table, tmp_path / "run", changed(config, model={"taps": [2, 4]}, training=training), cache=cache)
    assert set(dtypes) == {(True, True), (False, False)}


@needs_gpu
@pytest.mark.parametrize(
    "settings",
    [
        {"model": {}},
        {"model": {"pooling": "ladder"}},
        {"model": {"pooling": "mean"}, "training": {"ema_decay": 0.9}},
        {"model": {"taps": [2, 4]}, "training": {"train_backbone": True, "learning_rate": 1e-3}},
        {"model": {}, "training": {"fine_tune": 1}},
        {"model": {"lora": 2}},
        {"model": {"branches": ["tabular", "graph"]}, "data": {"numeric": ["price"], "nodes": ["user", "item"]}},
    ],
    ids=["attention", "ladder", "mean-ema", "train-backbone", "fine-tune", "lora", "columns"],
)
def test_every_kind_of_model_trains_on_a_gpu_and_is_the_same_run(table, config, tmp_path, settings):
    """It is exported and proven like one of the CPU, and its validation predictions are those of its file."""
    from levi_deploy.evaluation import evaluate
    from levi_deploy.models import load
    from levi_export import export

    run = train(table, tmp_path / "run", changed(config, **settings), cache=tmp_path / "cache")
    assert run.record["device"].startswith("cuda: ")
    assert run.record["validation"]["accuracy"] > 0.6
    found = evaluate(load(run.folder).predictor, table, target="label", splits=["id_val"])
    assert found["splits"]["id_val"]["all"]["accuracy"] == pytest.approx(run.record["validation"]["accuracy"], abs=0.02)
    export(run.folder, tmp_path / "bundle")


@needs_gpu
def test_a_gpu_run_that_was_stopped_goes_on(table, config, tmp_path):
    config = changed(config, training={"epochs": 3})
    whole = train(table, tmp_path / "whole", config, cache=tmp_path / "cache")

    class StopError(Exception):
        pass

    def stop(what, done, total):
        if what == "epoch 2" and done == total:
            raise StopError

    with pytest.raises(StopError):
        train(table, tmp_path / "run", config, cache=tmp_path / "cache", progress=stop)
    resumed = train(table, tmp_path / "run", config, cache=tmp_path / "cache", resume=True)
    history = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert len(history) == resumed.record["epochs"]
    assert resumed.record["validation"]["log_loss"] == pytest.approx(whole.record["validation"]["log_loss"], rel=0.05)
