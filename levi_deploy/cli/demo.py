"""``levi demo``: all of it on generated data, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from levi_deploy.cli.options import Json, Overwrite, option, show


def command(
    output: Annotated[Path, option("--output", "-o", help="A folder for all that is made.")],
    backbone: Annotated[str | None, option("--backbone", help="Hub id or folder of a text encoder.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Generate reviews, train, compare, export, prove, predict and measure."""
    from levi_deploy.demo import demo, in_words

    result = demo(output, backbone=backbone, overwrite=overwrite, tell=lambda line: typer.echo(line, err=True))
    show(result, as_json=as_json, human=lambda: in_words(result))
