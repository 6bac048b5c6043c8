"""Taps are computed once: equal to the backbone's hidden states, reused, keyed by all they depend on."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from levi_deploy.model.backbone import Backbone
from levi_deploy.model.pooling import FixedPooling
from levi_deploy.model.tokenizer import save_tokenizer
from levi_deploy.training import taps as module
from levi_deploy.training.taps import compute
from levi_serving.engine.batching import Limits
from levi_serving.errors import LeviError, UsageError
from levi_serving.rows.preprocess import Preprocessing, Preprocessor


@pytest.fixture(scope="module")
def loaded(backbone):
    return Backbone.load(str(backbone), lambda _: (0, 2, 4))


@pytest.fixture(scope="module")
def encoded(backbone, texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    settings = save_tokenizer(str(backbone), folder / "tokenizer.json", column="text", max_length=20)
    return Preprocessor(folder, Preprocessing(text=settings)).encode(texts[:60])


def direct(loaded, encoded, row):
    feeds = {name: torch.from_numpy(array) for name, array in encoded.batch([row]).items()}
    with torch.inference_mode():
        return loaded(feeds), feeds["attention_mask"]


def test_token_taps_are_the_hidden_states(loaded, encoded, tmp_path):
    stored = compute(loaded, encoded, "attention", folder=tmp_path)
    rows = np.asarray([3, 50, 7])
    batch = stored.batch(rows)
    for place, (row, length) in enumerate(zip(rows, encoded.costs[rows], strict=True)):
        hidden, _ = direct(loaded, encoded, row)
        for tap, expected in zip(batch, hidden, strict=True):
            torch.testing.assert_close(tap[place, :length], expected[0], atol=5e-3, rtol=2e-3)  # float16
            assert tap[place, length:].abs().sum() == 0, "padding is zero"
    tokens = replace(encoded.tokens, settings=replace(encoded.tokens.settings, padding_side="left"))
    left = replace(stored, encoded=replace(encoded, tokens=tokens))
    for tap, moved in zip(batch, left.batch(rows), strict=True):
        for place, length in enumerate(encoded.costs[rows]):
            assert torch.equal(moved[place, tap.shape[1] - length :], tap[place, :length])


@pytest.mark.parametrize("pooling", ["mean", "first", "last"])
def test_fixed_taps_are_pooled(loaded, encoded, tmp_path, pooling):
    stored = compute(loaded, encoded, pooling, folder=tmp_path)
    for row in (0, 11, 59):
        hidden, mask = direct(loaded, encoded, row)
        for tap, states in zip(stored.batch(np.asarray([row])), hidden, strict=True):
            torch.testing.assert_close(tap, FixedPooling(pooling, 32)(states, mask)[0], atol=1e-5, rtol=1e-5)


def count_batches(monkeypatch):
    calls = []
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, *a, **k: calls.append(1) or forward(self, *a, **k))
    return calls


def entries(cache):
    return [path for path in (cache / "taps").glob("*/*") if path.is_dir()]


def test_they_are_computed_once_and_keyed(loaded, backbone, encoded, tmp_path, monkeypatch):
    calls = count_batches(monkeypatch)
    first = compute(loaded, encoded, "mean", folder=tmp_path)
    assert calls
    calls.clear()
    again = compute(loaded, encoded, "mean", folder=tmp_path)
    assert not calls
    for a, b in zip(first.values, again.values, strict=True):
        np.testing.assert_array_equal(a, b)
    other_weights = Backbone.load(str(backbone), lambda _: (0, 2, 4))
    other_weights.identity = replace(other_weights.identity, digest="another")
    tokens = encoded.tokens
    fewer = replace(encoded, tokens=replace(tokens, ids=tokens.ids[: tokens.offsets[30]], offsets=tokens.offsets[:31]))
    for model, rows, pooling in (
        (loaded, encoded, "first"),
        (loaded, fewer, "mean"),
        (other_weights, encoded, "mean"),
        (Backbone.load(str(backbone), lambda _: (0, 2, 3)), encoded, "mean"),
    ):
        calls.clear()
        compute(model, rows, pooling, folder=tmp_path)
        assert calls, "what differs is computed anew"
    assert len(list((tmp_path / "taps").iterdir())) == 4
    assert len(entries(tmp_path)) == 4 * 3 + 1, "a depth more is an entry more"
    calls.clear()
    some = compute(Backbone.load(str(backbone), lambda _: (2, 3)), encoded, "mean", folder=tmp_path)
    assert not calls, "depths that other models have read lie there"
    np.testing.assert_array_equal(some.values[0], first.values[1])


def test_an_interruption_leaves_nothing_half_done(loaded, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_LIMITS", {"cpu": Limits(tokens=64)})
    seen = []

    def stop(done, total):
        seen.append(done)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compute(loaded, encoded, "mean", folder=tmp_path, progress=stop)
    assert entries(tmp_path) == []
    assert all(np.isfinite(tap).all() for tap in compute(loaded, encoded, "mean", folder=tmp_path).values)


def test_one_process_waits_for_another_that_computes_the_same(loaded, encoded, tmp_path, monkeypatch):
    """Locks are of open files, so two threads stand for two processes; what one left that was killed is cleared."""
    compute(loaded, encoded, "mean", folder=tmp_path / "first")
    (computed,) = (tmp_path / "first" / "taps").iterdir()
    left = tmp_path / "both" / "taps" / computed.name / ".computing-abc"
    left.mkdir(parents=True)
    both, calls = threading.Barrier(2, timeout=60), count_batches(monkeypatch)
    missing = module._alone

    def met(folder):
        both.wait()  # both have seen that nothing is there
        return missing(folder)

    monkeypatch.setattr(module, "_alone", met)
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda _: compute(loaded, encoded, "mean", folder=tmp_path / "both"), range(2)))
    once = len(calls)
    np.testing.assert_array_equal(found[0].values[0], found[1].values[0])
    assert len(entries(tmp_path / "both")) == 3, "and nothing else is left"
    monkeypatch.setattr(module, "_alone", missing)
    calls.clear()
    compute(loaded, encoded, "mean", folder=tmp_path / "alone")
    assert once == len(calls), "computed by one of them"


def test_what_cannot_be_stored_is_said(loaded, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: type("U", (), {"free": 10}))
    with pytest.raises(UsageError, match=r"The taps of 60 rows need .* Point LEVI_CACHE to a larger disk"):
        compute(loaded, encoded, "mean", folder=tmp_path)
    monkeypatch.undo()
    forward = Backbone.forward
    monkeypatch.setattr(Backbone, "forward", lambda self, *a, **k: [h * 1e6 for h in forward(self, *a, **k)])
    with pytest.raises(LeviError, match="too large for float16"):
        compute(loaded, encoded, "attention", folder=tmp_path)
