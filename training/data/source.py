# SPDX-License-Identifier: Apache-2.0
"""Where the trainer takes clips from: pools that are being rendered, or shards of any dataset; both resume exactly.

    clips, slots = source.take(batch, rng)
    windows = cut_windows(clips, slots, rng, frames, ...)

Axes: N clips, T frames, H W pixels.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

if TYPE_CHECKING:
    from .procedural import ClipPool

_LOOK_EVERY = 100  # takes between looks for newly filled slots


@dataclass(frozen=True)
class ClipArrays:
    """Clips in memory, as `cut_windows` takes them.

    frames (N, T, H, W, 3) uint8; poses (N, T, 4, 4) float64, camera to world; intrinsics (N, 4) fx fy cx cy; scales
    (N, T), the unit of the model in the unit of the poses when that frame is the reference; inverse_depth (N, T, H/8,
    W/8) in 1 / the unit of the poses, where it is known.
    """

    frames: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    scales: np.ndarray
    inverse_depth: np.ndarray | None = None


class ClipSource(Protocol):
    """What the trainer needs of its data.

    Attributes:
        height, width: of the frames.
        clip_frames: T, frames of a clip; windows are cut from within one.
        contents: in a few words what the clips are; kept with states and checkpoints.
    """

    height: int
    width: int
    clip_frames: int
    contents: str

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
    """Random clips of one or several `ClipPool`s that workers may still be filling, all clips equally often.

    Looks for newly filled slots once in 100 takes. What it saw is part of its state, and with a journal a run that was
    killed sees again what it saw before: the batches drawn twice are the same, though the pools have grown meanwhile.
    Slots of several pools are counted through, in the order of the pools.
    """

    def __init__(self, *pools: ClipPool, journal: Path | None = None) -> None:
        """Raises:
        ValueError: pools whose clips differ in frames, height or width.
        """
        sizes = [(pool.config.frames, pool.config.height, pool.config.width) for pool in pools]
        if len(set(sizes)) != 1:
            raise ValueError(f"pools must hold clips of one size, got (frames, height, width) {sizes}")
        self.pools = pools
        self.clip_frames, self.height, self.width = sizes[0]
        self._sizes = [pool.slots for pool in pools]
        self._ends = np.cumsum(self._sizes)
        self._taken = 0
        self._ready: np.ndarray | None = None
        self._seen = ""
        self._journal = journal
        self._past = _read_journal(journal, self._sizes) if journal is not None and journal.exists() else {}

    @property
    def slots(self) -> int:
        """How many clips the pools have room for."""
        return sum(self._sizes)

    def ready(self) -> np.ndarray:
        """Return the numbers of the filled slots."""
        starts = self._ends - self._sizes
        return np.concatenate([start + pool.ready() for start, pool in zip(starts, self.pools, strict=True)])

    @property
    def clips(self) -> int:
        """How many clips batches are drawn from."""
        return 0 if self._ready is None else len(self._ready)

    def take(self, count: int, rng: np.random.Generator):
        self.skip(count)
        return self._clips_of(rng.choice(self._ready, count))

    def take_parts(self, count: int, part: int, rng: np.random.Generator):
        self.skip(count)
        slots = rng.choice(self._ready, count)
        return (self._clips_of(slots[start : start + part]) for start in range(0, count, part))

    def _clips_of(self, slots: np.ndarray):
        """Return (clips, indices): the pool itself where there is one, else copies of the clips of several."""
        if len(self.pools) == 1:
            return self.pools[0], slots
        owner = np.searchsorted(self._ends, slots, side="right")
        parts = {}
        for name in (f.name for f in fields(ClipArrays)):
            stored = [getattr(pool, name) for pool in self.pools]
            parts[name] = np.empty((len(slots), *stored[0].shape[1:]), stored[0].dtype)
            for number, values in enumerate(stored):
                rows = np.flatnonzero(owner == number)
                parts[name][rows] = values[slots[rows] - (self._ends - self._sizes)[number]]
        return ClipArrays(**parts), np.arange(len(slots))

    def skip(self, count: int) -> None:
        if self._ready is None or self._taken % _LOOK_EVERY == 0:
            self._look()
        self._taken += 1

    def _look(self) -> None:
        past = self._past.pop(self._taken, None)
        if past is not None and self._holds(past):
            self._set(past)
            return
        seen = _pack(self.ready(), self.slots)
        self._set(seen)
        if self._journal is not None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            with open(self._journal, "a") as file:
                file.write(json.dumps({"taken": self._taken, "seen": seen, "slots": self._sizes}) + "\n")

    def _set(self, seen: str) -> None:
        if seen != self._seen:
            self._seen, self._ready = seen, _unpack(seen)

    def _holds(self, seen: str) -> bool:
        """Whether all that was seen is filled: in other pools of the same sizes it may not be."""
        return bool(np.isin(_unpack(seen), self.ready()).all())

    @property
    def contents(self) -> str:
        """What clips each pool has room for."""
        return " + ".join(f"{pool.slots} clips of {pool.config.kind} scenes" for pool in self.pools)

    def state(self) -> dict:
        return {"taken": self._taken, "seen": self._seen, "slots": self._sizes}

    def restore(self, state: dict) -> None:
        """Go on from a state; what it saw of other pools than these counts for nothing."""
        self._taken = state["taken"]
        if state["seen"] and state.get("slots", self._sizes) == self._sizes and self._holds(state["seen"]):
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


def _read_journal(path: Path, sizes: list[int]) -> dict[int, str]:
    """What was seen of pools of these sizes at each look; a torn last line was never used and is dropped."""
    cut_torn_line(path)
    entries = map(json.loads, path.read_text().splitlines())
    return {entry["taken"]: entry["seen"] for entry in entries if entry.get("slots", sizes) == sizes}
