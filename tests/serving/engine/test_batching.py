"""Batches: every row once, within budget, and every row gets its own answer whatever its neighbours."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from levi_serving.engine.batching import Limits, plan
from levi_serving.rows.preprocess import Encoded, Preprocessing
from levi_serving.rows.text import TextSettings, Tokens

lengths = st.lists(st.integers(0, 300), max_size=200).map(lambda values: np.asarray(values, dtype=np.int64))


@given(lengths, st.integers(1, 1000), st.integers(1, 64))
def test_every_row_is_in_one_batch_within_the_budget(lengths, max_tokens, max_rows):
    batches = plan(lengths, Limits(tokens=max_tokens, rows=max_rows))
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(lengths)))
    for rows in batches:
        assert 1 <= len(rows) <= max_rows
        assert len(rows) == 1 or len(rows) * lengths[rows].max() <= max_tokens


def test_sorting_pads_less_than_taking_rows_as_they_come():
    lengths = np.random.default_rng(0).integers(1, 256, 1000)
    batches = plan(lengths, Limits(tokens=4096, rows=64))
    padded = sum(len(rows) * lengths[rows].max() for rows in batches)
    assert padded < 1.05 * lengths.sum()


@given(st.lists(st.lists(st.integers(1, 99), min_size=1, max_size=12), min_size=1, max_size=30), st.data())
def test_a_batch_pads_each_row_with_its_own_tokens(rows, data):
    side = data.draw(st.sampled_from(["left", "right"]))
    text = TextSettings(pad_id=0, padding_side=side)
    encoded = Encoded(Preprocessing(text=text), Tokens.of(rows, text))
    chosen = data.draw(st.permutations(range(len(rows))))
    feeds = encoded.batch(chosen)
    assert feeds["input_ids"].shape == (len(rows), max(map(len, rows)))
    for place, row in enumerate(chosen):
        real = feeds["attention_mask"][place].astype(bool)
        assert feeds["input_ids"][place][real].tolist() == rows[row]
        assert not feeds["input_ids"][place][~real].any()
        assert sorted(real.tolist(), reverse=side == "right") == real.tolist()


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_the_runner_answers_each_row_as_if_it_were_alone(runner, texts, data):
    chosen = data.draw(st.lists(st.sampled_from(texts), min_size=1, max_size=40))
    together = runner.predict(chosen)
    alone = np.concatenate([runner.predict([text]).logits for text in chosen])
    np.testing.assert_allclose(together.logits, alone, rtol=1e-4, atol=1e-5)
