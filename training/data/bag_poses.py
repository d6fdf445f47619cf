# SPDX-License-Identifier: Apache-2.0
"""Poses from a bag: the tree of transforms (TF) or one Odometry topic, at the times of the images.

`T_parent_child` maps points of the child frame into the parent, as TF's messages do. Times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from rays_as_pixels_model.geometry import invert

from . import checks
from .posed import DatasetError
from .stamped import interpolate_poses


def frame_name(text: str) -> str:
    """TF frames without the leading slash of ROS 1."""
    return text.strip().lstrip("/")


def seconds(stamp) -> float:
    return stamp.sec + stamp.nanosec * 1e-9


def pose_of(where: str, position, orientation) -> np.ndarray:
    """(4, 4) from the vector and the quaternion of a message."""
    xyzw = [orientation.x, orientation.y, orientation.z, orientation.w]
    return checks.quaternion_pose(where, [position.x, position.y, position.z], xyzw)


@dataclass
class Track:
    """Poses of one frame over time, in any order; the last one of a time counts."""

    times: list[float] = field(default_factory=list)
    poses: list[np.ndarray] = field(default_factory=list)

    def add(self, time: float, pose: np.ndarray) -> None:
        self.times.append(time)
        self.poses.append(pose)

    def at(self, times: np.ndarray, max_gap: float) -> tuple[np.ndarray, np.ndarray]:
        """Return poses (N, 4, 4) at times (N,), and where they are known."""
        reverse_unique, index = np.unique(np.array(self.times)[::-1], return_index=True)
        poses = np.stack(self.poses)[::-1][index]
        return interpolate_poses(reverse_unique, poses, times, max_gap)


class TransformTree:
    """The transforms of /tf and /tf_static."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._parent: dict[str, str] = {}
        self._moving: dict[str, Track] = {}
        self._static: dict[str, np.ndarray] = {}

    def add(self, parent: str, child: str, time: float, pose: np.ndarray, static: bool) -> None:
        """Add one transform T_parent_child.

        Raises:
            DatasetError: the child already has another parent.
        """
        parent, child = frame_name(parent), frame_name(child)
        if self._parent.setdefault(child, parent) != parent:
            raise DatasetError(
                f"{self._where}: frame {child!r} has two parents, {self._parent[child]!r} and {parent!r}; "
                "TF must be a tree: record only one of them, or name an odometry_topic"
            )
        if static:
            self._static[child] = pose
        else:
            self._moving.setdefault(child, Track()).add(time, pose)

    @property
    def frames(self) -> list[str]:
        """All frames."""
        return sorted({*self._parent, *self._parent.values()})

    def ancestors(self, frame: str) -> list[str]:
        """The frame, its parent and so on to the root."""
        chain = [frame]
        while chain[-1] in self._parent:
            chain.append(self._parent[chain[-1]])
            if len(chain) > len(self._parent) + 1:
                raise DatasetError(f"{self._where}: the transforms above frame {frame!r} go in a circle")
        return chain

    def moves(self, frame: str) -> bool:
        """Whether anything between the frame and its root changes with time."""
        return any(child in self._moving for child in self.ancestors(frame))

    def lookup(self, target: str, source: str, times: np.ndarray, max_gap: float) -> tuple[np.ndarray, np.ndarray]:
        """Return T_target_source (N, 4, 4) at times (N,), and where it is known.

        Raises:
            DatasetError: the two frames are not connected.
        """
        above_target, above_source = self.ancestors(target), self.ancestors(source)
        shared = next((frame for frame in above_source if frame in above_target), None)
        if shared is None:
            raise DatasetError(
                f"{self._where}: no transform connects {source!r} to {target!r}; TF has "
                f"{', '.join(self.frames) or 'no frames'}"
            )
        T_shared_source, known = self._up(above_source[: above_source.index(shared)], times, max_gap)
        T_shared_target, known_too = self._up(above_target[: above_target.index(shared)], times, max_gap)
        return invert(T_shared_target) @ T_shared_source, known & known_too

    def _up(self, children: list[str], times: np.ndarray, max_gap: float) -> tuple[np.ndarray, np.ndarray]:
        """Chain the transforms of frames, each the parent of the one before."""
        T, known = np.tile(np.eye(4), (len(times), 1, 1)), np.ones(len(times), bool)
        for child in children:
            if child in self._moving:
                step, here = self._moving[child].at(times, max_gap)
                known &= here
            else:
                step = self._static[child]
            T = step @ T
        return T, known
