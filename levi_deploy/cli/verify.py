"""``levi verify``: replay a bundle's proof on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from levi_deploy.cli.export import proof
from levi_deploy.cli.options import Device, Json, Threads, existing, option, show


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    device: Device = "auto",
    threads: Threads = None,
    precision: Annotated[str | None, option("--precision", help="Only the graphs of this precision.")] = None,
    as_json: Json = False,
) -> None:
    """Check every file and replay the proof of each graph here, without torch; exit code 3 if the answers differ."""
    existing(bundle, "a bundle")
    from levi_serving import verify
    from levi_serving.session import Device as DeviceName

    found = verify(bundle, device=cast("DeviceName", device), threads=threads, precision=precision)
    show(found, as_json=as_json, human=lambda: _human(found))


def _human(found: dict[str, Any]) -> str:
    lines = ["Every file is the one exported."]
    lines += [f"{file}: {proof(certificate)}" for file, certificate in found["graphs"].items()]
    lines += [f"{file}: not run: {why}." for file, why in found["not_run"].items()]
    return "\n".join(lines)
