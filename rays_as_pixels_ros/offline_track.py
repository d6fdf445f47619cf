# SPDX-License-Identifier: Apache-2.0
"""Every frame of a bag or video to its place in the trajectory: as the node does it, but nothing is dropped, and later
windows count too.

Frames as in `stitching.py`: `map` is the first camera of a life (optical axes) in the unit of its first window.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from rays_as_pixels_model.geometry import GeometryError, Intrinsics

from .health import blank, mistrusted
from .placing import WindowPlacer
from .stitching import StitchedFrame, Stitcher
from .window import overlapping_windows, spans_pause


@dataclass(frozen=True)
class DecodedFrame:
    """A frame of the size that an estimate makes use of (`ModelConfig.picture_size`), (h, w, 3) uint8, and its pinhole
    camera (None: to be estimated).

    life: of the recording; where it grows, a new trajectory begins. stamp: ns, for covariances.
    """

    number: int
    rgb: np.ndarray
    intrinsics: Intrinsics | None
    life: int = 0
    stamp: int = 0


@dataclass(frozen=True)
class PlacedFrame:
    """A frame with its place, as refined by all windows that saw it.

    covariance: (6, 6) of the camera, step_covariance: (6, 6) of the motion to it, both as `track.Track.add` takes them.
    """

    stitched: StitchedFrame
    intrinsics: Intrinsics | None
    covariance: np.ndarray
    step_covariance: np.ndarray
    life: int


@dataclass
class Tally:
    """What became of the windows.

    residuals, fov_deg: median residual and horizontal field of view of each that was not lost. seconds: in the model.
    """

    windows: int = 0
    lost: int = 0
    breaks: int = 0
    reason: str = ""  # why the last lost window was lost
    residuals: list[float] = field(default_factory=list)
    fov_deg: list[float] = field(default_factory=list)
    seconds: float = 0.0


class OfflineTracker:
    """Run a pipeline over the windows of a recording."""

    def __init__(
        self, pipeline, hop: int, *, steps: int = 1, passes: int = 0, refine: bool = True, draws: int = 1,
        samples: int = 0, sample_every: int = 1, seed: int = 0, max_residual: float = 0.0, carry_scale: bool = True,
        max_scale_step: float = 2.0,
    ):  # fmt: skip
        """
        Args: the node's parameters of these names; hop is window_hop.
            draws: from the posterior, whose mean is the estimate.
            samples: that covariances come from; 0: none are wanted, and they are zero.

        Raises:
            ValueError: windows would not overlap.
        """
        self.pipeline, self.length, self.hop = pipeline, pipeline.config.frames, hop
        if not hop < self.length:
            raise ValueError(f"the hop is {hop}; windows have {self.length} frames and must overlap: at most "
                             f"{self.length - 1}")  # fmt: skip
        self.tally = Tally()
        self._sampler = {"steps": steps, "passes": passes or None, "refine": refine, "samples": draws, "seed": seed,
                         "reference": 0}  # fmt: skip
        calibration = pipeline.calibration.of(refine)
        self._max_residual = max_residual or calibration.max_residual
        self._with_covariances = samples > 0
        stitcher = Stitcher(carry_scale, max_scale_step=max_scale_step, memory=sys.maxsize)
        self._placer = WindowPlacer(stitcher, calibration, samples, sample_every, seed)

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
        found = self._estimate(images, intrinsics)
        if found is None:
            return []
        self.tally.residuals.append(float(np.median(found.residual)))
        self.tally.fov_deg.append(found.intrinsics.horizontal_fov_deg())
        ids, known = [frame.number for frame in window], np.zeros((2, self.length, 6, 6))
        if self._with_covariances:
            paused = spans_pause(ids, [frame.stamp for frame in window])
            known = self._placer.spreads.of(self.pipeline, images, intrinsics, found, paused)
        added = self._placer.place(ids, found.T_reference_camera, known)
        if self._with_covariances:
            self._placer.spreads.refresh(self.pipeline, images, intrinsics, found, paused)
        sources = [window[place.index] for place in added]
        return [
            PlacedFrame(place.stitched, source.intrinsics, place.covariance, place.step_covariance, source.life)
            for place, source in zip(added, sources, strict=True)
        ]

    def _estimate(self, images: np.ndarray, intrinsics: Intrinsics | None):
        """Return the window's TrajectoryEstimate, or None, counted, if it is lost: by the same rules as in the node."""
        started = time.perf_counter()
        try:
            lost = blank(images)
            if lost is None:
                found = self.pipeline.estimate_trajectory(images, intrinsics, **self._sampler)
                lost = mistrusted(found.residual, self._max_residual)
        except GeometryError as error:
            lost = str(error)
        self.tally.seconds += time.perf_counter() - started
        if lost is None:
            return found
        self.tally.lost, self.tally.reason = self.tally.lost + 1, lost
        return None

def _counted(frames: Iterable[DecodedFrame], on_frame: Callable[[], None]) -> Iterator[DecodedFrame]:
    for frame in frames:
        yield frame
        on_frame()
