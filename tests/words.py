"""The words that the tests' texts are made of; those of WORDS tell the label."""

from __future__ import annotations

WORDS = {
    "positive": ["good", "great", "lovely", "solid", "superb"],
    "negative": ["bad", "poor", "awful", "flimsy", "broken"],
}
FILLER = [
    "the", "a", "it", "was", "this", "is", "and", "for", "my", "very", "kettle", "lamp", "tent", "desk",
    "came", "on", "with", "from", "they", "box", "day", "week",
]  # fmt: skip
