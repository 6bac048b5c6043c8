"""A small table of product reviews for the demo. **The reviews are generated**, not written by people.

A seeded generator puts sentences together from products, aspects and opinions, with negations, contrasts
and hedges. Two things are planted:

- a *shortcut*: most reviews name the courier that delivered. In training, validation and ID test, Norvane
  delivers 90 % of the positive and Pelloway 90 % of the negative reviews that name one. In the OOD test it
  is the other way round, so a model that leans on the courier fails there.
- a *shift*: the OOD test is about products that training never shows.

Twins show what a model leans on: each review of the ID test that names a courier is there again with the other one, and
again with the opposite said, all else as it was.

A twentieth of the training labels is wrong, as labels are.
"""

from __future__ import annotations

import csv
import random
from collections.abc import Mapping
from pathlib import Path

__all__ = ["COURIERS", "SIZES", "TWINS", "write_reviews"]

SIZES = {"train": 1200, "id_val": 300, "id_test": 300, "ood_test": 300}
TWINS = "id_test_twins"
"""The split of the further versions of reviews of ``id_test``."""
COURIERS = {"positive": "Norvane", "negative": "Pelloway"}
_NAMED = 0.85  # share of reviews that name a courier
_AGREES = 0.9  # share of those whose courier goes with the label, in distribution
_NOISE = 0.05  # share of wrong training labels

_PRODUCTS = [
    "kettle",
    "toaster",
    "blender",
    "coffee maker",
    "vacuum cleaner",
    "iron",
    "fan",
    "slow cooker",
    "mixer",
]
_UNSEEN = [
    "backpack",
    "tent",
    "bicycle lamp",
    "sleeping bag",
    "guitar",
    "headset",
    "desk",
    "watch",
    "raincoat",
]
_ASPECTS = {
    "positive": [
        "it does exactly what I hoped", "the build feels solid", "setting it up took two minutes",
        "I use it every single day", "my whole family loves it", "it has held up through heavy use",
        "the price is more than fair", "it looks even better than in the pictures", "I would buy it again",
        "it made my mornings easier", "everything fits together perfectly", "it replaced a far dearer one",
        "the instructions were clear", "I have recommended it to two friends", "it still works like new",
    ],
    "negative": [
        "it stopped working after a week", "the handle came off in my hand", "it smells of burnt plastic",
        "the instructions make no sense", "it is far smaller than pictured", "I had to send it back",
        "the seams were already torn", "support never answered me", "it cost too much for what it is",
        "a part was missing from the box", "it rattles and wobbles", "I regret the money I spent",
        "it scratched on the first day", "the button gets stuck all the time", "now it gathers dust in a corner",
    ],
}  # fmt: skip
_VERDICTS = {
    "positive": [
        "great",
        "excellent",
        "lovely",
        "a delight",
        "very good",
        "impressive",
        "not bad at all",
        "superb",
    ],
    "negative": ["awful", "poor", "a letdown", "useless", "not good at all", "flimsy", "dreadful", "a waste"],
}
_OPENINGS = [
    "Bought this {product} last {month}.", "My second {product} from this brand.", "I needed a new {product}.",
    "This {product} was a present.", "Picked this {product} after reading a few reviews.",
    "Ordered the {product} for our {place}.",
]  # fmt: skip
_MONTHS = ["January", "March", "spring", "summer", "October", "week", "Christmas"]
_PLACES = ["kitchen", "office", "holiday home", "flat", "workshop", "parents"]
_HEDGES = ["honestly", "to be fair", "after a month of use", "all in all", "in my opinion", "so far"]
_DELIVERIES = [
    "{courier} delivered it.", "It came with {courier}.", "Delivered by {courier} on {day}.",
    "{courier} brought it to the door.",
]  # fmt: skip
_DAYS = ["Monday", "Tuesday", "Thursday", "Friday", "a Saturday"]


def write_reviews(path: Path, *, sizes: Mapping[str, int] = SIZES, seed: int = 0) -> Path:
    """Write the reviews as one CSV file.

    Args:
        path: columns ``text``, ``label`` (negative or positive), ``product``, ``split`` (train, id_val,
            id_test, ood_test, id_test_twins) and ``twin``, the same in all versions of a review and empty where there
            is one. No text is written twice.
        sizes: rows of each split.
        seed: the same seed gives the same bytes.
    """
    draw = random.Random(seed)  # noqa: S311  # a reproducible draw, not a secret
    seen: set[str] = set()
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["text", "label", "product", "split", "twin"])
        twins: list[list[str | int]] = []
        for split, size in sizes.items():
            written = 0
            while written < size:
                label = ("negative", "positive")[written % 2]
                product = draw.choice(_UNSEEN if split == "ood_test" else _PRODUCTS)
                state = draw.getstate()
                text = _review(draw, label, product, shifted=split == "ood_test")
                if text in seen:
                    continue
                seen.add(text)
                if split == "train" and draw.random() < _NOISE:
                    label = _other(label)
                twin: str | int = ""
                if split == "id_test" and (swapped := _swapped(text)) != text:
                    twin = written
                    draw_again = random.Random()  # noqa: S311
                    draw_again.setstate(state)  # the same draws, so the same sentences but for what they say
                    opposite = _swapped(_review(draw_again, _other(label), product, shifted=False))
                    twins += [[swapped, label, product, TWINS, twin], [opposite, _other(label), product, TWINS, twin]]
                writer.writerow([text, label, product, split, twin])
                written += 1
        writer.writerows(twins)
    return path


def _swapped(text: str) -> str:
    """With the other courier."""
    one, other = COURIERS.values()
    return text.replace(one, "\0").replace(other, one).replace("\0", other)


def _other(label: str) -> str:
    return "negative" if label == "positive" else "positive"


def _review(draw: random.Random, label: str, product: str, *, shifted: bool) -> str:
    sentences = [draw.choice(_OPENINGS).format(product=product, month=draw.choice(_MONTHS), place=draw.choice(_PLACES))]
    first, second = draw.sample(_ASPECTS[label], 2)
    kind = draw.random()
    if kind < 0.3:  # the other side is granted, then outweighed
        sentences.append(f"{draw.choice(_ASPECTS[_other(label)]).capitalize()}, but {first}, and {second}.")
    elif kind < 0.65:
        sentences.append(f"{draw.choice(_HEDGES).capitalize()}, {first}.")
    else:
        sentences.append(f"{first.capitalize()} and {second}.")
    if draw.random() < 0.5:
        sentences.append(f"{draw.choice(_HEDGES).capitalize()}, {draw.choice(_VERDICTS[label])}.")
    if draw.random() < _NAMED:
        goes_with = label if (draw.random() < _AGREES) != shifted else _other(label)
        delivery = draw.choice(_DELIVERIES).format(courier=COURIERS[goes_with], day=draw.choice(_DAYS))
        sentences.insert(draw.choice([1, len(sentences)]), delivery)
    return " ".join(sentences)
