"""A predictor without a model: the tests of files and of measuring need none."""

from __future__ import annotations

import time


class Clock:
    """Nanoseconds that pass when a test says so."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now

    def pass_s(self, seconds):
        self.now += round(seconds * 1e9)


class Echo:
    """Answers each row with its own text and length. A text with ``bad`` in it cannot be used."""

    name = "echo"
    fingerprint = "echo-1"
    columns = ("text",)
    files = ()

    def __init__(self, *, run_s: float = 0.0, prepare_s: float = 0.0) -> None:
        self.run_s, self.prepare_s = run_s, prepare_s

    def prepare(self, rows, *, bad=None):
        time.sleep(self.prepare_s)
        texts = []
        for n, row in enumerate(rows):
            text = row["text"] if isinstance(row, dict) else row
            if bad is not None and (not isinstance(text, str) or not text.strip()):
                bad[n] = "column 'text' is empty; expected a text."
            elif bad is not None and "bad" in text:
                bad[n] = "the text is bad."
            else:
                texts.append(text)
        return texts

    def run(self, prepared):
        time.sleep(self.run_s)
        return [len(text) for text in prepared], prepared

    def finish(self, outputs):
        return outputs

    def table(self, predictions, *, heads=False, all_probabilities=False):
        lengths, texts = predictions
        return {"prediction": [text.upper() for text in texts], "length": list(lengths)} | (
            {"head_1": list(lengths)} if heads else {}
        )

    def describe(self):
        return {"model": "echo"}
