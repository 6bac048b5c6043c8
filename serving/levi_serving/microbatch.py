"""Many callers, few batches: whatever waits while one batch runs is answered together next.

One thread of its own takes the rows that wait, prepares them in one go, cuts them by padded tokens and
answers each caller as soon as its batch is done. It knows the runner's three verbs; it knows no model, no
network and no deadline, and its queue has no bound: who puts rows in decides how many may wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np

from levi_serving.batching import padded_tokens, plan
from levi_serving.errors import LeviError, RowError
from levi_serving.preprocess import Row

__all__ = ["Answer", "Batch", "MicroBatcher", "Predictor"]


class Predictor(Protocol):
    """What a runner offers; ``levi_serving.Runner`` does."""

    def prepare(self, rows: Sequence[Row], *, bad: dict[int, str] | None = None) -> Any:
        """Rows to arrays with ``lengths`` and ``take``; rows that cannot be used go to ``bad``."""
        ...

    def run(self, prepared: Any) -> Any:
        """Arrays to arrays."""
        ...

    def finish(self, outputs: Any) -> Any:
        """Arrays to predictions; ``predictions[n]`` is row n's."""
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that were answered together.

    Attributes:
        rows: how many.
        tokens: in those rows.
        padded_tokens: positions computed, padding included.
        prepare_s: preparing them, and the others taken with them.
        run_s: the model.
        finish_s: arrays to predictions.
    """

    rows: int
    tokens: int
    padded_tokens: int
    prepare_s: float
    run_s: float
    finish_s: float


@dataclass(frozen=True)
class Answer:
    """One row's prediction and the batch it was answered in."""

    predictions: Any
    batch: Batch


@dataclass(frozen=True)
class _Asked:
    row: Row
    answer: Future[Answer]


class MicroBatcher:
    """Answers rows that come one by one. Any thread may ask; close it, or use it in a ``with`` block.

    Args:
        predictor: a runner.
        max_tokens: the most padded tokens in one batch.
        max_rows: the most rows in one batch, and taken at a time.
        clock: nanoseconds.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        max_tokens: int = 1024,
        max_rows: int = 128,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._predictor = predictor
        self._max_tokens, self._max_rows = max_tokens, max_rows
        self._clock = clock
        self._waiting: deque[_Asked] = deque()
        self._changed = threading.Condition()
        self._open = True
        self._thread = threading.Thread(target=self._work, name="levi-microbatch", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> Future[Answer]:
        """Ask for one row.

        Returns:
            The answer to come. Its exception is RowError when the row cannot be used, or what the model
            raised for it. Cancelled before its batch began, it costs nothing.

        Raises:
            LeviError: the micro-batcher is closed.
        """
        answer: Future[Answer] = Future()
        with self._changed:
            if not self._open:
                raise LeviError("This micro-batcher is closed and takes no more rows. Make a new one.")
            self._waiting.append(_Asked(row, answer))
            self._changed.notify()
        return answer

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, answer (or cancel) those that wait, and return when that is done."""
        with self._changed:
            self._open = False
            if cancel:
                for asked in self._waiting:
                    asked.answer.cancel()
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while taken := self._take():
            if wanted := [asked for asked in taken if asked.answer.set_running_or_notify_cancel()]:
                self._answer(wanted)

    def _take(self) -> list[_Asked]:
        """Those who have waited longest; nobody when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._max_rows))]

    def _answer(self, taken: Sequence[_Asked]) -> None:
        """Answer all; where something fails, each alone, so that nobody fails for another's row."""
        try:
            self._batches(taken)
        except Exception as error:
            left = [asked for asked in taken if not asked.answer.done()]
            for asked in left:
                if len(taken) == 1:
                    asked.answer.set_exception(error)
                else:
                    self._answer([asked])

    def _batches(self, taken: Sequence[_Asked]) -> None:
        began = self._clock()
        bad: dict[int, str] = {}
        prepared = self._predictor.prepare([asked.row for asked in taken], bad=bad)
        prepare_s = (self._clock() - began) / 1e9
        for n, reason in bad.items():
            taken[n].answer.set_exception(RowError(0, reason))
        good = [asked for n, asked in enumerate(taken) if n not in bad]
        lengths = np.asarray(prepared.lengths)
        for rows in plan(lengths, max_tokens=self._max_tokens, max_rows=self._max_rows):
            began = self._clock()
            outputs = self._predictor.run(prepared.take(rows))
            ran = self._clock()
            predictions = self._predictor.finish(outputs)
            finished = self._clock()
            tokens = int(lengths[rows].sum())
            padded = padded_tokens(lengths, [rows])
            batch = Batch(len(rows), tokens, padded, prepare_s, (ran - began) / 1e9, (finished - ran) / 1e9)
            for place, n in enumerate(rows):
                good[n].answer.set_result(Answer(predictions[place], batch))
