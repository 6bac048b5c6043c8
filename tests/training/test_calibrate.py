"""The heads' weights: towards what is right as far as rows bear it out, equal where they do not."""

from __future__ import annotations

import numpy as np
import pytest

from levi_deploy.training.calibrate import head_weights


def made(rows: int, kind: str, seed: int = 0):
    """Three heads: one that knows, one that guesses, and one that knows but is far too sure."""
    draw = np.random.default_rng(seed)
    knows, noise = draw.standard_normal((2, rows, 1))
    if kind == "regression":
        head_logits = np.stack([knows + 0.3 * draw.standard_normal((rows, 1)), noise, 3 * noise], axis=1)
        return head_logits.astype(np.float32), knows[:, 0].astype(np.float32)
    holds = (draw.random((rows, 1)) < 1 / (1 + np.exp(-3 * knows))).astype(np.int64)
    head_logits = np.stack([3 * knows, 3 * noise, 3 * noise[::-1]], axis=1).astype(np.float32)
    if kind == "multilabel":
        return head_logits, holds.astype(np.float32)
    return np.concatenate([0 * head_logits, head_logits], axis=2), holds[:, 0]


@pytest.mark.parametrize("kind", ["classification", "multilabel", "regression"])
@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_a_head_that_knows_weighs_more_the_more_rows_say_so(kind, of):
    few, some, many = (head_weights(*made(rows, kind), of=of, kind=kind) for rows in (3, 60, 3000))
    for weights in (few, some, many):
        assert weights.dtype == np.float32
        assert weights.sum() == pytest.approx(1, abs=1e-6)
        assert weights.min() > 0
    assert abs(few - 1 / 3).max() < 0.25
    assert 1 / 3 < some[0] < many[0] > 0.9


def test_equal_heads_weigh_the_same():
    head_logits, targets = made(500, "classification")
    alike = np.repeat(head_logits[:, :1], 4, axis=1)
    np.testing.assert_allclose(head_weights(alike, targets, of="logits", kind="classification"), 0.25, atol=1e-5)


def test_a_sharper_head_is_not_preferred_for_it():
    """The same answers four times as sure: with a temperature of its own, any weights give the same average."""
    head_logits, targets = made(3000, "classification")
    same = np.stack([head_logits[:, 0], 4 * head_logits[:, 0]], axis=1)
    np.testing.assert_allclose(head_weights(same, targets, of="logits", kind="classification"), 0.5, atol=1e-3)
