"""``levi compare``: LEVI beside every method that it is compared with, on your rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import (
    DATA,
    EXECUTION,
    MEASUREMENT,
    OUTPUT,
    Cache,
    Json,
    Overwrite,
    existing,
    option,
    progress,
    several,
    show,
    table,
)


def command(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A LEVI model's settings: a TOML file.")],
    data: Annotated[
        Path, typer.Argument(metavar="DATA", help="Rows with answers and a split column, test rows among them.")
    ],
    output: Annotated[Path, option("--output", "-o", help="The report's folder.", panel=OUTPUT)],
    methods: Annotated[
        list[str] | None,
        several(
            "--methods",
            of="method",
            help="What to compare; an unknown name lists them all.",
            panel=MEASUREMENT,
            show_default="scratch,linear-probe,fine-tune,levi,levi-on-fine-tuned,no-branch",
        ),
    ] = None,
    seeds: Annotated[int, option("--seeds", help="Trainings of each method.", panel=MEASUREMENT)] = 3,
    budget: Annotated[
        int, option("--budget", help="Learning rates that each method may try, 1 to 4.", panel=MEASUREMENT)
    ] = 3,
    split: Annotated[
        list[str] | None,
        several(
            "--split",
            of="value",
            help="Values of the split column to test on, the in-distribution one first.",
            panel=DATA,
            show_default="all but training and validation",
        ),
    ] = None,
    by: Annotated[
        str | None, option("--by", help="A column; the rows with each of its values are measured too.", panel=DATA)
    ] = None,
    pairs: Annotated[
        str | None,
        option(
            "--pairs", help="A column with the same value in versions of one row; answers are compared.", panel=DATA
        ),
    ] = None,
    cost: Annotated[
        bool,
        option("--cost/--no-cost", help="Export each kind of model and time its graph.", panel=MEASUREMENT),
    ] = True,
    jobs: Annotated[
        int, option("--jobs", help="Runs trained side by side, sharing out the threads.", panel=EXECUTION)
    ] = 1,
    cache: Cache = None,
    resume: Annotated[
        bool, option("--resume", help="Go on in the folder; no finished run is repeated.", panel=EXECUTION)
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Measure LEVI beside other methods, in and out of distribution.

    All train on the same rows, have the same number of trials, and are chosen on in-distribution validation rows alone.
    The report's folder gets index.html, report.md, results.json and all runs.
    """
    existing(config, "a TOML file")
    existing(data, "a table with answers")
    from levi_deploy.compare import compare
    from levi_deploy.compare.compare import DEFAULT_METHODS
    from levi_deploy.config import Config

    with progress() as update:
        document = compare(
            data,
            output,
            Config.read(config),
            methods=methods or DEFAULT_METHODS,
            seeds=seeds,
            budget=budget,
            splits=split or (),
            by=by,
            pairs=pairs,
            cost=cost,
            jobs=jobs,
            resume=resume,
            overwrite=overwrite,
            cache=cache,
            progress=update,
        )
    show(document, json=json, human=lambda: _human(document, output))


def _human(document: dict[str, Any], output: Path) -> str:
    from statistics import mean

    results = document["results"]
    metric = results[0]["metric"]
    columns = list(dict.fromkeys((record["split"], record["group"]) for record in results))
    values: dict[str, dict[tuple[str, str], list[float]]] = {}
    for record in results:
        if record["metric"] == metric:
            place = values.setdefault(record["method"], {}).setdefault((record["split"], record["group"]), [])
            place.append(record["value"])
    rows = [[method, *(mean(found[column]) for column in columns)] for method, found in values.items()]
    header = [metric, *(split if group == "all" else f"{split}, {group}" for split, group in columns)]
    return f"{table(rows, header=header)}\n\nThe report is {output / 'index.html'}."
