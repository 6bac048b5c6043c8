"""``levi predict``: a file in, the same rows with predictions out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from levi_deploy.cli.options import (
    DATA,
    EXECUTION,
    OUTPUT,
    Bundle,
    Device,
    Image,
    Json,
    Overwrite,
    Precision,
    Text,
    Threads,
    existing,
    option,
    progress,
    renamed,
)

FormatName = Literal["csv", "tsv", "jsonl", "parquet"]


def command(
    bundle: Bundle,
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="CSV, TSV, JSONL, Parquet, a folder of images, or - for a pipe.")
    ],
    text: Text = None,
    image: Image = None,
    input_format: Annotated[
        FormatName | None,
        option("--input-format", help="Format of INPUT.", panel=DATA, show_default="by its suffix; jsonl from a pipe"),
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    workers: Annotated[
        int | None,
        option(
            "--workers", help="Batches at the same time.", panel=EXECUTION, min=1, show_default="one a core on a CPU"
        ),
    ] = None,
    max_batch_tokens: Annotated[
        int | None,
        option(
            "--max-batch-tokens",
            help="Most padded tokens of a batch.",
            panel=EXECUTION,
            min=1,
            show_default="1024, or what levi tune found",
        ),
    ] = None,
    window_rows: Annotated[
        int | None,
        option(
            "--window-rows",
            help="Rows in memory at a time.",
            panel=EXECUTION,
            min=1,
            show_default="2048; 256 with images",
        ),
    ] = None,
    strict: Annotated[bool, option("--strict", help="Stop at the first row that fails.", panel=EXECUTION)] = False,
    resume: Annotated[bool, option("--resume", help="Resume an interrupted run.", panel=EXECUTION)] = False,
    *,
    output: Annotated[
        Path,
        option("--output", "-o", help="The rows with their predictions: CSV, TSV, JSONL, Parquet, or -.", panel=OUTPUT),
    ],
    output_format: Annotated[
        FormatName | None,
        option(
            "--output-format", help="Format of the output.", panel=OUTPUT, show_default="by its suffix; jsonl to a pipe"
        ),
    ] = None,
    heads: Annotated[bool, option("--heads", help="Also write each head's own prediction.", panel=OUTPUT)] = False,
    all_probabilities: Annotated[
        bool, option("--all-probabilities", help="Also write each class's probability.", panel=OUTPUT)
    ] = False,
    prefix: Annotated[str, option("--prefix", help="Prefix of the new columns' names.", panel=OUTPUT)] = "",
    errors: Annotated[
        Path | None,
        option(
            "--errors",
            help="Where rows that fail are written, as JSONL.",
            panel=OUTPUT,
            show_default="OUTPUT.errors.jsonl, when there are any",
        ),
    ] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Predict every row of a file.

    The output has the input's rows and columns, with the predictions added. Rows that cannot be used are written to
    another file with their reasons; the exit code is then 6. An interrupted run can be resumed.
    """
    existing(bundle, "a bundle")
    from levi_serving import Runner, predict_file

    runner = Runner(
        bundle,
        device=device,
        scenario="offline",
        threads=threads,
        workers=workers,
        precision=precision,
        max_batch_tokens=max_batch_tokens,
    )
    pipe = Path("-")
    with progress() as update:
        summary = predict_file(
            runner,
            sys.stdin.buffer if source == pipe else source,
            sys.stdout.buffer if output == pipe else output,
            columns=renamed(runner.preprocessor.settings, text=text, image=image),
            heads=heads,
            all_probabilities=all_probabilities,
            prefix=prefix,
            errors=sys.stderr.buffer if output == pipe and errors is None else errors,
            strict=strict,
            resume=resume,
            overwrite=overwrite,
            input_format=input_format,
            output_format=output_format,
            window_rows=window_rows,
            progress=lambda done, bad, fraction: update("predicting", fraction, 1),  # noqa: ARG005
        )
    if json:
        from json import dumps

        document = {
            "predicted": summary.predicted,
            "failed": summary.failed,
            "resumed": summary.resumed,
            "seconds": round(summary.seconds, 3),
            "output": str(summary.output or "-"),
            "errors": str(summary.errors) if summary.errors else None,
        }
        typer.echo(dumps(document), err=summary.output is None)
    elif summary.output is not None:
        rate = (summary.predicted + summary.failed - summary.resumed) / summary.seconds
        typer.echo(
            f"{summary.predicted} rows predicted, {summary.failed} failed, in {summary.seconds:.1f} s "
            f"({rate:.0f} rows/s, {runner.session.provider}): {summary.output}"
        )
    summary.check()
