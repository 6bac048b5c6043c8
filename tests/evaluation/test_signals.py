"""Signals of distrust: ranked as by hand, on ties and at the edges, and the same from a run and its bundle."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from levi_deploy.evaluation import evaluate
from levi_deploy.evaluation.metrics import auroc, errors, spearman
from levi_deploy.evaluation.signals import COVERAGE, detect_errors, detect_ood, risk_coverage, signals
from levi_deploy.models import load
from levi_deploy.training.calibrate import abstain_above, abstain_by
from levi_serving import Runner
from levi_serving.predictions import Outputs, Task, doubts, finish


def predictions(head_logits, kind):
    """From head logits (N, K, C)."""
    heads = np.asarray(head_logits, np.float32)
    task = Task(kind=kind, labels=tuple(str(c) for c in range(heads.shape[2])))
    return finish(Outputs(heads.mean(axis=1), heads), task)


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], 1),
        ([1, 2, 3, 4], [1, 1, 0, 0], 0),
        ([1, 2, 3, 4], [0, 1, 0, 1], 3 / 4),  # of the pairs 2-1, 2-3, 4-1, 4-3 three are in order
        ([1, 1, 1], [0, 1, 0], 1 / 2),
        ([1, 2, 2, 3], [0, 0, 1, 1], (1 + 1 / 2 + 1 + 1) / 4),
        ([1, 2], [1, 1], None),
        ([], [], None),
    ],
)
def test_auroc_by_hand(scores, positive, expected):
    assert auroc(np.asarray(scores, float), np.asarray(positive, bool)) == expected


def test_auroc_is_the_share_of_pairs_in_order():
    draw = np.random.default_rng(0)
    scores, positive = draw.integers(0, 6, 60), draw.random(60) < 0.3
    a, b = scores[positive][:, None], scores[~positive]
    assert auroc(scores, positive) == pytest.approx(((a > b) + 0.5 * (a == b)).mean())
    assert auroc(-scores, positive) == pytest.approx(1 - auroc(scores, positive))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3], [10, 100, 1000], 1),
        ([1, 2, 3], [9, 8, 1], -1),
        ([1, 2, 3, 4], [2, 1, 4, 3], 1 - 6 * 4 / (4 * 15)),  # 1 - 6 Σd² / (n (n² - 1))
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),  # ranks 1.5 1.5 3 and 1 2 3
        ([5, 5, 5], [1, 2, 3], None),
    ],
)
def test_spearman_by_hand(a, b, expected):
    assert spearman(np.asarray(a), np.asarray(b)) == (expected and pytest.approx(expected))


def test_signals_by_hand():
    """One row with logits 0 and log 3: p = 1/4, 3/4; calibration changes the probability and not the energy."""
    heads = np.asarray([[[0, math.log(3)], [0, math.log(3)]]], np.float32)
    task = Task(kind="classification", labels=("a", "b"))
    found = signals(finish(Outputs(heads.mean(axis=1), heads), task), "classification")
    assert found["disagreement"] == pytest.approx(0, abs=1e-6)
    assert found["max_probability"] == pytest.approx(1 / 4)
    assert found["energy"] == pytest.approx(-math.log(4))
    cooler = finish(Outputs(heads.mean(axis=1) / 2, heads), task)
    assert signals(cooler, "classification")["energy"] == pytest.approx(-math.log(4))
    assert signals(cooler, "classification")["max_probability"] == pytest.approx(1 / (1 + math.sqrt(3)))
    assert np.isfinite(signals(predictions([[[900.0, -900.0]]], "classification"), "classification")["energy"]).all()
    assert list(signals(predictions([[[1.0], [3.0]]], "regression"), "regression")) == ["disagreement"]


def test_errors_of_each_task():
    two = predictions([[[2.0, 0.0]], [[0.0, 2.0]]], "classification")
    assert errors(two, np.asarray([0, 0]), "classification").tolist() == [False, True]
    two = predictions([[[2.0, -1.0]], [[2.0, -1.0]]], "multilabel")
    assert errors(two, np.asarray([[1, 0], [1, 1]]), "multilabel").tolist() == [False, True]
    two = predictions([[[2.0]], [[-1.0]]], "regression")
    assert errors(two, np.asarray([2.5, 1.0]), "regression").tolist() == [0.5, 2]


def test_disagreement_that_ranks_errors_and_foreign_rows():
    agree, apart = [[3.0, 0.0], [3.0, 0.0]], [[3.0, 0.0], [0.0, 2.0]]
    inside, outside = predictions([agree, agree, apart], "classification"), predictions([apart] * 2, "classification")
    found = detect_errors(inside, np.asarray([0, 0, 1]), "classification")
    assert found["disagreement"] == 1
    assert detect_errors(inside, np.asarray([0, 0, 0]), "classification")["disagreement"] is None, "no error to rank"
    assert detect_ood(inside, outside, "classification")["disagreement"] == pytest.approx((2 * 2 + 2 / 2) / (3 * 2))
    numbers = predictions([[[1.0], [1.0]], [[1.0], [3.0]], [[1.0], [7.0]]], "regression")
    assert detect_errors(numbers, np.asarray([1.0, 3.0, 9.0]), "regression") == {"disagreement": pytest.approx(1)}


def test_the_threshold_leaves_its_share_above():
    values = np.random.default_rng(0).permutation(100).astype(np.float32)
    threshold = abstain_above(values, 0.05)
    assert (threshold, (values > threshold).sum()) == (94.5, 5)
    assert abstain_above(values, 0.0) is None
    assert abstain_above(values[:10], 0.05) is None, "a twentieth of ten rows is none"
    assert (values > abstain_above(values, 0.29)).sum() == 29
    assert (np.zeros(100) > abstain_above(np.zeros(100, np.float32), 0.05)).sum() == 0, "ties stay together"


def test_risk_at_each_coverage_by_hand():
    """Forty rows, the wrong ones where both heads disagree most; the last ten alike."""
    disagreement = np.minimum(np.arange(40), 30) / 10
    head_logits = np.stack([np.stack([5 + disagreement, 5 - disagreement], axis=1), np.zeros((40, 2))], axis=2)
    answered = predictions(head_logits, "classification")
    targets = np.where(np.isin(np.arange(40), [20, 30, 31, 32, 33]), 1, 0)
    found = risk_coverage(answered, targets, "classification")["disagreement"]
    assert dict(zip(COVERAGE, found, strict=True)) == pytest.approx(
        {n / 20: (0 if n <= 10 else 1 if n <= 15 else 1 + 4 / 10 * (2 * n - 30)) / (2 * n) for n in range(1, 21)}
    )
    assert found[-1] == np.mean(errors(answered, targets, "classification"))
    one = predictions(head_logits[:, :1], "classification")
    assert "disagreement" not in risk_coverage(one, targets, "classification"), "it is the same everywhere"
    values = predictions(head_logits[:, :, :1], "regression")
    wanted = values.logits[:, 0] - np.arange(40)
    found = risk_coverage(values, wanted, "regression")["disagreement"]
    assert found[9] == pytest.approx(np.sqrt(np.mean(np.arange(20) ** 2)))


def doubting(p, disagreement, novelty, *, heads=2):
    """Predictions of two classes with such signals."""
    p = np.asarray(p, np.float32)
    logits = np.stack([np.log(p), np.log(1 - p)], axis=1)
    found = finish(
        Outputs(logits, np.repeat(logits[:, None], heads, axis=1)), Task(kind="classification", labels=("a", "b"))
    )
    return replace(found, disagreement=np.asarray(disagreement, np.float32), novelty=np.asarray(novelty, np.float32))


def test_abstaining_follows_the_signal_that_ranks_errors():
    random = np.random.default_rng(0)
    wrong = np.arange(200) < 40
    noise, tells = random.random(200), np.where(wrong, 1.0, 0.0) + 0.5 * random.random(200)
    sure, unsure = np.full(200, 0.9) - 0.1 * noise, 0.95 - 0.2 * tells
    targets = wrong.astype(np.int64)  # class 0 is always said
    assert abstain_by(doubting(unsure, noise, noise), targets, "classification") == "max_probability"
    assert abstain_by(doubting(sure, noise, noise), targets, "classification") == "max_probability", "alike: the first"
    assert abstain_by(doubting(sure, tells, noise), targets, "classification") == "disagreement"
    assert abstain_by(doubting(sure, noise, tells), targets, "classification") == "novelty"
    assert abstain_by(doubting(sure, tells, noise, heads=1), targets, "classification") == "max_probability"
    right = np.zeros(200, np.int64)
    assert abstain_by(doubting(sure, tells, tells), right, "classification") == "max_probability", "no error to rank"


def test_novelty_alone_must_tell_errors_in_regression():
    random = np.random.default_rng(0)
    values = random.normal(size=(300, 1)).astype(np.float32)
    found = finish(Outputs(values, values[:, None]), Task(kind="regression", labels=("y",)))
    size = random.random(300).astype(np.float32)
    targets = values[:, 0] + size
    assert abstain_by(found, targets, "regression") is None
    assert abstain_by(replace(found, novelty=random.random(300).astype(np.float32)), targets, "regression") is None
    assert abstain_by(replace(found, novelty=size), targets, "regression") == "novelty"


def test_a_run_and_its_bundle_doubt_alike(run, bundle, table):
    options = {"target": "label", "splits": ["id_val", "ood_test"]}
    torch, graph = (evaluate(load(folder).predictor, table, **options) for folder in (run.folder, bundle))
    assert list(graph["errors"]) == ["id_val", "ood_test"]
    assert list(graph["ood"]) == ["ood_test"]
    assert set(graph["ood"]["ood_test"]) == {"disagreement", "novelty", "max_probability", "energy"}
    assert graph["ood"]["ood_test"]["energy"] == pytest.approx(torch["ood"]["ood_test"]["energy"], abs=0.01)
    assert graph["abstains"] == torch["abstains"] == run.task.abstains
    assert run.task.abstain_above > 0
    assert graph["abstain"]["id_val"]["share"] == torch["abstain"]["id_val"]["share"] == 4 / 80
    assert graph["abstain"]["id_val"]["kept"] == 76
    assert graph["abstain"]["ood_test"] == torch["abstain"]["ood_test"]
    json.dumps(graph)


def test_what_is_served_abstains_above_the_threshold(runner, run, texts):
    served = runner.predict(texts)
    assert served.abstain.dtype == bool
    assert 0 < served.abstain.sum() < 100
    own = doubts(served.probabilities, served.disagreement, served.novelty, "classification")[run.task.abstain_by]
    np.testing.assert_array_equal(served.abstain, own > run.task.abstain_above)
    reference = run.reference()
    expected = reference.finish(reference.run(reference.prepare(texts))).abstain
    np.testing.assert_array_equal(served.abstain, expected)
    assert runner.table(served)["abstain"] == served.abstain.tolist()


def test_one_head_never_abstains(bundle_copy):
    from levi_serving import Bundle

    assert not predictions([[[1.0, 3.0]]], "classification").abstain.any()
    manifest = Bundle.open(bundle_copy).manifest
    Bundle.write(bundle_copy, replace(manifest, task=replace(manifest.task, abstain_above=None)))
    assert not Runner(bundle_copy).predict(["good lamp"] * 3).abstain.any()
