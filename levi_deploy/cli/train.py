"""``levi train``: learn a LEVI model from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from levi_deploy.cli.options import Json, Overwrite, by_head, existing, option, progress, show


def command(
    data: Annotated[
        Path, typer.Argument(help="Training rows: CSV, TSV, JSONL, Parquet, or a folder of images, one folder a class.")
    ],
    output: Annotated[Path, option("--output", "-o", help="The run's folder.")],
    text: Annotated[str | None, option("--text", help="Column with the text [text].")] = None,
    text_pair: Annotated[str | None, option("--text-pair", help="Column with the second text of a pair.")] = None,
    image: Annotated[str | None, option("--image", help="Column with images: paths, or bytes in Parquet.")] = None,
    numeric: Annotated[str | None, option("--numeric", help="Columns of numbers, as price,weight.")] = None,
    categorical: Annotated[str | None, option("--categorical", help="Columns of names, as shop,colour.")] = None,
    nodes: Annotated[str | None, option("--nodes", help="Two id columns, as user_id,item_id.")] = None,
    edges: Annotated[str | None, option("--edges", help="A table of the graph's edges [the training rows].")] = None,
    target: Annotated[str | None, option("--target", help="Column with the answer [label].")] = None,
    task: Annotated[
        str | None,
        option(
            "--task",
            help="auto, classification, multilabel (labels joined by |) or regression [auto: from the values].",
        ),
    ] = None,
    split_column: Annotated[
        str | None, option("--split-column", help="Column that says which rows are training and which validation rows.")
    ] = None,
    train_split: Annotated[str | None, option("--train-split", help="Its value on training rows [train].")] = None,
    validation_split: Annotated[
        str | None,
        option("--validation-split", help="Its value on in-distribution validation rows [id_val, …]."),
    ] = None,
    validation: Annotated[
        Path | None, option("--validation", help="A table of validation rows [a tenth is drawn].")
    ] = None,
    backbone: Annotated[
        str | None, option("--backbone", help="Hub id or folder of the frozen backbone [all-MiniLM-L6-v2].")
    ] = None,
    taps: Annotated[
        str | None, option("--taps", help="Depths as 2,4,6; or a number; or all; or none (branch alone) [3].")
    ] = None,
    pooling: Annotated[str | None, option("--pooling", help="attention, mean, first or last [attention].")] = None,
    queries: Annotated[int | None, option("--queries", help="Learned queries of a tap [4].")] = None,
    branch: Annotated[
        list[str] | None,
        option(
            "--branch",
            help="mlp, cnn, gru, transformer, tabular, graph, or package.module:Class; repeatable; or none "
            "[one that fits each input].",
        ),
    ] = None,
    branch_width: Annotated[int | None, option("--branch-width", help="Width of a branch's stages [64].")] = None,
    head_hidden: Annotated[int | None, option("--head-hidden", help="Hidden units of a head; 0: linear [128].")] = None,
    average: Annotated[
        str | None, option("--average", help="What of the heads is averaged: logits or probabilities [logits].")
    ] = None,
    lora: Annotated[int | None, option("--lora", help="Rank of adapters that train in the backbone [none].")] = None,
    fine_tune: Annotated[
        int | None, option("--fine-tune", help="Epochs in which the whole backbone is trained first [none].")
    ] = None,
    max_length: Annotated[int | None, option("--max-length", help="Most tokens of a row [256].")] = None,
    image_size: Annotated[
        int | None, option("--image-size", help="Pixels of an image's side [the backbone's].")
    ] = None,
    epochs: Annotated[int | None, option("--epochs", help="Most passes over the rows [10].")] = None,
    batch_size: Annotated[int | None, option("--batch-size", help="Rows in a step [64].")] = None,
    learning_rate: Annotated[float | None, option("--learning-rate", help="AdamW's, at its highest [0.0003].")] = None,
    weight_decay: Annotated[float | None, option("--weight-decay", help="AdamW's [0.01].")] = None,
    patience: Annotated[
        int | None, option("--patience", help="Epochs without a better validation loss before it stops [3].")
    ] = None,
    head_weights: Annotated[
        str | None, option("--head-weights", help="Weight of each head's loss, as 1,1,2 [equal].")
    ] = None,
    class_weights: Annotated[
        str | None,
        option("--class-weights", help="none, or balanced: rare classes weigh as much as common ones [none]."),
    ] = None,
    augment: Annotated[
        str | None, option("--augment", help="flip-crop or none, for image branches [flip-crop].")
    ] = None,
    calibrate: Annotated[
        bool | None, option("--calibrate/--no-calibrate", help="Fit a temperature on validation [yes].")
    ] = None,
    abstain_share: Annotated[
        float | None,
        option("--abstain-share", help="Share of validation rows on which it abstains; 0: never [0.05]."),
    ] = None,
    seed: Annotated[int | None, option("--seed", help="Of every random choice [0].")] = None,
    config: Annotated[
        Path | None, option("--config", help="TOML with [model], [training], [data]; flags go before it.")
    ] = None,
    cache: Annotated[
        Path | None, option("--cache", help="Where taps are kept between runs [LEVI_CACHE, or your cache folder].")
    ] = None,
    resume: Annotated[bool, option("--resume", help="Go on with an unfinished run.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Learn a LEVI model: a frozen backbone, a branch from scratch, and layers that read both."""
    from levi_deploy.config import Config

    asked = Config.read(
        config,
        model={
            "backbone": backbone,
            "taps": parse_taps(taps),
            "pooling": pooling,
            "queries": queries,
            "branches": None if branch is None else tuple(name for name in branch if name != "none"),
            "branch_width": branch_width,
            "head_hidden": head_hidden,
            "average": average,
            "lora": lora,
            "max_length": max_length,
            "image_size": image_size,
        },
        training={
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "patience": patience,
            "fine_tune": fine_tune,
            "head_weights": _numbers(head_weights),
            "abstain_share": abstain_share,
            "class_weights": class_weights,
            "augment": augment,
            "calibrate": calibrate,
            "seed": seed,
        },
        data={
            "text": text,
            "text_pair": text_pair,
            "image": image,
            "numeric": _names(numeric),
            "categorical": _names(categorical),
            "nodes": _names(nodes),
            "edges": edges,
            "target": target,
            "task": task,
            "split_column": split_column,
            "train_split": train_split,
            "validation_split": validation_split,
        },
    )
    existing(data, "a table with training rows")
    from levi_deploy.training import train

    with progress() as tell:
        run = train(
            data,
            output,
            asked,
            validation=validation,
            resume=resume,
            overwrite=overwrite,
            cache=cache,
            progress=tell,
        )
    record = run.record
    show(
        {"run": str(run.folder), "task": run.task, "labels": run.labels, "taps": run.taps, **record},
        as_json=as_json,
        human=lambda: _human(run, record),
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    from levi_serving.errors import UsageError

    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--head-weights is {text!r}; expected a number for each head, as 1,1,2.") from None


def parse_taps(text: str | None) -> Any:
    """Read ``2,4,6``, ``3``, ``all`` or ``none``.

    Raises:
        UsageError: it is none of these.
    """
    if text is None or text == "all":
        return text
    if text == "none":
        return ()
    from levi_serving.errors import UsageError

    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--taps is {text!r}; expected depths as 2,4,6, or a number, or all, or none.") from None
    return numbers[0] if len(numbers) == 1 and "," not in text else tuple(numbers)


def _human(run: Any, record: Any) -> str:
    seconds, parameters = record["seconds"], record["parameters"]
    abstains = (
        "It never abstains."
        if record["abstain_above"] is None
        else f"It abstains where its heads' disagreement is above {record['abstain_above']:.4g}."
    )
    return (
        f"{run.task}, {record['data']['training_rows']} training rows, taps {list(run.taps)}, "
        f"best of {record['epochs']} epochs: {record['best_epoch']}\n"
        f"Trained {parameters['trained']:,} parameters beside {parameters['frozen']:,} frozen ones; "
        f"taps {seconds['taps']:.0f} s, fit {seconds['fit']:.0f} s\n\n"
        f"In-distribution validation, {record['validation']['rows']} rows ({record['data']['validation_from']}):\n"
        + by_head(record["validation"])
        + f"\n\n{abstains}\nThe run is in {run.folder}. Next: levi export {run.folder} -o BUNDLE"
    )
