# SPDX-License-Identifier: Apache-2.0
"""Camera paths to ask views for: orbit, dolly, spline through poses. (TUM files: rays_as_pixels_model.files.)

Poses are optical (x right, y down, z forward), camera to some frame, (N, 4, 4). Orbit and dolly are relative to a
start camera: they return T_start_camera, with the start camera itself at the identity.
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline


def orbit(views: int, degrees: float, distance: float, start_degrees: float = 0.0) -> np.ndarray:
    """Circle round the point `distance` ahead of the start camera, always looking at it.

    The last view is `degrees` round (positive: the camera goes to its right), the first one `start_degrees`.

    Returns:
        T_start_camera: (views, 4, 4)
    """
    _check_views(views)
    if not distance > 0:
        raise ValueError(f"orbit distance is {distance}; it must be positive")
    T_start_camera = np.tile(np.eye(4), (views, 1, 1))
    centre = np.array([0.0, 0.0, distance])
    for pose, angle in zip(T_start_camera, np.linspace(start_degrees, degrees, views), strict=True):
        # About optical y, which points down: a camera to the right of the start looks to its left, a negative turn.
        pose[:3, :3] = Rotation.from_euler("y", -angle, degrees=True).as_matrix()
        pose[:3, 3] = centre - pose[:3, :3] @ centre
    return T_start_camera


def dolly(views: int, offset: np.ndarray, start: np.ndarray | None = None) -> np.ndarray:
    """Move along a straight line to `offset` (3,) in the start camera's axes, looking the same way.

    Returns:
        T_start_camera: (views, 4, 4), the first one at `start` (default: no offset)
    """
    _check_views(views)
    T_start_camera = np.tile(np.eye(4), (views, 1, 1))
    begin = np.zeros(3) if start is None else np.asarray(start, dtype=np.float64)
    T_start_camera[:, :3, 3] = np.linspace(begin, np.asarray(offset, dtype=np.float64), views)
    return T_start_camera


def spline(T_frame_waypoint: np.ndarray, views: int) -> np.ndarray:
    """Interpolate smoothly through waypoints (N >= 2, 4, 4), evenly in the waypoint number.

    Returns:
        T_frame_camera: (views, 4, 4), the first and the last waypoint at the ends
    """
    _check_views(views)
    if len(T_frame_waypoint) < 2:
        raise ValueError(f"a spline needs at least 2 waypoints, not {len(T_frame_waypoint)}")
    knots = np.arange(len(T_frame_waypoint), dtype=np.float64)
    at = np.linspace(0.0, knots[-1], views)
    T_frame_camera = np.tile(np.eye(4), (views, 1, 1))
    T_frame_camera[:, :3, :3] = RotationSpline(knots, Rotation.from_matrix(T_frame_waypoint[:, :3, :3]))(at).as_matrix()
    T_frame_camera[:, :3, 3] = CubicSpline(knots, T_frame_waypoint[:, :3, 3])(at)
    return T_frame_camera


def kitti_text(T_frame_camera: np.ndarray) -> str:
    """Format poses (N, 4, 4) as KITTI lines: the upper 3x4, row by row."""
    return "".join(" ".join(f"{value:.9e}" for value in pose[:3].reshape(-1)) + "\n" for pose in T_frame_camera)


def _check_views(views: int) -> None:
    if views < 1:
        raise ValueError(f"{views} views asked for; at least 1 is needed")
