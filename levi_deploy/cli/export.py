"""``levi export``: one graph, proven."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from levi_deploy.cli.options import (
    EXECUTION,
    OUTPUT,
    Backbone,
    Json,
    Overwrite,
    PrecisionName,
    existing,
    option,
    progress,
    several,
    show,
)

PROOF = "Proof"

if TYPE_CHECKING:
    from levi_serving import Bundle
    from levi_serving.bundle import Precision


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a finished training run.")],
    output: Annotated[Path, option("--output", "-o", help="The bundle's folder.", panel=OUTPUT)],
    backbone: Backbone = None,
    precision: Annotated[
        list[str] | None,
        several(
            "--precision",
            help="One graph for each, the preferred one first.",
            panel=EXECUTION,
            kind=PrecisionName,
            show_default="fp32",
        ),
    ] = None,
    min_agreement: Annotated[
        float,
        option(
            "--min-agreement", help="Below fp32: the least share of real rows that keep their prediction.", panel=PROOF
        ),
    ] = 0.95,
    max_drop: Annotated[
        float,
        option(
            "--max-drop",
            help="Below fp32: the most points of the first metric that may be lost (rmse: percent).",
            panel=PROOF,
        ),
    ] = 0.5,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Export a run as one ONNX graph, proven equal to the model.

    When the graph does not answer as the model does, the exit code is 3 and nothing is kept.
    """
    existing(run, "a training run")
    from levi_export import export
    from levi_serving.bundle import read_certificate

    with progress() as update:
        done = 0

        def step(what: str) -> None:
            nonlocal done
            done += 1
            update(what, done, done)

        bundle = export(
            run,
            output,
            backbone=backbone,
            precisions=cast("list[Precision]", precision or ["fp32"]),
            min_agreement=min_agreement,
            max_drop=max_drop,
            overwrite=overwrite,
            progress=step,
        )
    certificates = {graph.file: read_certificate(bundle.folder, graph.file) for graph in bundle.manifest.graphs}
    show(
        {
            "bundle": str(bundle.folder),
            "bytes": bundle.size,
            "model": dict(bundle.manifest.model),
            "graphs": [asdict(graph) for graph in bundle.manifest.graphs],
            "certificates": certificates,
        },
        json=json,
        human=lambda: _human(bundle, certificates),
    )


def _human(bundle: Bundle, certificates: dict[str, Any]) -> str:
    shapes = next(iter(certificates.values()))["shapes"]
    batches = ", ".join(map(str, sorted({shape["batch"] for shape in shapes})))
    lengths = ", ".join(map(str, sorted({shape["length"] for shape in shapes if "length" in shape})))
    lines = [f"One model of {bundle.manifest.model['nodes']} nodes in {bundle.folder} ({bundle.size / 1e6:.1f} MB)."]
    for graph in bundle.manifest.graphs:
        changes = ", ".join(f"{count} {what}" for what, count in graph.changes.items()) or "as traced"
        lines += [
            f"{graph.file}: {graph.precision} for {graph.device} device; {changes}.",
            f"  {proof(certificates[graph.file])}",
        ]
    lines += [
        f"Shapes: batch {batches}" + (f" x length {lengths}, whole and padded." if lengths else "."),
        f"Next: levi predict {bundle.folder} INPUT -o OUTPUT",
    ]
    return "\n".join(lines)


def proof(certificate: dict[str, Any]) -> str:
    """A certificate in one line."""
    standard, rows, real = certificate["standard"], certificate["rows"], certificate.get("real_rows")
    parts = [f"largest error {certificate['worst_scaled_error']:.1e} of the logits' standard deviation"]
    if standard["tolerance"] is not None:
        parts[0] += f" (allowed {standard['tolerance']:.0e})"
    if real:
        heads = ", ".join(f"{error:.3f}" for error in real["heads"]["rms_scaled_error"])
        parts.append(
            f"{real['agreement']:.1%} of {real['count']} rows predicted as by torch (at least "
            f"{standard['min_agreement']:.1%}), rms error {real['rms_scaled_error']:.3f}, by head {heads}"
        )
        if metric := certificate.get("metric"):
            parts.append(f"{metric['name']} {metric['value']:.4f}, torch {metric['torch']:.4f}")
    else:
        parts.append(f"every prediction of {rows['count']} rows equal")
    alone = certificate["alone_against_batched"]["max_scaled_error"]
    made = certificate["measured_with"]
    return (
        "; ".join(parts)
        + f"; {len(certificate['shapes'])} batch shapes; a row alone against in a batch {alone:.1e} "
        + f"({made['provider']}, onnxruntime {made['onnxruntime']})."
    )
