"""Options and output that several commands share. Knows Typer and rich; knows no room."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

__all__ = [
    "Device",
    "Json",
    "Overwrite",
    "Precision",
    "Threads",
    "Workers",
    "by_head",
    "existing",
    "option",
    "progress",
    "renamed",
    "show",
    "table",
]


def option(*names: str, help: str, **settings: Any) -> Any:  # noqa: A002  # Typer's own name
    """An option that can also be set by the variable ``LEVI_`` and its long name."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    variable = "LEVI_" + long.strip("-").replace("-", "_").upper()
    return typer.Option(*names, help=help, envvar=variable, show_envvar=False, **settings)


Json = Annotated[bool, option("--json", help="Print one JSON document, for machines.")]
Overwrite = Annotated[bool, option("--overwrite", help="Replace what is there.")]
Device = Annotated[str, option("--device", help="cpu, cuda, tensorrt, or auto.")]
Precision = Annotated[
    str | None, option("--precision", help="Which of the bundle's graphs [the first that the device can run].")
]
Threads = Annotated[int | None, option("--threads", help="Threads of one batch [the usable cores, shared out].", min=1)]
Workers = Annotated[int | None, option("--workers", help="Batches at the same time [1; for files one a core].", min=1)]


def show(document: Mapping[str, Any], *, as_json: bool, human: Callable[[], str]) -> None:
    """Print a result to stdout: one JSON document, or text for people."""
    typer.echo(json.dumps(document, indent=1, ensure_ascii=False, default=str) if as_json else human())


def table(rows: Sequence[Sequence[object]], *, header: Sequence[str] = ()) -> str:
    """Lay out rows in aligned columns; numbers to the right."""
    cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    lines = [list(header), *cells] if header else cells
    widths = [max(len(line[c]) for line in lines) for c in range(len(lines[0]))] if lines else []
    numeric = [all(isinstance(row[c], int | float) or row[c] == "" for row in rows) for c in range(len(widths))]

    def laid(line: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        return "  ".join(parts).rstrip()

    text = [laid(line) for line in lines]
    if header:
        text.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(text)


@contextmanager
def progress() -> Iterator[Callable[[str, float, float], None]]:
    """A progress bar on stderr, told (what, done, total); silent where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total)

        yield tell


def renamed(own: Sequence[str], settings: Any, *, text: str | None = None, image: str | None = None) -> dict[str, str]:
    """The input's column for each of the model's, where text or image has another name there.

    Raises:
        UsageError: a name is given for what the model does not read.
    """
    result = {name: name for name in own}
    for option, given, part in (("--text", text, settings.text), ("--image", image, settings.image)):
        if given is None:
            continue
        if part is None:
            from levi_serving.errors import UsageError

            raise UsageError(f"{option} names a column, but this model reads {', '.join(map(repr, own))}.")
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


def existing(path: Path, what: str) -> Path:
    """A path that must be there.

    Raises:
        UsageError: it is not.
    """
    if not path.exists():
        from levi_serving.errors import UsageError

        raise UsageError(f"There is no {path}. Give the path of {what}.")
    return path
