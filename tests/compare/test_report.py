"""Records, intervals and pictures of a comparison, from answers that the test makes up: no training."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from levi_deploy.compare.measure import Measured
from levi_deploy.compare.pictures import Point, colour, scatter
from levi_deploy.compare.report import write
from levi_deploy.compare.results import collect
from levi_deploy.compare.shared import TestRows
from levi_deploy.compare.statistics import interval, paired_difference, pareto
from levi_deploy.evaluation import assess
from levi_deploy.evaluation.labelled import LabelledRows
from levi_deploy.methods import METHODS
from levi_serving.predictions import Outputs, Task

HEADS = {"scratch": [None], "linear-probe": [6], "fine-tune": [6], "levi": [2, 4, 6], "no-branch": [2, 4, 6]}
ROWS = 60


def made_up(kind="classification", splits=("id_test", "ood_test"), pairs=None):
    """What was done, what was answered, and the rows."""
    draw = np.random.default_rng(0)
    task = Task(kind=kind, labels=("no", "yes") if kind == "classification" else ("value",))
    parts = {}
    for split in splits:
        targets = draw.integers(0, 2, ROWS) if kind == "classification" else draw.normal(size=ROWS)
        columns = {"id": [n // 2 for n in range(ROWS)]}
        parts[split] = LabelledRows(rows=[{}] * ROWS, targets=targets, columns=columns, digest="")
    runs, trials = {}, []
    for method, taps in HEADS.items():
        for seed in (0, 1):
            answers = {}
            for split, part in parts.items():
                noise = draw.normal(size=(ROWS, len(taps)))
                values = (part.targets[:, None] + noise).astype(np.float32)
                heads = np.stack([1 - values, values], axis=2) if kind == "classification" else values[:, :, None]
                answers[split] = Outputs(heads.mean(axis=1), heads)
            scores = {
                split: (outputs.logits.argmax(axis=1) == parts[split].targets).astype(float)
                if kind == "classification"
                else np.square(outputs.logits[:, 0] - parts[split].targets, dtype=float)
                for split, outputs in answers.items()
            }
            runs[method, seed] = Measured(taps, assess(answers, parts, task, pairs=pairs), scores)
            trials.append(
                {
                    "method": method, "title": METHODS[method].title, "choice": {"learning_rate": 3e-4}, "seed": seed,
                    "kept": True, "diverged": False, "validation_loss": 0.4, "trained_parameters": 1000,
                    "validation": {"accuracy": 0.8, "rmse": 1.0}, "threads": 2,
                    "training_seconds": 10.0 * len(taps) + seed,
                }
            )  # fmt: skip
    graphs = {
        method: [
            {"batch_size": size, "ms": 2.0, "ratio": 1 + len(taps) / 50, "low": 1.0, "high": 1.1} for size in (1, 8)
        ]
        for method, taps in HEADS.items()
    }
    document = {
        "data": "rows.csv", "rows": {"train": 100, "validation": 20, **dict.fromkeys(splits, ROWS)}, "task": kind,
        "seeds": 2, "budget": 1, "jobs": 1, "threads": 2, "trials": trials,
        "inference": {"machine": {"cpu": "a processor"}, "threads": 1, "graphs": graphs, "errors": {}},
    }  # fmt: skip
    return document, runs, TestRows(parts=parts, by=None, pairs=pairs, task=task)


def test_what_is_measured_becomes_records():
    document, runs, test = made_up(pairs="id")
    found = collect(document, runs, test)
    assert json.loads(json.dumps(found)) == found
    for one in found["intervals"]:
        seeds = [
            record["value"]
            for record in found["results"]
            if (record["method"], record["split"], record["metric"]) == (one["method"], one["split"], "accuracy")
        ]
        assert one["value"] == pytest.approx(np.mean(seeds))
        assert one["low"] <= one["value"] <= one["high"]
    assert {(one["method"], one["head"], one["tap"]) for one in found["heads"]} == {
        (method, n, tap) for method, taps in HEADS.items() for n, tap in enumerate(taps, start=1)
    }
    assert {one["inference_cost"] for one in found["results"] if one["method"] == "levi"} == {1.06}
    assert {one["training_seconds"] for one in found["results"] if one["method"] == "levi"} == {30, 31}
    detected = {(one["detects"], one["split"]) for one in found["signals"]}
    assert detected == {("errors", "id_test"), ("errors", "ood_test"), ("ood", "ood_test")}
    risk = next(one for one in found["coverage"] if (one["method"], one["signal"]) == ("levi", "max_probability"))
    wrong = 1 - np.mean([found.scores["id_test"] for (name, _), found in runs.items() if name == "levi"])
    assert risk["risk"][-1] == pytest.approx(wrong)
    assert len(risk["risk"]) == len(found["coverages"])
    assert {(one["method"], one["seed"]) for one in found["pairs"]} == set(runs)


@pytest.mark.parametrize(
    ("options", "pictures"),
    [
        ({"pairs": "id"}, 2 + 1 + 1 + 1 + 2 + 1 + 2),  # listed, shift, two costs, depth, pairs, risk
        ({"kind": "regression"}, 2 + 1 + 1 + 1 + 2 + 2),
        ({"splits": ("ood_test",)}, 1 + 1 + 1 + 1 + 2 + 1),
        ({"inference": None}, 2 + 1 + 1 + 2 + 2),
    ],
)
def test_the_page_needs_nothing_else_and_has_every_picture(options, pictures, tmp_path):
    without = options.pop("inference", "there") is None
    document, runs, test = made_up(**options)
    if without:
        document["inference"] = None
    found = collect(document, runs, test)
    write(tmp_path, found)
    assert json.loads((tmp_path / "results.json").read_text()) == found
    html, text = (tmp_path / "index.html").read_text(), (tmp_path / "report.md").read_text()
    assert not re.findall(r'(?:src|href)="(?!#)', html)
    assert html.count("<svg") == pictures
    for n, method in enumerate(HEADS, start=1):
        assert f">{n}</b>{METHODS[method].title}</li>" in html
        assert f"| {n} {METHODS[method].title} |" in text
    metric = "rmse" if test.task.kind == "regression" else "accuracy"
    assert f"{metric}: mean ± standard deviation" in text
    assert "One run at a time, on 2 threads." in text


def test_a_pictures_numbers_are_legible_on_a_phone_and_apart():
    """Of a picture as wide as a phone's page no text is smaller than 9 points, and no number lies on another."""
    draw = np.random.default_rng(0)
    points = [
        Point(number=n, colour=colour("levi"), x=x, y=y, y_interval=(y - 0.01, y + 0.01))
        for n, (x, y) in enumerate(0.85 + 0.01 * draw.normal(size=(14, 2)), start=1)
    ]
    svg = scatter(points, title="ood", x="id", y="ood", front=[3, 1], diagonal=True)
    root = ElementTree.fromstring(svg)  # noqa: S314  # our own
    assert float(root.attrib["viewBox"].split()[2]) <= 352
    sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:700 )?([\d.]+)px", svg)]
    assert min(sizes) >= 9
    numbers = {}
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        if element.text and element.text.isdecimal() and "700" in element.attrib["style"]:
            numbers[int(element.text)] = [float(element.attrib[name]) for name in ("x", "y")]
    assert sorted(numbers) == list(range(1, 15))
    places = np.asarray(list(numbers.values()))
    apart = np.abs(places[:, None] - places).max(axis=2) + 99 * np.eye(14)
    assert apart.min() > 6.5


