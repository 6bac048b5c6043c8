"""What was measured, as records: the content of ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from levi_deploy.compare.measure import Measured
from levi_deploy.compare.shared import TestRows
from levi_deploy.compare.statistics import interval, paired_difference
from levi_deploy.evaluation.signals import COVERAGE

__all__ = ["BESIDE", "collect"]

BESIDE = ("fine-tune", "linear-probe")
"""The methods that every other one is compared with, row by row."""

Runs = Mapping[tuple[str, int], Measured]
"""By method and seed, what a run answered on test rows."""


def collect(document: Mapping[str, Any], runs: Runs, test: TestRows) -> dict[str, Any]:
    """Put together what was done and what was measured.

    Args:
        document: what was done; its ``trials`` and ``inference`` give costs.
        runs: what each run that counts answered.
        test: the rows.

    Returns:
        The document, as JSON has it, with lists of records: ``results``, a metric of a method, seed, split and group,
        with its costs;
        ``intervals``, a method's first metric on a split and group, the mean of its seeds' rows; ``differences``,
        that less the metric of full fine-tuning and of the linear probe; ``heads``, the first metric of each head;
        ``signals``, how well a signal detects errors, and OOD rows; ``coverage``, the risk that a signal leaves, the
        mean over seeds, at the shares of ``coverages``; ``pairs``, how far answers move between versions of a row.
    """
    trials = {(trial["method"], trial["seed"]): trial for trial in document["trials"] if trial["kept"]}
    costs = (document["inference"] or {"graphs": {}})["graphs"]
    results = [
        {
            "method": method,
            "seed": seed,
            "split": split,
            "group": group,
            "metric": metric,
            "value": value,
            "trained_parameters": trials[method, seed]["trained_parameters"],
            "training_seconds": trials[method, seed]["training_seconds"],
            "inference_cost": costs[method][0]["ratio"] if method in costs else None,
        }
        for (method, seed), measured in runs.items()
        for split, groups in measured.found["splits"].items()
        for group, found in groups.items()
        for metric, value in found.items()
        if metric not in ("rows", "heads")
    ]
    records = {
        "results": results,
        **_compared(runs, test),
        "heads": [
            {"method": method, "seed": seed, "split": split, "head": k + 1, "tap": measured.taps[k], "value": value}
            for (method, seed), measured in runs.items()
            for split, groups in measured.found["splits"].items()
            for k, value in enumerate(groups["all"]["heads"])
        ],
        "signals": list(_signals(runs)),
        "coverages": list(COVERAGE),
        "coverage": list(_coverage(runs)),
        "pairs": [
            {"method": method, "seed": seed, **record}
            for (method, seed), measured in runs.items()
            for record in measured.found["pairs"]
        ],
    }
    found: dict[str, Any] = json.loads(json.dumps({**document, **records}))
    return found


def _compared(runs: Runs, test: TestRows) -> dict[str, list[dict[str, Any]]]:
    """Intervals of each method, and of its differences, on every split and group."""
    methods = list(dict.fromkeys(method for method, _ in runs))
    intervals, differences = [], []
    for split, part in test.parts.items():
        scores = {
            method: np.mean([one.scores[split] for (name, _), one in runs.items() if name == method], axis=0)
            for method in methods
        }
        for group, places in part.groups(test.by).items():
            for method in methods:
                about = {"method": method, "split": split, "group": group}
                own = scores[method][places]
                value, low, high = interval(own, kind=test.task.kind)
                intervals.append({**about, "value": value, "low": low, "high": high})
                for other in BESIDE:
                    if other in methods and other != method:
                        value, low, high = paired_difference(own, scores[other][places], kind=test.task.kind)
                        differences.append({**about, "beside": other, "difference": value, "low": low, "high": high})
    return {"intervals": intervals, "differences": differences}


def _signals(runs: Runs) -> Iterator[dict[str, Any]]:
    for (method, seed), measured in runs.items():
        for detects in ("errors", "ood"):
            for split, found in measured.found[detects].items():
                for signal, value in found.items():
                    about = {"method": method, "seed": seed, "split": split, "signal": signal}
                    yield {**about, "detects": detects, "value": value}


def _coverage(runs: Runs) -> Iterator[dict[str, Any]]:
    curves: dict[tuple[str, str, str], list[list[float]]] = {}
    for (method, _), measured in runs.items():
        for split, found in measured.found["coverage"].items():
            for signal, risk in found.items():
                curves.setdefault((method, split, signal), []).append(risk)
    for (method, split, signal), seeds in curves.items():
        risk = np.mean(seeds, axis=0).tolist()
        yield {"method": method, "split": split, "signal": signal, "risk": risk, "mean_risk": float(np.mean(risk))}
