"""Decoders end to end through files: padded on the left or on the right, the last real token pooled."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
from families import write

from levi_deploy.config import Config
from levi_deploy.training import train
from levi_export import export
from levi_serving import Runner, predict_file, verify

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("family", "side"), [("llama", "left"), ("gpt2", "right")])
def test_padding_and_last_token_from_file_to_file(family, side, table, tmp_path):
    backbone = write(family, tmp_path / "backbone", tokenizer=True, padding_side=side)
    config = Config.read(
        None,
        model={"backbone": str(backbone), "taps": [1, 3], "pooling": "last", "branches": ["gru"], "max_length": 32},
        training={"epochs": 2, "learning_rate": 0.01, "batch_size": 32},
        data={"split_column": "split"},
    )
    run = train(table, tmp_path / "run", config, cache=tmp_path / "cache")
    assert run.backbone.causal
    assert run.preprocessing.text.padding_side == side
    bundle = export(run.folder, tmp_path / "bundle").folder
    assert json.loads((bundle / "levi.json").read_text())["preprocessing"]["text"]["padding_side"] == side
    assert verify(bundle)["graphs"]["model.onnx"]["alone_against_batched"]["max_scaled_error"] < 1e-4

    runner = Runner(bundle)
    summary = predict_file(runner, table, tmp_path / "out.csv", all_probabilities=True)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (summary.predicted, summary.failed) == (len(rows), 0)
    with (tmp_path / "out.csv").open(newline="") as file:
        found = np.asarray([[float(row[f"probability_{x}"]) for x in run.task.labels] for row in csv.DictReader(file)])
    reference = run.reference()
    for n in range(0, len(rows), 29):  # torch, each row alone: no padding at all
        alone = reference.prepare([rows[n]])
        assert (alone.batch([0])["attention_mask"] == 1).all()
        np.testing.assert_allclose(found[n], reference.finish(reference.run(alone)).probabilities[0], atol=1e-4)
    mask = runner.prepare([rows[0], {"text": "lamp"}]).batch([0, 1])["attention_mask"]
    assert (mask[1, 0] == 0, mask[1, -1] == 0) == (side == "left", side == "right")
