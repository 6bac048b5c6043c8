"""Measurements as a document for machines and a table for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from levi_serving.bench.measurement import Measurement, Series
from levi_serving.bench.stats import PERCENTILE, early_stopping, ratio, summary, windows
from levi_serving.environment import environment, peak_memory

__all__ = ["DURATIONS", "Preset", "Report", "in_words", "threads_in_words"]

FORMAT_VERSION = 3

Preset = Literal["quick", "default", "mlperf", "custom"]
DURATIONS: dict[Preset, float] = {"quick": 3.0, "default": 60.0, "mlperf": 600.0}
"""Seconds for each workload and target. MLPerf's rules ask for 600."""

_LEAST_S = 10.0  # loadgen's default of min_duration


class Report:
    """What a benchmark found.

    Args:
        measurements: one or more for each workload.
        preset: how long was measured; ``quick`` does not count, and the verdict says so.
        duration_s: of the preset ``custom``.
        cold_start_s: seconds from a target's construction to its first prediction, by name.
        skipped: rows of the input that cannot be used: ``rows`` how many, ``of`` how many, ``first`` why the first.
    """

    def __init__(
        self,
        measurements: Sequence[Measurement],
        *,
        preset: Preset = "default",
        duration_s: float | None = None,
        cold_start_s: Mapping[str, float] | None = None,
        skipped: Mapping[str, object] | None = None,
    ) -> None:
        self._measurements = measurements
        self._cold_start_s = dict(cold_start_s or {})
        self._skipped = dict(skipped or {})
        self._preset = preset
        self._duration_s = DURATIONS[preset] if duration_s is None else duration_s
        self.reasons = [
            f"{m.name}, {threads_in_words(m.threads)}: {reason}" for m in measurements for reason in m.reasons
        ]
        if preset == "custom" and self._duration_s < _LEAST_S:
            self.reasons.append(
                f"{self._duration_s:g} s for each workload is too short to count; "
                f"`duration_s` must be {_LEAST_S:g} or more"
            )
        self.verdict = "QUICK" if preset == "quick" else "INVALID" if self.reasons else "VALID"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON. Times in ms; ``rows_per_s`` is rows over the time spent on them.

        ``ratio`` is theirs over ours, pair by pair: above 1, ours is faster.
        """
        return {
            "format_version": FORMAT_VERSION,
            "verdict": self.verdict,
            "reasons": self.reasons,
            "profile": {"name": self._preset, "duration_s": self._duration_s},
            "percentile": PERCENTILE,
            "workloads": [_workload(measurement) for measurement in self._measurements],
            "cold_start_s": self._cold_start_s,
            "skipped_rows": self._skipped,
            "peak_memory_bytes": peak_memory(),
            "environment": environment(),
        }

    def __str__(self) -> str:
        """The table."""
        return in_words(self.to_dict())


def threads_in_words(count: object) -> str:
    """As ``2 threads``."""
    return "1 thread" if count == 1 else f"{'unknown' if count is None else count} threads"


def _workload(measurement: Measurement) -> dict[str, Any]:
    workload = measurement.workload
    ours = next(iter(measurement.series))
    results = {}
    for name, series in measurement.series.items():
        results[name] = {"about": dict(measurement.targets[name]), **_result(series, measurement)}
        if name != ours and not series.failed and not measurement.series[ours].failed:
            results[name]["ratio"] = ratio(measurement.series[ours].latency_s, series.latency_s)
    document: dict[str, Any] = {
        "name": measurement.name,
        "scenario": measurement.scenario,
        "batch_size": workload.batch_size,
        "length": workload.length,
        "threads": measurement.threads,
        "data": workload.digest[:16],
        "rows": len(workload.rows) if measurement.scenario == "offline" else workload.batch_size,
        "duration_s": measurement.duration_s,
        "valid": not measurement.reasons,
    }
    if run := measurement.server:
        document["server"] = {
            "scheduled_qps": run.qps,
            "slo_ms": 1e3 * run.bound_s,
            "slo_percentile": 100 * run.percentile,
            "late_share": run.late,
            "rows_per_batch": run.rows_per_batch,
            "busy_share": run.busy,
        }
        document["tried"] = [
            {"valid": not one.reasons, "reasons": one.reasons, "scheduled_qps": one.server.qps, **_latencies(one)}
            for one in measurement.tried
            if one.server is not None
        ]
    return document | {"results": results}


def _latencies(measurement: Measurement) -> dict[str, Any]:
    (series,) = measurement.series.values()
    return _result(series, measurement) if series.ended_s else {"requests": 0}


def _result(series: Series, measurement: Measurement) -> dict[str, Any]:
    latency = series.latency_s
    document: dict[str, Any] = {"requests": len(latency), "failed": series.failed}
    if not latency:
        return document
    total = sum(latency)
    busy = measurement.duration_s if measurement.server else total
    p = measurement.server.percentile if measurement.server else 0.9
    estimate = early_stopping(latency, p)
    return document | {
        "rows_per_s": series.rows / busy,
        "latency_ms": {name: 1e3 * value for name, value in summary(latency).items()},
        "early_stopping": {"percentile": 100 * p, "ms": None if estimate is None else 1e3 * estimate},
        "windows_ms": [1e3 * value for value in windows(latency)],
        "split": {
            step: {"median_ms": 1e3 * summary(times)["p50"], "share": sum(times) / total}
            for step, times in series.split.items()
        },
        "padding_share": series.padding,
        "joules_per_1000_rows": None if series.joules is None else 1e3 * series.joules / series.rows,
    }


def in_words(document: Mapping[str, Any]) -> str:
    """A report's document for people."""
    about, peak = document["environment"], document["peak_memory_bytes"]
    lines = [
        f"{about['cpu']}, {about['usable_cores']} usable cores, {about['memory_gib']} GiB, "
        f"governor {about['governor'] or 'unknown'}, load {about['load_average']}",
        f"{about['system']}, Python {about['python']}, memory from {about['allocator']}, "
        f"its peak {'unknown' if peak is None else f'{peak / 2**20:.0f} MiB'}",
    ]
    for workload in document["workloads"]:
        for name, result in workload["results"].items():
            line = f"{name}: " + ", ".join(f"{key} {value}" for key, value in result["about"].items())
            if line not in lines:
                lines.append(line)
    for name, seconds in document["cold_start_s"].items():
        lines.append(f"{name}: {seconds:.2f} s from its construction to its first prediction")
    if skipped := document["skipped_rows"]:
        lines.append(
            f"{skipped['rows']} of {skipped['of']} input rows are left out, the first because: {skipped['first']}"
        )
    lines += ["", *_table(document["workloads"])]
    lines += [_arrivals(workload) for workload in document["workloads"] if workload["scenario"] == "server"]
    lines += ["", f"{document['verdict']}. Percentiles: {document['percentile']}; a dash: too few requests to say."]
    if document["verdict"] == "QUICK":
        lines.append("Too short to publish: measure with another preset than quick.")
    lines += [f"- {reason}" for reason in document["reasons"]]
    if any(len(workload["results"]) > 1 for workload in document["workloads"]):
        lines.append("ratio: how many times longer than the first target, median of pairs [95 % interval].")
    return "\n".join(lines)


