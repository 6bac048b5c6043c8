"""The trained model in torch, behind the runner's three verbs: what the graph is compared with.

Evaluation, the proof at export, and ``levi bench --against torch`` all use it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from levi_deploy.model.levi import Levi, outputs
from levi_serving.engine.batching import Limits, plan
from levi_serving.errors import LeviError
from levi_serving.predictions import Outputs, Predictions, Task, answer_columns, finish, table
from levi_serving.rows.preprocess import Encoded, Preprocessor, Row

__all__ = ["Reference"]


class Reference:
    """A trained LEVI model in torch.

    Args:
        levi: in evaluation mode.
        preprocessor: as in training.
        task: what it answers.
        fingerprint: of the run that it is.
    """

    limits = Limits()

    def __init__(self, levi: Levi, preprocessor: Preprocessor, task: Task, *, fingerprint: str = "torch") -> None:
        self.levi = levi
        self.preprocessor = preprocessor
        self.task = task
        self.fingerprint = fingerprint
        self.heads = len(levi.ensemble.heads)
        self._call: Callable[..., Any] = levi

    def compile(self) -> None:
        """Answer through torch.compile from now on; each new kind of shape is compiled when it first comes.

        Raises:
            LeviError: there is no C++ compiler, which its CPU code needs.
        """
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise LeviError(
                f"torch.compile needs a C++ compiler, but there is no {compiler!r}. Install one, as with "
                "'apt-get install g++' or 'dnf install gcc-c++', or name yours in the variable CXX."
            )
        # Compiled for this number of threads, which is part of the compiler's cache key only so.
        self._call = torch.compile(self.levi, dynamic=True, options={"cpp.threads": torch.get_num_threads()})

    def prepare(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Encoded:
        """Turn N rows into arrays, as the runner does.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given.
        """
        return self.preprocessor.encode(rows, bad=bad)

    def run(self, encoded: Encoded) -> Outputs:
        """Run N prepared rows in batches of similar length."""
        costs, batches = encoded.costs, plan(encoded.costs, self.limits)
        padded = sum(len(rows) * int(costs[rows].max()) for rows in batches)
        if not batches:
            return self.run(Encoded.blank(encoded.settings, rows=1)).take(np.arange(0))
        answers = Outputs.joined([self.answer(encoded.batch(rows)) for rows in batches])
        return replace(answers.take(np.argsort(np.concatenate(batches))), padded_tokens=padded)

    @torch.inference_mode()
    def answer(self, feeds: dict[str, np.ndarray]) -> Outputs:
        """Run one batch of arrays, by the graph's input names."""
        return outputs(
            self._call(**{name: torch.from_numpy(feeds[name]) for name in self.levi.inputs if name in feeds})
        )

    def finish(self, outputs: Outputs) -> Predictions:
        """Turn outputs into predictions, as the runner does."""
        return finish(outputs, self.task)

    def answer_columns(self, *, with_heads: bool = False, all_probabilities: bool = False) -> list[str]:
        """The names of the columns that ``table`` gives."""
        return answer_columns(self.task, heads=self.heads, with_heads=with_heads, all_probabilities=all_probabilities)

    def table(
        self, predictions: Predictions, *, with_heads: bool = False, all_probabilities: bool = False
    ) -> dict[str, list[object]]:
        """Predictions as columns for a file, see ``levi_serving.predictions.table``."""
        return table(predictions, self.task, with_heads=with_heads, all_probabilities=all_probabilities)

    @property
    def threads(self) -> int:
        """torch's, of this process."""
        return torch.get_num_threads()

    def describe(self) -> dict[str, Any]:
        """What answers."""
        return {"torch": torch.__version__, "threads": self.threads, "precision": "fp32"}
