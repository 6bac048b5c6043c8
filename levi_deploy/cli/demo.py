"""``levi demo``: all of it on generated data, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from levi_deploy.cli.options import MODEL, OUTPUT, TRAINING, Json, Overwrite, option, quiet, show


def command(
    output: Annotated[Path, option("--output", "-o", help="A folder for all that is made.", panel=OUTPUT)],
    backbone: Annotated[
        str | None,
        option(
            "--backbone",
            help="Hub id or folder of a text encoder.",
            panel=MODEL,
            show_default="an installed one, else all-MiniLM-L6-v2",
        ),
    ] = None,
    quick: Annotated[
        bool,
        option(
            "--quick", help="Fewer rows and epochs: shows that every step works, not what LEVI gains.", panel=TRAINING
        ),
    ] = False,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Train, export, predict and measure on generated data."""
    from levi_deploy.demo.steps import demo, in_words

    def step(line: str) -> None:
        if not quiet.get():
            typer.echo(line, err=True)

    result = demo(output, backbone=backbone, quick=quick, overwrite=overwrite, tell=step)
    show(result, json=json, human=lambda: in_words(result))
