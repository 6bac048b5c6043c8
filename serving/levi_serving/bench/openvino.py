"""The same graph in OpenVINO, behind the runner's three verbs. The only file that knows openvino.

It prepares, cuts batches and finishes as the runner does; only what computes the graph differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np

from levi_serving.batching import plan
from levi_serving.bench.environment import PRELOADED, allocator
from levi_serving.bench.scenarios import budget
from levi_serving.errors import LeviError, MissingExtraError, UsageError
from levi_serving.predictions import Outputs, Predictions
from levi_serving.preprocess import Encoded, Row
from levi_serving.runner import Runner

__all__ = ["OpenVino"]


class OpenVino:
    """A bundle's fp32 graph on OpenVINO's CPU plugin, with as many threads as the runner.

    Args:
        runner: whose bundle, preprocessing and batches are used.
        exact: compute in f32; else in whatever OpenVINO prefers on this processor (bf16, where it is fast).

    Raises:
        MissingExtraError: openvino is not installed.
        UsageError: a memory allocator is preloaded that OpenVINO does not bear.
        LeviError: OpenVINO cannot load the graph.
    """

    def __init__(self, runner: Runner, *, exact: bool = True) -> None:
        if (preloaded := allocator()) in PRELOADED:
            raise UsageError(
                f"{preloaded} is preloaded, and OpenVINO's CPU plugin aborts the process where the C library's "
                "allocator is replaced. Leave --against openvino out, or unset LD_PRELOAD."
            )
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("openvino", "openvino", "--against openvino") from error
        self.name = "openvino" if exact else "openvino-default"
        self._runner = runner
        settings: dict[str, object] = {
            "INFERENCE_NUM_THREADS": runner.session.threads * runner.workers,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if exact:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        portable = [g.file for g in runner.bundle.manifest.graphs if (g.precision, g.device) == ("fp32", "any")]
        if not portable:
            raise LeviError(
                f"{runner.bundle.folder} has no fp32 graph for any device, the one that OpenVINO is given. "
                "Leave --against openvino out, or export the run again with --precision fp32."
            )
        self._file = portable[0]
        try:
            self._compiled = core.compile_model(str(runner.bundle.folder / self._file), "CPU", settings)
        except RuntimeError as error:
            raise LeviError(
                f"OpenVINO cannot load {runner.bundle.folder / self._file}: {error}. Leave --against openvino out."
            ) from error
        self._request = self._compiled.create_infer_request()
        self._inputs = [port.get_any_name() for port in self._compiled.inputs]
        self._version = metadata.version("openvino")

    def prepare(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Encoded:
        """As the runner.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given.
        """
        return self._runner.prepare(rows, bad=bad)

    def run(self, encoded: Encoded) -> Outputs:
        """Run N prepared rows through the graph, cut as the runner cuts them."""
        parts: list[tuple[Any, Any, Any]] = []
        tokens, most = budget(self._runner)
        for rows in plan(encoded.lengths, max_tokens=tokens, max_rows=most):
            feeds = encoded.batch(rows)
            answers = self._request.infer({name: feeds[name] for name in self._inputs}, share_inputs=True)
            parts.append((rows, answers["logits"], answers["head_logits"]))
        order = np.argsort(np.concatenate([rows for rows, _, _ in parts]))
        return Outputs(
            np.concatenate([logits for _, logits, _ in parts])[order],
            np.concatenate([head_logits for _, _, head_logits in parts])[order],
        )

    def finish(self, outputs: Outputs) -> Predictions:
        """As the runner."""
        return self._runner.finish(outputs)

    def describe(self) -> dict[str, object]:
        """What answers, and in which precision."""
        tokens, rows = budget(self._runner)
        return {
            "openvino": self._version,
            "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
            "precision": self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "graph": self._file,
            "max_batch_tokens": tokens,
            "max_batch_rows": rows,
        }
