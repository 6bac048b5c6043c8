"""A pipeline of iterators: each stage runs on a thread of its own and makes items before they are taken."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

__all__ = ["Prefetch"]

T = TypeVar("T")


class Prefetch:
    """Threads that make items before they are taken, until they are stopped."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def ahead(self, items: Iterator[T], most: int, *, name: str) -> Iterator[T]:
        """The items, made on another thread, at most so many ahead."""
        made: queue.Queue[tuple[T] | BaseException | None] = queue.Queue(maxsize=most)

        def hand_over(item: tuple[T] | BaseException | None) -> None:
            while not self._stop.is_set():
                try:
                    made.put(item, timeout=0.1)
                except queue.Full:
                    continue
                return

        def make() -> None:
            try:
                for item in items:
                    hand_over((item,))
                    if self._stop.is_set():
                        return
                hand_over(None)
            except BaseException as error:  # it is raised again below, in the caller's thread
                hand_over(error)

        self._threads.append(threading.Thread(target=make, name=name, daemon=True))
        self._threads[-1].start()
        while not self._stop.is_set():
            try:
                found = made.get(timeout=0.1)
            except queue.Empty:
                continue
            if isinstance(found, BaseException):
                raise found
            if found is None:
                return
            yield found[0]

    def close(self, *, wait_s: float) -> None:
        """Stop. A thread may be in the middle of a batch, or wait for a pipe that never ends."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=wait_s)
