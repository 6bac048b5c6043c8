"""``levi bench``: latency and throughput of a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from levi_deploy.cli.options import Device, Json, Threads, existing, option, renamed, show


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    scenario: Annotated[
        str, option("--scenario", help="single: one query after another; offline: all rows at once.")
    ] = "single",
    batch_size: Annotated[str, option("--batch-size", help="Rows of a query, as 1,8,32.")] = "1",
    length: Annotated[
        str | None,
        option("--length", help="Tokens of a row, as 32,128; the rows' own lengths when not given."),
    ] = None,
    data: Annotated[Path | None, option("--input", help="Rows to measure with [the bundle's golden rows].")] = None,
    text: Annotated[str | None, option("--text", help="The input's column with the text [the model's].")] = None,
    duration: Annotated[float, option("--duration", help="Seconds for each workload and target.", min=0.1)] = 60.0,
    quick: Annotated[bool, option("--quick", help="3 seconds each; not to be published.")] = False,
    against: Annotated[str | None, option("--against", help="torch, or another bundle: measured side by side.")] = None,
    run: Annotated[Path | None, option("--run", help="The training run, for --against torch.")] = None,
    backbone: Annotated[str | None, option("--backbone", help="Where the run's backbone lies now.")] = None,
    flame: Annotated[
        Path | None,
        option("--profile", help="Instead: where the time goes, by part; a flame view is written to this HTML file."),
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Measure a bundle; exit code 4 when the measurement does not count."""
    from levi_serving.errors import BenchmarkError, UsageError

    existing(bundle, "a bundle")
    if scenario not in ("single", "offline"):
        raise UsageError(f"--scenario is {scenario!r}; expected single or offline.")
    if flame and (against or scenario != "single"):
        raise UsageError("--profile takes single queries of one bundle apart. Leave --against and --scenario out.")
    sizes, lengths = _numbers("--batch-size", batch_size), _numbers("--length", length) if length else []
    from levi_serving import Runner, bench
    from levi_serving.session import Device as DeviceName

    runner = Runner(bundle, device=cast("DeviceName", device), threads=threads)
    rows = _rows(runner, data, text)
    if lengths:
        workloads = bench.fixed(runner.preprocessor, rows, batch_sizes=sizes, lengths=lengths)
    else:
        workloads = bench.real(rows, batch_sizes=sizes if scenario == "single" else [1])
    seconds = 3.0 if quick else duration
    if flame:
        _take_apart([runner], workloads, flame, seconds, as_json=as_json)
        return
    targets: list[Any] = [runner]
    if against:
        targets.append(_other(against, run, backbone, device, threads, runner.session.threads))
    measure = bench.single if scenario == "single" else bench.offline
    measured = [measure(targets, workload, duration_s=seconds) for workload in workloads]
    report = bench.Report(measured, targets, quick=quick)
    show(report.to_dict(), as_json=as_json, human=lambda: str(report))
    if report.verdict == "INVALID":
        raise BenchmarkError("The measurement does not count: " + "; ".join(report.reasons))


def _take_apart(runners: Any, workloads: Any, flame: Path, seconds: float, *, as_json: bool) -> None:
    """Say where the time of each workload's queries goes, and write the page."""
    from levi_serving.bench.environment import environment
    from levi_serving.bench.flame import page
    from levi_serving.bench.peak import measure
    from levi_serving.bench.profile import profile

    found = [
        profile(runner, workload, peak=measure(runner.session.threads), duration_s=seconds)
        for runner in runners
        for workload in workloads
    ]
    about = environment()
    flame.parent.mkdir(parents=True, exist_ok=True)
    flame.write_text(page(found, about, runners[0].bundle.folder.name), encoding="utf-8")
    document = {"format_version": 1, "profiles": [one.to_dict() for one in found], "environment": about}
    show(document, as_json=as_json, human=lambda: "\n\n".join([*map(str, found), f"The flame view is {flame}."]))


def _numbers(name: str, text: str) -> list[int]:
    from levi_serving.errors import UsageError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise UsageError(f"{name} is {text!r}; expected whole numbers from 1, as 1,8,32.")
    return numbers


def _rows(runner: Any, data: Path | None, text: str | None) -> list[dict[str, object]]:
    """Real rows: of a file, or the bundle's own golden rows."""
    from levi_serving.bundle import GOLDEN
    from levi_serving.errors import UsageError
    from levi_serving.parity import Golden
    from levi_serving.tables import located, read_columns

    if data is None:
        golden = Golden.load(runner.bundle.folder / GOLDEN, runner.preprocessor.settings).rows
        return [dict(row) for row in cast("Any", golden)]
    wanted = renamed(runner.columns, runner.preprocessor.settings, text=text)
    values = read_columns(data, list(wanted.values())).values
    cells = {own: located(values[name], data) if own in runner.files else values[name] for own, name in wanted.items()}
    rows = [dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)]
    bad: dict[int, str] = {}
    runner.prepare(rows, bad=bad)
    if len(bad) == len(rows):
        raise UsageError(f"{data} has no row that can be used; of the first: {bad[0] if bad else 'there is none'}")
    return [row for n, row in enumerate(rows) if n not in bad]


def _other(against: str, run: Path | None, backbone: str | None, device: str, threads: int | None, cores: int) -> Any:
    """The model that ours is compared with, with as many threads."""
    from levi_serving.errors import UsageError

    if against != "torch":
        from levi_serving import Runner
        from levi_serving.session import Device as DeviceName

        other = Runner(existing(Path(against), "a bundle"), device=cast("DeviceName", device), threads=threads)
        other.name = Path(against).name
        return other
    if run is None:
        raise UsageError("--against torch needs the training run: a bundle holds no torch weights. Give --run RUN.")
    import torch

    from levi_deploy.training import Run

    torch.set_num_threads(cores)
    return Run.open(existing(run, "a training run")).reference(backbone=backbone)
