# SPDX-License-Identifier: Apache-2.0
"""Batches in the order of steps, drawn ahead by one thread, so that a step never waits for its windows to be cut.

Only that thread touches the source, and a batch depends on its step alone: how far it is ahead changes nothing. Each
batch carries the source's state after it was drawn, which is what a state of the run must hold.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from .tasks import TaskBatch


@dataclass(frozen=True)
class Drawn:
    """The parts of one step's batch, by number, the source's state behind it and how many clips it drew from."""

    step: int
    parts: dict[int, TaskBatch]
    state: dict
    clips: int | None


class Feed:
    """Hand out what `draw` gives for steps first, first + 1, ..., last - 1."""

    def __init__(self, draw: Callable[[int], Drawn], first: int, last: int, ahead: int) -> None:
        self._draw, self._next, self._ahead = draw, first, ahead
        if ahead:
            self._ready: queue.Queue = queue.Queue(maxsize=ahead)
            self._closed = threading.Event()
            self._thread = threading.Thread(target=self._run, args=(first, last), name="feed", daemon=True)
            self._thread.start()

    def next(self) -> Drawn:
        """Return the next step's batch; an error of the drawing is raised here."""
        if self._ahead:
            item = self._ready.get()
            if isinstance(item, BaseException):
                raise item
            return item
        self._next += 1
        return self._draw(self._next - 1)

    def close(self) -> None:
        """End the thread."""
        if not self._ahead:
            return
        self._closed.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.05)
            except queue.Empty:
                pass

    def _run(self, first: int, last: int) -> None:
        try:
            for step in range(first, last):
                if not self._put(self._draw(step)):
                    return
        except BaseException as error:  # it belongs to whoever waits for the batch
            self._put(error)

    def _put(self, item) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=0.05)
                return True
            except queue.Full:
                pass
        return False
