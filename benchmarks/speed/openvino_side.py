"""OpenVINO in a process of its own, for bars.py: its CPU plugin aborts where another allocator is preloaded."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from levi_serving import Runner
from levi_serving.bench.openvino import OpenVino


class OpenVinoSide:
    """A child that computes when it is asked to and says how long that took.

    Args:
        bundle: whose fp32 graph.
        exact: in f32; else as OpenVINO likes.
        folder: where arrays are passed.
    """

    def __init__(self, bundle: Path, folder: Path, *, exact: bool) -> None:
        self._folder = folder
        variables = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        command = [sys.executable, __file__, str(bundle), "exact" if exact else "default"]
        self._child: Any = subprocess.Popen(
            command, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self._ask("ready?")

    def take(self, feeds: Mapping[str, np.ndarray]) -> None:
        """The arrays of the next runs."""
        path = self._folder / "openvino.npz"
        np.savez(path, **dict[str, Any](feeds))
        self._ask(str(path))

    def seconds(self) -> float:
        """One run's time, on the child's own clock."""
        return float(self._ask("run"))

    def _ask(self, what: str) -> str:
        self._child.stdin.write(what + "\n")
        if not (answer := self._child.stdout.readline()):
            raise SystemExit(f"The OpenVINO process ended with {self._child.wait()}.")
        return str(answer)


def main() -> None:
    """Serve a parent over stdin and stdout."""
    peer = OpenVino(Runner(sys.argv[1], threads=1, precision="fp32"), exact=sys.argv[2] == "exact")
    feeds: dict[str, np.ndarray] = {}
    for line in sys.stdin:
        what = line.strip()
        started = time.perf_counter()
        if what == "run":
            peer._request.infer(feeds, share_inputs=True)
        elif what != "ready?":
            feeds = dict(np.load(what))
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
