# SPDX-License-Identifier: Apache-2.0
"""Where the trainer takes clips from: a pool that is being rendered, or shards of any dataset; both resume exactly.

    clips, slots = source.take(batch, rng)
    windows = cut_windows(clips, slots, rng, frames, ...)

Axes: N clips, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np


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

    def state(self) -> dict:
        """Return a small JSON dict: `restore` of it gives a source that goes on with the same clips."""

    def restore(self, state: dict) -> None:
        """Go on from a state."""


class PoolSource:
    """Random clips of a `ClipPool` that workers may still be filling; `rng` alone decides, so there is no state.

    Looks for newly filled slots once in 100 batches.
    """

    def __init__(self, pool) -> None:
        self.pool = pool
        self.height, self.width, self.clip_frames = pool.config.height, pool.config.width, pool.config.frames
        self._taken = 0
        self._ready: np.ndarray | None = None

    def take(self, count: int, rng: np.random.Generator):
        if self._ready is None or self._taken % 100 == 0:
            self._ready = self.pool.ready()
        self._taken += 1
        return self.pool, rng.choice(self._ready, count)

    def state(self) -> dict:
        return {}

    def restore(self, state: dict) -> None:
        pass
