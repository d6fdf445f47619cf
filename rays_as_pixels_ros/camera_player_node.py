# SPDX-License-Identifier: Apache-2.0
"""camera_player: a video file, an image folder, posed images, a webcam or a procedural scene as a ROS camera.

Publishes image_raw and camera_info with equal stamps and, where the true poses are known, `~/ground_truth` and TF:
the optical camera pose in world_frame.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator

import numpy as np
import rclpy
from nav_msgs.msg import Odometry
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import TransformBroadcaster

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.media import Video, open_video

from . import conversions, parameters
from .node_process import reason, start_ros

_RENDERED_AT_ONCE = 8
_BOUNCE_BYTES = 1 << 30


class ProceduralVideo(Video):
    """A random scene filmed along a random path; images are rendered as they are needed."""

    def __init__(self, p):
        from rays_as_pixels_model.scenes import Profile, TextureBank, shot_of_camera

        bank = TextureBank.default(split=p.texture_split, folder=p.textures or None)
        self._shot, self._camera = shot_of_camera(
            p.seed, bank, p.frames, Profile.parse(p.scenes, p.difficulty),
            Intrinsics.from_fov(p.horizontal_fov, p.width, p.height), p.style or None,
        )  # fmt: skip
        super().__init__(
            f"procedural scene {p.seed} ({p.scenes})", p.width, p.height, p.rate or 10.0, p.frames,
            frame_intrinsics=[self._camera] * p.frames, T_world_camera=self._shot.T_world_camera,
        )  # fmt: skip

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, self.frame_count, _RENDERED_AT_ONCE):
            index = np.arange(start, min(start + _RENDERED_AT_ONCE, self.frame_count))
            yield from self._shot.render(self._camera, index)[0]


def open_source(p) -> Video:
    """Open what parameter `source` names.

    Raises:
        ValueError: nothing there, or not readable; one line.
    """
    if p.source == "procedural":
        return ProceduralVideo(p)
    return open_video(p.source.removeprefix("webcam:"), fps=p.rate or None)


def play_order(video: Video, at_end: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (index of the image in the source, image), going on at the end as `at_end` says.

    Raises:
        ValueError: bounce on a source that is too long to keep.
    """
    if at_end == "bounce":
        size = video.width * video.height * 3
        if not video.frame_count or video.frame_count * size > _BOUNCE_BYTES:
            raise ValueError(f"{video.name}: at_end bounce keeps all images; this source is too long or has no end")
        kept = list(enumerate(video))
        back_and_forth = kept + kept[-2:0:-1]
        yield from itertools.cycle(back_and_forth)
        return
    while True:
        last = None
        for last in enumerate(video):
            yield last
        if last is None or at_end == "stop":
            return
        while at_end == "hold":
            yield last


class CameraPlayerNode(Node):
    """Play a source as a camera."""

    def __init__(self, name: str = "camera_player", **kwargs):
        super().__init__(name, **kwargs)
        problems = parameters.declare(self, parameters.CAMERA_PLAYER)
        self._p = parameters.read(self, parameters.CAMERA_PLAYER, problems)
        self._video = open_source(self._p)
        self._intrinsics = self._video.intrinsics or Intrinsics.from_fov(self._p.horizontal_fov, *self._video.size)
        self._images = play_order(self._video, self._p.at_end)
        reliable = self._p.image_qos == "reliable"
        qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT)
        self._image_publisher = self.create_publisher(Image, "image_raw", qos)
        self._info_publisher = self.create_publisher(CameraInfo, "camera_info", qos)
        self._truth_publisher = self.create_publisher(Odometry, "~/ground_truth", QoSProfile(depth=10))
        self._broadcaster = TransformBroadcaster(self)
        self.finished = False
        self.published = 0
        self._waiting = self._p.wait_for_subscribers > 0
        rate = self._p.rate or self._video.fps
        self._ticker = self.create_timer(1.0 / rate, self._tick)
        known = "known" if self._video.T_world_camera is not None else "unknown"
        self.get_logger().info(
            f"{self._video.name}: {self._video.width}x{self._video.height} at {rate:g} Hz, true poses {known}"
        )

    def _tick(self) -> None:
        if self.finished:
            return
        if self._waiting:
            self._waiting = self._image_publisher.get_subscription_count() < self._p.wait_for_subscribers
            if self._waiting:
                return
        index, rgb = next(self._images, (None, None))
        if index is None:
            self.finished = True
            self.get_logger().info(f"{self._video.name}: finished after {self.published} images")
            return
        self._publish(index, rgb)

    def _publish(self, index: int, rgb: np.ndarray) -> None:
        now, frame_id = self.get_clock().now().nanoseconds, self._p.frame_id
        cameras, poses = self._video.frame_intrinsics, self._video.T_world_camera
        if poses is not None:
            # Before the image, so that whoever gets the image finds its pose.
            truth = Odometry(header=conversions.header(now, self._p.world_frame), child_frame_id=frame_id)
            truth.pose.pose = conversions.matrix_to_pose(poses[index])
            self._truth_publisher.publish(truth)
            if self._p.publish_truth_tf:
                self._broadcaster.sendTransform(
                    conversions.transform_message(poses[index], now, self._p.world_frame, frame_id)
                )
        self._info_publisher.publish(
            conversions.camera_info(cameras[index] if cameras else self._intrinsics, now, frame_id)
        )
        self._image_publisher.publish(conversions.rgb_to_image(rgb, now, frame_id))
        self.published += 1


def main(args: list[str] | None = None) -> int:
    """Play until the source ends (at_end stop) or SIGINT or SIGTERM; returns the exit code."""
    failed = start_ros(sys.argv[1:] if args is None else args)
    if failed:
        return failed
    node, executor = None, SingleThreadedExecutor()
    try:
        node = CameraPlayerNode()
        executor.add_node(node)
        while rclpy.ok() and not node.finished:
            executor.spin_once(timeout_sec=0.2)
        if node.finished:
            # Late acknowledgements of the last images.
            executor.spin_once(timeout_sec=0.2)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception as error:
        if isinstance(error, ValueError) or (node is None and rclpy.ok()):
            print(f"camera_player: {reason(error)}", file=sys.stderr)
            return 1
        if rclpy.ok():  # else a signal came in the middle of a callback, and made its next call on ROS fail
            raise
    finally:
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    raise SystemExit(main(None))
