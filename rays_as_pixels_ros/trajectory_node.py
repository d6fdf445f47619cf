# SPDX-License-Identifier: Apache-2.0
"""trajectory_node: camera stream to trajectory (lifecycle).

The image callback only matches and queues; a worker thread decodes, runs the model on overlapping windows, stitches
them and publishes. Frames: map (REP 103, corrected), odom (REP 105, continuous), base (the robot, or the optical frame
when base_frame is empty). Stamps are those of the images.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener

from rays_as_pixels_interfaces.srv import SaveTrajectory
from rays_as_pixels_model.geometry import Intrinsics, fit_frames, invert, so3_log
from rays_as_pixels_model.media import MediaError, write_text, write_trajectory

from . import conversions
from .camera_node import BEST_EFFORT, LATCHED, RELIABLE, CameraFrame, CameraNode, main_of
from .health import Health
from .parameters import TRAJECTORY
from .paths import kitti_text
from .scale import MetricScale
from .stitching import OdometryChain, StitchedFrame, Stitcher
from .window import Window, WindowBuffer

_SAVED_POSES = 100_000


@dataclass(frozen=True)
class _Prepared:
    """A frame at the model's size: (h, w, 3) uint8 and its camera."""

    stamp: int
    frame_id: str
    rgb: np.ndarray
    intrinsics: Intrinsics


