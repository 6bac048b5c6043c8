"""``levi bench``: latency and throughput of a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from levi_deploy.cli.options import Device, Json, existing, option, progress, renamed, show, table

_SCENARIOS = "single: one query after another; offline: all rows at once; server: queries of one row arrive at a rate."
_AGAINST = "torch, torch-compile, openvino (f32), openvino-default (its own choice), or a bundle; repeatable."


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    scenario: Annotated[str, option("--scenario", help=_SCENARIOS)] = "single",
    batch_size: Annotated[str, option("--batch-size", help="Rows of a query, as 1,8,32.")] = "1",
    length: Annotated[
        str | None,
        option("--length", help="Tokens of a row, as 32,128; the rows' own lengths when not given."),
    ] = None,
    threads: Annotated[
        str | None, option("--threads", help="Threads of every target, as 1,2; default: usable cores.")
    ] = None,
    precision: Annotated[
        str | None, option("--precision", help="The bundle's graphs to measure, as fp32,int8 [its first].")
    ] = None,
    data: Annotated[Path | None, option("--input", help="Rows to measure with [the bundle's golden rows].")] = None,
    text: Annotated[str | None, option("--text", help="The input's column with the text [the model's].")] = None,
    duration: Annotated[
        float | None, option("--duration", help="Seconds for each workload and target [60].", min=0.1)
    ] = None,
    quick: Annotated[bool, option("--quick", help="3 seconds each; labelled, and not to be published.")] = False,
    mlperf: Annotated[bool, option("--mlperf", help="600 seconds each, as MLPerf's rules ask.")] = False,
    qps: Annotated[
        float | None, option("--qps", help="server: queries a second; with --find-peak where to start.", min=1e-3)
    ] = None,
    find_peak: Annotated[
        bool, option("--find-peak", help="server: search the highest rate within the bound, to 5 %.")
    ] = False,
    slo_ms: Annotated[float, option("--slo-ms", help="server: the bound on the latency's percentile.", min=1e-3)] = 50,
    slo_percentile: Annotated[
        float, option("--slo-percentile", help="server: which percentile.", min=50, max=99.99)
    ] = 99,
    seed: Annotated[int, option("--seed", help="server: of arrivals and rows, so that they repeat.", min=0)] = 0,
    against: Annotated[list[str] | None, option("--against", help=_AGAINST)] = None,
    run: Annotated[Path | None, option("--run", help="The training run, for --against torch.")] = None,
    backbone: Annotated[str | None, option("--backbone", help="Where the run's backbone lies now.")] = None,
    flame: Annotated[
        Path | None,
        option("--profile", help="Instead: where the time goes, by part; a flame view is written to this HTML file."),
    ] = None,
    tune: Annotated[
        bool,
        option("--tune", help="Instead: find threads, workers and token budget, for every later run on this machine."),
    ] = False,
    device: Device = "auto",
    output: Annotated[Path | None, option("-o", "--output", help="Write the report there, as JSON.")] = None,
    old: Annotated[
        Path | None, option("--compare", help="A report from before: say what became faster or slower.")
    ] = None,
    fail_slower: Annotated[
        float | None, option("--fail-slower", help="Exit with 4 when surely slower than --compare by so many %.", min=0)
    ] = None,
    drawing: Annotated[Path | None, option("--plot", help="Draw latency against throughput, .png or .html.")] = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle; exit code 4 when the measurement does not count.

    A query's latency runs from when it was due until its answer is complete. single and offline measure all
    targets in turns and give the ratio of pairs; server measures one target after another.

    It counts when it was long enough, no query failed, and: single, offline: the last three windows lie
    within 10 % of each other (perf_analyzer's rule), on at least 64 queries or 3 passes; server: the
    percentile is below the bound with 99 % confidence (MLPerf's early stopping) and at most 1 % of the queries
    were handed over late. The reasons are listed.

    Percentiles are sorted[floor(n*p)] (MLPerf's loadgen), listed where enough queries support them.
    """
    from levi_deploy.lineup import Lineups
    from levi_serving import bench
    from levi_serving.bench import compare, plot
    from levi_serving.errors import BenchmarkError, UsageError

    existing(bundle, "a bundle")
    if mlperf and (quick or duration is not None):
        raise UsageError("--mlperf says how long to measure: leave out --quick and --duration.")
    if flame and (against or old or scenario != "single"):
        raise UsageError("--profile takes single queries of one bundle apart. Leave --against and --scenario out.")
    if tune and (against or old or scenario == "server"):
        raise UsageError("--tune lays one bundle out for --scenario single or offline. Leave --against out.")
    if fail_slower is not None and old is None:
        raise UsageError("--fail-slower needs --compare OLD.json.")
    profile: bench.Profile = "quick" if quick else "mlperf" if mlperf else "default" if duration is None else "custom"
    plan = bench.Plan(
        scenario=scenario,
        duration_s=duration or bench.DURATIONS[profile],
        qps=qps,
        find_peak=find_peak,
        bound_s=slo_ms / 1e3,
        percentile=slo_percentile / 100,
        seed=seed,
        meter=bench.Meter.find(),
    )
    if drawing:
        plot.require(drawing)
    before = compare.read(old) if old else None
    if before:
        compare.same_machine(before)
    lineups = Lineups(
        bundle=bundle,
        device=cast("Any", device),
        threads=_numbers("--threads", threads) if threads else [None],
        precisions=precision.split(",") if precision else [None],
        scenario="offline" if scenario == "offline" else "single",
        against=against or [],
        run=run,
        backbone=backbone,
    )
    sizes = _numbers("--batch-size", batch_size) if scenario == "single" else [1]
    lengths = _numbers("--length", length) if length else []
    measured: list[bench.Measurement] = []
    apart: list[Any] = []
    with progress() as tell:
        for n, lineup in enumerate(lineups):
            if n == 0:
                rows, skipped = _rows(lineup.runners[0], data, text)
                workloads = bench.workloads(lineup.runners[0].preprocessor, rows, batch_sizes=sizes, lengths=lengths)
                cold = lineup.cold_start(rows[0])
            if tune:
                _tune(lineup.runners, rows, scenario, as_json=as_json)
                return
            if flame:
                apart += _apart(lineup.runners, workloads, plan.duration_s)
                continue
            for m, workload in enumerate(workloads):
                tell("measuring", n * len(workloads) + m, len(lineups) * len(workloads))
                measured += plan.measure(lineup.targets, workload)
        tell("measuring", 1, 1)
    if flame:
        _draw(apart, bundle.name, flame, as_json=as_json)
        return
    report = bench.Report(measured, profile=profile, duration_s=plan.duration_s, cold_start_s=cold, skipped=skipped)
    document = report.to_dict()
    human = [bench.in_words(document)]
    changes = []
    try:
        if before:
            changes = document["comparison"] = compare.compare(document, before)
            human += ["", compare.in_words(changes, before)]
    finally:  # what was measured is kept, also where it cannot be compared
        if output:
            output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if drawing:
            plot.plot(document, drawing)
        show(document, as_json=as_json, human=lambda: "\n".join(human))
    if report.verdict == "INVALID":
        raise BenchmarkError("The measurement does not count: " + "; ".join(report.reasons))
    worse = [one for one in changes if one["low"] > 1 + (fail_slower or 0) / 100]
    if fail_slower is not None and worse:
        named = "; ".join(f"{one['workload']} of {one['target']}: {one['ratio']:.2f} times" for one in worse)
        raise BenchmarkError(f"Slower than {old} by more than {fail_slower:g} %: {named}.")


