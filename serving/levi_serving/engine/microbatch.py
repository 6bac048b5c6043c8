"""Many callers, few batches: whatever waits while one batch runs is answered together next.

One thread of its own takes the rows that wait, prepares them in one go, cuts them by padded tokens and
answers each caller as soon as its batch is done. It knows no network and no deadline, and its
queue has no bound: who puts rows in decides how many may wait.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Self

from levi_serving.engine.batching import Limits, plan
from levi_serving.engine.predictor import Predictor
from levi_serving.errors import LeviError, RowError
from levi_serving.predictions import Predictions
from levi_serving.rows.preprocess import Row

__all__ = ["Answer", "Batch", "MicroBatcher"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows that were answered together.

    Attributes:
        rows: how many.
        tokens: in those rows.
        padded_tokens: positions computed, padding included; None where the predictor does not say.
        prepare_s: preparing them, and the others taken with them.
        run_s: the model.
        finish_s: arrays to predictions.
    """

    rows: int
    tokens: int
    padded_tokens: int | None
    prepare_s: float
    run_s: float
    finish_s: float


@dataclass(frozen=True)
class Answer:
    """One row's prediction and the batch it was answered in."""

    predictions: Predictions
    batch: Batch


@dataclass(frozen=True)
class _Request:
    row: Row
    answer: Future[Answer]


class MicroBatcher:
    """Answers rows that come one by one. Any thread may ask; close it, or use it in a ``with`` block.

    Args:
        predictor: a runner.
        limits: of one batch, and ``limits.rows`` of those taken at a time; the predictor's own when None.
        clock: nanoseconds.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        limits: Limits | None = None,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._predictor = predictor
        self._limits = limits or predictor.limits
        self._clock = clock
        self._waiting: deque[_Request] = deque()
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
            self._waiting.append(_Request(row, answer))
            self._changed.notify()
        return answer

    def close(self, *, cancel: bool = False) -> None:
        """Take no more rows, answer (or cancel) those that wait, and return when that is done."""
        with self._changed:
            self._open = False
            if cancel:
                for request in self._waiting:
                    request.answer.cancel()
            self._changed.notify()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while taken := self._take():
            if wanted := [request for request in taken if request.answer.set_running_or_notify_cancel()]:
                self._answer(wanted)

    def _take(self) -> list[_Request]:
        """Those who have waited longest; nobody when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), self._limits.rows))]

    def _answer(self, taken: Sequence[_Request]) -> None:
        """Answer all; where something fails, each alone, so that nobody fails for another's row."""
        try:
            self._batches(taken)
        except Exception as error:
            left = [request for request in taken if not request.answer.done()]
            for request in left:
                if len(taken) == 1:
                    request.answer.set_exception(error)
                else:
                    self._answer([request])

    def _batches(self, taken: Sequence[_Request]) -> None:
        began = self._clock()
        bad: dict[int, str] = {}
        prepared = self._predictor.prepare([request.row for request in taken], bad=bad)
        prepare_s = (self._clock() - began) / 1e9
        for n, reason in bad.items():
            taken[n].answer.set_exception(RowError(0, reason))
        good = [request for n, request in enumerate(taken) if n not in bad]
        costs = prepared.costs
        for rows in plan(costs, self._limits):
            began = self._clock()
            outputs = self._predictor.run(prepared.take(rows))
            ran = self._clock()
            predictions = self._predictor.finish(outputs)
            finished = self._clock()
            tokens = int(costs[rows].sum())
            batch = Batch(
                len(rows), tokens, outputs.padded_tokens, prepare_s, (ran - began) / 1e9, (finished - ran) / 1e9
            )
            for place, n in enumerate(rows):
                good[n].answer.set_result(Answer(predictions[place], batch))
