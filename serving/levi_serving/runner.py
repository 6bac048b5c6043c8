"""Rows in, predictions out: the deployed model inside any Python program.

``prepare`` (rows to arrays), ``run`` (arrays to arrays), ``finish`` (arrays to predictions) are all that
the file predictor, the bench and a service use. It knows no files but the bundle.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from levi_serving.batching import plan
from levi_serving.bundle import Bundle, Graph
from levi_serving.errors import ParityError
from levi_serving.gpu import GpuSettings
from levi_serving.machine import usable_cores
from levi_serving.predictions import Outputs, Predictions, finish, table
from levi_serving.preprocess import Encoded, Preprocessor, Row
from levi_serving.session import Device, Session, settle
from levi_serving.tuning import Tuning

__all__ = ["Runner", "Scenario"]

Scenario = Literal["single", "offline"]
"""What a runner is laid out for: the least time for one query, or the most rows a second."""

_MAX_TOKENS = 1024
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

    What is None is taken from the bundle's ``tuning.json`` first, where ``levi bench --tune`` wrote one on this kind
    of machine for this scenario, device and graph.

    Raises:
        BundleError: the bundle is damaged, foreign or newer.
        ParityError: the graph has other inputs or outputs than the manifest says.
        ProviderError: the device is not there.
        MissingExtraError: no onnxruntime is installed.

    Example:
        >>> runner = Runner("bundle")
        >>> predictions = runner.predict(["works well", "broke after a day"])
        >>> predictions.labels.tolist()
        ['positive', 'negative']
    """

    name = "onnxruntime"

    def __init__(
        self,
        bundle: Path | str,
        *,
        device: Device = "auto",
        scenario: Scenario = "single",
        threads: int | None = None,
        workers: int | None = None,
        precision: str | None = None,
        graph: Graph | None = None,
        max_batch_tokens: int | None = None,
        max_batch_rows: int = 128,
        gpu: GpuSettings | None = None,
    ) -> None:
        self.bundle = Bundle.read(bundle)
        manifest = self.bundle.manifest
        self.task = manifest.task
        self.labels = manifest.labels
        self.abstain_above = manifest.abstain_above
        self.columns = manifest.preprocessing.names
        self.files = manifest.preprocessing.files
        self.fingerprint = manifest.digest
        device = settle(device)
        self.graph = graph or self.bundle.graph(precision, device=device)
        tuned = Tuning.read(self.bundle.folder).get(scenario=scenario, device=device, graph=self.graph.file)
        self.tuned = tuned is not None
        if tuned is not None and (threads, workers) == (None, None):
            threads, workers = tuned.threads, tuned.workers
        if tuned is not None and max_batch_tokens is None:
            max_batch_tokens = tuned.max_batch_tokens
        cores = usable_cores()
        self.workers = workers or (cores if scenario == "offline" and device == "cpu" and threads is None else 1)
        self._max_batch_tokens = max_batch_tokens or _MAX_TOKENS
        self._max_batch_rows = max_batch_rows
        most = {"batch": max_batch_rows}
        if manifest.preprocessing.text is not None:
            most["sequence"] = manifest.preprocessing.text.max_length
        with ThreadPoolExecutor(1) as beside:  # digests leave Python's lock alone: they cost no time beside loading
            checked = beside.submit(self.bundle.check)
            try:
                self.preprocessor = Preprocessor(self.bundle.folder, manifest.preprocessing)
                self.session = Session(
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
        self._shape = (int(heads), len(manifest.labels))  # K, C
        for rows in (1, 2):
            self.run(Encoded.blank(manifest.preprocessing, rows=rows))

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
            bad: rows that cannot be used are left out and told here, position by reason.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given.
        """
        return self.preprocessor.encode(rows, bad=bad)

    def run(self, encoded: Encoded) -> Outputs:
        """Run N prepared rows through the graph, in batches of similar length, and restore their order."""
        heads, classes = self._shape
        logits = np.empty((len(encoded), classes), dtype=np.float32)
        head_logits = np.empty((len(encoded), heads, classes), dtype=np.float32)

        def answer(rows: NDArray[np.int64]) -> None:
            answers = self._answer(encoded, rows)
            logits[rows], head_logits[rows] = answers["logits"][: len(rows)], answers["head_logits"][: len(rows)]

        batches = self._plan(encoded.lengths)
        if self._pool is None or len(batches) == 1:
            for rows in batches:
                answer(rows)
        else:
            waiting = deque[Future[None]]()
            for rows in batches:  # longest first, so that the workers end together
                if len(waiting) == 2 * self.workers:  # few at a time: an interrupted program ends soon
                    waiting.popleft().result()
                waiting.append(self._pool.submit(answer, rows))
            for future in waiting:
                future.result()
        return Outputs(logits, head_logits)

    def _plan(self, lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Batches within the budget, and small enough that each worker has one."""
        share = max(_LEAST_SHARE, -(-int(lengths.sum()) // self.workers))
        return plan(lengths, max_tokens=min(self._max_batch_tokens, share), max_rows=self._max_batch_rows)

    def _answer(self, encoded: Encoded, rows: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        """One batch; on a GPU that replays graphs it is filled up to a bucket with its last row."""
        longest = int(encoded.tokens.lengths[rows].max()) if encoded.tokens is not None else 1
        count, longest = self.session.padded(len(rows), longest)
        if count > len(rows):
            rows = np.pad(rows, (0, count - len(rows)), mode="edge")
        return self.session.run(encoded.batch(rows, tokens=longest))

    def finish(self, outputs: Outputs) -> Predictions:
        """Turn the graph's answers into labels, probabilities, disagreement, and where to abstain."""
        return finish(outputs, task=self.task, labels=self.labels, abstain_above=self.abstain_above)

    def table(
        self, predictions: Predictions, *, heads: bool = False, all_probabilities: bool = False
    ) -> dict[str, list[object]]:
        """Predictions as columns for a file, see ``levi_serving.predictions.table``."""
        return table(predictions, task=self.task, labels=self.labels, heads=heads, all_probabilities=all_probabilities)

    def describe(self) -> dict[str, object]:
        """What answers: the provider in use, threads, precision, batch limits and the bundle's digest."""
        return {
            "provider": self.session.provider,
            "onnxruntime": self.session.version,
            "threads": self.session.threads,
            "workers": self.workers,
            "tuned": self.tuned,
            "precision": self.graph.precision,
            "max_batch_tokens": self._max_batch_tokens,
            "max_batch_rows": self._max_batch_rows,
            "bundle": self.fingerprint[:12],
        }
