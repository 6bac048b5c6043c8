"""The ``levi`` command: one file a command, each a thin shell over one function of another room.

Nothing heavy is imported here: a command imports the room it needs when it runs.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from levi_deploy.cli import bench, demo, doctor, evaluate, export, inspect, predict, train, verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="levi",
    help="Train a LEVI model, export it as one proven ONNX graph, and serve it with onnxruntime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich would take longer to import than all the rest
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _room in (train, evaluate, export, verify, inspect, predict, bench, doctor, demo):
    app.command(_room.__name__.rpartition(".")[2])(_room.command)

# A missing module, and the extra that brings it.
_EXTRAS = {
    **dict.fromkeys(("torch", "transformers", "safetensors"), "train"),
    **dict.fromkeys(("onnx", "onnx_ir", "onnxscript", "optimum"), "export"),
    "pyarrow": "table",
    "PIL": "image",
    "peft": "lora",
    "matplotlib": "plot",
    "openvino": "openvino",
}


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        typer.echo(f"levi-deploy {metadata.version('levi-deploy')}")
        raise typer.Exit


@app.callback()
def _global(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


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
        message, code = _in_words(error)
        typer.echo(message, err=True)
        sys.exit(code)


def _in_words(error: Exception) -> tuple[str, int]:
    from levi_serving.errors import LeviError, MissingExtraError

    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRAS:
        module = str(error.name).partition(".")[0]
        error = MissingExtraError(module, _EXTRAS[module], "This command")
    if isinstance(error, LeviError):
        return f"Error: {error}", error.exit_code
    return (
        f"Internal error: {type(error).__name__}: {error}\n"
        "This is a defect of levi-deploy. Set LEVI_DEBUG=1 to see where, and report it.",
        1,
    )
