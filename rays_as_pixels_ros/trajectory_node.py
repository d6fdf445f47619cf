# SPDX-License-Identifier: Apache-2.0
"""trajectory_node: camera stream to trajectory (lifecycle).

The image callback only matches and queues; a worker thread decodes, runs the model on overlapping windows, stitches
them and publishes. Frames: map (REP 103, corrected), odom (REP 105, continuous), base (the robot, or the optical frame
when base_frame is empty). Stamps are those of the images.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry, Path
from rclpy.time import Time
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_ros import Buffer, TransformBroadcaster, TransformException, TransformListener
from visualization_msgs.msg import MarkerArray

from rays_as_pixels_interfaces.srv import SaveTrajectory
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.results import TrajectoryEstimate

from . import conversions
from .camera_node import BEST_EFFORT, LATCHED, RELIABLE, CameraFrame, CameraNode
from .health import Health, blank, mistrusted
from .node_process import main_of
from .parameters import TRAJECTORY
from .placing import Place, WindowPlacer
from .scale import MetricScale, distance_between
from .stitching import Stitcher
from .track import Track
from .window import Window, WindowBuffer, spans_pause

_SHOW_EVERY_S = 0.5  # path and frusta grow with the trajectory: they must not hold poses up


@dataclass(frozen=True)
class _Prepared:
    """A frame at the model's size: (h, w, 3) uint8 and its camera."""

    stamp: int
    frame_id: str
    rgb: np.ndarray
    intrinsics: Intrinsics


