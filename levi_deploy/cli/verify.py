"""``levi verify``: replay a bundle's proof on this machine."""

from __future__ import annotations

from typing import Annotated, Any

from levi_deploy.cli.export import proof
from levi_deploy.cli.options import (
    EXECUTION,
    Bundle,
    Device,
    Json,
    PrecisionName,
    Threads,
    existing,
    option,
    show,
)


def command(
    bundle: Bundle,
    device: Device = "auto",
    threads: Threads = None,
    precision: Annotated[
        PrecisionName | None,
        option("--precision", help="Only the graphs of this precision.", panel=EXECUTION, show_default="all"),
    ] = None,
    json: Json = False,
) -> None:
    """Replay a bundle's proof on this machine, without torch.

    Every file is checked against its digest, and every graph is run on the bundle's golden rows; the exit code is 3
    when the answers differ.
    """
    existing(bundle, "a bundle")
    from levi_serving import verify

    found = verify(bundle, device=device, threads=threads, precision=precision)
    show(found, json=json, human=lambda: _human(found))


def _human(found: dict[str, Any]) -> str:
    lines = ["Every file is the one exported."]
    lines += [f"{file}: {proof(certificate)}" for file, certificate in found["graphs"].items()]
    lines += [f"{file}: not run: {why}." for file, why in found["not_run"].items()]
    return "\n".join(lines)
