"""``levi inspect``: what a run or a bundle is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import Json, existing, show


def command(
    model: Annotated[Path, typer.Argument(help="A run or a bundle.")],
    as_json: Json = False,
) -> None:
    """Say what a run or a bundle is: its parts, its labels, its metrics, where it comes from."""
    existing(model, "a run or a bundle")
    if (model / "levi.json").is_file():
        from levi_serving import Bundle
        from levi_serving.bundle import read_certificate

        bundle = Bundle.open(model)
        document = {
            "kind": "bundle",
            **dataclasses.asdict(bundle.manifest),
            "digest": bundle.manifest.digest,
            "bytes": bundle.size,
            "certificates": {graph.file: read_certificate(model, graph.file) for graph in bundle.manifest.graphs},
        }
        show(document, as_json=as_json, human=lambda: _bundle(document, bundle.manifest.preprocessing.in_words))
        return
    from levi_deploy.training import Run

    run = Run.open(model)
    document = {
        "kind": "run",
        **{
            name: value
            for name, value in vars(run).items()
            if name not in ("config", "folder", "backbone", "preprocessing")
        },
        "config": run.config.to_dict(),
        "backbone": dataclasses.asdict(run.backbone),
        "preprocessing": dataclasses.asdict(run.preprocessing),
    }
    show(document, as_json=as_json, human=lambda: _run(document))


def _model(taps: Any, labels: Any, backbone: Any, width: int, layers: int, model: Any, parameters: Any) -> list[str]:
    """The architecture as a tree."""
    trained, frozen = parameters["trained"], parameters["backbone"]
    heads = "linear" if not model["head_hidden"] else f"{model['head_hidden']} hidden units"
    lines = [f"  backbone  {backbone}: {layers} layers, width {width}, frozen, {frozen:,} parameters"]
    lines += [f"    tap {tap:<4} {model['pooling']} pooling, read by head {k + 1}" for k, tap in enumerate(taps)]
    lines += [f"  branch    {branch}, trained from scratch" for branch in model["branches"] or ()]
    lines.append(
        f"  heads     {max(1, len(taps))} adapting layers, {heads}, {len(labels)} outputs; averaged as "
        f"{model.get('average', 'logits')}"
    )
    lines.append(f"  trained   {trained:,} parameters, {trained / (trained + frozen):.1%} of all")
    return lines


def _metrics(record: Any) -> list[str]:
    validation = dict(record["validation"])
    heads, rows = validation.pop("heads"), validation.pop("rows")
    lines = [f"ID validation, {rows} rows ({record['data']['validation_from']})"]
    lines += [f"  {name:<16}{value:.4f}" for name, value in validation.items()]
    lines.append("  by head         " + "  ".join(f"{value:.4f}" for value in heads))
    return lines


def _bundle(document: dict[str, Any], reads: str) -> str:
    model = document["model"]
    backbone = model["backbone"]
    lines = [
        f"LEVI bundle, {document['task']}: {', '.join(document['labels'])}",
        *_model(
            document["taps"], document["labels"], backbone["name"], backbone["widths"][-1], backbone["layers"],
            {**model, "average": document["average"]}, model["parameters"],
        ),
        "",
        f"Graph: {model['nodes']} nodes, {document['bytes'] / 1e6:.1f} MB with all files",
        *(line for graph in document["graphs"] for line in _graph(graph, document["certificates"][graph["file"]])),
        *(f"  in  {t['name']} {t['dtype']} {list(t['shape'])}" for t in document["inputs"]),
        *(f"  out {t['name']} {t['dtype']} {list(t['shape'])}" for t in document["outputs"]),
        f"Reads: {reads}",
        "",
        *_metrics(document["provenance"]),
        "",
        "Made with " + ", ".join(f"{name} {version}" for name, version in document["provenance"]["versions"].items()),
        f"Digest {document['digest']}",
    ]  # fmt: skip
    return "\n".join(lines)


def _graph(graph: dict[str, Any], certificate: dict[str, Any]) -> list[str]:
    from levi_deploy.cli.export import proof

    changes = ", ".join(f"{count} x {what}" for what, count in graph["changes"].items())
    return [
        f"  {graph['file']}: {graph['precision']} for {graph['device']} device, opset {graph['opset']}"
        + (f"; {changes}" if changes else ""),
        f"    {proof(certificate)}",
    ]


def _run(document: dict[str, Any]) -> str:
    record, backbone = document["record"], document["backbone"]
    lines = [
        f"LEVI training run, {document['task']}: {', '.join(document['labels'])}",
        *_model(
            document["taps"], document["labels"], backbone["name"], backbone["widths"][-1], backbone["depth"],
            document["config"]["model"], record["parameters"],
        ),
        "",
        f"Trained on {record['data']['training_rows']} rows of {record['data']['file']}; best of {record['epochs']} "
        f"epochs: {record['best_epoch']}; taps {record['seconds']['taps']:.0f} s, fit {record['seconds']['fit']:.0f} s",
        *_metrics(record),
        "",
        "Made with " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    ]  # fmt: skip
    return "\n".join(lines)
