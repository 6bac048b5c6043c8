"""The ``levi`` command: one file a command, each a thin shell over one function of another room.

Nothing heavy is imported here: a command imports the room it needs when it runs. This file turns every error into a
sentence and an exit code, in the words of whoever typed the command: ``explain``.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from levi_deploy.cli import (
    bench,
    compare,
    demo,
    doctor,
    evaluate,
    export,
    inspect,
    options,
    predict,
    profile,
    train,
    tune,
    verify,
)
from levi_deploy.cli.help import CommandWithPanels

__all__ = ["app", "explain", "main"]

_EPILOG = """
Every option has a variable with the command's name: LEVI_BENCH_THREADS=1,2 is levi bench --threads 1,2. LEVI_DEVICE,
LEVI_CACHE and LEVI_QUIET hold for all commands; LEVI_DEBUG=1 shows where an internal error comes from.

Exit codes: 0 done; 1 failed; 2 wrong option or configuration; 3 the graph does not answer as the model does; 4 a
measurement does not count; 5 the requested device is not there; 6 done, but some rows could not be used; 130
interrupted (Ctrl-C); 143 terminated.
"""

app = typer.Typer(
    name="levi",
    help="Train a LEVI model, export it as one proven ONNX graph, and serve it with onnxruntime.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would take longer to import than all the rest
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
for _room in (train, evaluate, compare, export, verify, inspect, predict, bench, profile, tune, doctor, demo):
    _name = _room.__name__.rpartition(".")[2]
    _variables = {"auto_envvar_prefix": f"LEVI_{_name.upper()}"}
    app.command(_name, cls=CommandWithPanels, context_settings=_variables)(_room.command)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"levi-deploy {metadata.version('levi-deploy')}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[  # noqa: ARG001  # its callback prints it
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress.", envvar="LEVI_QUIET", show_envvar=False)
    ] = False,
) -> None:
    options.quiet.set(quiet)


def main() -> None:
    """Run the command; one place turns every error into a sentence and an exit code."""
    # Typer turns KeyboardInterrupt into exit code 1; leaving by SystemExit keeps the shell's 130.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        app()
    except Exception as error:
        if os.environ.get("LEVI_DEBUG"):
            raise
        message, code = explain(error)
        typer.echo(message, err=True)
        sys.exit(code)


def explain(error: Exception) -> tuple[str, int]:
    """An error in the words of whoever typed the command, and the exit code.

    The library names arguments (``LeviError.named``); here they become options.
    """
    from levi_deploy.cli.extras import extra_of
    from levi_serving.errors import LeviError, MissingExtraError

    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").partition(".")[0]
        if extra := extra_of(module):
            error = MissingExtraError(module, extra, "This command")
    if isinstance(error, LeviError):
        return f"Error: {error.named(_option_names())}", error.exit_code
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename is not None else ""
        return f"Error: {where}{error.strerror or error}.", 1
    return (
        f"Internal error: {type(error).__name__}: {error}\n"
        "This is a defect of levi-deploy. Set LEVI_DEBUG=1 to see where, and report it.",
        1,
    )


_OTHER_NAMES = {
    "branches": "--branch",
    "splits": "--split",
    "precisions": "--precision",
    "batch_sizes": "--batch-size",
    "lengths": "--length",
    "duration_s": "--duration",
    "bound_s": "--slo-ms",
    "percentile": "--slo-percentile",
    "bundle": "BUNDLE",
    "source": "INPUT",
}
"""Arguments of the library whose option has another name."""


def _option_names() -> dict[str, str]:
    """What the command calls each argument of the library: an option, or a setting as ``--set`` and TOML write it."""
    from dataclasses import fields

    from levi_deploy.config import DataConfig, ModelConfig, TrainingConfig

    names: dict[str, str] = {}
    for section, kind in (("model", ModelConfig), ("training", TrainingConfig), ("data", DataConfig)):
        names |= {field.name: f"{section}.{field.name}" for field in fields(kind)}
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        flags = {parameter.name: max(parameter.opts, key=len) for parameter in command.params}
        names |= {name: flag for name, flag in flags.items() if flag.startswith("--")}
    return names | _OTHER_NAMES