class TrajectoryNode(CameraNode):
    """Estimate the camera's trajectory and publish it as pose, odometry, path and TF."""

    TABLE = TRAJECTORY

    def __init__(self, name: str = "trajectory_node", **kwargs):
        super().__init__(name, **kwargs)
        self._track_lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._stopping = threading.Event()
        self._pose_publisher = self.create_publisher(PoseWithCovarianceStamped, "~/pose", RELIABLE)
        self._odometry_publisher = self.create_publisher(Odometry, "~/odometry", RELIABLE)
        self._path_publisher = self.create_publisher(Path, "~/path", LATCHED)
        self._raxel_publisher = self.create_publisher(Image, "~/raxels/image_raw", BEST_EFFORT)
        self._tf_broadcaster = TransformBroadcaster(self)
        self._tf_buffer = Buffer()
        self._tf_listener = TransformListener(self._tf_buffer, self)

    # Life

    def _configured(self) -> None:
        config = self._pipeline.config
        self._windows = WindowBuffer(
            config.frames, self._p.window_hop, self._p.window_stride, self._p.queue_size, prepare=self._prepare
        )
        self._stitcher = Stitcher(self._p.carry_scale, max_scale_step=self._p.max_scale_step)
        stated = getattr(config, "metres_per_unit", None)
        self._scale = MetricScale(self._p.scale_source, fixed=self._p.metres_per_unit, model=stated)
        self._health = Health(self._p.max_residual or np.inf, self._p.silence_timeout)
        self._forget()

    def _activated(self) -> None:
        self._paused = False
        self._offered = [
            self.create_service(kind, name, callback, callback_group=self._free_group)
            for kind, name, callback in (
                (Trigger, "~/reset", self._on_reset),
                (Trigger, "~/pause", self._on_pause),
                (Trigger, "~/resume", self._on_resume),
                (SaveTrajectory, "~/save_trajectory", self._on_save),
            )
        ]
        if self._p.scale_source == "odometry":
            self._robot_path: deque = deque(maxlen=2000)
            self._inputs.append(
                self.create_subscription(
                    Odometry, "odometry_in", self._on_odometry, BEST_EFFORT, callback_group=self._free_group
                )
            )
        self._stopping.clear()
        self._worker = threading.Thread(target=self._work, name="trajectory", daemon=True)
        self._worker.start()

    def _deactivated(self) -> None:
        self._stopping.set()
        self._windows.wake()
        if self._worker is not None:
            self._worker.join(timeout=60.0)
        for service in self._offered:
            self.destroy_service(service)
        self._reset()

    def _forget(self) -> None:
        self._chain: OdometryChain | None = None
        self._T_base_optical: np.ndarray | None = None
        self._last_stamp = -1
        self._previous: tuple[int, np.ndarray] | None = None
        self._path: deque = deque(maxlen=self._p.path_max_size)
        self._saved: deque = deque(maxlen=_SAVED_POSES)

    def _reset(self) -> None:
        """Begin a new trajectory; a window that the model is working on is thrown away."""
        with self._track_lock:
            self._windows.clear()
            self._matcher.clear()
            self._stitcher.reset()
            self._scale.reset()
            self._forget()

    # Input

    def _on_frame(self, frame: CameraFrame) -> None:
        if self._paused:
            return
        with self._track_lock:
            if frame.stamp < self._last_stamp:
                self.get_logger().warning(
                    f"time went back by {(self._last_stamp - frame.stamp) * 1e-9:.3f} s (a bag that loops?): reset"
                )
                self._reset()
            elif frame.stamp == self._last_stamp:
                return
            self._last_stamp = frame.stamp
        dropped = self._windows.dropped
        self._windows.push(frame)
        if self._windows.dropped > dropped:
            self._health.counts["dropped images"] = self._windows.dropped
            self.get_logger().warning(
                f"the model is slower than the camera: {self._windows.dropped} images dropped so far "
                "(raise window_stride or window_hop, or lower the image rate)",
                throttle_duration_sec=10.0,
            )

    def _prepare(self, frame: CameraFrame) -> _Prepared | None:
        """Decode a frame and fit it to the model's size (worker thread)."""
        try:
            rgb, intrinsics = frame.decode()
        except conversions.ConversionError as error:
            self._refuse_frame(error)
            return None
        config = self._pipeline.config
        fitted, intrinsics = fit_frames(rgb[None], intrinsics, config.width, config.height)
        return _Prepared(frame.stamp, frame.frame_id, fitted[0], intrinsics)

    # Work

    def _work(self) -> None:
        while not self._stopping.is_set():
            try:
                window = self._windows.take(timeout=0.2)
                if window is not None:
                    self._estimate(window)
            except Exception as error:  # the worker must outlive one bad window, whatever is wrong with it
                if self._stopping.is_set() or not self.context.ok():
                    return
                self._windows.forget_overlap()
                self._health.count("failed windows")
                self.get_logger().error(f"window failed: {type(error).__name__}: {error}", throttle_duration_sec=5.0)

    def _estimate(self, window: Window) -> None:
        """Run the model on a window, join it to the trajectory, and publish its new frames."""
        frames = np.stack([item.rgb for item in window.items])
        estimate = self._pipeline.estimate_trajectory(
            frames,
            window.items[-1].intrinsics,
            steps=self._p.steps,
            samples=self._p.samples,
            seed=self._p.seed,
            reference=0,
        )
        with self._track_lock:
            if window.life != self._windows.life:
                return  # a reset came meanwhile
            latency = self.get_clock().now().nanoseconds * 1e-9 - window.items[-1].stamp * 1e-9
            if not self._health.window(estimate.residual, latency):
                self._windows.forget_overlap()
                return
            added = self._stitcher.add(window.ids, estimate.T_reference_camera)
            self._learn_scale(window, estimate.T_reference_camera)
            # The model's covariance is in the axes and unit of the window's reference camera.
            turn = self._stitcher.pose(window.ids[-1])[:3, :3] @ estimate.T_reference_camera[-1][:3, :3].T
            for frame in added:
                index = window.ids.index(frame.frame)
                self._publish_frame(window.items[index], frame, estimate.covariance[index], turn)
            if added and self._chain is not None:
                self._publish_path(window.items[-1].stamp)
            if self._p.publish_raxels:
                picture = np.clip((estimate.raxels[-1] + 1.0) * 127.5, 0, 255).astype(np.uint8)
                newest = window.items[-1]
                self._raxel_publisher.publish(conversions.rgb_to_image(picture, newest.stamp, newest.frame_id))

    def _base(self, optical_frame: str) -> np.ndarray | None:
        """Return T_base_optical (4, 4), or None while TF cannot tell."""
        if self._T_base_optical is None:
            if not self._p.base_frame or self._p.base_frame == optical_frame:
                self._T_base_optical = np.eye(4)
            else:
                try:
                    found = self._tf_buffer.lookup_transform(self._p.base_frame, optical_frame, Time())
                    self._T_base_optical = conversions.transform_to_matrix(found.transform)
                except TransformException as error:
                    self.get_logger().warning(
                        f"no pose is published: the transform from '{optical_frame}' to base_frame "
                        f"'{self._p.base_frame}' is missing in TF ({error}); publish it, or set base_frame to '' to "
                        "use the optical frame as base",
                        throttle_duration_sec=5.0,
                    )
        return self._T_base_optical

    def _publish_frame(self, item: _Prepared, frame: StitchedFrame, covariance: np.ndarray, turn: np.ndarray) -> None:
        """Publish one frame of the trajectory as pose, odometry and TF, and add it to the path."""
        T_base_optical, metres = self._base(item.frame_id), self._scale.value
        if metres is None:
            self.get_logger().warning(
                "no pose is published: scale_source is odometry and odometry_in has not shown enough motion yet",
                throttle_duration_sec=5.0,
            )
        if T_base_optical is None or metres is None:
            return
        uses_optical = not self._p.base_frame
        if self._chain is None:
            # The base starts at the origin of map; without a base the optical axes are turned into REP 103 ones.
            self._chain = OdometryChain(conversions.T_REP103_OPTICAL if uses_optical else T_base_optical)
        self._chain.add(frame, metres)
        T_optical_base = invert(T_base_optical)
        T_map_base = self._chain.T_map_camera @ T_optical_base
        T_odom_base = self._chain.T_odom_camera @ T_optical_base
        child = item.frame_id if uses_optical else self._p.base_frame
        turned = self._chain.T_map_camera[:3, :3] @ frame.T_map_camera[:3, :3].T @ turn
        covariance = conversions.rotate_covariance(covariance, turned, frame.scale * metres)

        pose = PoseWithCovarianceStamped(header=conversions.header(item.stamp, self._p.map_frame))
        pose.pose.pose = conversions.matrix_to_pose(T_map_base)
        pose.pose.covariance = covariance.reshape(-1)
        self._pose_publisher.publish(pose)

        odometry = Odometry(
            header=conversions.header(item.stamp, self._p.odom_frame), child_frame_id=child, pose=pose.pose
        )
        odometry.pose.pose = conversions.matrix_to_pose(T_odom_base)
        self._fill_twist(odometry, item.stamp, T_odom_base)
        self._odometry_publisher.publish(odometry)

        transforms = []
        if self._p.publish_map_to_odom_tf:
            T_map_odom = self._chain.T_map_odom
            transforms.append(
                conversions.transform_message(T_map_odom, item.stamp, self._p.map_frame, self._p.odom_frame)
            )
        if self._p.publish_odom_to_base_tf:
            transforms.append(conversions.transform_message(T_odom_base, item.stamp, self._p.odom_frame, child))
        if transforms:
            self._tf_broadcaster.sendTransform(transforms)
        self._path.append(PoseStamped(header=pose.header, pose=conversions.matrix_to_pose(T_map_base)))
        self._saved.append((item.stamp * 1e-9, T_map_base))
        self._health.count("poses")

    def _fill_twist(self, odometry: Odometry, stamp: int, T_odom_base: np.ndarray) -> None:
        """Set the mean velocity since the frame before, in the axes of the child frame."""
        if self._previous is not None and stamp > self._previous[0]:
            seconds = (stamp - self._previous[0]) * 1e-9
            moved = invert(self._previous[1]) @ T_odom_base
            linear = moved[:3, :3].T @ moved[:3, 3] / seconds
            angular = moved[:3, :3].T @ so3_log(moved[:3, :3]) / seconds
            twist = odometry.twist.twist
            twist.linear.x, twist.linear.y, twist.linear.z = (float(value) for value in linear)
            twist.angular.x, twist.angular.y, twist.angular.z = (float(value) for value in angular)
        self._previous = stamp, T_odom_base

    def _publish_path(self, stamp: int) -> None:
        self._path_publisher.publish(Path(header=conversions.header(stamp, self._p.map_frame), poses=list(self._path)))

    # Scale from the robot's odometry

    def _on_odometry(self, message: Odometry) -> None:
        p = message.pose.pose.position
        self._robot_path.append((conversions.stamp_ns(message.header.stamp), np.array([p.x, p.y, p.z])))

    def _learn_scale(self, window: Window, T_window_camera: np.ndarray) -> None:
        """Compare the distance between the window's ends with the robot's in the same time."""
        if self._p.scale_source != "odometry" or len(self._robot_path) < 2:
            return
        stamps, positions = zip(*list(self._robot_path), strict=True)
        first, last = window.items[0].stamp, window.items[-1].stamp
        if not stamps[0] <= first < last <= stamps[-1]:
            return
        track = np.stack(positions)
        ends = np.stack([np.interp([first, last], stamps, track[:, axis]) for axis in range(3)], axis=1)
        motion = self._stitcher.scale * np.linalg.norm(T_window_camera[-1][:3, 3] - T_window_camera[0][:3, 3])
        self._scale.add(float(motion), float(np.linalg.norm(ends[1] - ends[0])))

    # Services and diagnostics

    def _on_reset(self, request, response):
        self._reset()
        self._path_publisher.publish(Path(header=conversions.header(0, self._p.map_frame)))
        self.get_logger().info("reset: the trajectory starts anew")
        response.success, response.message = True, "the trajectory starts anew"
        return response

    def _on_pause(self, request, response):
        self._paused = True
        response.success, response.message = True, "paused: images are ignored"
        return response

    def _on_resume(self, request, response):
        self._paused = False
        response.success, response.message = True, "images are used again"
        return response

    def _on_save(self, request, response):
        with self._track_lock:
            saved = list(self._saved)
        kind = request.format or "tum"
        response.success = False
        if kind not in ("tum", "kitti"):
            response.message = f"format is '{kind}'; it must be tum or kitti"
        elif not request.path:
            response.message = "path is empty"
        elif not saved:
            response.message = "there is no pose yet"
        else:
            seconds, poses = zip(*saved, strict=True)
            try:
                if kind == "tum":
                    write_trajectory(request.path, seconds, np.stack(poses))
                else:
                    write_text(request.path, kitti_text(np.stack(poses)))
                response.success, response.poses = True, len(saved)
                response.message = f"{len(saved)} poses written to {request.path}"
            except MediaError as error:
                response.message = str(error)
        log = self.get_logger().info if response.success else self.get_logger().error
        log(f"save_trajectory: {response.message}")
        return response

    def _status(self, table: dict[str, str]) -> None:
        table["window fill"] = f"{self._windows.ready()}/{self._windows.length}"
        table["images waiting"] = str(len(self._windows))
        table["scale source"] = self._scale.source
        table["unit of the trajectory"] = "metre" if self._scale.metric else "scene scale, not metres"
        value = self._scale.value
        table["metres per unit"] = f"{value:.4f}" if value is not None and self._scale.metric else "unknown"
        table["metres per unit, relative spread"] = f"{self._scale.spread:.3f}"
        table["breaks in the trajectory"] = str(self._stitcher.segments)
        if self._paused:
            table["paused"] = "yes"


main = main_of(lambda: [TrajectoryNode()])

if __name__ == "__main__":
    raise SystemExit(main(None))