def _tune(runners: Any, rows: Any, scenario: Any, *, as_json: bool) -> None:
    """Find each graph's best layout, keep it in the bundle's folder, and print what was tried."""
    from levi_serving.bench.tune import tune_runner

    found = [tune_runner(runner, rows, scenario=scenario) for runner in runners]

    def human() -> str:
        return "\n\n".join(
            f"{one['graph']}, {scenario}: {one['threads']} threads x {one['workers']} workers, at most "
            f"{one['max_batch_tokens']} tokens a batch; kept in {one['file']}.\n"
            + table(
                [[t["threads"], t["workers"], t["max_batch_tokens"], t["median_s"], t["gain"]] for t in one["trials"]],
                header=["threads", "workers", "tokens", "seconds", "times faster than untuned"],
            )
            for one in found
        )

    show({"format_version": 1, "scenario": scenario, "tuned": found}, as_json=as_json, human=human)


def _apart(runners: Any, workloads: Any, seconds: float) -> list[Any]:
    """Where the time of each workload's queries goes, for each of a bundle's runners."""
    from levi_serving.bench.peak import measure
    from levi_serving.bench.profile import profile

    return [
        profile(runner, workload, peak=measure(runner.session.threads), duration_s=seconds)
        for runner in runners
        for workload in workloads
    ]


def _draw(apart: list[Any], name: str, flame: Path, *, as_json: bool) -> None:
    """Print the trees and write the page."""
    from levi_serving.bench.environment import environment
    from levi_serving.bench.flame import page

    about = environment()
    flame.parent.mkdir(parents=True, exist_ok=True)
    flame.write_text(page(apart, about, name), encoding="utf-8")
    document = {"format_version": 1, "profiles": [one.to_dict() for one in apart], "environment": about}
    show(document, as_json=as_json, human=lambda: "\n\n".join([*map(str, apart), f"The flame view is {flame}."]))


def _numbers(name: str, text: str) -> list[int]:
    from levi_serving.errors import UsageError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{name} is {text!r}; expected whole numbers from 1, as 1,8,32.")
    return numbers


def _rows(runner: Any, data: Path | None, text: str | None) -> tuple[list[dict[str, object]], dict[str, object]]:
    """Real rows, of a file or the bundle's own golden ones; and how many of the file cannot be used, and why."""
    from levi_serving.bundle import GOLDEN
    from levi_serving.errors import UsageError
    from levi_serving.parity import Golden
    from levi_serving.tables import located, read_columns

    if data is None:
        golden = Golden.load(runner.bundle.folder / GOLDEN, runner.preprocessor.settings).rows
        return [dict(row) for row in cast("Any", golden)], {}
    wanted = renamed(runner.columns, runner.preprocessor.settings, text=text)
    values = read_columns(data, list(wanted.values())).values
    cells = {own: located(values[name], data) if own in runner.files else values[name] for own, name in wanted.items()}
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    bad: dict[int, str] = {}
    runner.prepare(rows, bad=bad)
    if len(bad) == len(rows):
        raise UsageError(f"{data} has no row that can be used; of the first: {bad[0] if bad else 'there is none'}")
    skipped = {"rows": len(bad), "of": len(rows), "first": next(iter(bad.values()))} if bad else {}
    return [row for n, row in enumerate(rows) if n not in bad], skipped
