"""What answers rows: the runner, the torch model, another engine. Everything that drives one knows this alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from levi_serving.engine.batching import Limits
from levi_serving.predictions import Outputs, Predictions, Task
from levi_serving.rows.preprocess import Encoded, Preprocessor, Row

__all__ = ["Predictor"]


class Predictor(Protocol):
    """Three verbs, from rows to predictions, and what the answers are.

    Attributes:
        task: what it answers.
        limits: how much it computes together.
        preprocessor: how it reads rows.
        fingerprint: the same where the answers are; a digest of what answers.
        threads: that compute at the same time; None where that is not known.
    """

    @property
    def task(self) -> Task: ...  # noqa: D102  # above
    @property
    def limits(self) -> Limits: ...  # noqa: D102
    @property
    def preprocessor(self) -> Preprocessor: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def threads(self) -> int | None: ...  # noqa: D102

    def prepare(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Encoded:
        """Turn N rows into arrays.

        Args:
            rows: N rows.
            bad: rows that cannot be used are left out and listed here, reasons by position.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given; the first such row is named.
        """
        ...

    def run(self, encoded: Encoded) -> Outputs:
        """Run N prepared rows through the model, in batches, and keep their order."""
        ...

    def finish(self, outputs: Outputs) -> Predictions:
        """Turn the model's answers into predictions."""
        ...

    def answer_columns(self, *, with_heads: bool = False, all_probabilities: bool = False) -> list[str]:
        """The names of the columns that ``table`` gives."""
        ...

    def table(
        self, predictions: Predictions, *, with_heads: bool = False, all_probabilities: bool = False
    ) -> dict[str, list[object]]:
        """Predictions as columns for a file, see ``levi_serving.predictions.table``."""
        ...

    def describe(self) -> dict[str, Any]:
        """What answers and what it runs on, for people and reports; no program reads it."""
        ...
