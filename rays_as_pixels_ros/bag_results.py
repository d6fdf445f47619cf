# SPDX-License-Identifier: Apache-2.0
"""What trajectory_node would have published for each frame of a recording, and views if they are asked for.

Topics, types and QoS are those of the nodes, so that one rviz or Foxglove layout shows a robot and a bag.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rays_as_pixels_model.geometry import invert

from . import conversions
from .bag_messages import tf_message
from .bag_recording import TF_TYPE, RecordedFrame, Recording
from .bag_writer import qos_of
from .camera_node import LATCHED, RELIABLE
from .offline_track import PlacedFrame
from .scale import MetricScale
from .track import Track

VIEW_FRAME = "rendered_view_optical"
_SHOW_EVERY_NS = 500_000_000  # path and frusta grow with the trajectory
_SOURCES, _APART = 5, 4  # placed frames before that of a view which may be its sources, too; each of so many


@dataclass(frozen=True)
class Names:
    """Frames and node names; base '' means that the optical frame is the base."""

    map: str
    odom: str
    base: str
    node: str = "/trajectory_node"
    views: str = "/view_synthesis_node"


class Results:
    """Turn placed frames into messages, one frame after the other."""

    def __init__(
        self, recording: Recording, placed: dict[int, PlacedFrame], names: Names, scale: MetricScale,
        path_max_size: int = 1024, frustum_size: float = 0.1, frusta_max_count: int = 50,
        with_tf: tuple[bool, bool] = (True, True),
    ):  # fmt: skip
        """
        Args:
            placed: by the index of the image in the recording.
            with_tf: whether map to odom and odom to base are written.
        """
        self.recording, self.placed, self.names, self.scale = recording, placed, names, scale
        self.frustum_size, self.frusta_max_count, self.with_tf = frustum_size, frusta_max_count, with_tf
        self._track, self._life, self._shown = Track(path_max_size), 0, 0
        self._path: deque = deque(maxlen=path_max_size)
        self._last = max(placed)
        self._sources: deque[RecordedFrame] = deque(maxlen=_SOURCES)
        self.poses = 0

    def topics(self, views: bool) -> dict[str, tuple[str, object]]:
        """Each topic with its type and QoS."""
        node = self.names.node
        found = {
            f"{node}/pose": ("geometry_msgs/msg/PoseWithCovarianceStamped", RELIABLE),
            f"{node}/odometry": ("nav_msgs/msg/Odometry", RELIABLE),
            f"{node}/path": ("nav_msgs/msg/Path", LATCHED),
        }
        if self.frustum_size > 0:
            found[f"{node}/frusta"] = ("visualization_msgs/msg/MarkerArray", LATCHED)
        if any(self.with_tf) or views:
            found["/tf"] = (TF_TYPE, RELIABLE)
        if views:
            found[f"{self.names.views}/rendered/image_raw"] = ("sensor_msgs/msg/Image", RELIABLE)
            found[f"{self.names.views}/rendered/camera_info"] = ("sensor_msgs/msg/CameraInfo", RELIABLE)
        return {topic: (kind, qos_of(qos)) for topic, (kind, qos) in found.items()}

    def of(self, frame: RecordedFrame) -> Iterator[tuple[str, object]]:
        """Yield (topic, message) for the next placed frame of the recording."""
        place, names = self.placed[frame.index], self.names
        if place.life != self._life:
            self._track.reset()
            self._path.clear()
            self._sources.clear()
            self._life, self._shown = place.life, 0
        mount = self.recording.mount(names.base, frame.frame_id, frame.stamp)
        tracked = self._track.add(
            place.stitched, frame.stamp, mount, self.scale.value, place.covariance, place.step_covariance,
            self.scale.spread,
        )  # fmt: skip
        if self.poses % _APART == 0:
            self._sources.append(frame)
        self.poses += 1
        child = frame.frame_id if mount is None else names.base
        pose = conversions.pose_message(tracked, names.map)
        self._path.append(conversions.path_pose(pose))
        yield f"{names.node}/pose", pose
        yield f"{names.node}/odometry", conversions.odometry_message(tracked, names.odom, child)
        transforms = [
            conversions.transform_message(T, frame.stamp, parent, of)
            for wanted, T, parent, of in (
                (self.with_tf[0], tracked.T_map_odom, names.map, names.odom),
                (self.with_tf[1], tracked.T_odom_base, names.odom, child),
            )
            if wanted
        ]
        if transforms:
            yield "/tf", tf_message(transforms)
        if frame.stamp - self._shown >= _SHOW_EVERY_NS or frame.index == self._last:
            self._shown = frame.stamp
            yield from self._shown_so_far(frame.stamp, place)

    def _shown_so_far(self, stamp: int, place: PlacedFrame) -> Iterator[tuple[str, object]]:
        names, size = self.names, self.frustum_size
        yield f"{names.node}/path", conversions.path_message(self._path, stamp, names.map)
        if size > 0:
            lines = self._track.frusta(self.frusta_max_count, place.intrinsics, size)
            yield f"{names.node}/frusta", conversions.frusta_message(lines, 0.04 * size, stamp, names.map)

    def view(
        self, pipeline, frame: RecordedFrame, offset: tuple[float, float, float], steps: int, seed: int
    ) -> Iterator[tuple[str, object]]:
        """Yield the messages of a view from beside a placed frame, made from it and from what was seen on the way.

        Args:
            offset: to the right, down and forward, in the unit of the trajectory.
        """
        size = pipeline.config.width, pipeline.config.height
        segment = self.placed[frame.index].stitched.segment  # over a break nobody knows how the camera moved
        sources = [frame, *(s for s in self._sources if s.index != frame.index)]
        decoded = [
            (source, self.recording.decode(source, size))
            for source in sources
            if self.placed[source.index].stitched.segment == segment
        ]
        if decoded[0][1] is None:
            return
        decoded = [(source, found) for source, found in decoded if found is not None and found[1] == decoded[0][1][1]]
        T_map_source = np.stack([self.placed[source.index].stitched.T_map_camera for source, _ in decoded])
        T = invert(T_map_source[0]) @ T_map_source
        T[:, :3, 3] *= self.scale.value
        T_source_view = np.eye(4)
        T_source_view[:3, 3] = offset
        rgb, intrinsics = np.stack([found[0] for _, found in decoded]), decoded[0][1][1]
        views = pipeline.render_views(
            rgb, T, intrinsics, T_source_view[None], intrinsics,
            metres_per_unit=self.placed[frame.index].stitched.scale * self.scale.value, steps=steps, seed=seed,
        )  # fmt: skip
        stamp, name = frame.stamp, f"{self.names.views}/rendered"
        yield "/tf", tf_message([conversions.transform_message(T_source_view, stamp, frame.frame_id, VIEW_FRAME)])
        yield f"{name}/image_raw", conversions.rgb_to_image(views.frames[0], stamp, VIEW_FRAME)
        yield f"{name}/camera_info", conversions.camera_info(views.intrinsics, stamp, VIEW_FRAME)

    def positions(self) -> np.ndarray:
        """Positions (N, 3) of the base in the map, of the newest life, at most path_max_size."""
        return np.stack([pose.T_map_base[:3, 3] for pose in self._track.path])


def tf_conflicts(recording: Recording, names: Names, optical: str) -> list[str]:
    """Frames that the bag's own TF places already and our TF would place too: a frame has one parent."""
    child = names.base or optical
    return [frame for frame in (names.odom, child) if frame in recording.transforms.parents]
