# SPDX-License-Identifier: Apache-2.0
"""Where the trainer takes clips from: a pool that is being rendered, or shards of any dataset; both resume exactly.

    clips, slots = source.take(batch, rng)
    windows = cut_windows(clips, slots, rng, frames, ...)

Axes: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

_LOOK_EVERY = 100  # takes between looks for newly filled slots

@dataclass(frozen=True)
class ClipArrays:
    """Clips in memory, as `cut_windows` takes them.

    frames (N, T, H, W, 3) uint8; poses (N, T, 4, 4) float64, camera to world; intrinsics (N, 4) fx fy cx cy; scales
    (N, T), the unit of the model in the unit of the poses when that frame is the reference.
    """

    frames: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    scales: np.ndarray


class ClipSource(Protocol):
    """What the trainer needs of its data.

    Attributes:
        height, width: of the frames.
        clip_frames: T, frames of a clip; windows are cut from within one.
    """

    height: int
    width: int
    clip_frames: int

    def take(self, count: int, rng: np.random.Generator):
        """Return (clips, slots): arrays as `ClipArrays` and the (count,) indices of the clips of a batch."""

    def take_parts(self, count: int, part: int, rng: np.random.Generator):
        """Take `count` clips, of which at most `part` are in memory at a time: an iterator of (clips, slots) as `take`
        gives. What it draws from `rng` is drawn by the call itself."""

    def skip(self, count: int) -> None:
        """Move on as `take` does, without reading: another process takes these."""

    def state(self) -> dict:
        """Return a small JSON dict: `restore` of it gives a source that goes on with the same clips."""

    def restore(self, state: dict) -> None:
        """Go on from a state."""


class PoolSource:
    """Random clips of a `ClipPool` that workers may still be filling.

    Looks for newly filled slots once in 100 takes. What it saw is part of its state, and with a journal a run that was
    killed sees again what it saw before: the batches drawn twice are the same, though the pool has grown meanwhile.
    """

    def __init__(self, pool, journal: Path | None = None) -> None:
        self.pool = pool
        self.height, self.width, self.clip_frames = pool.config.height, pool.config.width, pool.config.frames
        self._taken = 0
        self._ready: np.ndarray | None = None
        self._seen = ""
        self._journal = journal
        self._past = _read_journal(journal) if journal is not None and journal.exists() else {}

    @property
    def clips(self) -> int:
        """How many clips batches are drawn from."""
        return 0 if self._ready is None else len(self._ready)

    def take(self, count: int, rng: np.random.Generator):
        self.skip(count)
        return self.pool, rng.choice(self._ready, count)

    def take_parts(self, count: int, part: int, rng: np.random.Generator):
        clips, slots = self.take(count, rng)
        return ((clips, slots[start : start + part]) for start in range(0, count, part))

    def skip(self, count: int) -> None:
        if self._ready is None or self._taken % _LOOK_EVERY == 0:
            self._look()
        self._taken += 1

    def _look(self) -> None:
        if (past := self._past.pop(self._taken, None)) is not None:
            self._set(past)
            return
        seen = _pack(self.pool.ready(), self.pool.slots)
        self._set(seen)
        if self._journal is not None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with open(self._journal, "a") as file:
                file.write(json.dumps({"taken": self._taken, "seen": seen}) + "\n")

    def _set(self, seen: str) -> None:
        if seen != self._seen:
            self._seen, self._ready = seen, _unpack(seen)

    def state(self) -> dict:
        return {"taken": self._taken, "seen": self._seen}

    def restore(self, state: dict) -> None:
        self._taken = state["taken"]
        if state["seen"]:
            self._set(state["seen"])


def _pack(ready: np.ndarray, slots: int) -> str:
    filled = np.zeros(slots, bool)
    filled[ready] = True
    return base64.b64encode(zlib.compress(np.packbits(filled).tobytes())).decode()


def _unpack(seen: str) -> np.ndarray:
    return np.flatnonzero(np.unpackbits(np.frombuffer(zlib.decompress(base64.b64decode(seen)), np.uint8)))


def cut_torn_line(path: Path) -> None:
    """Cut off, in place, the line of a journal or log that a kill left unfinished."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _read_journal(path: Path) -> dict[int, str]:
    """What was seen at each look; a torn last line was never used and is dropped."""
    cut_torn_line(path)
    entries = map(json.loads, path.read_text().splitlines())
    return {entry["taken"]: entry["seen"] for entry in entries}
