"""Rows in, predictions out: the deployed model inside any Python program.

``prepare`` (rows to arrays), ``run`` (arrays to arrays), ``finish`` (arrays to predictions) are all that
the file predictor, the bench and a service use. It knows no files but the bundle, and no threads of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from levi_serving.batching import plan
from levi_serving.bundle import Bundle
from levi_serving.errors import ParityError
from levi_serving.predictions import Outputs, Predictions, finish, table
from levi_serving.preprocess import Encoded, Preprocessor, Row
from levi_serving.session import Device, Session

__all__ = ["Runner"]


class Runner:
    """A bundle that answers. Constructed means usable: loaded, on its device, warmed. Thread-safe.

    Args:
        bundle: the folder that ``levi export`` wrote.
        device: ``cpu``, ``cuda``, or ``auto`` (``cuda`` where the GPU build of onnxruntime is installed).
        threads: for one batch; the usable cores when None.
        precision: which of the bundle's graphs; the first when None.
        max_batch_tokens: the most padded tokens in one batch.
        max_batch_rows: the most rows in one batch.

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
        threads: int | None = None,
        precision: str | None = None,
        max_batch_tokens: int = 1024,
        max_batch_rows: int = 128,
    ) -> None:
        self.bundle = Bundle.read(bundle)
        manifest = self.bundle.manifest
        self.task = manifest.task
        self.labels = manifest.labels
        self.columns = manifest.preprocessing.names
        self.files = manifest.preprocessing.files
        self.fingerprint = manifest.digest
        self.graph = self.bundle.graph(precision)
        with ThreadPoolExecutor(1) as beside:  # digests leave Python's lock alone: they cost no time beside loading
            checked = beside.submit(self.bundle.check)
            try:
                self.preprocessor = Preprocessor(self.bundle.folder, manifest.preprocessing)
                self.session = Session(self.bundle.folder / self.graph.file, device=device, threads=threads)
            finally:
                checked.result()  # a damaged file is why it does not load, or why it must not answer
        self._check_contract()
        self._max_batch_tokens = max_batch_tokens
        self._max_batch_rows = max_batch_rows
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
        for rows in plan(encoded.lengths, max_tokens=self._max_batch_tokens, max_rows=self._max_batch_rows):
            answers = self.session.run(encoded.batch(rows))
            logits[rows], head_logits[rows] = answers["logits"], answers["head_logits"]
        return Outputs(logits, head_logits)

    def finish(self, outputs: Outputs) -> Predictions:
        """Turn the graph's answers into labels, probabilities and disagreement."""
        return finish(outputs, task=self.task, labels=self.labels)

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
            "precision": self.graph.precision,
            "max_batch_tokens": self._max_batch_tokens,
            "max_batch_rows": self._max_batch_rows,
            "bundle": self.fingerprint[:12],
        }
