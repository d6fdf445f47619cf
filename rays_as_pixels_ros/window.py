# SPDX-License-Identifier: Apache-2.0
"""Bounded buffers between the camera callback and the model: matched stamps, overlapping windows, recent frames.

Nothing here knows about ROS messages: an item is whatever the caller pushes. All classes may be used from several
threads. Memory is bounded by construction, and what is thrown away is counted.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_PAUSE = 5.0  # usual intervals of the camera


@dataclass(frozen=True)
class Window:
    """Frames for one run of the model, oldest first.

    ids are frame numbers that never repeat; the first `common` frames were the last ones of the window before.
    life is the buffer's when the window was made; clear() raises it, so that a stale window can be told.
    """

    ids: tuple[int, ...]
    items: tuple[Any, ...]
    common: int
    life: int = 0


class WindowBuffer:
    """Cut a stream of frames into windows that overlap, dropping the oldest waiting frames when nobody keeps up.

    Every `stride`-th frame is used. Each window holds `length` frames, the first `length - hop` of them shared with
    the window before, also after drops: a gap in time never breaks the overlap. One thread pushes, one takes.
    """

    def __init__(
        self,
        length: int,
        hop: int,
        stride: int = 1,
        queue_size: int | None = None,
        prepare: Callable[[Any], Any] = lambda item: item,
    ):
        """
        Args:
            length: frames in a window, at least 2.
            hop: new frames in each window after the first, 1 to length - 1.
            stride: use every stride-th frame, at least 1.
            queue_size: frames that may wait; default and least value is one window.
            prepare: work on a frame that is done once, by the thread that takes (decoding); None refuses the frame.
        Raises:
            ValueError: a value is out of its range.
        """
        if length < 2:
            raise ValueError(f"window length is {length}; it must be at least 2")
        if not 1 <= hop <= length - 1:
            raise ValueError(f"window hop is {hop}; it must be between 1 and {length - 1} so that windows overlap")
        if stride < 1:
            raise ValueError(f"window stride is {stride}; it must be at least 1")
        self.length, self.hop, self.stride = length, hop, stride
        self.queue_size = max(length, queue_size or length)
        self.received = 0
        self.dropped = 0
        self._prepare = prepare
        self._next_id = 0
        self.life = 0
        self._waiting: deque = deque()
        self._frames: list = []
        self._common = 0
        self._condition = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    def push(self, item: Any) -> bool:
        """Offer the next frame of the camera; says whether it was kept (False: skipped by the stride)."""
        with self._condition:
            skipped = self.received % self.stride != 0
            self.received += 1
            if skipped:
                return False
            if len(self._waiting) >= self.queue_size:
                self._waiting.popleft()
                self.dropped += 1
            self._waiting.append((self._next_id, item))
            self._next_id += 1
            self._condition.notify_all()
            return True

    def take(self, timeout: float = 0.0) -> Window | None:
        """Return the next full window; None when frames are missing and none came for `timeout` seconds."""
        while True:
            with self._condition:
                if not self._waiting and timeout > 0:
                    self._condition.wait(timeout)
                if not self._waiting:
                    return None
                number, item = self._waiting.popleft()
                life = self.life
            item = self._prepare(item)
            with self._condition:
                if item is None or life != self.life:
                    continue
                self._frames.append((number, item))
                if len(self._frames) < self.length:
                    continue
                ids, items = zip(*self._frames, strict=True)
                window = Window(ids, items, self._common, life)
                self._frames = self._frames[self.hop :]
                self._common = len(self._frames)
                return window

    def clear(self) -> None:
        """Forget all frames; frame numbers go on."""
        with self._condition:
            self.life += 1
            self._waiting.clear()
            self._frames = []
            self._common = 0
            self.received = 0

    def wake(self) -> None:
        """Let a waiting take() return now."""
        with self._condition:
            self._condition.notify_all()

    def ready(self) -> int:
        """Frames that are already in the next window."""
        return len(self._frames)


def spans_pause(ids: Sequence[int], stamps: Sequence[int]) -> bool:
    """Say whether the camera paused within a window: an interval is over five times the usual one of the same window.

    Frames that were dropped count (their ids are missing), so a model that does not keep up sees no pauses.

    Args:
        ids: frame numbers, stamps: ns; both increasing, of one length, at least 2.
    """
    intervals = sorted(
        (stamp - before) / (number - last)
        for number, last, stamp, before in zip(ids[1:], ids, stamps[1:], stamps, strict=False)
    )
    return intervals[-1] > _PAUSE * intervals[(len(intervals) - 1) // 2]


def overlapping_windows(frames: Iterable, length: int, hop: int) -> Iterator[list]:
    """Cut a stream into windows of `length`, each with `hop` new items; the last one ends with the last item."""
    kept: deque = deque(maxlen=length)
    new = 0
    for frame in frames:
        kept.append(frame)
        new += 1
        if len(kept) == length and new >= hop:
            yield list(kept)
            new = 0
    if new and len(kept) == length:
        yield list(kept)


class RecentFrames:
    """The newest frames of a camera, every stride-th, at most `length` of them."""

    def __init__(self, length: int, stride: int = 1):
        if length < 1 or stride < 1:
            raise ValueError(f"length {length} and stride {stride} must be at least 1")
        self.stride = stride
        self._frames: deque = deque(maxlen=(length - 1) * stride + 1)
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, item: Any) -> None:
        """Add the newest frame."""
        with self._lock:
            self._frames.append(item)

    def restart(self, item: Any) -> None:
        """Forget all frames but this new one; nobody finds none in between."""
        with self._lock:
            self._frames.clear()
            self._frames.append(item)

    def newest(self, count: int) -> list[Any]:
        """Return up to `count` frames, newest first, `stride` frames apart."""
        with self._lock:
            return list(self._frames)[::-1][:: self.stride][:count]

    def all(self) -> list[Any]:
        """Return every frame held, newest first."""
        with self._lock:
            return list(self._frames)[::-1]

    def clear(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._frames.clear()


class StampMatcher:
    """Pair two streams by equal stamp; whichever half comes first waits, the oldest halves are thrown away."""

    def __init__(self, limit: int = 10):
        self.limit = limit
        self.unmatched = [0, 0]  # of each side, thrown away without a partner
        self._halves: tuple[OrderedDict, OrderedDict] = (OrderedDict(), OrderedDict())
        self._lock = threading.Lock()

    def push(self, side: int, stamp: int, item: Any) -> tuple[Any, Any] | None:
        """Offer an item of side 0 or 1 with its stamp in ns; return (item of side 0, item of side 1) once both came."""
        with self._lock:
            other = self._halves[1 - side].pop(stamp, None)
            if other is not None:
                return (item, other) if side == 0 else (other, item)
            waiting = self._halves[side]
            waiting[stamp] = item
            while len(waiting) > self.limit:
                waiting.popitem(last=False)
                self.unmatched[side] += 1
            return None

    def clear(self) -> None:
        """Forget what waits."""
        with self._lock:
            for half in self._halves:
                half.clear()