def _arrivals(workload: Mapping[str, Any]) -> str:
    about = workload["server"]
    peak = "; the highest valid rate of those tried" if workload["tried"] and workload["valid"] else ""
    return (
        f"{workload['name']}, {', '.join(workload['results'])}: Poisson arrivals, p{about['slo_percentile']:g} bound "
        f"{about['slo_ms']:g} ms, {about['rows_per_batch']:.1f} rows a batch, busy {100 * about['busy_share']:.0f} %, "
        f"{100 * about['late_share']:.2g} % sent late{peak}"
    )


def _table(workloads: Sequence[Mapping[str, Any]]) -> list[str]:
    queued = any("queue" in result.get("split", {}) for w in workloads for result in w["results"].values())
    energy = any(result.get("joules_per_1000_rows") is not None for w in workloads for result in w["results"].values())
    split = "queue/tokenise/run/finish %" if queued else "tokenise/run/finish %"
    header = ["workload", "threads", "target", "p50 ms", "p90 ms", "p99 ms", "rows/s", "padding %", split]
    header += ["J/1000 rows"] if energy else []
    rows = [[*header, "ratio"]]
    for workload in workloads:
        first = [workload["name"], str(workload["threads"] or "-")]
        entries = [(f"tried {one['scheduled_qps']:.4g} requests/s", one) for one in workload.get("tried", [])]
        for target, result in [*workload["results"].items(), *entries]:
            mark = "" if result.get("valid", True) else ", not valid"
            cells = [*first, target + mark, *_cells(result)]
            rows.append(cells if energy else [*cells[:-2], cells[-1]])
            first = ["", ""]
    widths = [max(len(row[c]) for row in rows) for c in range(len(rows[0]))]
    left = (0, 2, len(widths) - 1)

    def aligned(row: Sequence[str]) -> str:
        cells = enumerate(zip(row, widths, strict=True))
        return "  ".join(cell.ljust(width) if c in left else cell.rjust(width) for c, (cell, width) in cells).rstrip()

    return [aligned(rows[0]), "-" * (sum(widths) + 2 * len(widths) - 2), *map(aligned, rows[1:])]


def _cells(result: Mapping[str, Any]) -> list[str]:
    if "latency_ms" not in result:
        return [*["-"] * 6, "", ""]
    latency = result["latency_ms"]
    cells = [f"{latency[p]:.2f}" if p in latency else "-" for p in ("p50", "p90", "p99")]
    cells.append(f"{result['rows_per_s']:.1f}")
    padding, joules = result["padding_share"], result["joules_per_1000_rows"]
    cells.append("-" if padding is None else f"{100 * padding:.1f}")
    cells.append(" / ".join(f"{100 * step['share']:.1f}" for step in result["split"].values()))
    cells.append("-" if joules is None else f"{joules:.1f}")
    pairs = result.get("ratio")
    cells.append(f"{pairs['median']:.2f} [{pairs['low']:.2f}, {pairs['high']:.2f}]" if pairs else "")
    return cells
