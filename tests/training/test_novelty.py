"""How far a row lies from the training rows: the formula, the fit, and the same in the graph."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from levi_deploy.evaluation.metrics import auroc
from levi_deploy.model.novelty import CENTROIDS, Novelty, places
from levi_deploy.run import Run
from levi_deploy.training import train
from levi_deploy.training.fit import predict
from levi_deploy.training.novelty import quantiles
from levi_deploy.training.prepare import prepare
from levi_export import export
from levi_serving import Bundle, Runner, verify
from levi_serving.errors import ParityError
from levi_serving.predictions import Outputs, Task, finish

pytestmark = pytest.mark.slow


def rows_of(table, split=None):
    with table.open(newline="") as file:
        return [row for row in csv.DictReader(file) if split in (None, row["split"])]


def test_the_taps_that_are_read():
    assert [places(k) for k in (1, 2, 3, 7)] == [(0, 0), (0, 1), (1, 2), (3, 6)]


def test_both_distances_by_hand():
    torch.manual_seed(0)
    novelty = Novelty(3, 4)
    origin = torch.randn(4)
    centre, root = torch.randn(3), torch.randn(3, 3)
    covariance = root @ root.T + torch.eye(3)
    spreads, directions = torch.linalg.eigh(covariance)
    centroids = torch.nn.functional.normalize(torch.randn(CENTROIDS, 4), dim=1)
    for name, value in {
        "centre": centre,
        "whitening": directions / spreads.sqrt() @ directions.T,
        "origin": origin,
        "centroids": centroids - origin,
        "mean": torch.tensor([0.5, -1.0]),
        "spread": torch.tensor([2.0, 4.0]),
    }.items():
        getattr(novelty, name).copy_(value)
    middle, last = torch.randn(5, 3), torch.randn(5, 4)
    away = middle - centre
    mahalanobis = (away @ torch.linalg.inv(covariance) * away).sum(dim=1) / 3
    nearest = 1 - torch.nn.functional.cosine_similarity(last[:, None], centroids[None], dim=2).amax(dim=1)
    expected = (mahalanobis.log() - 0.5) / 2 + (nearest.log() + 1) / 4
    torch.testing.assert_close(novelty(middle, last), expected, rtol=1e-4, atol=1e-4)


def test_the_share_of_rows_that_lie_nearer():
    task = Task(kind="regression", labels=("y",), novelty_quantiles=(0.0, 1.0, 5.0))
    logits = np.zeros((4, 1), np.float32)
    outputs = Outputs(logits, logits[:, None], np.asarray([-1, 0.5, 3, 9], np.float32))
    assert finish(outputs, task).novelty.tolist() == [0, 0.25, 0.75, 1]
    assert finish(outputs, replace(task, novelty_quantiles=None)).novelty is None
    assert quantiles(np.arange(1000, dtype=np.float32))[::50] == pytest.approx((0, 499.5, 999))


def test_it_is_fitted_on_stored_taps(run, table, config):
    """The whitened training rows have unit spread; ID validation rows have mean 0 and a known spread."""
    novelty = run.ensemble().novelty
    held = predict(run.levi(), prepare(table, config).validation)
    assert abs(held.novelty.mean()) < 1e-3
    logarithms = held.novelty.std() / np.sqrt(2)  # between 0 (opposed) and sqrt 2 (alike)
    assert 0.3 < logarithms < 1.42
    assert torch.linalg.norm(novelty.centroids + novelty.origin, dim=1).allclose(torch.ones(CENTROIDS), atol=1e-5)
    assert run.task.novelty_quantiles[0] == pytest.approx(held.novelty.min(), rel=1e-3)
    assert run.task.novelty_quantiles[-1] == pytest.approx(held.novelty.max(), rel=1e-3)
    shares = finish(held, run.task).novelty
    assert abs(shares.mean() - 0.5) < 0.02, "the share that lies nearer is even on ID validation rows"


def test_the_graph_says_what_the_model_says(run, bundle, table):
    runner = Runner(bundle)
    rows = rows_of(table)[::5]
    expected = run.reference()
    found, wanted = runner.run(runner.prepare(rows)), expected.run(expected.prepare(rows))
    np.testing.assert_allclose(found.novelty, wanted.novelty, atol=1e-4 * wanted.novelty.std())
    assert [t.name for t in runner.bundle.manifest.outputs] == ["logits", "head_logits", "novelty"]
    predictions = runner.predict(rows)
    assert predictions.novelty.min() >= 0
    assert predictions.novelty.max() <= 1
    assert "novelty" in runner.table(predictions)
    assert predictions[3].novelty[0] == predictions.novelty[3]
    certificate = verify(bundle)["graphs"]["model.onnx"]
    assert 0 <= certificate["rows"]["novelty_scaled_error"] < 1e-4
    names = {node.name.partition("/")[0] for node in onnx.load(bundle / "model.onnx").graph.node}
    assert "ensemble.novelty" in names


def test_foreign_rows_are_further_away(run, table):
    reference = run.reference()
    known = [row["text"] for row in rows_of(table, "id_val")]
    foreign = [text[::-1] for text in known]
    inside, outside = (reference.run(reference.prepare(texts)).novelty for texts in (known, foreign))
    assert auroc(np.concatenate([inside, outside]), np.arange(2 * len(known)) >= len(known)) > 0.9


def test_a_wrong_distance_is_refused(run, tmp_path, monkeypatch):
    from levi_export import pipeline

    convert = pipeline.convert

    def damaged(levi, rows):
        with torch.no_grad():
            levi.ensemble.novelty.centre += 0.01
        return convert(levi, rows)

    monkeypatch.setattr(pipeline, "convert", damaged)
    with pytest.raises(ParityError, match="of novelty's standard deviation"):
        export(run.folder, tmp_path / "bundle")


@pytest.mark.parametrize(
    "changes",
    [{"model": {"lora": 2}}, {"training": {"train_backbone": True}}, {"model": {"pooling": "last", "taps": (2,)}}],
    ids=["lora", "backbone trained", "one fixed tap"],
)
def test_backbones_that_train_and_fixed_poolings(changes, table, config, cache, tmp_path):
    sections = {name: replace(getattr(config, name), **change) for name, change in changes.items()}
    if changes.get("training"):
        sections["model"] = replace(config.model, taps=1)
    asked = replace(config, **sections)
    asked = replace(asked, training=replace(asked.training, epochs=1))
    run = train(table, tmp_path / "run", asked, cache=cache)
    reference = run.reference()
    held = reference.run(reference.prepare(rows_of(table, "id_val")))
    assert abs(held.novelty.mean()) < 1e-2, "fitted on the backbone as it ended"
    export(run.folder, tmp_path / "bundle")


def test_without_a_backbone_there_is_none(table, config, cache, tmp_path):
    asked = replace(config, model=replace(config.model, taps=()), training=replace(config.training, epochs=1))
    run = train(table, tmp_path / "run", asked, cache=cache)
    bundle = export(run.folder, tmp_path / "bundle")
    runner = Runner(bundle.folder)
    predictions = runner.predict(["works well"])
    assert predictions.novelty is None
    assert "novelty" not in runner.answer_columns()
    assert Bundle.open(bundle.folder).manifest.task.novelty_quantiles is None
    assert Run.open(run.folder).task.novelty_quantiles is None
