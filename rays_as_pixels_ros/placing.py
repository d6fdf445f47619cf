# SPDX-License-Identifier: Apache-2.0
"""A window's estimate to frames with their place in the map and how well it is known: the node's and the bag's one way.

Frames as in `stitching.py`; covariances as in `uncertainty.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .stitching import StitchedFrame, Stitcher
from .uncertainty import UNKNOWN, CovarianceChain, WindowCovariance, rotate_covariance

if TYPE_CHECKING:
    from rays_as_pixels_model.calibration import Calibration


@dataclass(frozen=True)
class Place:
    """A frame that a window brought; both covariances as `track.Track.add` takes them.

    index: in the window. covariance: (6, 6) of the camera in the map. step_covariance: (6, 6) of the motion to it.
    """

    index: int
    stitched: StitchedFrame
    covariance: np.ndarray
    step_covariance: np.ndarray


class WindowPlacer:
    """Join windows to a trajectory and carry their covariances along.

    Attributes:
        stitcher: holds the trajectory.
        spreads: covariances of the windows that come: its `of` gives what `place` takes, without changing the
            trajectory, and its `refresh` follows once the poses are out.
    """

    def __init__(self, stitcher: Stitcher, calibration: Calibration, samples: int, every: int, seed: int = 0):
        """
        Args:
            samples, every, seed: see `WindowCovariance`.
        """
        self.stitcher = stitcher
        self.spreads = WindowCovariance(calibration, samples, every, seed)
        self._chain = CovarianceChain(calibration.correlation)

    def reset(self) -> None:
        """Begin a new trajectory."""
        self.stitcher.reset()
        self.spreads.reset()
        self._chain.reset()

    def place(
        self, ids: Sequence[int], T_window_camera: np.ndarray, covariances: tuple[np.ndarray, np.ndarray]
    ) -> list[Place]:
        """Add a window and return its frames that the trajectory did not have yet, oldest first.

        Args:
            ids: T frame numbers, increasing; T_window_camera: (T, 4, 4), camera to reference, the first.
            covariances: of `spreads.of`.
        """
        added = self.stitcher.add(ids, T_window_camera)
        spread, steps = covariances
        T_map_camera = np.stack([self.stitcher.pose(frame) for frame in ids])
        # The model's covariance is in the axes and unit of the window's reference camera.
        turn = T_map_camera[-1, :3, :3] @ T_window_camera[-1, :3, :3].T
        in_map = self._chain.add(ids, T_map_camera, rotate_covariance(spread, turn, self.stitcher.scale))
        placed = []
        for frame in added:
            index = ids.index(frame.frame)
            # Nothing tells how the camera came to the first frame of a window that shares none with those before.
            step = rotate_covariance(steps[index], np.eye(3), frame.scale) if index > 0 else UNKNOWN
            placed.append(Place(index, frame, in_map[index], step))
        return placed
