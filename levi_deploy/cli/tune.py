"""``levi tune``: how a bundle runs fastest on this machine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from levi_deploy.cli.options import (
    MEASUREMENT,
    Bundle,
    Data,
    Device,
    Json,
    Precisions,
    Text,
    existing,
    option,
    progress,
    show,
    table,
)

_SCENARIO = "What to be fast at. single: one request after another. offline: all rows at once, as levi predict."


def command(
    bundle: Bundle,
    data: Data = None,
    text: Text = None,
    scenario: Annotated[
        Literal["single", "offline"], option("--scenario", help=_SCENARIO, panel=MEASUREMENT)
    ] = "single",
    device: Device = "auto",
    precision: Precisions = None,
    json: Json = False,
) -> None:
    """Find the layout in which a bundle is fastest on this machine.

    A layout is a number of threads, of workers, and of tokens in a batch. The one found is kept in the cache, and
    every later run of the bundle on this machine uses it. It differs from the default only where the gain is beyond
    the noise.
    """
    from levi_deploy.cli.lineup import open_runner
    from levi_deploy.cli.rows import usable_rows
    from levi_serving.bench.tune import tune_runner

    existing(bundle, "a bundle")
    graphs = precision or (None,)
    found = []
    with progress() as update:
        for n, name in enumerate(graphs):
            update("tuning", n, len(graphs))
            runner = open_runner(bundle, device=device, scenario=scenario, threads=None, precision=name)
            found.append(tune_runner(runner, usable_rows(runner, data, text=text).rows, scenario=scenario))
        update("tuning", 1, 1)
    document = {"format_version": 1, "scenario": scenario, "tuned": found}
    show(document, json=json, human=lambda: "\n\n".join(_human(graph, scenario) for graph in found))


def _human(found: dict[str, Any], scenario: str) -> str:
    attempts = [
        [one["threads"], one["workers"], one["max_batch_tokens"], one["median_s"], one["gain"]]
        for one in found["attempts"]
    ]
    header = ["threads", "workers", "tokens", "seconds", "times faster than untuned"]
    return (
        f"{found['graph']}, {scenario}: {found['threads']} threads x {found['workers']} workers, at most "
        f"{found['max_batch_tokens']} tokens a batch; kept in {found['file']}.\n" + table(attempts, header=header)
    )
