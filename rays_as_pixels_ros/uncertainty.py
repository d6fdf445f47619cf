# SPDX-License-Identifier: Apache-2.0
"""Covariances of poses: moved, turned, and carried along a trajectory.

A covariance is (6, 6) in the order (x, y, z, rx, ry, rz): the position and a rotation about the fixed axes of the frame
that the pose is given in (a left perturbation), as geometry_msgs/PoseWithCovariance means it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rays_as_pixels_model.calibration import Calibration, draws_covariance, root
from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, sample_covariance

if TYPE_CHECKING:
    from rays_as_pixels_model.results import TrajectoryEstimate

# After a gap in which nothing is known of the motion: far more than any trajectory, still finite for filters.
UNKNOWN = np.diag([1e6] * 3 + [np.pi**2] * 3)


def _lever(shift: np.ndarray) -> np.ndarray:
    """Matrix (6, 6) that carries errors of a pose to a point that is rigidly `shift` (3,) away: dt + w x shift."""
    x, y, z = shift
    lever = np.eye(6)
    lever[:3, 3:] = [[0.0, z, -y], [-z, 0.0, x], [y, -x, 0.0]]
    return lever


def rotate_covariance(covariance: np.ndarray, rotation: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """Turn covariances (..., 6, 6) by rotation (3, 3); scale is for x, y, z."""
    turn = np.zeros((6, 6))
    turn[:3, :3], turn[3:, 3:] = scale * rotation, rotation
    return turn @ covariance @ turn.T


def move_covariance(covariance: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Covariance (6, 6) of a point that is rigidly `shift` (3,), in the fixed axes, away from the known one."""
    lever = _lever(shift)
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
    """Covariances of windows: of refined ones their own, of others from posterior samples of every n-th one, which cost
    more than the estimate itself."""

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
        self._windows, self._drawn = 0, None

    def of(
        self,
        pipeline: Any,
        frames: np.ndarray,
        intrinsics: Intrinsics,
        estimate: TrajectoryEstimate,
        paused: bool = False,
    ) -> tuple:
        """Return covariances of a window's cameras and of the motions to them, both (T, 6, 6), model units.

        The first in the axes of the reference, the second in those of the frame before (zero for the first frame).

        Args:
            paused: the camera paused within the window (`window.spans_pause`). It resembles none of the others, so it
                has samples of its own, and they serve no other.
        """
        T = estimate.T_reference_camera
        T_previous_camera = np.concatenate([np.eye(4)[None], invert(T[:-1]) @ T[1:]])
        calibrated = self._calibration.of_errors
        if estimate.refined is not None:
            cameras, steps = estimate.covariance, estimate.refined.step_covariance
            return calibrated(cameras, T), calibrated(steps, T_previous_camera)
        drawn = self._drawn
        if paused or drawn is None or self._every == 1:
            drawn = self._draw(pipeline, frames, intrinsics, estimate)
            self._drawn = self._drawn if paused else drawn
        cameras, steps = drawn
        return calibrated(cameras, T), calibrated(steps, T_previous_camera)

    def refresh(
        self,
        pipeline: Any,
        frames: np.ndarray,
        intrinsics: Intrinsics,
        estimate: TrajectoryEstimate,
        paused: bool = False,
    ) -> None:
        """Sample this window for those that follow, if its turn has come: after its poses, which do not wait for it."""
        self._windows += 1
        if estimate.refined is None and self._every > 1 and self._windows % self._every == 0 and not paused:
            self._drawn = self._draw(pipeline, frames, intrinsics, estimate)

    def _draw(self, pipeline: Any, frames: np.ndarray, intrinsics: Intrinsics, estimate: TrajectoryEstimate) -> tuple:
        """Covariances (T, 6, 6) of the draws of the cameras and of the motions to them."""
        T = estimate.T_reference_camera
        seed = self._seed + self._windows
        draws = pipeline.draw_cameras(
            frames, intrinsics, samples=self._samples, seed=seed, turned_by=estimate.turned_by
        )
        steps = np.stack([np.zeros((6, 6))] + [step_covariance(draws, index) for index in range(1, len(T))])
        return draws_covariance(draws, T, estimate.covariance), steps


@dataclass(frozen=True)
class _Known:
    """What is known of a frame: its covariance (6, 6) in the map; shared: covariance (6, 6) of its error with the error
    of the window that placed it, the latter in standard deviations; start: first frame of that window."""

    covariance: np.ndarray
    shared: np.ndarray
    start: int


class CovarianceChain:
    """Covariances along a trajectory of overlapping windows.

    A window tells how well its frames are known against its first one, which an earlier window has placed: the errors
    of both add up, and the error of the first one's orientation moves all that follow. They are not independent: the
    error of a window is R w, R the root of its covariance, and w is a first-order Gauss-Markov process from window to
    window (`Calibration.correlation`). So X = cov(x, w) is carried along with P = cov(x), x the error of a pose:
    cov(F x + R w) = F P F' + R R' + F X R' + R X' F', F the lever to the next pose.
    """

    def __init__(self, correlation: Callable[[float], float] = lambda frames: 0.0, memory: int = 256):
        """
        Args:
            correlation: of the errors of two windows that start so many frames apart.
            memory: newest frames kept.
        """
        self.memory = memory
        self._correlation = correlation
        self.reset()

    def reset(self) -> None:
        """Forget the trajectory."""
        self._known: OrderedDict[int, _Known] = OrderedDict()

    def add(self, frames: Sequence[int], T_map_camera: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Add a window; returns the covariance (T, 6, 6) of its frames in the map. A frame known before keeps its own.

        Args:
            frames: T frame numbers, the first being the window's reference.
            T_map_camera: (T, 4, 4) of these frames.
            covariance: (T, 6, 6) against the reference, in the axes and unit of the map.
        """
        first, apart = frames[0], (frames[-1] - frames[0]) / (len(frames) - 1)
        if first in self._known:
            known = self._known[first]
            start, shared = known.covariance, known.shared * self._correlation((first - known.start) / apart)
        else:  # the first window starts where the map does; a later one without common frames starts anywhere
            start, shared = UNKNOWN if self._known else np.zeros((6, 6)), np.zeros((6, 6))
        for frame, T, own, R in zip(frames, T_map_camera, covariance, root(covariance), strict=True):
            if frame not in self._known:
                F = _lever(T[:3, 3] - T_map_camera[0, :3, 3])
                cross = F @ shared @ R.T
                self._known[frame] = _Known(F @ start @ F.T + own + cross + cross.T, F @ shared + R, first)
        found = np.stack([self._known[frame].covariance for frame in frames])
        while len(self._known) > self.memory:
            self._known.popitem(last=False)
        return found
