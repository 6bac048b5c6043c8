"""The same graph in OpenVINO, as a predictor. The only file that imports openvino.

It prepares, cuts batches and finishes as the runner does; only what computes the graph differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import metadata

from levi_serving.engine.batching import plan
from levi_serving.engine.runner import Runner
from levi_serving.environment import PRELOADED, allocator
from levi_serving.errors import LeviError, MissingExtraError, UsageError
from levi_serving.predictions import Outputs, Predictions
from levi_serving.rows.preprocess import Encoded, Row

__all__ = ["OpenVino"]


class OpenVino:
    """A bundle's fp32 graph on OpenVINO's CPU plugin, with as many threads as the runner.

    Args:
        runner: whose bundle, preprocessing and batches are used.
        exact: compute in f32; else in whatever OpenVINO prefers on this processor (bf16, where it is fast).

    Raises:
        MissingExtraError: openvino is not installed.
        UsageError: a memory allocator is preloaded under which OpenVINO aborts the process.
        LeviError: OpenVINO cannot load the graph.
    """

    def __init__(self, runner: Runner, *, exact: bool = True) -> None:
        if (preloaded := allocator()) in PRELOADED:
            raise UsageError(
                f"{preloaded} is preloaded, and OpenVINO's CPU plugin aborts the process where the C library's "
                "allocator is replaced. Measure without OpenVINO, or unset LD_PRELOAD."
            )
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise MissingExtraError("openvino", "openvino", "Measuring OpenVINO") from error
        self._runner = runner
        self.task, self.limits, self.threads = runner.task, runner.limits, runner.threads
        self.preprocessor, self.fingerprint = runner.preprocessor, runner.fingerprint
        settings: dict[str, object] = {
            "INFERENCE_NUM_THREADS": runner.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        if exact:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        core = openvino.Core()
        portable = [g.file for g in runner.bundle.manifest.graphs if (g.precision, g.device) == ("fp32", "any")]
        if not portable:
            raise LeviError(
                f"{runner.bundle.folder} has no fp32 graph for every device, the one that OpenVINO runs. "
                "Measure without OpenVINO, or export the run again with the precision fp32."
            )
        self._file = portable[0]
        try:
            self._compiled = core.compile_model(str(runner.bundle.folder / self._file), "CPU", settings)
        except RuntimeError as error:
            raise LeviError(
                f"OpenVINO cannot load {runner.bundle.folder / self._file}: {error}. Measure without OpenVINO."
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
        outputs = self._runner.bundle.manifest.room(len(encoded))
        costs, padded = encoded.costs, 0
        for rows in plan(costs, self.limits):
            feeds = encoded.batch(rows)
            answers = self._request.infer({name: feeds[name] for name in self._inputs}, share_inputs=True)
            for name, values in outputs.items():
                values[rows] = answers[name]
            padded += len(rows) * int(costs[rows].max())
        return Outputs.of(outputs, padded)

    def finish(self, outputs: Outputs) -> Predictions:
        """As the runner."""
        return self._runner.finish(outputs)

    def answer_columns(self, *, with_heads: bool = False, all_probabilities: bool = False) -> list[str]:
        """As the runner."""
        return self._runner.answer_columns(with_heads=with_heads, all_probabilities=all_probabilities)

    def table(
        self, predictions: Predictions, *, with_heads: bool = False, all_probabilities: bool = False
    ) -> dict[str, list[object]]:
        """As the runner."""
        return self._runner.table(predictions, with_heads=with_heads, all_probabilities=all_probabilities)

    def describe(self) -> dict[str, object]:
        """What answers, and in which precision."""
        return {
            "openvino": self._version,
            "threads": self._compiled.get_property("INFERENCE_NUM_THREADS"),
            "precision": self._compiled.get_property("INFERENCE_PRECISION_HINT").to_string(),
            "graph": self._file,
            "max_batch_tokens": self.limits.tokens,
            "max_batch_rows": self.limits.rows,
        }
