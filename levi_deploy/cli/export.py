"""``levi export``: one graph, proven."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import Json, Overwrite, existing, option, progress, show


def command(
    run: Annotated[Path, typer.Argument(help="A finished training run.")],
    output: Annotated[Path, option("--output", "-o", help="The bundle's folder.")],
    backbone: Annotated[str | None, option("--backbone", help="Where the run's backbone lies now.")] = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Export a run as one ONNX graph and prove it equal to the model; exit code 3 and nothing kept if not."""
    existing(run, "a training run")
    from levi_export import export
    from levi_serving.bundle import read_certificate

    with progress() as tell:
        done = 0

        def step(what: str) -> None:
            nonlocal done
            done += 1
            tell(what, done, done)

        bundle = export(run, output, backbone=backbone, overwrite=overwrite, progress=step)
    certificate = read_certificate(bundle.folder)
    model = bundle.manifest.model
    show(
        {
            "bundle": str(bundle.folder),
            "bytes": bundle.size,
            "model": dict(model),
            "certificate": certificate,
        },
        as_json=as_json,
        human=lambda: _human(bundle.folder, bundle.size, model, certificate),
    )


def _human(folder: Path, size: int, model: Any, certificate: dict[str, Any]) -> str:
    shapes = certificate["shapes"]
    return (
        f"One graph of {model['nodes']} nodes in {folder} ({size / 1e6:.1f} MB).\n"
        + proof(certificate)
        + f"\nShapes: batch {', '.join(map(str, sorted({s['batch'] for s in shapes})))} x "
        f"length {', '.join(map(str, sorted({s['length'] for s in shapes})))}, whole and padded."
        f"\nNext: levi predict {folder} INPUT -o OUTPUT"
    )


def proof(certificate: dict[str, Any]) -> str:
    """A certificate in three lines."""
    rows, alone = certificate["rows"], certificate["alone_against_batched"]
    return (
        f"Proven on {rows['count']} real rows and {len(certificate['shapes'])} batch shapes, "
        f"{certificate['measured_with']['provider']}, onnxruntime {certificate['measured_with']['onnxruntime']}.\n"
        f"Largest error of any logit: {certificate['worst_scaled_error']:.1e} of the logits' spread "
        f"(allowed {certificate['tolerance']:.0e}); every predicted class equal.\n"
        f"A row alone against the same row in a batch: {alone['max_scaled_error']:.1e}."
    )
