# SPDX-License-Identifier: Apache-2.0
"""Every frame of a recording to its place in the trajectory, offline: nothing is dropped, and later windows count too.

Frames as in `stitching.py`: `map` is the first camera of a life (optical axes) in the unit of its first window.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from rays_as_pixels_model.geometry import GeometryError, Intrinsics

from .health import Health
from .placing import WindowPlacer
from .stitching import StitchedFrame, Stitcher
from .window import overlapping_windows


@dataclass(frozen=True)
class DecodedFrame:
    """A frame of a recording: (H, W, 3) uint8 and its pinhole camera; life is that of the recording."""

    number: int
    rgb: np.ndarray
    intrinsics: Intrinsics
    life: int


@dataclass(frozen=True)
class PlacedFrame:
    """A frame with its place, as refined by all windows that saw it.

    covariance: (6, 6) of the camera, step_covariance: (6, 6) of the motion to it, both as `track.Track.add` takes them.
    """

    stitched: StitchedFrame
    intrinsics: Intrinsics
    covariance: np.ndarray
    step_covariance: np.ndarray
    life: int


@dataclass
class Tally:
    """What became of the windows."""

    windows: int = 0
    lost: int = 0
    breaks: int = 0
    reason: str = ""  # why the last lost window was lost


class OfflineTracker:
    """Run a pipeline over a recording's windows."""

    def __init__(
        self, pipeline, hop: int, steps: int, samples: int, sample_every: int, seed: int, max_residual: float = 0.0
    ):
        """
        Args: the node's parameters of these names.
        Raises:
            ValueError: windows would not overlap.
        """
        self.pipeline, self.length, self.hop, self.steps, self.seed = pipeline, pipeline.config.frames, hop, steps, seed
        if not hop < self.length:
            raise ValueError(f"window_hop is {hop}; windows have {self.length} frames and must overlap")
        self.tally = Tally()
        self._health = Health(max_residual or pipeline.calibration.max_residual)
        self._placer = WindowPlacer(Stitcher(memory=sys.maxsize), pipeline.calibration, samples, sample_every, seed)

    def place(self, frames: Iterable[DecodedFrame], on_frame: Callable[[], None] = lambda: None) -> list[PlacedFrame]:
        """Place the frames, in order; those that only lost windows saw are left out."""
        placed = []
        for _, life in groupby(_counted(frames, on_frame), key=lambda frame: frame.life):
            placed += self._place_life(life)
        return placed

    def _place_life(self, frames: Iterator[DecodedFrame]) -> list[PlacedFrame]:
        self._placer.reset()
        stitcher = self._placer.stitcher
        placed: list[PlacedFrame] = []
        for window in overlapping_windows(frames, self.length, self.hop):
            placed += self._window(window)
        self.tally.breaks += stitcher.segments
        return [
            replace(frame, stitched=replace(frame.stitched, T_map_camera=stitcher.pose(frame.stitched.frame)))
            for frame in placed
        ]

    def _window(self, window: list[DecodedFrame]) -> list[PlacedFrame]:
        """Estimate one window, join it to the trajectory and return its new frames."""
        self.tally.windows += 1
        images, intrinsics = np.stack([frame.rgb for frame in window]), window[-1].intrinsics
        try:
            found = self.pipeline.estimate_trajectory(images, intrinsics, steps=self.steps, seed=self.seed, reference=0)
        except GeometryError as error:
            self._lose(str(error))
            return []
        if not self._health.trusts(found.residual):
            self._lose(f"its rays fit no camera (residual {np.median(found.residual):.3f})")
            return []
        covariances = self._placer.covariances(self.pipeline, images, intrinsics, found)
        added = self._placer.place([frame.number for frame in window], found.T_reference_camera, covariances)
        self._placer.refresh(self.pipeline, images, intrinsics, found)
        sources = [window[place.index] for place in added]
        return [
            PlacedFrame(place.stitched, source.intrinsics, place.covariance, place.step_covariance, source.life)
            for place, source in zip(added, sources, strict=True)
        ]

    def _lose(self, reason: str) -> None:
        self.tally.lost += 1
        self.tally.reason = reason


def _counted(frames: Iterable[DecodedFrame], on_frame: Callable[[], None]) -> Iterator[DecodedFrame]:
    for frame in frames:
        yield frame
        on_frame()
