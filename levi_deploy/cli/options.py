"""Options and output that several commands share.

An option's parameter has the option's own name (``--batch-size`` is ``batch_size``), so that its variable does too:
``LEVI_BENCH_BATCH_SIZE``. Choices are written out here because importing them from where they are used would load
numpy for ``levi --help``; a test holds both equal.
"""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

__all__ = [
    "COMPARISON",
    "DATA",
    "EXECUTION",
    "MEASUREMENT",
    "MODEL",
    "OUTPUT",
    "SERVER",
    "TRAINING",
    "Backbone",
    "BatchSizes",
    "Bundle",
    "Data",
    "Device",
    "DeviceName",
    "Image",
    "Json",
    "Lengths",
    "Overwrite",
    "Precision",
    "PrecisionName",
    "Precisions",
    "Text",
    "ThreadCounts",
    "Threads",
    "by_head",
    "existing",
    "option",
    "progress",
    "quiet",
    "renamed",
    "several",
    "show",
    "table",
    "writable",
]

DATA, MODEL, TRAINING, EXECUTION, OUTPUT = "Data", "Model", "Training", "Execution", "Output"
MEASUREMENT, SERVER, COMPARISON = "Measurement", "Server scenario", "Comparison"

DeviceName = Literal["auto", "cpu", "cuda", "tensorrt"]
PrecisionName = Literal["fp32", "fp16", "bf16", "int8", "int4"]

quiet: ContextVar[bool] = ContextVar("quiet", default=False)
"""Whether progress is silenced; ``levi --quiet`` sets it."""


def option(*names: str, help: str, panel: str, **settings: Any) -> Any:  # noqa: A002  # Typer's own name
    """An option in a panel of the command's help."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_envvar=False, **settings)


def several(*names: str, help: str, panel: str, kind: Any = str, of: str = "", **settings: Any) -> Any:  # noqa: A002
    """An option that takes several values: repeated, separated by commas, or both.

    Args:
        names: ``--threads``.
        help: one sentence.
        panel: where it stands in the help.
        kind: of each value: ``str``, ``int`` (from 1), or a ``Literal`` of texts.
        of: what a value is called in the help; its kind when empty.
        settings: further ones of ``typer.Option``.
    """
    choices = get_args(kind)
    of = of or "|".join(choices) or kind.__name__

    def read(text: str) -> list[Any]:
        values = [part.strip() for part in text.split(",")]
        if choices and set(values) <= set(choices):
            return values
        if kind is int and all(value.isdecimal() and int(value) > 0 for value in values):
            return [int(value) for value in values]
        if kind is str and all(values):
            return values
        expected = {str: "values", int: "whole numbers from 1"}.get(kind, f"some of {', '.join(choices)}")
        raise typer.BadParameter(f"{text!r}; expected {expected}, separated by commas.")

    def join(parts: list[list[Any]] | None) -> list[Any]:
        return [value for part in parts or () for value in part]  # Typer makes None of an empty list

    return option(*names, help=help, panel=panel, parser=read, callback=join, metavar=f"<{of},…>", **settings)


Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The folder of an exported bundle.")]
Data = Annotated[
    Path | None,
    option("--data", help="Rows to measure with.", panel=DATA, show_default="the bundle's golden rows"),
]
Text = Annotated[str | None, option("--text", help="The column with the text.", panel=DATA, show_default="the model's")]
Image = Annotated[
    str | None, option("--image", help="The column with the image.", panel=DATA, show_default="the model's")
]
BatchSizes = Annotated[
    list[int] | None, several("--batch-size", help="Rows of a request.", panel=DATA, kind=int, show_default="1")
]
Lengths = Annotated[
    list[int] | None,
    several("--length", help="Tokens of a row.", panel=DATA, kind=int, show_default="the rows' own lengths"),
]
Device = Annotated[
    DeviceName,
    option("--device", help="Where the graph runs.", panel=EXECUTION, envvar="LEVI_DEVICE", allow_from_autoenv=False),
]
Precision = Annotated[
    PrecisionName | None,
    option(
        "--precision",
        help="Which of the bundle's graphs.",
        panel=EXECUTION,
        show_default="the first that the device can run",
    ),
]
Precisions = Annotated[
    list[str] | None,
    several(
        "--precision",
        help="Which of the bundle's graphs.",
        panel=EXECUTION,
        kind=PrecisionName,
        show_default="the first that the device can run",
    ),
]
Threads = Annotated[
    int | None,
    option(
        "--threads",
        help="Threads of one batch.",
        panel=EXECUTION,
        min=1,
        show_default="the usable cores, shared between the workers",
    ),
]
ThreadCounts = Annotated[
    list[int] | None,
    several(
        "--threads",
        help="Threads; each number is measured.",
        panel=EXECUTION,
        kind=int,
        show_default="the usable cores",
    ),
]
Cache = Annotated[
    Path | None,
    option(
        "--cache",
        help="Where taps are kept between runs.",
        panel=EXECUTION,
        show_default="LEVI_CACHE, or your cache folder",
    ),
]
Backbone = Annotated[
    str | None,
    option(
        "--backbone",
        help="Where the run's backbone is now: a folder or a hub id.",
        panel=EXECUTION,
        show_default="where it was in training",
    ),
]
Overwrite = Annotated[bool, option("--overwrite", help="Replace what is there.", panel=OUTPUT)]
Json = Annotated[bool, option("--json", help="Print one JSON document.", panel=OUTPUT)]


def show(document: Mapping[str, Any], *, json: bool, human: Callable[[], str]) -> None:
    """Print a result to stdout: one JSON document, or text for people."""
    typer.echo(_json.dumps(document, indent=1, ensure_ascii=False, default=str) if json else human())


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Align rows in columns; numbers to the right."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [list(header), *cells] if header else cells
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))] if lines else []
    numeric = [all(isinstance(row[c], int | float) or row[c] == "" for row in rows) for c in range(len(widths))]

    def aligned(line: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    text = [aligned(line) for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


@contextmanager
def progress() -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on stderr, updated by (step, done, total); silent with ``--quiet`` and without a terminal."""
    if quiet.get() or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def update(step: str, done: float, total: float) -> None:
            if step not in tasks:
                tasks[step] = bar.add_task(step, total=total)
            bar.update(tasks[step], completed=done, total=total)

        yield update


