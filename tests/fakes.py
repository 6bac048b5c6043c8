"""What several tests share: a clock, a predictor without a model, and a note of what a real one runs."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np

from levi_serving.engine.batching import Limits
from levi_serving.predictions import Task
from levi_serving.rows.preprocess import Preprocessing
from levi_serving.rows.text import TextSettings


class Clock:
    """Nanoseconds that pass when a test says so."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def pass_s(self, seconds):
        self.now += round(seconds * 1e9)


def watch(monkeypatch, session):
    """Note the rows and padded tokens of every batch of texts that a session runs from now on."""
    shapes, run = [], session.run

    def watched(feeds):
        shapes.append(feeds["input_ids"].shape)
        return run(feeds)

    monkeypatch.setattr(session, "run", watched)
    return shapes


class Texts(list):
    """N texts: prepared rows, outputs and predictions in one. A character costs a token."""

    padded_tokens = None

    @property
    def costs(self):
        return np.array([len(text) for text in self], dtype=np.int64)

    def take(self, rows):
        return Texts(self[n] for n in rows)


class Echo:
    """A ``Predictor`` that answers each row with its own text and length. A text with ``bad`` in it cannot be used."""

    task = Task(kind="classification", labels=("echo",))
    limits = Limits()
    preprocessor = SimpleNamespace(settings=Preprocessing(text=TextSettings()))
    fingerprint = "echo-1"
    threads = None

    def __init__(self, *, run_s: float = 0.0, prepare_s: float = 0.0) -> None:
        self.run_s, self.prepare_s = run_s, prepare_s

    def prepare(self, rows, *, bad=None):
        time.sleep(self.prepare_s)
        texts = Texts()
        for n, row in enumerate(rows):
            text = row["text"] if isinstance(row, dict) else row
            if bad is not None and (not isinstance(text, str) or not text.strip()):
                bad[n] = "column 'text' is empty; expected a text."
            elif bad is not None and "bad" in text:
                bad[n] = "the text is bad."
            else:
                texts.append(text)
        return texts

    def run(self, encoded):
        time.sleep(self.run_s)
        return encoded

    def finish(self, outputs):
        return outputs

    def answer_columns(self, *, with_heads=False, all_probabilities=False):
        return ["prediction", "length", *(["head_1"] if with_heads else [])]

    def table(self, predictions, *, with_heads=False, all_probabilities=False):
        lengths = [len(text) for text in predictions]
        columns = [[text.upper() for text in predictions], lengths, *([lengths] if with_heads else [])]
        return dict(zip(self.answer_columns(with_heads=with_heads), columns, strict=True))

    def describe(self):
        return {"model": "echo"}
