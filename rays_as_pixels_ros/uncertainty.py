# SPDX-License-Identifier: Apache-2.0
"""Covariances of poses: moved, turned, and carried along a trajectory.

A covariance is (6, 6) in the order (x, y, z, rx, ry, rz): the position and a rotation about the fixed axes of the frame
that the pose is given in (a left perturbation), as geometry_msgs/PoseWithCovariance means it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rays_as_pixels_model.calibration import Calibration, draws_covariance
from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, sample_covariance

if TYPE_CHECKING:
    from rays_as_pixels_model.results import TrajectoryEstimate

# After a gap in which nothing is known of the motion: far more than any trajectory, still finite for filters.
UNKNOWN = np.diag([1e6] * 3 + [np.pi**2] * 3)


def rotate_covariance(covariance: np.ndarray, rotation: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Turn covariances (..., 6, 6) by rotation (3, 3); scale is for x, y, z."""
    turn = np.zeros((6, 6))
    turn[:3, :3], turn[3:, 3:] = scale * rotation, rotation
    return turn @ covariance @ turn.T


def move_covariance(covariance: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Covariance (6, 6) of a point that is rigidly `shift` (3,), in the fixed axes, away from the known one."""
    x, y, z = shift
    lever = np.eye(6)
    lever[:3, 3:] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]  # dt + w x shift
    return lever @ covariance @ lever.T


def step_covariance(T_draws: np.ndarray, index: int) -> np.ndarray:
    """Covariance (6, 6) of the motion from frame index - 1 to frame index among posterior draws (k, T, 4, 4), k >= 2.

    In the axes of frame index - 1, order and perturbation as above.
    """
    steps = invert(T_draws[:, index - 1]) @ T_draws[:, index]
    u, _, vt = np.linalg.svd(steps[:, :3, :3].mean(axis=0))
    mean = make_pose(u @ vt, steps[:, :3, 3].mean(axis=0))
    return sample_covariance(steps[:, None], mean[None])[0]


class WindowCovariance:
    """Covariances of windows, from posterior samples of every n-th one: they cost more than the estimate itself."""

    def __init__(self, calibration: Calibration, samples: int, every: int, seed: int = 0):
        """
        Args:
            samples: posterior samples of a window.
            every: windows from one set of samples to the next; those between have the spread of the last set.
        """
        self._calibration, self._samples, self._every, self._seed = calibration, samples, every, seed
        self.reset()

    def reset(self) -> None:
        """Sample the next window."""
        self._windows, self._found = 0, None

    def of(self, pipeline: Any, frames: np.ndarray, intrinsics: Intrinsics, estimate: TrajectoryEstimate) -> tuple:
        """Return covariances of a window's cameras and of the motions to them, both (T, 6, 6), model units.

        The first in the axes of the reference, the second in those of the frame before (zero for the first frame).
        """
        if self._found is None or self._every == 1:
            self._sample(pipeline, frames, intrinsics, estimate)
        return self._found

    def refresh(self, pipeline: Any, frames: np.ndarray, intrinsics: Intrinsics, estimate: TrajectoryEstimate) -> None:
        """Sample this window for those that follow, if its turn has come: after its poses, which do not wait for it."""
        self._windows += 1
        if self._every > 1 and self._windows % self._every == 0:
            self._sample(pipeline, frames, intrinsics, estimate)

    def _sample(self, pipeline: Any, frames: np.ndarray, intrinsics: Intrinsics, estimate: TrajectoryEstimate) -> None:
        T = estimate.T_reference_camera
        draws = pipeline.draw_cameras(frames, intrinsics, samples=self._samples, seed=self._seed + self._windows)
        spread = draws_covariance(draws, T, estimate.covariance)
        steps = np.stack([np.zeros((6, 6))] + [step_covariance(draws, index) for index in range(1, len(T))])
        self._found = self._calibration.scaled(spread), self._calibration.scaled(steps)


class CovarianceChain:
    """Covariances along a trajectory of overlapping windows.

    A window tells how well its frames are known against its first one, which an earlier window has placed: the errors
    of both add up, and the error of the first one's orientation moves all that follow.
    """

    def __init__(self, memory: int = 256):
        """
        Args:
            memory: newest frames kept.
        """
        self.memory = memory
        self.reset()

    def reset(self) -> None:
        """Forget the trajectory."""
        self._known: OrderedDict[int, np.ndarray] = OrderedDict()

    def add(self, frames: Sequence[int], T_map_camera: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Add a window; returns the covariance (T, 6, 6) of its frames in the map. A frame known before keeps its own.

        Args:
            frames: T frame numbers, the first being the window's reference.
            T_map_camera: (T, 4, 4) of these frames.
            covariance: (T, 6, 6) against the reference, in the axes and unit of the map.
        """
        if frames[0] in self._known:
            start = self._known[frames[0]]
        else:  # the first window starts where the map does; a later one without common frames starts anywhere
            start = UNKNOWN if self._known else np.zeros((6, 6))
        for index, frame in enumerate(frames):
            if frame not in self._known:
                lever = T_map_camera[index, :3, 3] - T_map_camera[0, :3, 3]
                self._known[frame] = move_covariance(start, lever) + covariance[index]
        found = np.stack([self._known[frame] for frame in frames])
        while len(self._known) > self.memory:
            self._known.popitem(last=False)
        return found
