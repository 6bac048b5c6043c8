"""``levi bench``: latency and throughput of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from levi_deploy.cli.options import (
    COMPARISON,
    MEASUREMENT,
    OUTPUT,
    SERVER,
    Backbone,
    BatchSizes,
    Bundle,
    Data,
    Device,
    Json,
    Lengths,
    Precisions,
    Text,
    ThreadCounts,
    existing,
    option,
    progress,
    several,
    show,
    writable,
)

if TYPE_CHECKING:
    from levi_serving.bench import Report

_SCENARIO = "single: one request after another. offline: all rows at once. server: requests of a row arrive at a rate."
_AGAINST = "What to measure side by side: torch, torch-compile, openvino (in f32), openvino-default, or a bundle."


def command(
    bundle: Bundle,
    data: Data = None,
    text: Text = None,
    batch_size: BatchSizes = None,
    length: Lengths = None,
    scenario: Annotated[
        Literal["single", "offline", "server"], option("--scenario", help=_SCENARIO, panel=MEASUREMENT)
    ] = "single",
    duration: Annotated[
        float | None,
        option(
            "--duration", help="Seconds for each workload and target.", panel=MEASUREMENT, min=0.1, show_default="60"
        ),
    ] = None,
    quick: Annotated[
        bool, option("--quick", help="3 seconds each; the report says that it does not count.", panel=MEASUREMENT)
    ] = False,
    mlperf: Annotated[
        bool, option("--mlperf", help="600 seconds each, as MLPerf's rules require.", panel=MEASUREMENT)
    ] = False,
    qps: Annotated[
        float | None,
        option("--qps", help="Requests a second; with --find-peak, the rate to start at.", panel=SERVER, min=1e-3),
    ] = None,
    find_peak: Annotated[
        bool, option("--find-peak", help="Search the highest rate within the bound, to 5 %.", panel=SERVER)
    ] = False,
    slo_ms: Annotated[
        float, option("--slo-ms", help="The bound on the latency's percentile, in ms.", panel=SERVER, min=1e-3)
    ] = 50,
    slo_percentile: Annotated[
        float, option("--slo-percentile", help="The percentile.", panel=SERVER, min=50, max=99.99)
    ] = 99,
    seed: Annotated[int, option("--seed", help="Seed of arrivals and rows.", panel=SERVER, min=0)] = 0,
    device: Device = "auto",
    threads: ThreadCounts = None,
    precision: Precisions = None,
    against: Annotated[list[str] | None, several("--against", of="target", help=_AGAINST, panel=COMPARISON)] = None,
    run: Annotated[
        Path | None, option("--run", help="The training run, for --against torch.", panel=COMPARISON)
    ] = None,
    backbone: Backbone = None,
    baseline: Annotated[
        Path | None,
        option("--baseline", help="An older report: say what became faster or slower.", panel=COMPARISON),
    ] = None,
    fail_slower: Annotated[
        float | None,
        option(
            "--fail-slower",
            help="Exit with 4 when surely slower than --baseline by so many %.",
            panel=COMPARISON,
            min=0,
        ),
    ] = None,
    output: Annotated[Path | None, option("--output", "-o", help="Write the report, as JSON.", panel=OUTPUT)] = None,
    plot: Annotated[
        Path | None, option("--plot", help="Draw latency against throughput, as .png or .html.", panel=OUTPUT)
    ] = None,
    json: Json = False,
) -> None:
    """Measure the latency and throughput of a bundle.

    A request's latency runs from when it was due until its answer is complete. single and offline measure all
    targets in turns and give the ratio of pairs; server measures one target after another.

    A measurement counts when it was long enough and no request failed. single and offline: the last three windows
    lie within 10 % of each other (perf_analyzer's rule), on at least 64 requests or 3 passes. server: the percentile
    is below the bound with 99 % confidence (MLPerf's early stopping), and at most 1 % of the requests were sent late.
    Otherwise the exit code is 4, and the report lists the reasons.

    Percentiles are sorted[floor(n*p)] (MLPerf's loadgen), listed where enough requests support them.
    """
    from levi_deploy.cli.lineup import Lineups
    from levi_deploy.cli.rows import usable_rows
    from levi_serving import bench
    from levi_serving.bench import baseline as baselines
    from levi_serving.bench import plot as plots
    from levi_serving.errors import UsageError

    existing(bundle, "a bundle")
    writable(output, plot)
    if mlperf and (quick or duration is not None):
        raise UsageError("--mlperf sets how long to measure. Leave out --quick and --duration.")
    if fail_slower is not None and baseline is None:
        raise UsageError("--fail-slower needs an older report. Give --baseline REPORT.json.")
    preset: bench.Preset = "quick" if quick else "mlperf" if mlperf else "default" if duration is None else "custom"
    benchmark = bench.Benchmark(
        scenario=scenario,
        duration_s=duration or bench.DURATIONS[preset],
        qps=qps,
        find_peak=find_peak,
        bound_s=slo_ms / 1e3,
        percentile=slo_percentile / 100,
        seed=seed,
        meter=bench.Meter.find(),
    )
    if plot:
        plots.require(plot)
    old = baselines.read(baseline) if baseline else None
    if old:
        baselines.same_machine(old)
    lineups = Lineups(
        bundle=bundle,
        device=device,
        threads=threads or [None],
        precisions=precision or [None],
        scenario="offline" if scenario == "offline" else "single",
        against=against or [],
        run=run,
        backbone=backbone,
    )
    sizes = batch_size if batch_size and scenario == "single" else [1]
    measured: list[bench.Measurement] = []
    with progress() as update:
        for n, lineup in enumerate(lineups):
            if n == 0:
                usable = usable_rows(lineup.first, data, text=text)
                workloads = bench.workloads(
                    lineup.first.preprocessor, usable.rows, batch_sizes=sizes, lengths=length or []
                )
                cold_start_s = lineup.cold_start(usable.rows[0])
            for m, workload in enumerate(workloads):
                update("measuring", n * len(workloads) + m, len(lineups) * len(workloads))
                measured += benchmark.measure(lineup.targets, workload)
        update("measuring", 1, 1)
    report = bench.Report(
        measured, preset=preset, duration_s=benchmark.duration_s, cold_start_s=cold_start_s, skipped=usable.skipped
    )
    document = report.to_dict()
    text_lines = [bench.in_words(document)]
    changes: list[dict[str, Any]] = []
    try:
        if old:
            changes = document["comparison"] = baselines.compare(document, old)
            text_lines += ["", baselines.in_words(changes, old)]
    finally:  # what was measured is shown and kept, also where it cannot be compared
        show(document, json=json, human=lambda: "\n".join(text_lines))
        if output:
            _write(document, output)
        if plot:
            plots.plot(document, plot)
    _judge(report, changes, baseline, fail_slower)


def _write(document: Mapping[str, Any], output: Path) -> None:
    import json

    output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _judge(
    report: Report, changes: Sequence[Mapping[str, Any]], baseline: Path | None, fail_slower: float | None
) -> None:
    """Refuse a measurement that does not count, or that is surely slower than the baseline by too much.

    Raises:
        BenchmarkError: why.
    """
    from levi_serving.errors import BenchmarkError

    if report.verdict == "INVALID":
        raise BenchmarkError("The measurement does not count: " + "; ".join(report.reasons))
    slower = [change for change in changes if change["low"] > 1 + (fail_slower or 0) / 100]
    if fail_slower is not None and slower:
        which = "; ".join(f"{one['workload']} of {one['target']}: {one['ratio']:.2f} times" for one in slower)
        raise BenchmarkError(f"Slower than {baseline} by more than {fail_slower:g} %: {which}.")
