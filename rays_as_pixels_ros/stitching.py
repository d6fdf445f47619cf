# SPDX-License-Identifier: Apache-2.0
"""Overlapping windows to one trajectory: each window is moved by a Sim(3) that its common frames determine.

Frames: `window` is the reference camera of one window in that window's unit; `map` is the first camera of the whole
trajectory (optical axes) in the unit of the first window; `odom` is the chain of relative motions as published.
Poses are camera to frame, (4, 4) float64.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from rays_as_pixels_model.geometry import check_pose, invert


@dataclass(frozen=True)
class Similarity:
    """target = scale * rotation @ source + translation; rotation (3, 3), translation (3,)."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def apply(self, T: np.ndarray) -> np.ndarray:
        """Move poses (..., 4, 4): orientations are rotated, positions rotated, scaled and shifted."""
        moved = np.array(T, dtype=np.float64)
        moved[..., :3, :3] = self.rotation @ T[..., :3, :3]
        moved[..., :3, 3] = self.scale * T[..., :3, 3] @ self.rotation.T + self.translation
        return moved


def spread(positions: np.ndarray) -> float:
    """Root mean square distance of positions (N, 3) from their mean: how much the camera moved."""
    return float(np.sqrt(((positions - positions.mean(axis=0)) ** 2).sum(axis=1).mean()))


