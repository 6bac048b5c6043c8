"""``levi evaluate``: metrics of a run or a bundle on a table, and how far its uncertainty can be trusted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import (
    DATA,
    Backbone,
    Device,
    Image,
    Json,
    Text,
    existing,
    option,
    progress,
    renamed,
    several,
    show,
    table,
)


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The folder of a run or a bundle.")],
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Rows with answers: CSV, TSV, JSONL, Parquet, or a folder of images."),
    ],
    text: Text = None,
    image: Image = None,
    target: Annotated[
        str | None, option("--target", help="The column with the answer.", panel=DATA, show_default="the model's")
    ] = None,
    split: Annotated[
        list[str] | None,
        several(
            "--split",
            of="value",
            help="Values of the split column, the in-distribution one first; each is measured on its own.",
            panel=DATA,
            show_default="all rows together",
        ),
    ] = None,
    split_column: Annotated[str, option("--split-column", help="The split column.", panel=DATA)] = "split",
    by: Annotated[
        str | None, option("--by", help="A column; the rows with each of its values are measured too.", panel=DATA)
    ] = None,
    pairs: Annotated[
        str | None,
        option(
            "--pairs", help="A column with the same value in versions of one row; answers are compared.", panel=DATA
        ),
    ] = None,
    backbone: Backbone = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Measure a run or a bundle on rows with answers.

    Beside the metrics of the average and of each head: how well uncertainty and disagreement rank the errors and tell
    out-of-distribution rows, and what abstaining gains.
    """
    existing(model, "a run or a bundle")
    existing(data, "a table with answers")
    from levi_deploy.evaluation import evaluate
    from levi_deploy.models import load

    opened = load(model, backbone=backbone, device=device)
    with progress() as update:
        result = {"model": model.name} | evaluate(
            opened.predictor,
            data,
            target=target or opened.target,
            columns=renamed(opened.predictor.preprocessor.settings, text=text, image=image),
            splits=split or (),
            split_column=split_column,
            by=by,
            pairs=pairs,
            progress=update,
        )
    show(result, json=json, human=lambda: _human(result))


def _human(result: dict[str, Any]) -> str:
    blocks = [f"{result['model']} on {result['data']}"]
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
    if result["pairs"]:
        names = [name for name in result["pairs"][0] if name not in ("part", "changed")]
        rows = [[one["part"], one["changed"], *(one[name] for name in names)] for one in result["pairs"]]
        header = ["", "changed", *(name.replace("_", " ") for name in names)]
        blocks.append(f"How far answers move between versions of one row\n{table(rows, header=header)}")
    if result["abstains"] == "never":
        return "\n\n".join([*blocks, "It never abstains: it has no threshold."])
    metric = next(name for name in next(iter(result["abstain"].values())) if name not in ("share", "kept"))
    rows = [
        [split, found["share"], found["kept"], "" if found[metric] is None else found[metric]]
        for split, found in result["abstain"].items()
    ]
    header = ["", "share", "kept", f"{metric} on kept"]
    title = f"Abstaining {result['abstains']}"
    return "\n\n".join([*blocks, f"{title}\n{table(rows, header=header)}"])


def _ranking(title: str, found: dict[str, dict[str, float | None]]) -> str:
    names = list(next(iter(found.values())))
    rows = [[split, *("" if own[name] is None else own[name] for name in names)] for split, own in found.items()]
    return f"{title}\n{table(rows, header=['', *names])}"