def renamed(settings: Any, *, text: str | None = None, image: str | None = None) -> dict[str, str]:
    """The input's column for each of the model's, where text or image has another name there.

    Raises:
        UsageError: a name is given for what the model does not read.
    """
    result = {name: name for name in settings.names}
    for flag, given, part in (("--text", text, settings.text), ("--image", image, settings.image)):
        if given is None:
            continue
        if part is None:
            from levi_serving.errors import UsageError

            raise UsageError(f"{flag} names a column, but this model reads {', '.join(map(repr, settings.names))}.")
        result[part.column] = given
    return result


def by_head(validation: Mapping[str, Any]) -> str:
    """The metrics of an average beside each head's first one, as a table."""
    measured = {name: value for name, value in validation.items() if name not in ("heads", "rows")}
    heads = validation["heads"]
    rows = [
        [name, value, *(heads if n == 0 else [""] * len(heads))] for n, (name, value) in enumerate(measured.items())
    ]
    return table(rows, header=["", "average", *(f"head {k + 1}" for k in range(len(heads)))])


def existing(path: Path, what: str) -> None:
    """Refuse a path that is not there.

    Raises:
        UsageError: it is not.
    """
    if not path.exists():
        from levi_serving.errors import UsageError

        raise UsageError(f"{path} does not exist. Give the path of {what}.")


def writable(*paths: Path | None) -> None:
    """Refuse files that could not be written when the work is done.

    Raises:
        UsageError: a file's folder is missing, or a folder has its name.
    """
    from levi_serving.atomic import require_folder

    for path in paths:
        if path is not None:
            require_folder(path)
