"""Jobs side by side in processes that share out the cores, or one after the other in this process.

A process ends when the one that started it ends, however that ends, so nothing goes on behind a comparison that was
killed and is resumed.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["Submit", "threads_of", "workers"]

Submit = Callable[..., "Future[Any]"]
"""Given a function of what all jobs share and of further arguments, and these: its result to come."""

_shared: Any = None  # in a worker process: what all jobs share


def threads_of(jobs: int) -> int:
    """Threads of each job: those of this process, shared out."""
    return max(1, torch.get_num_threads() // jobs)


@contextmanager
def workers(jobs: int, shared: Any) -> Iterator[Submit]:
    """Somewhere to run jobs.

    Args:
        jobs: how many at a time; 1 runs them in this process, at once when they are submitted.
        shared: what all of them are given first; for processes, something that pickles.
    """
    if jobs == 1:
        yield lambda function, *arguments: _here(function, shared, *arguments)
        return
    threads, before = threads_of(jobs), set(multiprocessing.active_children())
    with _variable("OMP_NUM_THREADS", str(threads)):
        pool = ProcessPoolExecutor(
            jobs, multiprocessing.get_context("spawn"), initializer=_enter, initargs=(shared, threads)
        )
        try:
            yield lambda function, *arguments: pool.submit(_call, function, *arguments)
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()
            raise
        finally:
            pool.shutdown(cancel_futures=True)


def _here(function: Callable[..., Any], *arguments: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(function(*arguments))
    return future


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(_shared, *arguments)


def _enter(shared: Any, threads: int) -> None:
    global _shared
    _shared = shared
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # noqa: S101  # a worker has one
    parent.join()
    os._exit(1)


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """A variable of processes that are started meanwhile."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before