class TrajectoryNode(CameraNode):
    """Estimate the camera's trajectory and publish it as pose, odometry, path, frusta and TF."""

    TABLE = TRAJECTORY

    def __init__(self, name: str = "trajectory_node", **kwargs):
        super().__init__(name, **kwargs)
        self._track_lock = threading.RLock()
        self._worker: threading.Thread | None = None
        self._offered: list = []
        self._paused = False
        self._pose_publisher = self.create_publisher(PoseWithCovarianceStamped, "~/pose", RELIABLE)
        self._odometry_publisher = self.create_publisher(Odometry, "~/odometry", RELIABLE)
        self._path_publisher = self.create_publisher(Path, "~/path", LATCHED)
        self._frusta_publisher = self.create_publisher(MarkerArray, "~/frusta", LATCHED)
        self._raxel_publisher = self.create_publisher(Image, "~/raxels/image_raw", BEST_EFFORT)
        self._tf_broadcaster = TransformBroadcaster(self)
        self._tf_buffer = Buffer()
        self._tf_listener = TransformListener(self._tf_buffer, self)

    # Life

    def _configured(self) -> None:
        self._check_frames()
        config = self._pipeline.config
        self._windows = WindowBuffer(
            config.frames, self._p.window_hop, self._p.window_stride, self._p.queue_size, prepare=self._prepare
        )
        stated = getattr(config, "metres_per_unit", None)
        self._scale = MetricScale(self._p.scale_source, fixed=self._p.metres_per_unit, model=stated)
        calibration = self._pipeline.calibration.of(self._p.refine)
        if not calibration.measured:
            self.get_logger().warning(
                "the covariance of this checkpoint was never compared with errors and is likely too small "
                "(rays-as-pixels calibrate --checkpoint DIR)"
            )
        self._health = Health(self._p.max_residual or calibration.max_residual, self._p.silence_timeout)
        self._stitcher = Stitcher(self._p.carry_scale, max_scale_step=self._p.max_scale_step)
        self._placer = WindowPlacer(
            self._stitcher, calibration, self._p.samples, self._p.sample_every, self._p.seed
        )
        self._track, self._path = Track(self._p.path_max_size), deque(maxlen=self._p.path_max_size)
        self._robot_path: deque = deque(maxlen=2000)
        self._last_stamp = -1
        self._loop_at = time.monotonic() + self._p.loop_every
        self._shown_at, self._to_show = 0.0, None

    def _check_frames(self) -> None:
        """Raise ValueError where TF would be sent that every listener refuses."""
        for published, parent, child in (
            ("publish_map_to_odom_tf", "map_frame", "odom_frame"),
            ("publish_odom_to_base_tf", "odom_frame", "base_frame"),
        ):
            above, below = getattr(self._p, parent), getattr(self._p, child)
            if not above:
                raise ValueError(f"parameter {parent} is empty; it must name a frame")
            if above == below and getattr(self._p, published):
                raise ValueError(
                    f"parameters {parent} and {child} are both '{above}'; they must differ, or {published} be false"
                )

    def _activated(self) -> None:
        self._paused = False
        for kind, name, callback in (
            (Trigger, "~/reset", self._on_reset),
            (Trigger, "~/pause", self._on_pause),
            (Trigger, "~/resume", self._on_resume),
            (SaveTrajectory, "~/save_trajectory", self._on_save),
        ):
            self._offered.append(self.create_service(kind, name, callback, callback_group=self._free_group))
        if self._p.scale_source == "odometry":
            self._inputs.append(
                self.create_subscription(
                    Odometry, "odometry_in", self._on_odometry, BEST_EFFORT, callback_group=self._free_group
                )
            )
        self._worker = threading.Thread(target=self._work, args=(self._stopping,), name="trajectory", daemon=True)
        self._worker.start()

    def _deactivated(self) -> None:
        self._windows.wake()
        if self._worker is not None:
            self._worker.join(timeout=self.PATIENCE_S)
            if self._worker.is_alive():
                self.get_logger().warning("the model is still at work on its last window, which will be thrown away")
            self._worker = None
        while self._offered:
            self.destroy_service(self._offered.pop())
        self._forget()

    def _forget(self) -> None:
        """Forget the trajectory; a window that the model is working on is thrown away."""
        with self._track_lock:
            self._windows.clear()
            self._matcher.clear()
            self._placer.reset()
            self._scale.reset()
            self._track.reset()
            self._path.clear()
            self._robot_path.clear()
            self._last_stamp, self._to_show = -1, None

    def _reset(self) -> None:
        """Begin a new trajectory, also for those who look at the path."""
        with self._track_lock:
            self._forget()
            self._path_publisher.publish(conversions.path_message([], 0, self._p.map_frame))
            self._frusta_publisher.publish(conversions.frusta_message(np.empty((0, 16, 3)), 0.0, 0, self._p.map_frame))

    # Input

    def _on_frame(self, frame: CameraFrame) -> None:
        if self._paused:
            return
        with self._track_lock:
            if frame.stamp < self._last_stamp:
                self.get_logger().warning(
                    f"time went back by {(self._last_stamp - frame.stamp) * 1e-9:.3f} s (a bag that loops?): reset"
                )
                self._tf_buffer.clear()  # it takes nothing that is 10 s older than its newest
                self._reset()
            elif frame.stamp == self._last_stamp:
                return
            self._last_stamp = frame.stamp
            dropped = self._windows.dropped
            self._windows.push(frame)  # still locked: a reset must not come in between
        if self._windows.dropped > dropped:
            self._health.total("dropped images", self._windows.dropped)
            self.get_logger().warning(
                f"the model is slower than the camera: {self._windows.dropped} images dropped so far "
                "(raise window_stride or window_hop, or lower the image rate)",
                throttle_duration_sec=10.0,
            )

    def _prepare(self, frame: CameraFrame) -> _Prepared | None:
        """Decode a frame and fit it to the size that an estimate makes use of (worker thread)."""
        size = self._pipeline.config.picture_size
        try:
            rgb, intrinsics = conversions.fitted_frame(frame.image, frame.info, *size, frame.rectified)
        except conversions.ConversionError as error:
            self._refuse_frame(error)
            return None
        return _Prepared(frame.stamp, frame.frame_id, rgb, intrinsics)

    # Work

    def _work(self, stopping: threading.Event) -> None:
        while not stopping.is_set():
            try:
                window = self._windows.take(timeout=0.2)
                if window is not None:
                    self._estimate(window, stopping)
                self._show(at_once=window is None)
            except Exception as error:  # the worker must outlive one bad window, whatever is wrong with it
                if stopping.is_set() or not self.context.ok():
                    return
                reason = f"window failed: {type(error).__name__}: {' '.join(str(error).split())}"
                self._health.lose(reason)
                self.get_logger().error(reason, throttle_duration_sec=5.0)

    def _estimate(self, window: Window, stopping: threading.Event) -> None:
        """Run the model on a window, join it to the trajectory, and publish its new frames."""
        frames, intrinsics = np.stack([item.rgb for item in window.items]), window.items[-1].intrinsics
        if (nothing := blank(frames)) is not None:
            self._health.lose(nothing)
            return
        estimate = self._pipeline.estimate_trajectory(
            frames, intrinsics, steps=self._p.steps, seed=self._p.seed, reference=0, passes=self._p.passes or None,
            refine=self._p.refine,
        )  # fmt: skip
        trusted = mistrusted(estimate.residual, self._health.max_residual) is None
        seen = self._pipeline, frames, intrinsics, estimate
        paused = spans_pause(window.ids, [item.stamp for item in window.items])
        known = self._placer.spreads.of(*seen, paused) if trusted else None
        with self._track_lock:
            if stopping.is_set() or window.life != self._windows.life:
                return  # an end or a reset came meanwhile
            newest = window.items[-1]
            latency = self.get_clock().now().nanoseconds * 1e-9 - newest.stamp * 1e-9
            if not self._health.window(estimate.residual, latency):
                return  # the next window still has a frame that the one before this placed
            added = self._placer.place(window.ids, estimate.T_reference_camera, known)
            self._learn_scale(window, estimate.T_reference_camera)
            for place in added:
                self._publish_frame(window.items[place.index], place)
            if self._p.publish_raxels:
                picture = np.clip((estimate.raxels[-1] + 1.0) * 127.5, 0, 255).astype(np.uint8)
                self._raxel_publisher.publish(conversions.rgb_to_image(picture, newest.stamp, newest.frame_id))
        if stopping.is_set():
            return
        self._placer.spreads.refresh(*seen, paused)
        if self._p.loop_every and time.monotonic() >= self._loop_at:
            self._close_the_loop(frames, intrinsics, estimate)

    def _close_the_loop(self, frames: np.ndarray, intrinsics: Intrinsics, estimate: TrajectoryEstimate) -> None:
        """Measure how far the model agrees with itself on a window whose poses are out already."""
        try:
            found = self._pipeline.close_the_loop(
                frames, intrinsics, self._p.steps, view_steps=1, seed=self._p.seed, estimate=estimate
            )
            self._health.loop(found.rotation_error_deg, found.T_err, found.psnr)
        except (ValueError, RuntimeError) as error:  # worth counting (no memory, too): the window's poses are out
            self._health.count("failed closed loops")
            self.get_logger().warning(f"closed loop failed: {error}", throttle_duration_sec=60.0)
        finally:
            self._loop_at = time.monotonic() + self._p.loop_every

    def _mount(self, stamp: int, optical_frame: str) -> tuple[bool, np.ndarray | None]:
        """Return whether TF can tell where the camera sits, and T_base_optical (4, 4); None: the camera is the base."""
        base = self._p.base_frame
        if base in ("", optical_frame):
            return True, None
        try:
            at = Time(nanoseconds=stamp)
            if not self._tf_buffer.can_transform(base, optical_frame, at):
                at = Time()  # the newest: TF of a moving mount may lag behind the image
            found = self._tf_buffer.lookup_transform(base, optical_frame, at)
            return True, conversions.transform_to_matrix(found.transform)
        except TransformException as error:
            self.get_logger().warning(
                f"no pose is published: the transform from '{optical_frame}' to base_frame '{base}' is missing in TF "
                f"({error}); publish it, or set base_frame to '' and configure "
                "again to use the optical frame as base",
                throttle_duration_sec=5.0,
            )
            return False, None

    def _publish_frame(self, item: _Prepared, place: Place) -> None:
        """Publish one frame of the trajectory as pose, odometry and TF, and add it to the path."""
        known, T_base_optical = self._mount(item.stamp, item.frame_id)
        metres = self._scale.value
        if metres is None:
            self.get_logger().warning(
                "no pose is published: scale_source is odometry and odometry_in has not shown enough motion yet",
                throttle_duration_sec=5.0,
            )
        if not known or metres is None:
            self._health.withhold(
                "odometry_in has not shown enough motion yet" if known
                else f"no transform from '{item.frame_id}' to base_frame '{self._p.base_frame}' in TF"
            )  # fmt: skip
            self._track.skip(place.stitched, metres, place.step_covariance)
            return
        tracked = self._track.add(
            place.stitched, item.stamp, T_base_optical, metres, place.covariance, place.step_covariance,
            self._scale.spread,
        )  # fmt: skip
        map_frame, odom_frame = self._p.map_frame, self._p.odom_frame
        child = item.frame_id if T_base_optical is None else self._p.base_frame
        pose = conversions.pose_message(tracked, map_frame)
        self._pose_publisher.publish(pose)
        self._odometry_publisher.publish(conversions.odometry_message(tracked, odom_frame, child))
        transforms = []
        if self._p.publish_map_to_odom_tf:
            transforms.append(conversions.transform_message(tracked.T_map_odom, item.stamp, map_frame, odom_frame))
        if self._p.publish_odom_to_base_tf and not child:
            self.get_logger().warning(
                f"no transform from '{odom_frame}' to the camera is published: its images have an empty frame_id; set "
                "that of the camera's driver, or base_frame",
                throttle_duration_sec=5.0,
            )
        elif self._p.publish_odom_to_base_tf:
            transforms.append(conversions.transform_message(tracked.T_odom_base, item.stamp, odom_frame, child))
        if transforms:
            self._tf_broadcaster.sendTransform(transforms)
        self._path.append(conversions.path_pose(pose))
        self._health.pose()
        self._to_show = item

    def _show(self, at_once: bool) -> None:
        """Publish path and frusta if they have grown: now and then, and when nothing else is to be done."""
        now = time.monotonic()
        with self._track_lock:
            newest = self._to_show
            if newest is None or not (at_once or now - self._shown_at >= _SHOW_EVERY_S):
                return
            self._to_show, self._shown_at = None, now
            frame_id, size = self._p.map_frame, self._p.frustum_size
            self._path_publisher.publish(conversions.path_message(self._path, newest.stamp, frame_id))
            if size > 0:
                lines = self._track.frusta(self._p.frusta_max_count, newest.intrinsics, size)
                self._frusta_publisher.publish(conversions.frusta_message(lines, 0.04 * size, newest.stamp, frame_id))

    # Scale from the robot's odometry

    def _on_odometry(self, message: Odometry) -> None:
        p, stamp = message.pose.pose.position, conversions.stamp_ns(message.header.stamp)
        with self._track_lock:
            if self._stopping.is_set():
                return
            if self._robot_path and stamp < self._robot_path[-1][0]:
                self._robot_path.clear()  # a bag that loops: this may come before the image that says so
            self._robot_path.append((stamp, np.array([p.x, p.y, p.z])))

    def _learn_scale(self, window: Window, T_window_camera: np.ndarray) -> None:
        """Compare the distance between the window's ends with the robot's in the same time."""
        if self._p.scale_source != "odometry":
            return
        metres = distance_between(list(self._robot_path), window.items[0].stamp, window.items[-1].stamp)
        if metres is not None:
            moved = np.linalg.norm(T_window_camera[-1, :3, 3] - T_window_camera[0, :3, 3])
            self._scale.add(float(self._stitcher.scale * moved), metres)

    # Services and diagnostics

    def _on_reset(self, request, response):
        self._reset()
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
        try:
            with self._track_lock:
                response.poses = self._track.save(request.path, request.format or "tum")
            response.success, response.message = True, f"{response.poses} poses written to {request.path}"
            self.get_logger().info(f"save_trajectory: {response.message}")
        except ValueError as error:
            response.success, response.message = False, str(error)
            self.get_logger().error(f"save_trajectory: {response.message}")
        return response

    def _status(self, table: dict[str, str]) -> None:
        table["window fill"] = f"{self._windows.ready()}/{self._windows.length}"
        table["images waiting"] = str(len(self._windows))
        table["scale source"] = self._scale.source
        table["unit of the trajectory"] = "metre" if self._scale.metric else "scene scale, not metres"
        value = self._scale.value
        table["metres per unit"] = f"{value:.4f}" if value is not None and self._scale.metric else "unknown"
        table["metres per unit, relative spread"] = f"{self._scale.spread:.3f}"
        measured = self._pipeline.calibration.of(self._p.refine).measured
        table["covariance"] = "calibrated" if measured else "never compared with errors"
        table["breaks in the trajectory"] = str(self._stitcher.segments)
        if self._paused:
            table["paused"] = "yes"


main = main_of(lambda: [TrajectoryNode()])

if __name__ == "__main__":
    raise SystemExit(main(None))
