# SPDX-License-Identifier: Apache-2.0
"""The demo's own node: takes down what the other nodes say on the wire, by stamp (ns).

Poses are (4, 4) camera to map (estimate) or to world (truth), optical axes. Images are fitted to one small size, so
that memory does not depend on the camera.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import numpy as np
import rclpy
from action_msgs.msg import GoalStatus, GoalStatusArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from rays_as_pixels_model.geometry import Intrinsics, fit_frames

from . import conversions
from .window import StampMatcher

_LIMIT = 20_000


@dataclass
class Record:
    """What was heard, by stamp in ns.

    Attributes:
        images: (H, W, 3) uint8 and their camera.
        poses: T_map_camera. pose_times: when it came, seconds (monotonic).
        truth: T_world_camera.
        raxels: decoded raxel picture (h, w, 3) uint8 of the window that ends with this image.
        views: (stamp of the source image, (H, W, 3) uint8 view, its camera), in order.
        path_length: poses in the newest ~/path.
        goal_times: seconds from a goal's start to its success, in order of success.
    """

    images: dict[int, tuple[np.ndarray, Intrinsics]] = field(default_factory=dict)
    poses: dict[int, np.ndarray] = field(default_factory=dict)
    pose_times: dict[int, float] = field(default_factory=dict)
    truth: dict[int, np.ndarray] = field(default_factory=dict)
    raxels: dict[int, np.ndarray] = field(default_factory=dict)
    views: list[tuple[int, np.ndarray, Intrinsics]] = field(default_factory=list)
    path_length: int = 0
    goal_times: list[float] = field(default_factory=list)


class DemoRecorderNode(Node):
    """Listen to the camera, both model nodes and TF."""

    def __init__(self, size: tuple[int, int], camera_frame: str):
        """
        Args:
            size: (width, height) that camera images are fitted to.
            camera_frame: TF frame of the true camera pose.
        """
        super().__init__("demo_recorder")
        self.record = Record()
        self._size, self._camera_frame = size, camera_frame
        self._matcher = StampMatcher(limit=20)
        self._goals: dict[bytes, float] = {}
        # Views of one goal share a stamp, so they are paired by their order.
        self._view_halves: tuple[list, list] = ([], [])
        many = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
        latched = QoSProfile(
            depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )
        render = "view_synthesis_node"
        for kind, topic, callback, qos in (
            (Image, "image_raw", lambda m: self._on_half(0, m), QoSProfile(depth=10)),
            (CameraInfo, "camera_info", lambda m: self._on_half(1, m), QoSProfile(depth=10)),
            (TFMessage, "/tf", self._on_tf, many),
            (PoseWithCovarianceStamped, "trajectory_node/pose", self._on_pose, many),
            (Path, "trajectory_node/path", self._on_path, latched),
            (Image, "trajectory_node/raxels/image_raw", self._on_raxels,
             QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)),
            (Image, f"{render}/rendered/image_raw", lambda m: self._on_view_half(0, m), many),
            (CameraInfo, f"{render}/rendered/camera_info", lambda m: self._on_view_half(1, m), many),
            (GoalStatusArray, f"{render}/render_views/_action/status", self._on_status, latched),
        ):  # fmt: skip
            self.create_subscription(kind, topic, callback, qos)

    def _on_half(self, side: int, message) -> None:
        stamp = conversions.stamp_ns(message.header.stamp)
        pair = self._matcher.push(side, stamp, message)
        if pair is None or len(self.record.images) >= _LIMIT:
            return
        try:
            rgb, camera = conversions.pinhole_frame(*pair)
        except conversions.ConversionError as error:
            self.get_logger().error(f"image not recorded: {error}", throttle_duration_sec=5.0)
            return
        fitted, camera = fit_frames(rgb[None], camera, *self._size)
        self.record.images[stamp] = fitted[0], camera

    def _on_tf(self, message: TFMessage) -> None:
        for transform in message.transforms:
            if transform.child_frame_id == self._camera_frame:
                stamp = conversions.stamp_ns(transform.header.stamp)
                self.record.truth[stamp] = conversions.transform_to_matrix(transform.transform)

    def _on_pose(self, message: PoseWithCovarianceStamped) -> None:
        stamp = conversions.stamp_ns(message.header.stamp)
        self.record.pose_times[stamp] = time.monotonic()
        self.record.poses[stamp] = conversions.pose_to_matrix(message.pose.pose)

    def _on_path(self, message: Path) -> None:
        self.record.path_length = len(message.poses)

    def _on_raxels(self, message: Image) -> None:
        self.record.raxels[conversions.stamp_ns(message.header.stamp)] = conversions.image_to_rgb(message)

    def _on_view_half(self, side: int, message) -> None:
        self._view_halves[side].append(message)
        if all(self._view_halves):
            image, info = (half.pop(0) for half in self._view_halves)
            camera, _ = conversions.camera_from_info(info)
            stamp = conversions.stamp_ns(image.header.stamp)
            self.record.views.append((stamp, conversions.image_to_rgb(image), camera))

    def _on_status(self, message: GoalStatusArray) -> None:
        now = time.monotonic()
        for goal in message.status_list:
            name = bytes(bytearray(goal.goal_info.goal_id.uuid))
            begun = self._goals.setdefault(name, now)
            if goal.status == GoalStatus.STATUS_SUCCEEDED and begun >= 0:
                self.record.goal_times.append(now - begun)
                self._goals[name] = -1.0


class Recorder:
    """The recorder node with a thread that spins it; a context manager."""

    def __init__(self, size: tuple[int, int], camera_frame: str):
        # The demo handles signals itself: it has processes to stop.
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = DemoRecorderNode(size, camera_frame)
        self.record = self._node.record
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._stopping = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._spin, name="recorder", daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        try:
            while not self._stopping.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            pass
        except Exception as error:  # noqa: BLE001  the main thread raises it
            self._error = error

    def check(self) -> None:
        """Raise what went wrong in the thread, if anything."""
        if self._error is not None:
            raise RuntimeError(f"recorder: {type(self._error).__name__}: {self._error}") from self._error

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error) -> None:
        self._stopping.set()
        self._thread.join(timeout=5.0)
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.try_shutdown()
