"""A run: reproducible to the bit, resumable after kill -9, refused with a sentence when the table is wrong."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from levi_deploy.config import Config
from levi_deploy.methods import branch_alone, linear_probe
from levi_deploy.run import Run
from levi_deploy.training import train
from levi_deploy.training.fit import _average
from levi_serving.errors import LeviError, RunError, TableError, UsageError
from levi_serving.predictions import Task

pytestmark = pytest.mark.slow


def weights(run):
    return load_file(run.folder / "weights.safetensors")


def rows_of(table):
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) for name in a)


def test_what_a_run_holds(run, config):
    assert sorted(p.name for p in run.folder.iterdir()) == [
        "log.jsonl", "run.json", "samples.json", "targets.json", "tokenizer.json", "weights.safetensors",
    ]  # fmt: skip
    assert not [name for name in weights(run) if "backbone" in name], "only what was trained"
    log = [json.loads(line) for line in (run.folder / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in log] == list(range(1, run.record["epochs"] + 1))
    best = min(log, key=lambda record: record["validation_loss"])
    assert run.record["best_epoch"] == best["epoch"]
    assert weights(run)["temperature"].item() == pytest.approx(run.record["temperature"], abs=1e-4)
    assert Run.open(run.folder).config == config
    assert str(run.folder.parent) not in (run.folder / "run.json").read_text().replace(config.model.backbone, "")
    fitted = ("shift", "scale", "weights", "temperature", "novelty")
    trained = sum(w.size for n, w in weights(run).items() if n.partition(".")[0] not in fitted)
    assert run.record["parameters"]["trained"] == trained


def test_the_same_seed_gives_the_same_bits(run, table, config, cache, tmp_path):
    again = train(table, tmp_path / "again", config, cache=cache)
    assert same(weights(run), weights(again))
    other = replace(config, training=replace(config.training, seed=1))
    assert not same(weights(run), weights(train(table, tmp_path / "other", other, cache=cache)))


def test_kill_then_resume_gives_the_same_bits(run, table, config, cache, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    # The child waits after each epoch, so that it can be killed between them and within one.
    script = (
        "import sys, json, time; from pathlib import Path; from levi_deploy.config import Config\n"
        "from levi_deploy.training import train\n"
        "slow = lambda what, done, total: time.sleep(0.05 if what.startswith('epoch') else 0)\n"
        "train(Path(sys.argv[1]), Path(sys.argv[2]), Config.from_dict(json.load(open(sys.argv[3]))),\n"
        "      cache=Path(sys.argv[4]), progress=slow)\n"
    )
    folder = tmp_path / "run"
    process = subprocess.Popen([sys.executable, "-c", script, table, folder, tmp_path / "config.json", cache])
    deadline = time.monotonic() + 120
    while not (folder / "log.jsonl").exists() or (folder / "log.jsonl").read_text().count("\n") < 2:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(RunError, match="unfinished; continue it with 'levi train … --resume'"):
        Run.open(folder)
    with pytest.raises(UsageError, match="holds an unfinished job. Set `resume`"):
        train(table, folder, config, cache=cache)
    other = replace(config, training=replace(config.training, learning_rate=0.5))
    with pytest.raises(UsageError, match="had another training"):
        train(table, folder, other, cache=cache, resume=True)
    resumed = train(table, folder, config, cache=cache, resume=True)
    assert same(weights(run), weights(resumed))
    assert resumed.record["best_epoch"] == run.record["best_epoch"]


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_fixed_pooling_and_its_torch_model_agree(table, config, cache, tmp_path, pooling):
    """What was trained on stored taps is what the whole model computes."""
    model = replace(config.model, pooling=pooling)
    run = train(table, tmp_path / "run", replace(config, model=model), cache=cache)
    reference = run.reference()
    rows = run.samples
    whole = reference.run(reference.prepare(rows))
    assert whole.logits.shape == (len(rows), 2)
    labels = {row["text"]: row["label"] for row in rows_of(table)}
    right = reference.finish(whole).labels == np.asarray([labels[row["text"]] for row in rows])
    assert right.mean() == pytest.approx(run.record["validation"]["accuracy"], abs=0.15)


def test_baselines_are_the_same_model(table, config, cache, tmp_path):
    probe = train(table, tmp_path / "probe", replace(config, model=linear_probe(config.model, 4)), cache=cache)
    assert sorted(name for name in weights(probe) if not name.startswith("novelty.")) == [
        "heads.0.net.bias", "heads.0.net.weight", "heads.0.norm.bias", "heads.0.norm.weight", "scale", "shift",
        "temperature", "weights",
    ]  # fmt: skip
    alone = train(table, tmp_path / "alone", replace(config, model=branch_alone(config.model)), cache=cache)
    assert alone.taps == ()
    assert not [name for name in weights(alone) if name.startswith("pools")]
    assert alone.reference().levi.backbone is None


def test_regression_learns_in_the_targets_units(table, config, cache, tmp_path):
    asked = replace(config, data=replace(config.data, target="score"))
    run = train(table, tmp_path / "run", asked, cache=cache)
    assert (run.task.kind, run.task.labels, run.record["temperature"]) == ("regression", ("score",), 1)
    scores = [float(row["score"]) for row in rows_of(table) if row["split"] == "train"]
    assert weights(run)["shift"] == pytest.approx(np.mean(scores), rel=1e-5)
    assert run.record["validation"]["rmse"] < np.std(scores)
    predicted = run.reference().run(run.reference().prepare(run.samples)).logits
    assert min(scores) - 2 < predicted.mean() < max(scores) + 2


def test_multilabel_has_an_output_a_label(table, config, cache, tmp_path):
    asked = replace(config, data=replace(config.data, target="topics", task="multilabel"))
    run = train(table, tmp_path / "run", asked, cache=cache)
    assert (run.task.kind, run.task.labels) == ("multilabel", ("kettle", "lamp", "tent"))
    assert set(run.record["validation"]) >= {"exact_match", "micro_f1"}
    assert run.reference().finish(run.reference().run(run.reference().prepare(run.samples))).labels.dtype == bool


def test_a_changed_backbone_is_refused(run, backbone, tmp_path):
    import shutil

    import torch
    from transformers import AutoModel

    changed = tmp_path / "backbone"
    shutil.copytree(backbone, changed)
    model = AutoModel.from_pretrained(changed)
    with torch.no_grad():
        model.encoder.layer[3].output.dense.weight[0, 0] += 1e-3
    model.save_pretrained(changed)
    with pytest.raises(UsageError, match="its weights have changed. Give the folder of the original"):
        run.levi(backbone=str(changed))


def test_head_weights_must_fit(table, config, cache, tmp_path):
    asked = replace(config, training=replace(config.training, head_weights=(1.0, 2.0, 3.0)))
    with pytest.raises(UsageError, match=r"`head_weights` has 3 numbers, but there are 2 heads.* \[1, 3\]"):
        train(table, tmp_path / "run", asked, cache=cache)


def test_the_average_of_the_weights_is_kept_and_resumed(run, table, config, cache, tmp_path):
    asked = replace(config, training=replace(config.training, ema_decay=0.9))
    whole = train(table, tmp_path / "whole", asked, cache=cache)
    assert not same(weights(whole), weights(run))

    def stop(what, done, total):
        if what == "epoch 3" and done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(table, tmp_path / "run", asked, cache=cache, progress=stop)
    resumed = train(table, tmp_path / "run", asked, cache=cache, resume=True)
    assert same(weights(whole), weights(resumed))


def test_the_average_has_a_short_memory_at_first():
    """By hand: after steps 0 and 1 the shares that stay are 1/10 and 2/11; a long run has the decay itself."""
    average, weight = [torch.zeros(1)], [torch.nn.Parameter(torch.ones(1))]
    _average(average, weight, 0.9, 0)
    assert average[0].item() == pytest.approx(0.9)
    _average(average, weight, 0.9, 1)
    assert average[0].item() == pytest.approx(0.9 * 2 / 11 + 9 / 11)
    average[0].zero_()
    _average(average, weight, 0.9, 10_000)
    assert average[0].item() == pytest.approx(0.1)


def test_divergence_is_said(table, config, cache, tmp_path):
    asked = replace(
        config,
        data=replace(config.data, target="score"),
        training=replace(config.training, learning_rate=1e30),
    )
    with pytest.raises(LeviError, match="training has diverged. Lower `learning_rate`"):
        train(table, tmp_path / "run", asked, cache=cache)


def small(path, lines):
    path.write_text("text,label,split\n" + "\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("lines", "options", "error", "says"),
    [
        (["a,x,train", "b,x,train", "c,x,id_val"], {}, UsageError, "only the value 'x'; .* at least two classes"),
        (["a,x,train", "b,y,train", "c,z,id_val"], {}, TableError, "'label' holds 'z', which no training row has"),
        (
            ["a,x,train", ",y,train", "c,x,id_val"],
            {},
            TableError,
            "1 rows cannot be used, first row 2: column 'text' is empty",
        ),
        (["a,x,train", "b,,train", "c,x,id_val"], {}, TableError, "first row 2: column 'label' is empty"),
        (["a,x,train", "b,y,train,9", "c,x,id_val"], {}, TableError, "1 rows cannot be read, first row 2: line 3"),
        (["a,x,train", "b,y,train"], {}, UsageError, "none of id_val, validation, val, .*; it has train"),
        (["a,x,other", "b,y,id_val"], {}, UsageError, "no rows with 'train'; it has other"),
        (["a,x,train", "c,x,id_val"], {"target": "lable"}, TableError, "no column 'lable'.* Did you mean 'label'"),
        (["a,1,train", "b,oops,train", "c,2,id_val"], {"task": "regression"}, TableError, "'label' holds 'oops'"),
        (["a,1,train", "b,nan,train", "c,2,id_val"], {"task": "regression"}, TableError, "'nan' among numbers"),
    ],
)
def test_wrong_tables(tmp_path, config, lines, options, error, says):
    asked = replace(config, data=replace(config.data, **options))
    with pytest.raises(error, match=says):
        train(small(tmp_path / "t.csv", lines), tmp_path / "run", asked, cache=tmp_path)
    assert not (tmp_path / "run").exists()


def test_validation_rows_come_from_three_places(tmp_path):
    from levi_deploy.config import DataConfig
    from levi_deploy.data import load

    path = small(tmp_path / "t.csv", [f"text {n},{'xy'[n % 2]},{'train' if n % 5 else 'dev'}" for n in range(50)])
    split = load(path, DataConfig(split_column="split"))
    assert (len(split.train), len(split.validation), split.validation_from) == (40, 10, "rows with split = dev")
    drawn = load(path, DataConfig(), seed=3)
    assert (len(drawn.train), len(drawn.validation)) == (45, 5)
    assert drawn.validation_from == "10% of the training rows, drawn by seed 3"
    assert not {r["text"] for r in drawn.train.rows} & {r["text"] for r in drawn.validation.rows}
    other = load(path, DataConfig(), validation=small(tmp_path / "v.csv", ["new,x,z"]))
    assert (len(other.train), len(other.validation), other.validation_from) == (50, 1, "v.csv")
    with pytest.raises(UsageError, match="Both .*split.column.* and .*validation"):
        load(path, DataConfig(split_column="split"), validation=path)


def test_an_empty_cell_is_an_answer_where_many_labels_may_hold(tmp_path):
    from levi_deploy.config import DataConfig
    from levi_deploy.data import encode_targets, load

    path = small(tmp_path / "t.csv", ["a,x|y,train", "b,,train", "c,y,train", "d,,dev"])
    data = load(path, DataConfig(split_column="split", task="multilabel"))
    assert data.task == Task(kind="multilabel", labels=("x", "y"))
    found = encode_targets(data.train.targets, data.task, column="label")
    assert found.tolist() == [[1, 1], [0, 0], [0, 1]]
    assert data.validation.targets == [""]
    with pytest.raises(TableError, match=r"2 rows cannot be used, first row 2: column 'label' is empty"):
        load(path, DataConfig(split_column="split"))


def test_one_row_is_too_few(tmp_path):
    from levi_deploy.config import DataConfig
    from levi_deploy.data import load

    with pytest.raises(TableError, match=r"has one row; learning needs one to train on and one to validate with"):
        load(small(tmp_path / "t.csv", ["a,x,train"]), DataConfig())


def test_taps_beyond_the_backbone_are_refused_before_anything_is_written(table, config, tmp_path):
    asked = replace(config, model=replace(config.model, taps=(2, 9)))
    with pytest.raises(UsageError, match=r"Tap 9 is out of range: .* has 4 layers"):
        train(table, tmp_path / "run", asked, cache=tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_something_else_is_not_touched(table, config, tmp_path):
    (tmp_path / "precious").write_text("keep")
    with pytest.raises(UsageError, match="exists and is not empty"):
        train(table, tmp_path, config, cache=tmp_path / "cache")
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_config_rebuilds_itself(config):
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
