# SPDX-License-Identifier: Apache-2.0
"""Which goal runs, which wait, which are refused: one runs at a time, the rest wait in the order in which they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any


class QueueFullError(ValueError):
    """No more may wait; one line."""


class GoalQueue:
    """One running item and at most `size` waiting ones. All methods may be called from several threads."""

    def __init__(self, size: int):
        self.size = size
        self._running = False
        self._waiting: deque = deque()
        self._condition = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting) + self._running

    def offer(self, item: Any) -> bool:
        """Take an item; true: it runs now, false: it waits until `finished` returns it.

        Raises:
            QueueFullError: one runs and `size` wait.
        """
        with self._condition:
            if not self._running:
                self._running = True
                return True
            if len(self._waiting) >= self.size:
                raise QueueFullError(f"{len(self)} goals are already running or waiting; queue_size is {self.size}")
            self._waiting.append(item)
            return False

    def finished(self) -> Any | None:
        """Say that the running item has ended; returns the one that runs now, None if none waits."""
        with self._condition:
            following = self._waiting.popleft() if self._waiting else None
            self._running = following is not None
            self._condition.notify_all()
            return following

    def withdraw(self, chosen: Callable[[Any], bool] = lambda item: True) -> list[Any]:
        """Take back the waiting items that are chosen, and return them."""
        with self._condition:
            taken = [item for item in self._waiting if chosen(item)]
            self._waiting = deque(item for item in self._waiting if not chosen(item))
            return taken

    def wait_idle(self, timeout: float) -> bool:
        """Wait until nothing runs or waits; says whether that came true."""
        with self._condition:
            return self._condition.wait_for(lambda: len(self) == 0, timeout)
