"""``levi evaluate``: metrics of a run or a bundle on a table."""

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
        list[str] | None, option("--split", help="Only rows with this value of the split column; repeatable.")
    ] = None,
    split_column: Annotated[str, option("--split-column", help="The split column.")] = "split",
    by: Annotated[str | None, option("--by", help="A column whose values are also measured one by one.")] = None,
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
    return "\n\n".join(blocks)
