"""``levi verify``: replay a bundle's proof on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from levi_deploy.cli.export import proof
from levi_deploy.cli.options import Device, Json, Threads, existing, show


def command(
    bundle: Annotated[Path, typer.Argument(help="A bundle.")],
    device: Device = "auto",
    threads: Threads = None,
    as_json: Json = False,
) -> None:
    """Check every file and replay the golden rows here, without torch; exit code 3 if the answers differ."""
    existing(bundle, "a bundle")
    from levi_serving import verify
    from levi_serving.session import Device as DeviceName

    certificate = verify(bundle, device=cast("DeviceName", device), threads=threads)
    show(certificate, as_json=as_json, human=lambda: "Every file is the one exported.\n" + proof(certificate))