def test_a_pareto_front_by_hand():
    points = {"a": (1, 0.7), "b": (2, 0.6), "c": (3, 0.8), "d": (3, 0.75), "e": (9, 0.8)}
    assert pareto(points, lower_is_better=False) == ["a", "c"]
    assert pareto(points, lower_is_better=True) == ["a", "b"]


def test_an_interval_holds_the_value_as_often_as_it_says():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        value, low, high = interval(draw.random(200) < 0.8, kind="classification")
        held += low <= 0.8 <= high
        assert low <= value <= high
    assert held >= 88
    errors = np.full(50, 4.0)
    assert interval(errors, kind="regression") == (2, 2, 2)


def test_the_interval_is_that_of_paired_rows():
    draw = np.random.default_rng(0)
    one = draw.standard_normal(2000)
    assert paired_difference(one, one, kind="classification") == (0, 0, 0)
    found = paired_difference(one, one - 0.5, kind="classification")
    np.testing.assert_allclose(found, 0.5)
    other = draw.standard_normal(2000)
    difference, low, high = paired_difference(one, other, kind="classification")
    assert difference == pytest.approx((one - other).mean())
    width = 2 * 1.96 * (one - other).std() / 2000**0.5
    assert high - low == pytest.approx(width, rel=0.1)
    squared = paired_difference(one**2, other**2, kind="regression")
    assert squared[0] == pytest.approx(np.sqrt((one**2).mean()) - np.sqrt((other**2).mean()))


@pytest.mark.parametrize(
    ("value", "logarithmic"), [(0.0, False), (0.5, False), (0.04, True), (0.05, True), (-2.0, False)]
)
def test_a_picture_of_one_method_has_room_around_it(value, logarithmic):
    """One point, or several that are alike, span no range; matplotlib's warning of that is an error here."""
    point = Point(number=1, colour="#123456", x=value, y=value, y_interval=(value - 1, value + 1))
    drawn = scatter([point], title="t", x="x", y="y", logarithmic=logarithmic, front=[1])
    assert "<svg" in drawn
