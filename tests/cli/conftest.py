"""The command in this process, as a shell would run it."""

from __future__ import annotations

import signal
import sys

import pytest

from levi_deploy.cli import main


@pytest.fixture
def levi(monkeypatch, capfd):
    """Run the command in this process: (exit code, stdout, stderr)."""
    import torch

    threads = torch.get_num_threads()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["levi", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capfd.readouterr()
        return code, out, err

    yield run
    torch.set_num_threads(threads)  # bench gives torch every core; another number of threads has other bits
