"""Measurements as a document for machines and a table for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from levi_serving.bench.environment import environment, peak_memory
from levi_serving.bench.scenarios import Measurement, Series, Target
from levi_serving.bench.stats import PERCENTILE, early_stopping, ratio, summary

__all__ = ["Report"]

FORMAT_VERSION = 1


class Report:
    """What a benchmark found.

    Args:
        measurements: one a workload.
        targets: what was measured; the first is ours, the others are what it is compared with.
        quick: too short to count; the verdict says so.
    """

    def __init__(self, measurements: Sequence[Measurement], targets: Sequence[Target], *, quick: bool) -> None:
        self._measurements = measurements
        self._targets = targets
        self.reasons = [f"{m.workload.name}: {reason}" for m in measurements for reason in m.reasons]
        self.verdict = "QUICK" if quick else "INVALID" if self.reasons else "VALID"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON. Times in ms; ``rows_per_s`` is rows over the time spent on them.

        ``ratio`` is theirs over ours, pair by pair: above 1, ours is faster.
        """
        ours = self._targets[0].name
        workloads = []
        for measurement in self._measurements:
            rows = measurement.workload.batch_size
            if measurement.scenario == "offline":
                rows = sum(len(batch) for batch in measurement.workload.batches)
            results = {}
            for name, series in measurement.series.items():
                results[name] = self._result(series, rows)
                if name != ours:
                    results[name]["ratio"] = ratio(measurement.series[ours].latency_s, series.latency_s)
            workloads.append(
                {
                    "scenario": measurement.scenario,
                    "batch_size": measurement.workload.batch_size,
                    "length": measurement.workload.length,
                    "rows": rows,
                    "duration_s": measurement.duration_s,
                    "valid": not measurement.reasons,
                    "results": results,
                }
            )
        return {
            "format_version": FORMAT_VERSION,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "percentile": PERCENTILE,
            "targets": {target.name: target.describe() for target in self._targets},
            "workloads": workloads,
            "peak_memory_bytes": peak_memory(),
            "environment": environment(),
        }

    @staticmethod
    def _result(series: Series, rows: int) -> dict[str, Any]:
        latency = series.latency_s
        total = sum(latency)
        estimate = early_stopping(latency, 0.9)
        return {
            "queries": len(latency),
            "rows_per_s": rows * len(latency) / total,
            "latency_ms": {name: 1e3 * value for name, value in summary(latency).items()},
            "p90_early_stopping_ms": None if estimate is None else 1e3 * estimate,
            "split": {
                part: {"median_ms": 1e3 * summary(times)["p50"], "share": sum(times) / total}
                for part, times in (
                    ("tokenise", series.prepare_s),
                    ("run", series.run_s),
                    ("finish", series.finish_s),
                )
            },
        }

    def __str__(self) -> str:
        """The table."""
        document = self.to_dict()
        about = document["environment"]
        lines = [
            f"{about['cpu']}, {about['usable_cores']} usable cores, {about['memory_gib']} GiB, "
            f"load {about['load_average']}",
            f"{about['system']}, Python {about['python']}",
        ]
        for name, description in document["targets"].items():
            lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in description.items()))
        lines += [
            "",
            f"{'workload':<24}{'target':<13}{'p50 ms':>9}{'p90 ms':>9}{'p99 ms':>9}{'rows/s':>9}"
            f"   {'tokenise/run/finish':<20}ratio",
            "-" * 106,
        ]
        for workload in document["workloads"]:
            name = f"batch {workload['batch_size']} x {workload['length'] or 'real lengths'}"
            if workload["scenario"] == "offline":
                name = f"offline, {workload['rows']} rows"
            for target, result in workload["results"].items():
                lines.append(_line(name, target, result))
                name = ""
        lines += ["", f"{self.verdict}. Percentiles: {PERCENTILE}; a dash: too few queries to say."]
        if self.verdict == "QUICK":
            lines.append("Too short to publish: measure without --quick.")
        lines += [f"- {reason}" for reason in self.reasons]
        if len(document["targets"]) > 1:
            lines.append("Ratio: how many times longer than the first target, median of pairs [95 % interval].")
        return "\n".join(lines)


def _line(name: str, target: str, result: dict[str, Any]) -> str:
    latency = result["latency_ms"]
    numbers = "".join(f"{latency[p]:>9.2f}" if p in latency else f"{'-':>9}" for p in ("p50", "p90", "p99"))
    split = " / ".join(f"{100 * part['share']:.1f}" for part in result["split"].values()) + " %"
    line = f"{name:<24}{target:<13}{numbers}{result['rows_per_s']:>9.1f}   {split:<20}"
    if pairs := result.get("ratio"):
        line += f"{pairs['median']:.2f} [{pairs['low']:.2f}, {pairs['high']:.2f}]"
    return line.rstrip()