def common_rotation(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Mean rotation (3, 3) that turns the orientations of poses `source` onto those of `target`, both (N, 4, 4)."""
    return Rotation.from_matrix(target[:, :3, :3] @ source[:, :3, :3].transpose(0, 2, 1)).mean().as_matrix()


def relative_scale(source: np.ndarray, target: np.ndarray, min_spread: float = 0.0) -> tuple[float, float] | None:
    """Measure how much longer the motion of poses `target` is than that of `source`, both (N, 4, 4).

    The least-squares factor from the source's positions to the target's: the source's are the first frames of a new
    window, close to its reference and so the better known. The ratio of the two spreads instead counts the target's
    noise as motion, and a bias of a few percent a window grows to any size over a path (docs/trajectory.md).

    Args:
        min_spread: below this spread of the source or the target, in its own unit, scale cannot be measured.
    Returns:
        the factor and the variance of its logarithm, from how far the two motions differ; None if there is too little
        motion, or the two do not go the same way.
    """
    a, b = (p[:, :3, 3] - p[:, :3, 3].mean(axis=0) for p in (source, target))
    if len(source) < 2 or min(spread(a), spread(b)) <= min_spread:
        return None
    a = a @ common_rotation(source, target).T
    product, square = float((a * b).sum()), float((a * a).sum())
    if product <= 0.0:
        return None
    agreement = min(product**2 / (square * float((b * b).sum())), 1.0)  # squared correlation
    return product / square, (1.0 - agreement) / agreement / (3 * (len(source) - 1) - 1)


def align_poses(
    source: np.ndarray, target: np.ndarray, scale: float | None = None, min_spread: float = 0.0, fallback: float = 1.0
) -> tuple[Similarity, bool]:
    """Find the Sim(3) that moves poses `source` onto `target`, both (N, 4, 4), N >= 1.

    Rotation comes from the orientations, not from the positions, so that one common frame or a straight path is
    enough.

    Args:
        scale: use this scale instead of measuring it (`relative_scale`).
        min_spread: below this spread, in its own unit, scale cannot be measured.
        fallback: scale then.
    Returns:
        the similarity, and whether its scale was measured.
    """
    rotation = common_rotation(source, target)
    found = relative_scale(source, target, min_spread) if scale is None else None
    if scale is None:
        scale = fallback if found is None else found[0]
    translation = (target[:, :3, 3] - scale * source[:, :3, 3] @ rotation.T).mean(axis=0)
    return Similarity(float(scale), rotation, translation), found is not None


def blend_poses(T_a: np.ndarray, T_b: np.ndarray, weight_b: float) -> np.ndarray:
    """Mean of two poses (4, 4): positions linearly, orientations along the shortest arc."""
    blended = np.eye(4)
    step = Rotation.from_matrix(T_a[:3, :3].T @ T_b[:3, :3]).as_rotvec()
    blended[:3, :3] = T_a[:3, :3] @ Rotation.from_rotvec(weight_b * step).as_matrix()
    blended[:3, 3] = (1.0 - weight_b) * T_a[:3, 3] + weight_b * T_b[:3, 3]
    return blended


@dataclass(frozen=True)
class StitchedFrame:
    """One frame of the trajectory.

    T_map_camera, T_previous_camera: map pose, and motion since the frame before (identity for the first).
    scale: map units for one unit of the window that gave this frame. segment: grows by one at each break.
    """

    frame: int
    T_map_camera: np.ndarray
    T_previous_camera: np.ndarray
    scale: float
    segment: int


class Stitcher:
    """Join windows into one trajectory, carrying orientation, position and scale from window to window.

    Carried scale is a filter on its logarithm. A window's unit is the depth of what its first frame sees, so it differs
    little from the one before (`scale_step`) and never much from the first (`scale_spread`); the ratio of motions on
    the common frames corrects it by as much as those agree. Exact windows follow the ratios alone. Ratios alone are a
    random walk that a small bias turns into exponential growth: docs/trajectory.md.

    A frame seen by several windows gets the running mean of their estimates. When a window shares no frame with the
    trajectory (the ones between were lost), its first frame is put at the last known pose with the last scale, and
    `segments` counts the break: the motion in the gap is not known and is not invented.
    """

    def __init__(
        self,
        carry_scale: bool = True,
        min_spread: float = 1e-3,
        max_scale_step: float = np.inf,
        memory: int = 256,
        scale_step: float = 0.01,
        scale_spread: float = 0.25,
    ):
        """
        Args:
            carry_scale: measure each window's scale on the common frames; False: every window has scale 1.
            min_spread: camera motion on the common frames, in window units, that is enough to measure scale.
            max_scale_step: a window's scale may differ from the one before at most by this factor.
            memory: newest frames kept for alignment.
            scale_step, scale_spread: standard deviation of the logarithm of a window's unit against that of the one
                before and of the first one.
        """
        if not (0.0 < scale_step < np.inf and 0.0 < scale_spread < np.inf):
            raise ValueError(f"scale_step and scale_spread must be positive, got {scale_step} and {scale_spread}")
        self.scale_step, self.scale_spread = scale_step, scale_spread
        if max_scale_step < 1.0:
            raise ValueError(f"max_scale_step is {max_scale_step}; it is a factor and must be at least 1")
        self.carry_scale, self.min_spread, self.max_scale_step, self.memory = (
            carry_scale,
            min_spread,
            max_scale_step,
            memory,
        )
        self.reset()

    def reset(self) -> None:
        """Forget the trajectory."""
        self.scale = 1.0
        self.scale_measured = False
        self._scale_variance = 0.0  # of the logarithm
        self.segments = 0
        self._poses: OrderedDict[int, tuple[np.ndarray, int]] = OrderedDict()

    def pose(self, frame: int) -> np.ndarray:
        """Return T_map_camera (4, 4) of a frame still in memory, as refined by all windows so far."""
        return self._poses[frame][0]

    def add(self, frames: Sequence[int], T_window_camera: np.ndarray) -> list[StitchedFrame]:
        """Add a window and return its frames that the trajectory did not have yet, oldest first.

        Args:
            frames: T frame numbers, increasing.
            T_window_camera: (T, 4, 4), any reference, any unit.
        Raises:
            ValueError: the counts differ or a pose is not a rigid transform.
        """
        T_window_camera = np.asarray(T_window_camera, dtype=np.float64)
        if T_window_camera.shape != (len(frames), 4, 4):
            raise ValueError(f"{len(frames)} frames but poses of shape {T_window_camera.shape}")
        for pose in T_window_camera:
            check_pose(pose, "window pose")
        common = [index for index, frame in enumerate(frames) if frame in self._poses]
        similarity = self._similarity(frames, T_window_camera, common)
        T_map_camera = similarity.apply(T_window_camera)
        self.scale = similarity.scale
        for index in common:
            known, count = self._poses[frames[index]]
            self._poses[frames[index]] = blend_poses(known, T_map_camera[index], 1.0 / (count + 1)), count + 1
        added = []
        for index, frame in enumerate(frames):
            if index in common:
                continue
            # The motion inside the window, not the difference of map poses: a correction must not look like motion.
            moved = invert(T_map_camera[index - 1]) @ T_map_camera[index] if index > 0 else np.eye(4)
            self._poses[frame] = T_map_camera[index], 1
            added.append(StitchedFrame(frame, T_map_camera[index], moved, self.scale, self.segments))
        while len(self._poses) > self.memory:
            self._poses.popitem(last=False)
        return added

    def _similarity(self, frames: Sequence[int], T_window_camera: np.ndarray, common: list[int]) -> Similarity:
        if not self._poses:
            start = invert(T_window_camera[0])
            return Similarity(1.0, start[:3, :3], start[:3, 3])
        if not common:
            self.segments += 1
            last = next(reversed(self._poses.values()))[0]
            return align_poses(T_window_camera[:1], last[None], scale=self.scale)[0]
        source = T_window_camera[common]
        target = np.stack([self._poses[frames[index]][0] for index in common])
        found = relative_scale(source, target, self.min_spread) if self.carry_scale else None
        self.scale_measured = found is not None
        scale = 1.0 if not self.carry_scale else self.scale if found is None else self._filtered(*found)
        return align_poses(source, target, scale=scale)[0]

    def _filtered(self, measured: float, variance: float) -> float:
        """Next scale from a measured one and the variance of its logarithm: a Kalman step, then the prior around 1."""
        gain = self.scale_step**2 / (self.scale_step**2 + variance)
        log_scale = np.log(self.scale) + gain * np.log(measured / self.scale)
        error = self._scale_variance + gain * variance  # what is already wrong stays wrong
        trust = self.scale_spread**2 / (self.scale_spread**2 + error)
        self._scale_variance = trust * error
        low, high = self.scale / self.max_scale_step, self.scale * self.max_scale_step
        return float(np.clip(np.exp(trust * log_scale), low, high))


class OdometryChain:
    """Split a trajectory that is corrected now and then into a smooth part and a correction (REP 105).

    T_odom_camera is the chain of relative motions and never jumps; T_map_odom takes up the corrections.
    """

    def __init__(self, T_map_start: np.ndarray):
        """
        Args:
            T_map_start: (4, 4) pose of the first camera in both map and odom, REP 103 axes.
        """
        self._T_map_start = np.asarray(T_map_start, dtype=np.float64)
        self.reset()

    def reset(self) -> None:
        """Start again at the first pose."""
        self.T_odom_camera = self._T_map_start.copy()
        self.T_map_camera = self._T_map_start.copy()
        self.T_map_odom = np.eye(4)
        self._empty = True

    def add(self, frame: StitchedFrame, metres_per_unit: float = 1.0) -> None:
        """Move on to the next frame of the trajectory; afterwards T_map_camera = T_map_odom @ T_odom_camera."""
        moved, pose = frame.T_previous_camera.copy(), frame.T_map_camera.copy()
        moved[:3, 3] *= metres_per_unit
        pose[:3, 3] *= metres_per_unit
        self.T_map_camera = self._T_map_start @ pose
        self.T_odom_camera = self.T_map_camera if self._empty else self.T_odom_camera @ moved
        self._empty = False
        self.T_map_odom = self.T_map_camera @ invert(self.T_odom_camera)
