"""The trained model in torch, behind the runner's three verbs: what the graph is compared with.

Evaluation, the proof at export, and ``levi bench --against torch`` all use it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from levi_deploy.model.levi import Levi
from levi_serving.batching import plan
from levi_serving.errors import LeviError
from levi_serving.predictions import Outputs, Predictions, Task, finish
from levi_serving.preprocess import Encoded, Preprocessor, Row

__all__ = ["Reference"]


class Reference:
    """A trained LEVI model in torch.

    Args:
        levi: in evaluation mode.
        preprocessor: as in training.
        task: what the logits mean.
        labels: the C output names.
        abstain_above: the disagreement above which it abstains; None where it never does.
    """

    name = "torch"

    def __init__(
        self,
        levi: Levi,
        preprocessor: Preprocessor,
        task: Task,
        labels: Sequence[str],
        *,
        abstain_above: float | None = None,
    ) -> None:
        self.levi = levi
        self.preprocessor = preprocessor
        self.task = task
        self.labels = tuple(labels)
        self.abstain_above = abstain_above
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
        self.name = "torch-compile"

    def prepare(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Encoded:
        """Turn N rows into arrays, as the runner does.

        Raises:
            RowError: a row cannot be used and ``bad`` was not given.
        """
        return self.preprocessor.encode(rows, bad=bad)

    def run(self, encoded: Encoded, *, max_tokens: int = 1024) -> Outputs:
        """Run N prepared rows in batches of similar length."""
        classes, heads = len(self.labels), len(self.levi.ensemble.heads)
        logits = np.empty((len(encoded), classes), dtype=np.float32)
        head_logits = np.empty((len(encoded), heads, classes), dtype=np.float32)
        for rows in plan(encoded.lengths, max_tokens=max_tokens, max_rows=128):
            answer = self.answer(encoded.batch(rows))
            logits[rows], head_logits[rows] = answer.logits, answer.head_logits
        return Outputs(logits, head_logits)

    @torch.inference_mode()
    def answer(self, feeds: dict[str, np.ndarray]) -> Outputs:
        """Run one batch of arrays, by the graph's input names."""
        logits, head_logits = self._call(
            **{name: torch.from_numpy(feeds[name]) for name in self.levi.inputs if name in feeds}
        )
        return Outputs(logits.numpy(), head_logits.numpy())

    def finish(self, outputs: Outputs) -> Predictions:
        """Turn outputs into predictions, as the runner does."""
        return finish(outputs, task=self.task, labels=self.labels, abstain_above=self.abstain_above)

    def describe(self) -> dict[str, object]:
        """What answers."""
        return {"torch": torch.__version__, "threads": torch.get_num_threads(), "precision": "fp32"}
