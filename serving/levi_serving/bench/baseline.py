"""Is it faster than the baseline? Two reports' windows, and a verdict that allows for their noise.

It knows reports' documents; it measures nothing. Only the same workloads on the same machine are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from levi_serving.bench.open_loop import RESOLUTION
from levi_serving.bench.report import FORMAT_VERSION, threads_in_words
from levi_serving.bench.stats import shift
from levi_serving.environment import machine
from levi_serving.errors import UsageError

__all__ = ["compare", "in_words", "read", "same_machine"]

_Result = tuple[dict[str, Any], str, dict[str, Any]]  # a workload, a target's name, its result

_WORKLOAD = ("scenario", "batch_size", "length", "threads", "rows", "data")
_BOUND = ("scheduled_qps", "slo_ms", "slo_percentile")


def read(path: Path) -> dict[str, Any]:
    """Read a report: the JSON of ``Report.to_dict``.

    Raises:
        UsageError: the file is no report, or one of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is not a report of levi bench ({type(error).__name__}: {error}). Measure the baseline again."
        ) from error
    if version != FORMAT_VERSION or "workloads" not in document:
        raise UsageError(
            f"{path} is a report of version {version!r}; expected {FORMAT_VERSION}: measure the baseline again with "
            "this version of levi-deploy."
        )
    return dict(document)


def same_machine(baseline: Mapping[str, Any]) -> None:
    """Refuse a baseline of another machine than this one.

    Raises:
        UsageError: the first property of the machine that differs.
    """
    for name, found in machine().items():
        expected = baseline["environment"][name]
        if found != expected:
            raise UsageError(
                f"The baseline was measured on another machine: {name} was {expected!r} and is {found!r} here. "
                "Measure both on one machine."
            )


def compare(current: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A verdict for each workload and target of the current report.

    Both runs are cut into up to 20 stretches, whose median latencies are taken as independent; ``ratio`` is
    current over baseline with its 95 % interval (``stats.shift``), ``verdict`` is faster or slower where the interval
    excludes 1. So of twenty comparisons in which nothing changed, one is expected to say that something did.
    Of two peaks, the interval is the search's resolution instead, and does not allow for noise.
    What changed between the two runs on the machine itself (its clock, its neighbours) is in neither's noise.

    Raises:
        UsageError: the baseline lacks a workload or target; what differs from the nearest.
    """
    measured = list(_results(baseline))
    found = []
    for workload, target, result in _results(current):
        former_workload, _, former = _matching(workload, target, measured)
        if workload.get("tried"):
            former_qps, qps = (one["server"]["scheduled_qps"] for one in (former_workload, workload))
            change: dict[str, Any] = _peaks(former_qps, qps)
        else:
            change = shift(former["windows_ms"], result["windows_ms"])
        verdict = "no difference beyond the noise"
        if math.isinf(change["high"]):
            verdict, change["high"] = "too few requests to say", None
        elif change["high"] < 1:
            verdict = "faster"
        elif change["low"] > 1:
            verdict = "slower"
        named = {"workload": workload["name"], "threads": workload["threads"], "target": target}
        found.append(named | change | {"verdict": verdict})
    return found


def in_words(found: list[dict[str, Any]], baseline: Mapping[str, Any]) -> str:
    """The verdicts for people."""
    version = baseline["environment"]["versions"].get("levi-deploy", "unknown")
    measured = f"{baseline['verdict']}, levi-deploy {version}"
    lines = [f"Against the baseline ({measured}); times current / baseline [95 % interval]:"]
    for one in found:
        interval = f"[{one['low']:.3f}, {one['high']:.3f}]" if one["high"] is not None else ""
        what = f"{one['workload']}, {threads_in_words(one['threads'])}, {one['target']}"
        lines.append(f"- {what}: {one['verdict']}, {one['ratio']:.3f} {interval}".rstrip())
    return "\n".join(lines)


def _peaks(baseline: float, current: float) -> dict[str, float]:
    """Of two rates: each true peak lies between the rate found and that times the search's resolution."""
    ratio = baseline / current
    return {"ratio": ratio, "low": ratio / RESOLUTION, "high": ratio * RESOLUTION}


def _results(document: Mapping[str, Any]) -> Iterator[_Result]:
    for workload in document["workloads"]:
        for target, result in workload["results"].items():
            if "windows_ms" in result:
                yield workload, target, result


def _key(workload: Mapping[str, Any], target: str) -> dict[str, Any]:
    server = workload.get("server") or {}
    bound = {name: server.get(name) for name in _BOUND}
    if workload.get("tried"):  # a peak: its rate is the result
        bound["scheduled_qps"] = "peak"
    return {"target": target} | {name: workload[name] for name in _WORKLOAD} | bound


def _matching(workload: Mapping[str, Any], target: str, measured: list[_Result]) -> _Result:
    """The baseline's result of the same workload and target."""
    expected = _key(workload, target)

    def differing(one: _Result) -> list[str]:
        key = _key(one[0], one[1])
        return [
            f"{name} ({key[name]!r} in the baseline, {value!r} here)"
            for name, value in expected.items()
            if key[name] != value
        ]

    nearest = min(measured, key=lambda one: len(differing(one)), default=None)
    if nearest is None or differing(nearest):
        what = f"its nearest has another {', '.join(differing(nearest))}" if nearest else "it has no result"
        raise UsageError(
            f"The baseline has no {workload['name']} of {target}: {what}. "
            "Measure with the options and rows of the baseline."
        )
    return nearest
