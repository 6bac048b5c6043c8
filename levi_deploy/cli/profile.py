"""``levi profile``: where the time of a request goes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from levi_deploy.cli.options import (
    MEASUREMENT,
    OUTPUT,
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
    show,
    writable,
)


def command(
    bundle: Bundle,
    data: Data = None,
    text: Text = None,
    batch_size: BatchSizes = None,
    length: Lengths = None,
    duration: Annotated[
        float, option("--duration", help="Seconds for each workload and graph.", panel=MEASUREMENT, min=0.1)
    ] = 60,
    device: Device = "auto",
    threads: ThreadCounts = None,
    precision: Precisions = None,
    output: Annotated[
        Path | None, option("--output", "-o", help="Write a page with a flame graph, as .html.", panel=OUTPUT)
    ] = None,
    json: Json = False,
) -> None:
    """Show where the time of a request goes, part by part.

    Requests follow one another, as in levi bench --scenario single. The tree says of each part how long it takes, and
    how much of the machine's peak it reaches.
    """
    from levi_deploy.cli.lineup import open_runner
    from levi_deploy.cli.rows import usable_rows
    from levi_serving.bench import workloads
    from levi_serving.bench.breakdown import flame_page, measure_peak, profile
    from levi_serving.environment import environment

    existing(bundle, "a bundle")
    writable(output)
    breakdowns = []
    graphs = [(count, name) for count in threads or (None,) for name in precision or (None,)]
    with progress() as update:
        for n, (count, name) in enumerate(graphs):
            runner = open_runner(bundle, device=device, scenario="single", threads=count, precision=name)
            rows = usable_rows(runner, data, text=text).rows
            loads = workloads(runner.preprocessor, rows, batch_sizes=batch_size or [1], lengths=length or [])
            for m, workload in enumerate(loads):
                update("profiling", n * len(loads) + m, len(graphs) * len(loads))
                peak = measure_peak(runner.session.threads)
                breakdowns.append(profile(runner, workload, peak=peak, duration_s=duration))
        update("profiling", 1, 1)
    about = environment()
    lines = [*map(str, breakdowns), *([f"The flame graph is {output}."] if output else [])]
    document = {"format_version": 1, "profiles": [one.to_dict() for one in breakdowns], "environment": about}
    show(document, json=json, human=lambda: "\n\n".join(lines))
    if output:
        output.write_text(flame_page(breakdowns, about, bundle.name), encoding="utf-8")
