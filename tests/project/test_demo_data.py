"""The demo's generated reviews hold what the demo says of them."""

from __future__ import annotations

import csv
from collections import Counter

import pytest

from levi_deploy.demo.reviews import COURIERS, SIZES, TWINS, write_reviews


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with write_reviews(tmp_path_factory.mktemp("demo") / "reviews.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_same_seed_same_bytes(tmp_path):
    one, two, other = (
        write_reviews(tmp_path / name, seed=seed).read_bytes() for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert one == two
    assert one != other


def test_sizes_and_balance(rows):
    assert Counter(row["split"] for row in rows if row["split"] != TWINS) == SIZES
    assert len({row["text"] for row in rows}) == len(rows)
    for split in ("id_val", "id_test", "ood_test"):
        labels = Counter(row["label"] for row in rows if row["split"] == split)
        assert labels["positive"] == labels["negative"]


def agreement(rows, split):
    """How often a named courier goes with the label."""
    named = [row for row in rows if row["split"] == split and any(name in row["text"] for name in COURIERS.values())]
    assert len(named) > 200
    return sum(COURIERS[row["label"]] in row["text"] for row in named) / len(named)


def test_the_shortcut_points_the_other_way_out_of_distribution(rows):
    assert agreement(rows, "id_test") > 0.8
    assert agreement(rows, "train") > 0.75  # some training labels are wrong
    assert agreement(rows, "ood_test") < 0.2


def test_unseen_products(rows):
    products = {split: {row["product"] for row in rows if row["split"] == split} for split in SIZES}
    assert not products["ood_test"] & (products["train"] | products["id_val"] | products["id_test"])


def test_twins_differ_in_one_thing(rows):
    """The courier, with the same label; or all that is said, with the other label and the same courier."""
    named = [row for row in rows if row["split"] == "id_test" and row["twin"]]
    assert len(named) > 200
    assert {row["twin"] for row in rows if row["split"] not in ("id_test", TWINS)} == {""}
    twins = {row["twin"]: [] for row in named}
    for row in rows:
        if row["split"] == TWINS:
            twins[row["twin"]].append(row)
    one, other = COURIERS.values()
    for row in named:
        swapped, opposite = twins[row["twin"]]
        assert (swapped["label"], opposite["label"] == row["label"]) == (row["label"], False)
        assert swapped["text"] != row["text"]
        differ = {frozenset(pair) for pair in zip(row["text"].split(), swapped["text"].split(), strict=True)}
        assert {pair for pair in differ if len(pair) == 2} == {
            frozenset(word + stop for word in (one, other))
            for stop in (".", "")
            if one + stop in row["text"].split() or other + stop in row["text"].split()
        }
        assert (one in opposite["text"]) == (one in row["text"])
        assert (other in opposite["text"]) == (other in row["text"])
        assert opposite["product"] in opposite["text"]
