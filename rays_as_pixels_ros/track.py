# SPDX-License-Identifier: Apache-2.0
"""The published trajectory: the robot's base in map and odom, its speed, the path and what can be saved.

Frames: map (corrected), odom (continuous), base (the robot), optical (the camera). Poses are (4, 4), metres where the
scale is metric, stamps ns. Without a base the optical frame takes its place, and the first camera is turned from
optical to REP 103 axes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rays_as_pixels_model.files import write_text, write_trajectory
from rays_as_pixels_model.geometry import Intrinsics, invert, so3_log

from .paths import kitti_text
from .stitching import OdometryChain, StitchedFrame
from .uncertainty import UNKNOWN, move_covariance, rotate_covariance

# Optical axes (x right, y down, z forward) seen from REP 103 axes (x forward, y left, z up).
T_REP103_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
FORMATS = ("tum", "kitti")
_SAVED_POSES = 100_000


@dataclass(frozen=True)
class TrackedPose:
    """One pose as it is published.

    T_map_base, T_odom_base, T_map_odom, T_map_optical: (4, 4). covariance: (6, 6) of the base in map axes. twist: (6,)
    mean linear and angular velocity since the pose before, in base axes, and its covariance; zeros that are UNKNOWN for
    the first.
    """

    stamp: int
    T_map_base: np.ndarray
    T_odom_base: np.ndarray
    T_map_odom: np.ndarray
    T_map_optical: np.ndarray
    covariance: np.ndarray
    twist: np.ndarray
    twist_covariance: np.ndarray


class Track:
    """Turn stitched frames into poses of the base and remember them; memory is bounded."""

    def __init__(self, path_max_size: int):
        """
        Args:
            path_max_size: newest poses in `path`.
        """
        self.path: deque[TrackedPose] = deque(maxlen=path_max_size)
        self._saved = _Poses(_SAVED_POSES)
        self.reset()

    def reset(self) -> None:
        """Begin a new trajectory."""
        self.path.clear()
        self._saved.clear()
        self._chain: OdometryChain | None = None
        self._previous: TrackedPose | None = None
        # Of the camera's motion since the pose before: in the axes of odom, about where the camera is.
        self._moved = np.zeros((6, 6))

    def add(
        self,
        frame: StitchedFrame,
        stamp: int,
        T_base_optical: np.ndarray | None,
        metres: float,
        covariance: np.ndarray,
        step_covariance: np.ndarray,
        scale_spread: float = 0.0,
    ) -> TrackedPose:
        """Add the next frame.

        Args:
            T_base_optical: where the camera sits on the robot at this stamp; None: the camera is the base.
            metres: for one unit of the trajectory.
            covariance: (6, 6) of the camera in the stitched map, its axes and unit.
            step_covariance: (6, 6) of the motion since the frame before, in the axes of that camera, stitched unit.
            scale_spread: relative standard deviation of `metres`.
        """
        mount = np.eye(4) if T_base_optical is None else T_base_optical
        if self._chain is None:
            self._chain = OdometryChain(T_REP103_OPTICAL if T_base_optical is None else T_base_optical)
        self._move(frame, metres, step_covariance)
        T_optical_base, T_map_optical = invert(mount), self._chain.T_map_camera
        T_map_base, T_odom_base = T_map_optical @ T_optical_base, self._chain.T_odom_camera @ T_optical_base
        turn = T_map_optical[:3, :3] @ frame.T_map_camera[:3, :3].T
        # The camera's covariance, carried over to the base at the other end of the lever.
        covariance = rotate_covariance(covariance, turn, metres)
        covariance = move_covariance(covariance, T_map_base[:3, 3] - T_map_optical[:3, 3])
        covariance[:3, :3] += scale_spread**2 * np.outer(T_map_base[:3, 3], T_map_base[:3, 3])
        twist, twist_covariance = np.zeros(6), UNKNOWN
        if self._previous is not None and stamp > self._previous.stamp:
            seconds = (stamp - self._previous.stamp) * 1e-9
            moved = invert(self._previous.T_odom_base) @ T_odom_base
            turn = moved[:3, :3].T
            twist = np.concatenate([turn @ moved[:3, 3], turn @ so3_log(moved[:3, :3])]) / seconds
            step = move_covariance(self._moved, T_odom_base[:3, 3] - self._chain.T_odom_camera[:3, 3])
            twist_covariance = rotate_covariance(step, T_odom_base[:3, :3].T) / seconds**2
        found = TrackedPose(
            stamp, T_map_base, T_odom_base, self._chain.T_map_odom, T_map_optical, covariance, twist, twist_covariance
        )  # fmt: skip
        self._previous, self._moved = found, np.zeros((6, 6))
        self.path.append(found)
        self._saved.append(stamp, T_map_base)
        return found

    def skip(self, frame: StitchedFrame, metres: float | None, step_covariance: np.ndarray) -> None:
        """Move on by a frame without a pose (where the camera sits is not known): the next one has its motion too.

        Args: as of `add`. Before the first pose nothing is to be done, and metres may be unknown.
        """
        if self._chain is not None:
            self._move(frame, metres, step_covariance)

    def _move(self, frame: StitchedFrame, metres: float, step_covariance: np.ndarray) -> None:
        before = self._chain.T_odom_camera
        self._chain.add(frame, metres)
        step = rotate_covariance(step_covariance, before[:3, :3], metres)
        self._moved = move_covariance(self._moved, self._chain.T_odom_camera[:3, 3] - before[:3, 3]) + step

    def frusta(self, count: int, intrinsics: Intrinsics, depth: float) -> np.ndarray:
        """Lines (N, 16, 3), see `frusta_lines`, of at most `count` cameras spread over the path, the newest last."""
        poses = list(self.path)
        chosen = np.unique(np.linspace(0, len(poses) - 1, min(count, len(poses))).round().astype(int))
        T_map_optical = np.stack([poses[index].T_map_optical for index in chosen])
        half = 0.5 * np.array([intrinsics.width / intrinsics.fx, intrinsics.height / intrinsics.fy])
        return frusta_lines(T_map_optical, *half, depth)

    def save(self, path: str | Path, kind: str) -> int:
        """Write the poses of the base in the map to a file, as evo reads it; returns how many.

        Args:
            kind: one of FORMATS.
        Raises:
            ValueError: another format, no path, no pose yet, or (MediaError) a file that cannot be written.
        """
        stamps, poses = self._saved.all()
        if kind not in FORMATS:
            raise ValueError(f"format is '{kind}'; it must be {' or '.join(FORMATS)}")
        if not str(path):
            raise ValueError("path is empty")
        if not len(stamps):
            raise ValueError("there is no pose yet")
        if kind == "tum":
            write_trajectory(path, [stamp * 1e-9 for stamp in stamps.tolist()], poses)
        else:
            write_text(path, kitti_text(poses))
        return len(stamps)


class _Poses:
    """The newest poses and their stamps, in arrays that take all their memory at once: a node's does not grow."""

    def __init__(self, size: int):
        self._stamps, self._rows = np.full(size, -1, np.int64), np.full((size, 3, 4), np.nan)
        self._count = 0

    def clear(self) -> None:
        self._count = 0

    def append(self, stamp: int, T: np.ndarray) -> None:
        at = self._count % len(self._stamps)
        self._stamps[at], self._rows[at] = stamp, T[:3]
        self._count += 1

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return stamps (n,) and poses (n, 4, 4), oldest first."""
        held = np.arange(max(0, self._count - len(self._stamps)), self._count) % len(self._stamps)
        T = np.tile(np.eye(4), (len(held), 1, 1))
        T[:, :3] = self._rows[held]
        return self._stamps[held], T


def frusta_lines(T_map_optical: np.ndarray, half_width: float, half_height: float, depth: float) -> np.ndarray:
    """Ends of the lines (N, 16, 3) that draw cameras (N, 4, 4): four edges from each centre, and the picture's border.

    Args:
        half_width, half_height: half of the picture at depth 1 (tangents of half the fields of view).
        depth: of the drawn pyramid.
    """
    x, y = half_width * depth, half_height * depth
    corners = np.array([[-x, -y, depth], [x, -y, depth], [x, y, depth], [-x, y, depth]])
    own = []
    for index, corner in enumerate(corners):
        own += [np.zeros(3), corner, corner, corners[(index + 1) % 4]]
    return np.stack(own) @ np.swapaxes(T_map_optical[:, :3, :3], 1, 2) + T_map_optical[:, None, :3, 3]
