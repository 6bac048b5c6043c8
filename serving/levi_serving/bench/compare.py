"""Is it faster than last time? Two reports' windows, and a verdict that knows their noise.

It knows reports' documents; it measures nothing. Only the same workloads on the same machine are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from levi_serving.bench.environment import environment
from levi_serving.bench.open_loop import RESOLUTION
from levi_serving.bench.report import FORMAT_VERSION, threads_in_words
from levi_serving.bench.stats import shift
from levi_serving.errors import UsageError

__all__ = ["compare", "in_words", "read", "same_machine"]

_Result = tuple[dict[str, Any], str, dict[str, Any]]  # a workload, a target's name, its result

_MACHINE = ("cpu", "usable_cores", "memory_gib", "instruction_sets", "governor")
_WORKLOAD = ("scenario", "batch_size", "length", "threads", "rows", "data")
_BOUND = ("scheduled_qps", "slo_ms", "slo_percentile")


def read(path: Path) -> dict[str, Any]:
    """A report that ``levi bench --output`` or ``--json`` wrote.

    Raises:
        UsageError: the file is none, or of another version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["format_version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{path} is no report of levi bench ({type(error).__name__}: {error}). Make one with levi bench -o."
        ) from error
    if version != FORMAT_VERSION or "workloads" not in document:
        raise UsageError(
            f"{path} is a report of version {version!r}; expected {FORMAT_VERSION}. Measure again with this version."
        )
    return dict(document)


def same_machine(old: Mapping[str, Any]) -> None:
    """Refuse a report of another machine than this one.

    Raises:
        UsageError: which field of the environment differs.
    """
    here = environment()
    for name in _MACHINE:
        found, expected = here[name], old["environment"].get(name)
        if found != expected:
            raise UsageError(
                f"The old report was measured on another machine: {name} was {expected!r} and is {found!r} here. "
                "Measure both on one machine."
            )


def compare(new: Mapping[str, Any], old: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A verdict for each workload and target of the new report.

    Both runs are cut into up to 20 stretches, whose median latencies are taken as independent; ``ratio`` is
    new over old with its 95 % interval (``stats.shift``), ``verdict`` is faster or slower where the interval
    leaves out 1. So of twenty comparisons in which nothing changed, one is expected to say that something did.
    Of two peaks, the interval is the search's resolution instead, and knows no noise.
    What changed between the two runs on the machine itself (its clock, its neighbours) is not in either's noise.

    Raises:
        UsageError: a workload or target that the old report has not; which field differs.
    """
    before = list(_results(old))
    found = []
    for workload, target, result in _results(new):
        then, _, former = _matching(workload, target, before)
        if workload.get("tried"):
            change: dict[str, Any] = _peaks(then["server"]["scheduled_qps"], workload["server"]["scheduled_qps"])
        else:
            change = shift(former["windows_ms"], result["windows_ms"])
        verdict = "no difference that this noise allows"
        if math.isinf(change["high"]):
            verdict, change["high"] = "too few queries to say", None
        elif change["high"] < 1:
            verdict = "faster"
        elif change["low"] > 1:
            verdict = "slower"
        named = {"workload": workload["name"], "threads": workload["threads"], "target": target}
        found.append(named | change | {"verdict": verdict})
    return found


def in_words(found: list[dict[str, Any]], old: Mapping[str, Any]) -> str:
    """The verdicts for people."""
    when = old["environment"]["versions"].get("levi-deploy", "unknown")
    lines = [f"Against the old report ({old['verdict']}, levi-deploy {when}); times new / old [95 % interval]:"]
    for one in found:
        interval = f"[{one['low']:.3f}, {one['high']:.3f}]" if one["high"] is not None else ""
        what = f"{one['workload']}, {threads_in_words(one['threads'])}, {one['target']}"
        lines.append(f"- {what}: {one['verdict']}, {one['ratio']:.3f} {interval}".rstrip())
    return "\n".join(lines)


def _peaks(old: float, new: float) -> dict[str, float]:
    """Each true peak lies between the rate found and that times the search's resolution."""
    return {"ratio": old / new, "low": old / new / RESOLUTION, "high": old / new * RESOLUTION}


def _results(document: Mapping[str, Any]) -> Iterator[_Result]:
    for workload in document["workloads"]:
        for target, result in workload["results"].items():
            if "windows_ms" in result:
                yield workload, target, result


def _key(workload: Mapping[str, Any], target: str) -> dict[str, Any]:
    server = workload.get("server") or {}
    bound = {name: server.get(name) for name in _BOUND}
    if workload.get("tried"):  # a peak: its rate is what is compared
        bound["scheduled_qps"] = "peak"
    return {"target": target} | {name: workload[name] for name in _WORKLOAD} | bound


def _matching(workload: Mapping[str, Any], target: str, before: list[_Result]) -> _Result:
    wanted = _key(workload, target)

    def differing(one: _Result) -> list[str]:
        key = _key(one[0], one[1])
        return [f"{name} ({key[name]!r} there, {value!r} here)" for name, value in wanted.items() if key[name] != value]

    nearest = min(before, key=lambda one: len(differing(one)), default=None)
    if nearest is None or differing(nearest):
        what = f"its nearest has another {', '.join(differing(nearest))}" if nearest else "it has no result"
        raise UsageError(
            f"The old report has no {workload['name']} of {target}: {what}. "
            "Measure with the options and rows of the old report."
        )
    return nearest
