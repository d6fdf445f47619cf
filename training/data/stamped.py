# SPDX-License-Identifier: Apache-2.0
"""Poses at the times of images: linear in position, slerp in rotation, and never across a gap."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation, Slerp

from rays_as_pixels_model.geometry import make_pose


def interpolate_poses(
    times: np.ndarray, poses: np.ndarray, at: np.ndarray, max_gap: float
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate poses (N, 4, 4) at strictly increasing times (N,) to the times `at` (M,).

    Returns:
        (M, 4, 4) poses and (M,) bool: whether two poses at most `max_gap` seconds apart stand around the time (or one
        at the very time); where not, the pose is the nearest one.
    """
    times, at = np.asarray(times, np.float64), np.asarray(at, np.float64)
    if len(times) == 1:
        return np.repeat(poses, len(at), axis=0), at == times[0]
    clipped = np.clip(at, times[0], times[-1])
    after = np.clip(np.searchsorted(times, clipped, side="left"), 1, len(times) - 1)
    before = after - 1
    weight = (clipped - times[before]) / (times[after] - times[before])
    rotation = Slerp(times, Rotation.from_matrix(poses[:, :3, :3]))(clipped).as_matrix()
    position = poses[before, :3, 3] + weight[:, None] * (poses[after, :3, 3] - poses[before, :3, 3])
    near = (times[after] - times[before] <= max_gap) | (weight == 0) | (weight == 1)
    return make_pose(rotation, position), near & (at == clipped)


def runs(valid: np.ndarray, least: int = 2) -> list[np.ndarray]:
    """Split the indices at which `valid` is true into unbroken runs of at least `least`."""
    index = np.flatnonzero(valid)
    parts = np.split(index, np.flatnonzero(np.diff(index) > 1) + 1) if len(index) else []
    return [part for part in parts if len(part) >= least]
