# SPDX-License-Identifier: Apache-2.0
"""Camera paths to ask views for: orbit, dolly, spline through poses, and TUM text files.

Poses are optical (x right, y down, z forward), camera to some frame, (N, 4, 4). Orbit and dolly are relative to a
start camera: they return T_start_camera, with the start camera itself at the identity.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation, RotationSpline

from rays_as_pixels_model.geometry import pose_from_quaternion, quaternion_from_matrix


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


def read_tum(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a TUM trajectory: `time x y z qx qy qz qw` in each line, # for comments.

    Returns:
        seconds (N,) and T_frame_camera (N, 4, 4)
    Raises:
        ValueError: no pose, or a line that is not 8 finite numbers with a unit quaternion; the message names the line.
    """
    seconds, poses = [], []
    for number, line in enumerate(Path(path).read_text().splitlines(), start=1):
        line = line.split("#")[0].replace(",", " ").strip()
        if not line:
            continue
        try:
            values = [float(word) for word in line.split()]
        except ValueError:
            values = []
        if len(values) != 8 or not np.isfinite(values).all():
            raise ValueError(f"{path}:{number}: expected 8 numbers 'time x y z qx qy qz qw', got '{line[:80]}'")
        if abs(np.linalg.norm(values[4:]) - 1.0) > 1e-2:
            raise ValueError(f"{path}:{number}: quaternion norm is {np.linalg.norm(values[4:]):.3f}, not 1")
        quaternion = np.array(values[4:]) / np.linalg.norm(values[4:])
        seconds.append(values[0])
        poses.append(pose_from_quaternion(values[1:4], quaternion))
    if not poses:
        raise ValueError(f"{path}: no pose in it")
    return np.array(seconds), np.stack(poses)


def tum_text(seconds: np.ndarray, T_frame_camera: np.ndarray) -> str:
    """Format poses (N, 4, 4) and their times (N,) as TUM lines."""
    lines = []
    for time, pose in zip(seconds, T_frame_camera, strict=True):
        values = [*pose[:3, 3], *quaternion_from_matrix(pose[:3, :3])]
        lines.append(f"{time:.9f} " + " ".join(f"{value:.9f}" for value in values))
    return "\n".join(lines) + "\n"


def kitti_text(T_frame_camera: np.ndarray) -> str:
    """Format poses (N, 4, 4) as KITTI lines: the upper 3x4, row by row."""
    return "".join(" ".join(f"{value:.9e}" for value in pose[:3].reshape(-1)) + "\n" for pose in T_frame_camera)


def _check_views(views: int) -> None:
    if views < 1:
        raise ValueError(f"{views} views asked for; at least 1 is needed")
