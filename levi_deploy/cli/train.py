"""``levi train``: learn a LEVI model from a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from levi_deploy.cli.options import (
    DATA,
    EXECUTION,
    MODEL,
    OUTPUT,
    TRAINING,
    Cache,
    Json,
    Overwrite,
    by_head,
    existing,
    option,
    progress,
    several,
    show,
)

TaskChoice = Literal["auto", "classification", "multilabel", "regression"]
Pooling = Literal["ladder", "tokens", "attention", "mean", "first", "last"]
TrainingDevice = Literal["auto", "cpu", "cuda", "mps"]

_TABLE = "Training rows: CSV, TSV, JSONL, Parquet, or a folder of images with one folder a class."
_BRANCH = "mlp, cnn, gru, transformer, tabular, graph, package.module:Class, or none."
_SET = "Any other setting, as training.patience=5; repeatable. --print-config lists them all."


def command(
    data: Annotated[Path | None, typer.Argument(metavar="DATA", help=_TABLE)] = None,
    text: Annotated[str | None, option("--text", help="Column with the text.", panel=DATA, show_default="text")] = None,
    image: Annotated[
        str | None, option("--image", help="Column with images: paths, or bytes in Parquet.", panel=DATA)
    ] = None,
    numeric: Annotated[
        list[str] | None, several("--numeric", of="column", help="Columns of numbers.", panel=DATA)
    ] = None,
    categorical: Annotated[
        list[str] | None, several("--categorical", of="column", help="Columns of categories.", panel=DATA)
    ] = None,
    nodes: Annotated[
        list[str] | None,
        several("--nodes", of="column", help="Two id columns, for a graph branch, as user_id,item_id.", panel=DATA),
    ] = None,
    target: Annotated[
        str | None, option("--target", help="Column with the answer.", panel=DATA, show_default="label")
    ] = None,
    task: Annotated[
        TaskChoice | None,
        option(
            "--task",
            help="Kind of answer; auto: by the values. multilabel: labels joined by |.",
            panel=DATA,
            show_default="auto",
        ),
    ] = None,
    split_column: Annotated[
        str | None,
        option(
            "--split-column", help="Column that says which rows are for training and which for validation.", panel=DATA
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        option(
            "--validation", help="A table of validation rows.", panel=DATA, show_default="a tenth of the training rows"
        ),
    ] = None,
    domain: Annotated[
        str | None,
        option("--domain", help="Column that names each training row's domain, for --select.", panel=DATA),
    ] = None,
    backbone: Annotated[
        str | None,
        option(
            "--backbone", help="Hub id or folder of the frozen backbone.", panel=MODEL, show_default="all-MiniLM-L6-v2"
        ),
    ] = None,
    taps: Annotated[
        list[str] | None,
        several(
            "--taps",
            of="depth",
            help="Depths to read, as 2,4,6; or their number; or all; or none.",
            panel=MODEL,
            show_default="3",
        ),
    ] = None,
    pooling: Annotated[
        Pooling | None,
        option("--pooling", help="How a tap's tokens become one vector.", panel=MODEL, show_default="ladder"),
    ] = None,
    branch: Annotated[
        list[str] | None,
        several("--branch", of="branch", help=_BRANCH, panel=MODEL, show_default="one that fits each input"),
    ] = None,
    lora: Annotated[
        int | None,
        option("--lora", help="Rank of adapters that train in the backbone.", panel=MODEL, show_default="0, none"),
    ] = None,
    max_length: Annotated[
        int | None, option("--max-length", help="Most tokens of a row.", panel=MODEL, show_default="256")
    ] = None,
    fine_tune: Annotated[
        int | None,
        option(
            "--fine-tune",
            help="Epochs in which the whole backbone trains first.",
            panel=TRAINING,
            show_default="0, none",
        ),
    ] = None,
    epochs: Annotated[
        int | None, option("--epochs", help="Most passes over the rows.", panel=TRAINING, show_default="10")
    ] = None,
    batch_size: Annotated[
        int | None, option("--batch-size", help="Rows in a step.", panel=TRAINING, show_default="64")
    ] = None,
    learning_rate: Annotated[
        float | None,
        option("--learning-rate", help="AdamW's peak learning rate.", panel=TRAINING, show_default="0.0003"),
    ] = None,
    select: Annotated[
        bool | None,
        option(
            "--select",
            help="Choose adapting layers, taps, branch and epochs on training rows that are held out together.",
            panel=TRAINING,
            show_default="off",
        ),
    ] = None,
    seed: Annotated[
        int | None, option("--seed", help="Seed of every random choice.", panel=TRAINING, show_default="0")
    ] = None,
    config: Annotated[
        Path | None, option("--config", help="A TOML file of settings; options override it.", panel=EXECUTION)
    ] = None,
    settings: Annotated[
        list[str] | None,
        option("--set", help=_SET, panel=EXECUTION, metavar="<name=value>", allow_from_autoenv=False),
    ] = None,
    print_config: Annotated[
        bool,
        option("--print-config", help="Print every setting with its value, as TOML, and exit.", panel=EXECUTION),
    ] = False,
    device: Annotated[
        TrainingDevice | None,
        option("--device", help="Where training computes; auto: a GPU if any.", panel=EXECUTION, show_default="auto"),
    ] = None,
    cache: Cache = None,
    resume: Annotated[bool, option("--resume", help="Resume an interrupted run.", panel=EXECUTION)] = False,
    output: Annotated[Path | None, option("--output", "-o", help="The run's folder.", panel=OUTPUT)] = None,
    overwrite: Overwrite = False,
    json: Json = False,
) -> None:
    """Learn a LEVI model from a table.

    The model is a frozen backbone, a branch trained from scratch, and heads that read both. DATA and --output are
    required, except with --print-config.
    """
    from levi_deploy.config import Config
    from levi_serving.errors import UsageError

    given: dict[str, dict[str, Any]] = {
        "model": {
            "backbone": backbone,
            "taps": parse_taps(taps),
            "pooling": pooling,
            "branches": None if branch is None else [name for name in branch if name != "none"],
            "lora": lora,
            "max_length": max_length,
        },
        "training": {
            "fine_tune": fine_tune,
            "epochs": epochs,
            "batch_size": batch_size,
            "learning_rate": learning_rate,
            "select": select,
            "device": device,
            "seed": seed,
        },
        "data": {
            "text": text,
            "image": image,
            "numeric": numeric,
            "categorical": categorical,
            "nodes": nodes,
            "target": target,
            "task": task,
            "split_column": split_column,
            "domain": domain,
        },
    }
    for section, name, value in map(parse_setting, settings or ()):
        given.setdefault(section, {})[name] = value
    configuration = Config.read(config, **given)
    if print_config:
        typer.echo(configuration.to_toml(), nl=False)
        return
    if data is None or output is None:
        missing = "DATA, a table with training rows" if data is None else "--output RUN, the folder to write"
        raise UsageError(f"Training needs {missing}. See 'levi train --help'.")
    existing(data, "a table with training rows")
    from levi_deploy.training import train

    with progress() as update:
        run = train(
            data,
            output,
            configuration,
            validation=validation,
            resume=resume,
            overwrite=overwrite,
            cache=cache,
            progress=update,
        )
    record = run.record
    show(
        {
            "run": str(run.folder),
            "task": run.task.kind,
            "labels": run.task.labels,
            "abstain_by": run.task.abstain_by,
            "abstain_above": run.task.abstain_above,
            "taps": run.taps,
            **record,
        },
        json=json,
        human=lambda: _human(run, record),
    )


def parse_taps(values: list[str] | None) -> Any:
    """Read ``2,4,6``, ``3``, ``all`` or ``none``.

    Raises:
        UsageError: the values are none of these.
    """
    if values is None:
        return None
    if values in (["all"], ["none"]):
        return "all" if values == ["all"] else []
    from levi_serving.errors import UsageError

    try:
        depths = [int(value) for value in values]
    except ValueError:
        given = ",".join(values)
        raise UsageError(f"--taps is {given!r}; expected depths as 2,4,6, or a number, or all, or none.") from None
    return depths[0] if len(depths) == 1 else depths


def parse_setting(text: str) -> tuple[str, str, Any]:
    """Read ``training.patience=5``: a section, a name, and a value in TOML, where text may stand without quotes.

    Raises:
        UsageError: it has no section, name or value.
    """
    import tomllib

    from levi_serving.errors import UsageError

    key, _, value = text.partition("=")
    section, _, name = key.strip().partition(".")
    if not section or not name or not value.strip():
        raise UsageError(f"--set is {text!r}; expected SECTION.NAME=VALUE, as training.patience=5.")
    try:
        return section, name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return section, name, value.strip()


def _human(run: Any, record: Any) -> str:
    seconds, parameters = record["seconds"], record["parameters"]
    chosen = f"Chosen: {record['selection']['chosen']}; levi inspect shows why\n" if "selection" in record else ""
    return chosen + (
        f"{run.task.kind}, {record['data']['training_rows']} training rows, taps {list(run.taps)}, "
        f"best of {record['epochs']} epochs: {record['best_epoch']}\n"
        f"Trained {parameters['trained']:,} parameters beside {parameters['frozen']:,} frozen ones; "
        f"taps {seconds['taps']:.0f} s, fit {seconds['fit']:.0f} s on {record['device']}\n\n"
        f"In-distribution validation, {record['validation']['rows']} rows ({record['data']['validation_from']}):\n"
        + by_head(record["validation"])
        + f"\n\nIt abstains {run.task.abstains}.\nThe run is in {run.folder}. Next: levi export {run.folder} -o BUNDLE"
    )
