"""A page's path, command by command: each as a user types it, with what it printed and its time."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from levi_serving.environment import environment

__all__ = ["machine", "path"]


def path(commands: Sequence[str], work: Path) -> str:
    """Run the commands in a folder, one after another."""
    return "\n\n".join(_block(command, work) for command in commands)


def machine() -> str:
    """What the numbers of a page are measured on, now."""
    about: dict[str, Any] = environment()
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"""Machine: {about["cpu"]}, {about["usable_cores"]} cores, {", ".join(about["instruction_sets"])},
{about["memory_gib"]} GiB, load average {about["load_average"]} when it began. Python {about["python"]},
{versions}."""


def _block(command: str, work: Path) -> str:
    print(f"$ {command}", flush=True)
    words = shlex.split(command) + (["--overwrite"] if " -o " in command else [])
    program = str(Path(sys.executable).with_name("levi"))
    started = time.perf_counter()
    done = subprocess.run([program, *words[1:]], cwd=work, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode not in (0, 4):
        sys.exit(f"{command} ended with {done.returncode}: {done.stderr}")
    said = done.stdout.rstrip() + (f"\n{done.stderr.rstrip()}" if done.returncode else "")
    print(said, flush=True)
    return f"```console\n$ {command}\n{said}\n```\n{seconds:.0f} s."
