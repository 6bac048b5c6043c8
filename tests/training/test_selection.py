"""A choice that sees shift: what is held out, who is chosen, and that no training is repeated."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from levi_deploy.cli import app
from levi_deploy.config import Config, ModelConfig
from levi_deploy.training import selection, train
from levi_deploy.training.clusters import kmeans
from levi_deploy.training.selection import choose, family, folds
from levi_export import export
from levi_serving import verify
from levi_serving.errors import UsageError

pytestmark = pytest.mark.slow


class Rows(SimpleNamespace):
    def __len__(self) -> int:
        return len(self.targets)


def test_kmeans_finds_what_lies_apart():
    random = np.random.default_rng(0)
    middles = np.array([[0, 0], [10, 0], [0, 10]], np.float32)
    true = random.integers(0, 3, 90)
    centroids, cluster = kmeans((middles[true] + random.normal(size=(90, 2))).astype(np.float32), 3, seed=1)
    for n in range(3):
        (own,) = set(cluster[true == n])
        assert np.abs(centroids[own] - middles[n]).max() < 1


def test_kmeans_takes_equal_points():
    centroids, cluster = kmeans(np.ones((5, 2), np.float32), 3, seed=0)
    assert centroids.tolist() == [[1, 1]] * 3
    assert set(cluster) == {0}


def test_domains_are_held_out_by_name_the_largest_first():
    names = ["a"] * 20 + ["b"] * 40 + ["c"] * 9 + ["d"] * 10 + ["e"] * 2
    held = folds(Rows(targets=np.zeros(81)), "classification", domains=names, middle=None, seed=0)
    assert [(name, len(places)) for name, places in held] == [("b", 40), ("a", 20), ("d", 10)]
    assert all(names[n] == name for name, places in held for n in places)
    with pytest.raises(UsageError, match="has only 'a' on training rows"):
        folds(Rows(targets=np.zeros(20)), "classification", domains=["a"] * 20, middle=None, seed=0)


@pytest.mark.parametrize("kind", ["classification", "regression", "multilabel"])
def test_clusters_hold_out_a_style_of_every_class(kind):
    """Two classes that lie apart, three styles each: a part has one style, and rows of both classes."""
    random = np.random.default_rng(0)
    label, style = random.integers(0, 2, 240), random.integers(0, 3, 240)
    middle = np.stack([30 * label, 40 * style, 0 * style], axis=1) + random.normal(size=(240, 3))
    targets = {"classification": label, "regression": label * 1.0, "multilabel": np.stack([label, 1 - label], axis=1)}
    held = folds(Rows(targets=targets[kind]), kind, domains=None, middle=middle.astype(np.float32), seed=3)
    assert sum(len(places) for _, places in held) == 240
    for _, places in held:
        assert len(set(style[places])) == 1
        assert set(label[places]) == {0, 1}


def test_too_few_rows_are_refused():
    with pytest.raises(UsageError, match="of 9 no part has 8 rows or more"):
        folds(
            Rows(targets=np.zeros(9, int)),
            "classification",
            domains=None,
            middle=np.eye(9, 4, dtype=np.float32),
            seed=0,
        )


def test_the_simplest_candidate_inside_the_noise_is_chosen():
    random = np.random.default_rng(0)
    right = (random.random(400) < 0.8).astype(float)
    hardly = right.copy()
    hardly[np.flatnonzero(right == 0)[:5]] = 1
    hardly[np.flatnonzero(right == 1)[:4]] = 0
    clearly = right.copy()
    clearly[np.flatnonzero(right == 0)[:12]] = 1
    assert choose([right, hardly]) == 0
    assert choose([right, clearly]) == 1
    assert choose([right, clearly, clearly]) == 1
    assert choose([clearly, right]) == 0


def test_the_family_goes_from_the_probe_to_the_ladder():
    found = family(ModelConfig(pooling="attention", branches=("mlp",)), (2, 4, 6))
    assert found[0].model.head_hidden == 0
    assert [c.name for c in found[1:3]] == ["mean, last tap", "mean, all taps"]
    assert found[-1].name == "ladder, all taps"
    assert "attention, all taps" in [c.name for c in found]
    assert all(c.model.branches == () for c in found)
    assert len(family(ModelConfig(pooling="ladder"), (6,))) == 4


@pytest.fixture
def asked(config) -> Config:
    model = replace(config.model, pooling="ladder", side_width=8)
    return replace(config, model=model, training=replace(config.training, epochs=2, select=True, select_trainings=12))


def test_a_run_is_chosen_resumed_and_exported(table, asked, cache, tmp_path, monkeypatch):
    once = selection.fit
    seen = []

    def counted(levi, *arguments, **options):
        seen.append(levi)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return once(levi, *arguments, **options)

    monkeypatch.setattr(selection, "fit", counted)
    with pytest.raises(KeyboardInterrupt):
        train(table, tmp_path / "run", asked, cache=cache)
    assert len(json.loads((tmp_path / "run" / "selection.json").read_text())) == 4
    run = train(table, tmp_path / "run", asked, cache=cache, resume=True)
    found = run.record["selection"]
    trained = sum(candidate["parts"] for candidate in found["candidates"])
    assert len(seen) == trained + 1, "no training is repeated but the interrupted one"
    assert trained <= 12
    assert not (tmp_path / "run" / "selection.json").exists()
    names = [candidate["name"] for candidate in found["candidates"]]
    assert found["chosen"] in names
    assert len(names) >= 7
    assert len(found["held_out"]) == 3
    assert run.config.training.epochs == found["epochs"]
    assert run.config.model.average == found["average"]
    shown = CliRunner().invoke(app, ["inspect", str(run.folder)])
    assert f"Chosen: {found['chosen']}" in shown.stdout
    assert all(name in shown.stdout for name in names)
    again = train(table, tmp_path / "again", asked, cache=cache)
    assert again.record["selection"] == found, "the same seed, the same choice"
    bundle = export(run.folder, tmp_path / "bundle")
    assert verify(bundle.folder)["graphs"]["model.onnx"]["worst_scaled_error"] < 1e-4


def test_a_named_domain_is_held_out(table, asked, cache, tmp_path):
    data = replace(asked.data, domain="shop")
    run = train(table, tmp_path / "run", replace(asked, data=data), cache=cache)
    with table.open(newline="") as file:
        shops = {row["shop"] for row in csv.DictReader(file) if row["split"] == "train"}
    assert {part["name"] for part in run.record["selection"]["held_out"]} <= shops


@pytest.mark.parametrize(
    "changes", [{"model": {"lora": 2}}, {"training": {"train_backbone": True}}, {"model": {"taps": []}}]
)
def test_what_has_no_stored_taps_is_refused(changes):
    sections = {"training": {"select": True}}
    for name, section in changes.items():
        sections[name] = {**sections.get(name, {}), **section}
    with pytest.raises(UsageError, match="`select` is set"):
        Config.read(None, **sections)
