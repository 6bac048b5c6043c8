"""``levi inspect``: what a run or a bundle is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import Json, by_head, existing, show, table


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a run or a bundle.")],
    json: Json = False,
) -> None:
    """Show what a run or a bundle is: parts, labels, metrics, origin."""
    from levi_deploy.models import kind

    existing(model, "a run or a bundle")
    if kind(model) == "bundle":
        from levi_serving import Bundle
        from levi_serving.bundle import read_certificate

        bundle = Bundle.open(model)
        document = {
            "kind": "bundle",
            **bundle.manifest.to_dict(),
            "digest": bundle.manifest.digest,
            "bytes": bundle.size,
            "certificates": {graph.file: read_certificate(model, graph.file) for graph in bundle.manifest.graphs},
        }
        manifest = bundle.manifest
        show(
            document,
            json=json,
            human=lambda: _bundle(document, manifest.preprocessing.in_words, manifest.task.abstains),
        )
        return
    from levi_deploy.run import Run

    run = Run.open(model)
    document = {
        "kind": "run",
        **{
            name: value
            for name, value in vars(run).items()
            if name not in ("config", "folder", "backbone", "preprocessing", "record", "task")
        },
        "task": run.task.kind,
        "labels": run.task.labels,
        "abstain_by": run.task.abstain_by,
        "abstain_above": run.task.abstain_above,
        "record": {name: value for name, value in run.record.items() if name != "model"},
        "config": run.config.to_dict(),
        "model": run.record["model"],
        "backbone": dataclasses.asdict(run.backbone),
        "preprocessing": dataclasses.asdict(run.preprocessing),
    }
    show(document, json=json, human=lambda: _run(document, run.task.abstains))


def _tree(model: Any, parameters: Any, task: str, labels: Any) -> list[str]:
    """The architecture from the input to the answer, with shapes, and what trains beside what is frozen."""
    backbone, classes = model["backbone"], len(labels)
    widths = backbone["widths"]
    width = widths[-1] if len(set(widths)) == 1 else f"{min(widths)} … {max(widths)}"
    parts = []
    if model["taps"]:
        parts.append((f"├─ backbone {backbone['name']}: L = {backbone['layers']} layers, D = {width}", backbone))
    for n, tap in enumerate(model["taps"]):
        how = f"{tap['pooling']} pooling" + (f" with {tap['queries']} queries" if tap["queries"] else "")
        stem = "└─" if n + 1 == len(model["taps"]) else "├─"
        parts.append((f"│  {stem} tap {tap['depth']}: (B, T, {tap['width']}) → {how} → (B, {tap['pooled']})", tap))
    for branch in model["branches"]:
        reads = ", ".join(branch["reads"])
        parts.append(
            (f"├─ branch {branch['name']}: {reads} → M = {branch['stages']} stages of (B, {branch['width']})", branch)
        )
    weighed = len({head.get("weight") for head in model["heads"]}) > 1  # bundles of older versions name no weights
    for k, head in enumerate(model["heads"]):
        read = [f"tap {head['tap']}"] if head["tap"] is not None else []
        read += [f"{b['name']} stage {m}" for b, m in zip(model["branches"], head["stages"], strict=True) if m]
        hidden = f"{head['hidden']} hidden units → " if head["hidden"] else ""
        weight = f" · {head['weight']:.2f}" if weighed else ""
        parts.append((f"├─ head {k + 1}: [{' ; '.join(read)}] → {hidden}(B, {head['outputs']}){weight}", head))
    heads = len(model["heads"])
    of = "values" if task == "regression" else model["average"]
    rows = [(text, f"{part['trained']:,}", f"{part['frozen']:,}") for text, part in parts]
    how = "weighed sum" if weighed else "mean"
    members = model.get("members", 1)  # bundles of older versions have one
    times = f", of {members} members each," if members > 1 else ""
    rows.append((f"└─ {how} of the K = {heads} heads'{times} {of} → (B, {classes})", "", ""))
    rows.insert(0, ("", "trained", "frozen"))
    rows.append(("", f"{parameters['trained']:,}", f"{parameters['frozen']:,}"))
    wide, left, right = (max(len(row[n]) for row in rows) for n in range(3))
    share = parameters["trained"] / parameters["full_fine_tuning"]
    return [
        *(
            f"{text.ljust(wide)}  {trained.rjust(left)}  {frozen.rjust(right)}".rstrip()
            for text, trained, frozen in rows
        ),
        f"Full fine-tuning would train {parameters['full_fine_tuning']:,}: this trains {share:.1%} of that.",
    ]


def _metrics(record: Any, abstains: str) -> list[str]:
    validation = record["validation"]
    return [
        f"ID validation, {validation['rows']} rows ({record['data']['validation_from']})",
        by_head(validation),
        f"Abstains: {abstains}",
    ]


def _selection(selection: Any) -> list[str]:
    """What was tried on training rows that were held out, and what was chosen."""
    parts = ", ".join(f"{part['name']} ({part['rows']} rows)" for part in selection["held_out"])
    rows = [
        [
            candidate["name"],
            candidate["parts"],
            candidate["held_out"],
            candidate["held_out_weighed"],
            candidate["validation"],
        ]
        for candidate in selection["candidates"]
    ]
    return [
        f"Chosen: {selection['chosen']}, heads {selection['average']}, {selection['epochs']} epochs: the simplest "
        "inside the noise on training rows that were held out",
        f"Held out in turn: {parts}. Share of right answers there (regression: minus the squared error)",
        table(rows, header=["candidate", "parts", "held out", "heads weighed", "ID validation"]),
        "",
    ]


def _bundle(document: dict[str, Any], reads: str, abstains: str) -> str:
    model = document["model"]
    lines = [
        f"LEVI bundle, {document['task']}: {', '.join(document['labels'])}",
        *_tree(model, model["parameters"], document["task"], document["labels"]),
        "",
        f"Graph: {model['nodes']} nodes, {document['bytes'] / 1e6:.1f} MB with all files",
        *(line for graph in document["graphs"] for line in _graph(graph, document["certificates"][graph["file"]])),
        *(f"  in  {t['name']} {t['dtype']} {list(t['shape'])}" for t in document["inputs"]),
        *(f"  out {t['name']} {t['dtype']} {list(t['shape'])}" for t in document["outputs"]),
        f"Reads: {reads}",
        "",
        *_metrics(document["provenance"], abstains),
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


def _run(document: dict[str, Any], abstains: str) -> str:
    record = document["record"]
    lines = [
        f"LEVI training run, {document['task']}: {', '.join(document['labels'])}",
        *_tree(document["model"], record["parameters"], document["task"], document["labels"]),
        "",
        f"Trained on {record['data']['training_rows']} rows of {record['data']['file']}; best of {record['epochs']} "
        f"epochs: {record['best_epoch']}; taps {record['seconds']['taps']:.0f} s, fit {record['seconds']['fit']:.0f} s"
        + (f" on {record['device']}, backbone in {record['backbone_passes']}" if "device" in record else ""),
        *_metrics(record, abstains),
        "",
        *(_selection(record["selection"]) if "selection" in record else ()),
        "Made with " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    ]  # fmt: skip
    return "\n".join(lines)
