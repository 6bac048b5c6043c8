"""``levi predict``: a file in, the same rows with predictions out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from levi_deploy.cli.options import (
    Device,
    Json,
    Overwrite,
    Precision,
    Threads,
    Workers,
    existing,
    option,
    progress,
    renamed,
)


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="CSV, TSV, JSONL, Parquet, a folder of images, or - for a pipe.")
    ],
    output: Annotated[
        Path, option("--output", "-o", help="The rows with their predictions: CSV, TSV, JSONL, Parquet, or -.")
    ],
    text: Annotated[str | None, option("--text", help="The input's column with the text [the model's].")] = None,
    image: Annotated[str | None, option("--image", help="The input's column with the image [the model's].")] = None,
    heads: Annotated[bool, option("--heads", help="Also each head's own prediction.")] = False,
    all_probabilities: Annotated[bool, option("--all-probabilities", help="Also each class's probability.")] = False,
    prefix: Annotated[str, option("--prefix", help="Put before the new columns' names.")] = "",
    errors: Annotated[
        Path | None,
        option("--errors", help="Where rows that fail go [OUTPUT.errors.jsonl, when there are any]."),
    ] = None,
    strict: Annotated[bool, option("--strict", help="Stop at the first row that fails.")] = False,
    resume: Annotated[bool, option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Overwrite = False,
    input_format: Annotated[str | None, option("--input-format", help="csv, tsv, jsonl or parquet.")] = None,
    output_format: Annotated[str | None, option("--output-format", help="csv, tsv, jsonl or parquet.")] = None,
    window_rows: Annotated[
        int | None, option("--window-rows", help="Rows in memory at a time [2048; 256 with images].", min=1)
    ] = None,
    max_batch_tokens: Annotated[
        int | None, option("--max-batch-tokens", help="Most padded tokens of a batch [1024, or as tuned].", min=1)
    ] = None,
    device: Device = "auto",
    precision: Precision = None,
    threads: Threads = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Predict every row of a file; exit code 6 when some rows could not be used."""
    existing(bundle, "a bundle")
    from levi_serving import Runner, predict_file
    from levi_serving.session import Device as DeviceName

    runner = Runner(
        bundle,
        device=cast("DeviceName", device),
        scenario="offline",
        threads=threads,
        workers=workers,
        precision=precision,
        max_batch_tokens=max_batch_tokens,
    )
    pipe = Path("-")
    with progress() as tell:
        summary = predict_file(
            runner,
            None if source == pipe else source,
            None if output == pipe else output,
            columns=renamed(runner.columns, runner.preprocessor.settings, text=text, image=image),
            heads=heads,
            all_probabilities=all_probabilities,
            prefix=prefix,
            errors=errors,
            strict=strict,
            resume=resume,
            overwrite=overwrite,
            input_format=input_format,
            output_format=output_format,
            window_rows=window_rows,
            progress=lambda done, bad, fraction: tell(f"{done} rows, {bad} failed", fraction, 1),
        )
    if as_json:
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
