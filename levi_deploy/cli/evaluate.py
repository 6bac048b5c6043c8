"""``levi evaluate``: metrics of a run or a bundle on a table, and how well its doubts rank errors and OOD rows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import Device, Json, existing, option, progress, show, table


def command(
    model: Annotated[Path, typer.Argument(help="A run or a bundle.")],
    data: Annotated[Path, typer.Argument(help="Rows with answers: CSV, TSV, JSONL, Parquet, or a folder of images.")],
    text: Annotated[str | None, option("--text", help="Column with the text [the model's].")] = None,
    image: Annotated[str | None, option("--image", help="Column with the image [the model's].")] = None,
    target: Annotated[str | None, option("--target", help="Column with the answer [the model's].")] = None,
    split: Annotated[
        list[str] | None,
        option("--split", help="Only rows with this value of the split column; repeatable, in-distribution first."),
    ] = None,
    split_column: Annotated[str, option("--split-column", help="The split column.")] = "split",
    by: Annotated[str | None, option("--by", help="A column; the rows of each of its values are measured too.")] = None,
    backbone: Annotated[str | None, option("--backbone", help="Where a run's backbone lies now.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run or a bundle on rows with answers."""
    existing(model, "a run or a bundle")
    existing(data, "a table with answers")
    from levi_deploy.evaluation import evaluate

    with progress() as tell:
        result = evaluate(
            model,
            data,
            text=text,
            image=image,
            target=target,
            splits=split or (),
            split_column=split_column,
            by=by,
            backbone=backbone,
            device=device,
            progress=tell,
        )
    show(result, as_json=as_json, human=lambda: _human(result))


def _human(result: dict[str, Any]) -> str:
    blocks = []
    for split, groups in result["splits"].items():
        names = [name for name in next(iter(groups.values())) if name != "heads"]
        rows = [
            [
                group,
                *(measured[name] for name in names),
                " ".join(f"{value:.4f}" for value in measured["heads"]),
            ]
            for group, measured in groups.items()
        ]
        blocks.append(table(rows, header=[split, *names, f"heads ({names[1]})"]))
    rank = "Spearman correlation with |error|" if result["task"] == "regression" else "AUROC of wrong rows"
    blocks.append(_ranking(f"How well a signal ranks errors: {rank}", result["errors"]))
    if result["ood"]:
        first = next(iter(result["splits"]))
        blocks.append(_ranking(f"How well it tells rows from those of {first}: AUROC", result["ood"]))
    if result["abstain_above"] is None:
        return "\n\n".join([*blocks, "It never abstains: it has no threshold of disagreement."])
    metric = next(name for name in next(iter(result["abstain"].values())) if name not in ("share", "kept"))
    rows = [
        [split, found["share"], found["kept"], "" if found[metric] is None else found[metric]]
        for split, found in result["abstain"].items()
    ]
    header = ["", "share", "kept", f"{metric} on kept"]
    title = f"Abstaining where disagreement is above {result['abstain_above']:.4g}"
    return "\n\n".join([*blocks, f"{title}\n{table(rows, header=header)}"])


def _ranking(title: str, found: dict[str, dict[str, float | None]]) -> str:
    names = list(next(iter(found.values())))
    rows = [[split, *("" if own[name] is None else own[name] for name in names)] for split, own in found.items()]
    return f"{title}\n{table(rows, header=['', *names])}"
