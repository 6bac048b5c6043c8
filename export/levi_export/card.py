"""The bundle's model card: README.md, from what the manifest and the certificates hold and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from levi_serving.bundle import GraphFile, Manifest

__all__ = ["card"]


def card(manifest: Manifest, certificates: Mapping[str, dict[str, Any]]) -> str:
    """Write the bundle's README.md, from the manifest and each graph's certificate by file."""
    model, data = manifest.model, manifest.provenance["data"]
    parameters = model["parameters"]
    validation = dict(manifest.provenance["validation"])
    heads, rows = validation.pop("heads"), validation.pop("rows")
    first = next(iter(validation))
    taps = ", ".join(map(str, manifest.taps)) or "none"
    backbone = (
        f"{model['backbone']['name']} ({model['backbone']['layers']} layers, width {model['backbone']['widths'][-1]}), "
        f"frozen, SHA-256 {model['backbone']['digest'][:12]}…"
    )
    pooling = f"; {model['taps'][0]['pooling']} pooling" if model["taps"] else ""
    branches = ", ".join(f"{b['name']} ({b['stages']} stages of width {b['width']})" for b in model["branches"])
    share = parameters["trained"] / parameters["full_fine_tuning"]
    lines = [
        "# A LEVI model in one ONNX graph",
        "",
        "Layer-wise ensemble of different views (arXiv 2402.04644): a frozen backbone that runs once, a branch",
        "trained from scratch, and adapting layers that read both at several depths; their average is the answer.",
        "",
        "| | |",
        "|---|---|",
        f"| task | {manifest.task.kind} |",
        f"| labels | {', '.join(manifest.task.labels)} |",
        f"| input | {manifest.preprocessing.in_words} |",
        f"| backbone | {backbone if model['taps'] else 'none'} |",
        f"| taps | {taps}{pooling} |",
        f"| branches | {branches or 'none'} |",
        f"| average | of the heads' {manifest.average} |",
        f"| parameters | {parameters['trained']:,} trained, {parameters['frozen']:,} frozen; full fine-tuning would "
        f"train {parameters['full_fine_tuning']:,}, so this is {share:.1%} of that |",
        f"| abstains | {manifest.task.abstains} |",
        f"| graph | {model['nodes']} nodes, {model['weights_bytes'] / 1e6:.1f} MB, opset {manifest.graphs[0].opset} |",
        "",
        "## In-distribution validation",
        "",
        f"{rows} rows ({data['validation_from']}), after training on {data['training_rows']}. These rows chose the",
        "epoch; they are no test set, and they say nothing about other distributions.",
        "",
        "| metric | average | " + " | ".join(f"head {k + 1}" for k in range(len(heads))) + " |",
        "|---|" + "---|" * (1 + len(heads)),
        f"| {first} | {validation[first]:.4f} | " + " | ".join(f"{value:.4f}" for value in heads) + " |",
        *(
            f"| {name} | {value:.4f} | " + " | ".join("" for _ in heads) + " |"
            for name, value in validation.items()
            if name != first
        ),
        "",
        "## Proof",
        "",
        "Each graph was compared with the torch model when it was exported, through the runner that serves.",
        "",
        "| graph | precision | device | changes after tracing | largest error of any logit, of their standard "
        "deviation | predictions equal | alone against in a batch |",
        "|---|---|---|---|---|---|---|",
        *(_row(graph, certificates[graph.file]) for graph in manifest.graphs),
        "",
        "`parity.json` has every shape; `levi verify` measures it again on your machine, without torch. `golden.npz`,",
        "and `rows.npz` where predictions are counted, hold the rows it uses: they are rows of the validation data.",
        "",
        "## Use",
        "",
        "```python",
        "from levi_serving import Runner",
        "",
        'predictions = Runner("bundle").predict(["the first text", "the second"])',
        "```",
        "",
    ]
    return "\n".join(lines)


def _row(graph: GraphFile, certificate: dict[str, Any]) -> str:
    changes = ", ".join(f"{count} {what}" for what, count in graph.changes.items()) or "none"
    real = certificate.get("real_rows", certificate["rows"])
    allowed = certificate["standard"]["tolerance"]
    error = f"{certificate['worst_scaled_error']:.1e}" + (f" (allowed {allowed:.0e})" if allowed is not None else "")
    agreement = f"{real['agreement']:.1%} of {real['count']}"
    if metric := certificate.get("metric"):
        agreement += f"; {metric['name']} {metric['value']:.4f}, torch {metric['torch']:.4f}"
    alone = certificate["alone_against_batched"]["max_scaled_error"]
    return f"| `{graph.file}` | {graph.precision} | {graph.device} | {changes} | {error} | {agreement} | {alone:.1e} |"
