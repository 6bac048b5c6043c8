"""Rows in, predictions out: the deployed model inside any Python program.

``prepare`` (rows to arrays), ``run`` (arrays to arrays), ``finish`` (arrays to predictions) are all that
the file predictor, the bench and a service use. The bundle is the only file it reads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from levi_serving.bundle import Bundle, GraphFile
from levi_serving.engine.batching import Limits, plan
from levi_serving.engine.gpu import GpuSettings
from levi_serving.engine.session import Device, Session, settle
from levi_serving.engine.tuning import Tuning
from levi_serving.environment import usable_cores
from levi_serving.errors import ParityError
from levi_serving.predictions import Outputs, Predictions, answer_columns, finish, table
from levi_serving.rows.preprocess import Encoded, Preprocessor, Row

__all__ = ["Runner", "Scenario"]

Scenario = Literal["single", "offline"]
"""What a runner is laid out for: the least time for one query, or the most rows a second."""

_LEAST_SHARE = 128  # tokens; a batch is not cut smaller than this to give every worker one


class Runner:
    """A bundle that answers. Constructed means usable: loaded, on its device, warmed. Thread-safe.

    Args:
        bundle: the folder that ``levi export`` wrote.
        device: ``cpu``, ``cuda``, ``tensorrt``, or ``auto`` (``cuda`` where the GPU build of onnxruntime is installed).
        scenario: ``single`` lays a CPU out for one query at a time: all its cores work on each batch. ``offline``
            lays it out for many rows: each core works on batches of its own, which wastes least.
        threads: for one batch; the usable cores, shared out between the workers, when None.
        workers: batches that run at the same time; the usable cores for ``offline`` on a CPU, else 1, when None.
        precision: which of the bundle's graphs; the first that the device can run when None.
        graph: which one, whatever its place among them; by ``precision`` when None.
        max_batch_tokens: the most padded tokens in one batch; 1024 when None.
        max_batch_rows: the most rows in one batch.
        gpu: what a GPU session may use, and whether CUDA graphs are replayed.
        session: one of that graph to run instead of a new one; device, threads and GPU settings are its own.

    What is None is taken from what ``levi tune`` found on this machine for this bundle, scenario, device and graph,
    where it did.

    Raises:
        BundleError: the bundle is damaged, foreign or newer.
        ParityError: the graph has other inputs or outputs than the manifest says.
        ProviderError: the device is not there.
        MissingExtraError: no onnxruntime is installed.

    Example:
        >>> runner = Runner("bundle")
        >>> runner
        <Runner bundle: classification of negative, positive; all-MiniLM-L6-v2, taps 2, 4, 6;
         fp32 on CPUExecutionProvider, 2 threads, 1 worker>
        >>> predictions = runner.predict(["works well", "broke after a day"])
        >>> predictions.labels.tolist()
        ['positive', 'negative']
    """

    def __init__(
        self,
        bundle: Path | str,
        *,
        device: Device = "auto",
        scenario: Scenario = "single",
        threads: int | None = None,
        workers: int | None = None,
        precision: str | None = None,
        graph: GraphFile | None = None,
        max_batch_tokens: int | None = None,
        max_batch_rows: int = Limits.rows,
        gpu: GpuSettings | None = None,
        session: Session | None = None,
    ) -> None:
        self.bundle = Bundle.read(bundle)
        manifest = self.bundle.manifest
        self.task = manifest.task
        self.fingerprint = manifest.digest
        device = session.device if session else settle(device)
        self.graph = graph or self.bundle.graph(precision, device=device)
        tuned = Tuning.read(self.fingerprint).get(scenario=scenario, device=device, graph=self.graph.file)
        self.tuned = tuned is not None
        if tuned is not None and (threads, workers) == (None, None):
            threads, workers = tuned.threads, tuned.workers
        if tuned is not None and max_batch_tokens is None:
            max_batch_tokens = tuned.max_batch_tokens
        cores = usable_cores()
        self.workers = workers or (cores if scenario == "offline" and device == "cpu" and threads is None else 1)
        self.limits = Limits(tokens=max_batch_tokens or Limits.tokens, rows=max_batch_rows)
        most = {"batch": max_batch_rows}
        if manifest.preprocessing.text is not None:
            most["sequence"] = manifest.preprocessing.text.max_length
        with ThreadPoolExecutor(1) as beside:  # digests leave Python's lock alone: they cost no time beside loading
            checked = beside.submit(self.bundle.check)
            try:
                self.preprocessor = Preprocessor(self.bundle.folder, manifest.preprocessing)
                self.session = session or Session(
                    self.bundle.folder / self.graph.file,
                    device=device,
                    threads=threads or max(1, cores // self.workers),
                    precision=self.graph.precision,
                    most=most,
                    gpu=gpu,
                )
            finally:
                checked.result()  # a damaged file is why it does not load, or why it must not answer
        self._check_contract()
        # A thread that waits for the graph holds no lock of Python's, so workers need no process of their own.
        self._pool = ThreadPoolExecutor(self.workers, "levi-runner") if self.workers > 1 else None
        heads = next(tensor.shape[1] for tensor in manifest.outputs if tensor.name == "head_logits")
        self.heads = int(heads)  # K
        self.threads = self.session.threads * self.workers
        for rows in (1, 2):
            self.run(Encoded.blank(manifest.preprocessing, rows=rows))

    def __repr__(self) -> str:
        manifest, threads, workers = self.bundle.manifest, self.session.threads, self.workers
        taps = f"{manifest.model['backbone']['name']}, taps {', '.join(map(str, manifest.taps))}"
        return (
            f"<Runner {self.bundle.folder}: {self.task.in_words}; {taps if manifest.taps else 'no backbone'};\n"
            f" {self.graph.precision} on {self.session.provider}, {threads} thread{'s' * (threads != 1)}, "
            f"{workers} worker{'s' * (workers != 1)}>"
        )

    def _check_contract(self) -> None:
        """Hold the loaded graph's names and symbolic shapes against the manifest."""
        failures = []
        manifest = self.bundle.manifest
        for kind, stated, found in (
            ("input", manifest.inputs, self.session.inputs),
            ("output", manifest.outputs, self.session.outputs),
        ):
            expected = {tensor.name: tensor.shape for tensor in stated}
            if set(expected) != set(found):
                failures.append(f"its {kind}s are {sorted(found)}, expected {sorted(expected)}")
                continue
            failures += [
                f"{kind} {name!r} has the shape {found[name]}, expected {shape}"
                for name, shape in expected.items()
                if found[name] != shape
            ]
        if failures:
            raise ParityError(
                f"{self.bundle.folder / self.graph.file} is not the graph that its manifest describes: "
                + "; ".join(failures)
                + ". Do not use this bundle; export the run again."
            )

    def predict(self, rows: Sequence[Row]) -> Predictions:
        """Answer N rows, each a mapping with the model's columns, or the value of its only one. Order is kept.

        Raises:
            RowError: a row cannot be used; the first such row is named and nothing is predicted.
        """
        return self.finish(self.run(self.prepare(rows)))

    def prepare(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Encoded:
        """Turn N rows into arrays: tokens, pixels, numbers.

        Args:
            rows: N rows.
            bad: rows that cannot be used are left out and listed here, reasons by position.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given.
        """
        return self.preprocessor.encode(rows, bad=bad)

    def run(self, encoded: Encoded) -> Outputs:
        """Run N prepared rows through the graph, in batches of similar length, and restore their order."""
        outputs = self.bundle.manifest.room(len(encoded))
        costs = encoded.costs

        def answer(rows: NDArray[np.int64]) -> int:
            answers, padded = self._answer(encoded, rows, costs[rows])
            for name, values in outputs.items():
                values[rows] = answers[name][: len(rows)]
            return padded

        padded = 0
        batches = self._plan(costs)
        if self._pool is None or len(batches) == 1:
            for rows in batches:
                padded += answer(rows)
        else:
            waiting = deque[Future[int]]()
            for rows in batches:  # longest first, so that the workers end together
                if len(waiting) == 2 * self.workers:  # few at a time: an interrupted program ends soon
                    padded += waiting.popleft().result()
                waiting.append(self._pool.submit(answer, rows))
            for future in waiting:
                padded += future.result()
        return Outputs.of(outputs, padded)

    def _plan(self, costs: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Batches within the limits, of at most a worker's share of the rows' own tokens.

        With one worker the share is all of them: rows that together would be padded beyond that are cut in two,
        since two batches with little padding take less time than one with much.
        """
        share = max(_LEAST_SHARE, -(-int(costs.sum()) // self.workers))
        return plan(costs, replace(self.limits, tokens=min(self.limits.tokens, share)))

    def _answer(
        self, encoded: Encoded, rows: NDArray[np.int64], costs: NDArray[np.int64]
    ) -> tuple[dict[str, NDArray[np.float32]], int]:
        """One batch and its padded tokens; where CUDA graphs are replayed it is filled up with its last row."""
        longest = int(encoded.tokens.lengths[rows].max()) if encoded.tokens is not None else 1
        count, padded = self.session.padded(len(rows), longest)
        if count > len(rows):
            rows = np.pad(rows, (0, count - len(rows)), mode="edge")
        return self.session.run(encoded.batch(rows, tokens=padded)), count * (int(costs.max()) + padded - longest)

    def finish(self, outputs: Outputs) -> Predictions:
        """Turn the graph's answers into labels, probabilities, disagreement, novelty, and where to abstain."""
        return finish(outputs, self.task)

    def answer_columns(self, *, with_heads: bool = False, all_probabilities: bool = False) -> list[str]:
        """The names of the columns that ``table`` gives."""
        return answer_columns(self.task, heads=self.heads, with_heads=with_heads, all_probabilities=all_probabilities)

    def table(
        self, predictions: Predictions, *, with_heads: bool = False, all_probabilities: bool = False
    ) -> dict[str, list[object]]:
        """Predictions as columns for a file, see ``levi_serving.predictions.table``."""
        return table(predictions, self.task, with_heads=with_heads, all_probabilities=all_probabilities)

    def describe(self) -> dict[str, object]:
        """What answers: the provider in use, threads, precision, batch limits and the bundle's digest."""
        return {
            "provider": self.session.provider,
            "onnxruntime": self.session.version,
            "threads": self.session.threads,
            "workers": self.workers,
            "tuned": self.tuned,
            "precision": self.graph.precision,
            "max_batch_tokens": self.limits.tokens,
            "max_batch_rows": self.limits.rows,
            "bundle": self.fingerprint[:12],
        }
