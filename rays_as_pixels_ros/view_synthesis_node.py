# SPDX-License-Identifier: Apache-2.0
"""view_synthesis_node: views on request from the live camera or from given images (lifecycle, actions).

Every goal is accepted by the action server, so that a refused one gets a result that says why (aborted,
success false, message). Frames: all poses of a goal are brought into one frame, the optical frame of the newest source
image at its stamp (or the frame of source_poses when the goal brings its own images).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Path
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.duration import Duration
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import Buffer, TransformException, TransformListener

from rays_as_pixels_interfaces.action import Imagine, RenderViews
from rays_as_pixels_model.geometry import Intrinsics, invert

from . import conversions
from .camera_node import RELIABLE, CameraFrame, CameraNode, main_of
from .parameters import VIEW_SYNTHESIS
from .window import RecentFrames

_RENDERED_FRAME = "rendered_view_optical"


class RefusalError(ValueError):
    """A goal that cannot be served; the text is the reason that the client gets."""


@dataclass(frozen=True)
class _Plan:
    """A checked goal in arrays: S sources, V views; frames (S, H, W, 3) uint8, poses (S or V, 4, 4) in one world."""

    frames: np.ndarray
    T_world_source: np.ndarray
    source_intrinsics: Intrinsics
    T_world_target: np.ndarray
    target_intrinsics: Intrinsics
    metres_per_unit: float
    steps: int
    seed: int
    stamp: int


class ViewSynthesisNode(CameraNode):
    """Serve `~/render_views` and `~/imagine`."""

    TABLE = VIEW_SYNTHESIS

    def __init__(self, name: str = "view_synthesis_node", **kwargs):
        super().__init__(name, **kwargs)
        self._turn = threading.Lock()
        self._count_lock = threading.Lock()
        self._goals = 0
        self._stopping = threading.Event()
        self._image_publisher = self.create_publisher(Image, "~/rendered/image_raw", RELIABLE)
        self._info_publisher = self.create_publisher(CameraInfo, "~/rendered/camera_info", RELIABLE)
        self._tf_buffer = Buffer()
        self._tf_listener = TransformListener(self._tf_buffer, self)

    # Life

    def _configured(self) -> None:
        self._frames = RecentFrames(self._p.buffer_size)

    def _activated(self) -> None:
        self._stopping.clear()
        self._servers = [
            ActionServer(
                self,
                kind,
                name,
                execute_callback=callback,
                goal_callback=lambda request: GoalResponse.ACCEPT,
                cancel_callback=lambda handle: CancelResponse.ACCEPT,
                callback_group=self._free_group,
            )
            for kind, name, callback in (
                (RenderViews, "~/render_views", self._on_render_views),
                (Imagine, "~/imagine", self._on_imagine),
            )
        ]

    def _deactivated(self) -> None:
        self._stopping.set()
        # A running goal ends at its next denoising step.
        if self._turn.acquire(timeout=60.0):
            self._turn.release()
        for server in self._servers:
            server.destroy()
        self._frames.clear()

    def _on_frame(self, frame: CameraFrame) -> None:
        newest = self._frames.newest(1)
        if newest and frame.stamp < newest[0].stamp:
            self.get_logger().warning("time went back (a bag that loops?): the image buffer was emptied")
            self._frames.clear()
        self._frames.push(frame)

    def _status(self, table: dict[str, str]) -> None:
        table["images held"] = str(len(self._frames))
        table["goals in work or waiting"] = str(self._goals)

    # Goals

    def _on_render_views(self, handle) -> RenderViews.Result:
        def work(result: RenderViews.Result) -> None:
            plan = self._plan(handle.request)
            views = self._pipeline.render_views(
                plan.frames,
                plan.T_world_source,
                plan.source_intrinsics,
                plan.T_world_target,
                plan.target_intrinsics,
                metres_per_unit=plan.metres_per_unit,
                steps=plan.steps,
                seed=plan.seed,
                on_step=self._step_reporter(handle, RenderViews.Feedback, plan.stamp),
            )
            result.metres_per_unit = float(plan.metres_per_unit)
            for rgb in views.frames:
                result.images.append(conversions.rgb_to_image(rgb, plan.stamp, _RENDERED_FRAME))
                result.camera_infos.append(conversions.camera_info(views.intrinsics, plan.stamp, _RENDERED_FRAME))
            self._publish_rendered(result.images, result.camera_infos)

        return self._serve(handle, RenderViews.Result(), work, self._check_request)

    def _on_imagine(self, handle) -> Imagine.Result:
        def work(result: Imagine.Result) -> None:
            rgb, intrinsics, stamp, frame_id = self._imagine_source(handle.request)
            wanted = int(handle.request.frames) or self._pipeline.config.frames
            if not 1 <= wanted <= self._pipeline.config.frames:
                raise RefusalError(f"{wanted} frames asked for; the model makes up to {self._pipeline.config.frames}")
            video = self._pipeline.imagine(
                rgb,
                intrinsics,
                steps=self._steps(handle.request.steps),
                seed=int(handle.request.seed),
                on_step=self._step_reporter(handle, Imagine.Feedback, stamp),
            )
            height, width = video.frames.shape[1:3]
            result.images = [conversions.rgb_to_image(image, stamp, _RENDERED_FRAME) for image in video.frames[:wanted]]
            camera = getattr(video, "intrinsics", None) or intrinsics.resized(width, height)
            result.camera_info = conversions.camera_info(camera, stamp, _RENDERED_FRAME)
            start = conversions.header(stamp, frame_id)
            result.path = Path(header=start)
            result.path.poses = [
                PoseStamped(header=start, pose=conversions.matrix_to_pose(pose))
                for pose in video.T_reference_camera[:wanted]
            ]
            self._publish_rendered(result.images, [result.camera_info] * wanted)

        return self._serve(handle, Imagine.Result(), work, lambda request: None)

    def _serve(self, handle, result: Any, work: Callable[[Any], None], check: Callable[[Any], None]) -> Any:
        """Run a goal when its turn comes; whatever goes wrong ends in the result and the log, never in the node."""
        with self._count_lock:
            admitted = self._goals <= self._p.queue_size
            self._goals += 1
        try:
            if not admitted:
                raise RefusalError(
                    f"{self._goals - 1} goals are already running or waiting; queue_size is {self._p.queue_size}"
                )
            check(handle.request)
            if self._wait_for_turn(handle):
                try:
                    work(result)
                finally:
                    self._turn.release()
            if handle.is_cancel_requested:
                return self._end(handle, type(result)(), "canceled")
            self._check_running()
            result.success = True
            self._health.count("goals served")
            handle.succeed()
            return result
        except Exception as error:  # a goal must never take the node down, whatever is wrong with it
            result = type(result)()
            if handle.is_cancel_requested:
                return self._end(handle, result, "canceled")
            known = isinstance(error, RefusalError | conversions.ConversionError | ValueError)
            reason = " ".join(str(error).split()) or type(error).__name__
            reason = "the node is stopping" if self._stopping.is_set() else reason
            return self._end(handle, result, reason if known else f"{type(error).__name__}: {reason}")
        finally:
            with self._count_lock:
                self._goals -= 1

    def _end(self, handle, result: Any, reason: str) -> Any:
        result.success, result.message = False, reason
        if reason == "canceled":
            self.get_logger().info("goal canceled")
            self._health.count("goals canceled")
            handle.canceled()
        else:
            self.get_logger().error(f"goal refused: {reason}")
            self._health.count("goals refused")
            handle.abort()
        return result

    def _wait_for_turn(self, handle) -> bool:
        """Wait until no other goal runs; False when this one was cancelled meanwhile."""
        while not self._turn.acquire(timeout=0.05):
            if handle.is_cancel_requested:
                return False
            self._check_running()
        return True

    def _check_running(self) -> None:
        if self._stopping.is_set():
            raise RefusalError("the node is stopping")

    def _step_reporter(self, handle, feedback_type, stamp: int) -> Callable[[int, int, np.ndarray], bool]:
        def report(step: int, total: int, preview: np.ndarray) -> bool:
            if handle.is_cancel_requested or self._stopping.is_set():
                return False
            feedback = feedback_type(step=int(step), total=int(total))
            if preview is not None:
                feedback.preview = conversions.rgb_to_image(preview, stamp, _RENDERED_FRAME)
            handle.publish_feedback(feedback)
            return True

        return report

    def _publish_rendered(self, images, infos) -> None:
        for image, info in zip(images, infos, strict=True):
            self._image_publisher.publish(image)
            self._info_publisher.publish(info)

    # Checks

    def _steps(self, wanted: int) -> int:
        if wanted > self._p.max_steps:
            raise RefusalError(f"{wanted} steps asked for; max_steps is {self._p.max_steps}")
        return int(wanted) or self._p.steps

    def _check_request(self, request: RenderViews.Goal) -> None:
        """Check what can be known before the goal's turn; raises RefusalError or ConversionError."""
        if not request.poses:
            raise RefusalError("the goal has no poses")
        if len(request.poses) > self._p.max_views:
            raise RefusalError(f"{len(request.poses)} poses asked for; max_views is {self._p.max_views}")
        self._steps(request.steps)
        for kind, poses in (("poses", request.poses), ("source_poses", request.source_poses)):
            for index, pose in enumerate(poses):
                try:
                    conversions.pose_to_matrix(pose.pose)
                except conversions.ConversionError as error:
                    raise RefusalError(f"{kind}[{index}]: {error}") from error
                if not pose.header.frame_id:
                    raise RefusalError(f"{kind}[{index}]: frame_id is empty")
        if not conversions.is_zero(request.camera_info):
            conversions.camera_from_info(request.camera_info)
            self._check_pixels("camera_info", request.camera_info, len(request.poses))
        if len(request.source_images) != len(request.source_poses):
            raise RefusalError(
                f"{len(request.source_images)} source_images but {len(request.source_poses)} source_poses"
            )
        for index, image in enumerate(request.source_images):
            try:
                conversions.check_image(image)
            except conversions.ConversionError as error:
                raise RefusalError(f"source_images[{index}]: {error}") from error
            self._check_pixels(f"source_images[{index}]", image, len(request.source_images))
        if not request.source_images and not len(self._frames):
            raise RefusalError(
                f"no source frame yet: no image came on {self.resolve_topic_name(self._image_topic)} "
                "and the goal brings none"
            )

    def _check_pixels(self, what: str, sized, count: int) -> None:
        pixels = sized.width * sized.height
        if pixels > self._p.max_image_pixels:
            raise RefusalError(
                f"{what} is {sized.width}x{sized.height}; max_image_pixels is {self._p.max_image_pixels}"
            )
        if pixels * count > self._p.max_total_pixels:
            raise RefusalError(
                f"{what}: {count} images of {sized.width}x{sized.height} are more than max_total_pixels, "
                f"{self._p.max_total_pixels}"
            )

    # Goal to arrays

    def _plan(self, request: RenderViews.Goal) -> _Plan:
        """Bring a checked goal into arrays; raises RefusalError with the reason when that cannot be done."""
        if request.source_images:
            frames, T_world_source, intrinsics, stamp, world = self._given_sources(request)
            metres = self._p.metres_per_unit or self._estimated_unit(frames, intrinsics, T_world_source)
        else:
            live = self._live_sources(request)
            stamp, world = live[0].stamp, live[0].frame_id
            frames, intrinsics = _decode(live)
            T_world_source = np.stack([self._moved(world, stamp, frame.stamp) for frame in live])
            metres = self._p.metres_per_unit or self._live_unit(live[0])
        T_world_target = np.stack([self._in_world(pose, world, stamp) for pose in request.poses])
        target = intrinsics
        if not conversions.is_zero(request.camera_info):
            target, _ = conversions.camera_from_info(request.camera_info)
        steps = self._steps(request.steps)
        return _Plan(
            frames, T_world_source, intrinsics, T_world_target, target, metres, steps, int(request.seed), stamp
        )  # fmt: skip

    def _live_sources(self, request: RenderViews.Goal) -> list[CameraFrame]:
        """Choose the live images, reference first: the newest, or the one whose stamp the poses name."""
        held = self._frames.all()
        if not held:
            raise RefusalError("no source frame yet")
        optical = held[0].frame_id
        stamps = {conversions.stamp_ns(pose.header.stamp) for pose in request.poses if pose.header.frame_id == optical}
        stamps.discard(0)
        if len(stamps) > 1:
            raise RefusalError(
                f"poses in the camera's own frame '{optical}' have {len(stamps)} different stamps; use one"
            )
        if stamps:
            stamp = stamps.pop()
            while held and held[0].stamp != stamp:
                held = held[1:]
            if not held:
                raise RefusalError(
                    f"no image with stamp {stamp * 1e-9:.6f} is held any more (or yet); use a zero stamp for the newest"
                )
        else:
            held = self._from_newest_placed(held, {pose.header.frame_id.lstrip("/") for pose in request.poses})
        return held[:: self._p.buffer_stride][: self._p.source_frames]

    def _from_newest_placed(self, held: list[CameraFrame], frames: set[str]) -> list[CameraFrame]:
        """Drop the newest images that TF cannot place yet: a trajectory comes a window later than its images.

        Images are held newest first. Where TF places none of them all are kept, and the look-up says what is missing.
        """
        optical = held[0].frame_id
        wanted = frames - {optical} | (set() if self._p.metres_per_unit else {self._p.fixed_frame})
        for index, frame in enumerate(held):
            at = Time(nanoseconds=frame.stamp)
            if all(self._tf_buffer.can_transform(other, optical, at) for other in wanted):
                return held[index:]
        return held

    def _given_sources(self, request: RenderViews.Goal):
        """Decode the goal's own source images and bring their poses into the frame of the first one."""
        info = request.source_camera_info
        if conversions.is_zero(info):
            newest = self._frames.newest(1)
            if not newest:
                raise RefusalError("source_camera_info is empty and there is no live camera to take it from")
            info = newest[0].info
        decoded = [conversions.pinhole_frame(image, info) for image in request.source_images]
        first = request.source_poses[0].header
        world, stamp = first.frame_id, conversions.stamp_ns(first.stamp)
        T_world_source = np.stack([self._in_world(pose, world, stamp) for pose in request.source_poses])
        return np.stack([rgb for rgb, _ in decoded]), T_world_source, decoded[0][1], stamp, world

    def _in_world(self, pose: PoseStamped, world: str, stamp: int) -> np.ndarray:
        """Return a goal pose in frame `world` as that frame was at `stamp` (ns)."""
        matrix = conversions.pose_to_matrix(pose.pose)
        frame, own_stamp = pose.header.frame_id.lstrip("/"), conversions.stamp_ns(pose.header.stamp)
        if frame == world and own_stamp in (0, stamp):
            return matrix
        if own_stamp in (0, stamp) or frame == self._p.fixed_frame:
            return self._lookup(world, stamp, frame, stamp) @ matrix
        return self._lookup(world, stamp, frame, own_stamp) @ matrix

    def _moved(self, frame: str, stamp: int, other_stamp: int) -> np.ndarray:
        """Return the pose of a moving frame at other_stamp, seen from itself at stamp."""
        return np.eye(4) if stamp == other_stamp else self._lookup(frame, stamp, frame, other_stamp)

    def _lookup(self, target: str, target_stamp: int, source: str, source_stamp: int) -> np.ndarray:
        """Return T_target_source, each at its own time (ns); raises RefusalError that names the frames."""
        timeout = Duration(seconds=self._p.tf_timeout)
        try:
            if target_stamp == source_stamp:
                found = self._tf_buffer.lookup_transform(target, source, Time(nanoseconds=target_stamp), timeout)
                return conversions.transform_to_matrix(found.transform)
            fixed = self._p.fixed_frame
            ends = [
                self._tf_buffer.lookup_transform(fixed, frame, Time(nanoseconds=at), timeout)
                for frame, at in ((target, target_stamp), (source, source_stamp))
            ]
            T_fixed_target, T_fixed_source = (conversions.transform_to_matrix(end.transform) for end in ends)
            return invert(T_fixed_target) @ T_fixed_source
        except TransformException as error:
            raise RefusalError(f"no transform from '{source}' to '{target}': {' '.join(str(error).split())}") from error

    # Metres for a unit of the model

    def _live_unit(self, reference: CameraFrame) -> float:
        """Estimate metres per unit at the reference image from the live camera's motion in fixed_frame."""
        count = self._pipeline.config.frames
        held = [frame for frame in self._frames.all() if frame.frame_id == reference.frame_id]
        older = [frame for frame in held if frame.stamp <= reference.stamp]
        newer = [frame for frame in held[::-1] if frame.stamp >= reference.stamp]
        stride = self._p.buffer_stride
        # The unit is that of the first frame, so the reference goes first, whichever way time runs.
        window = next((side[::stride][:count] for side in (older, newer) if len(side[::stride]) >= count), None)
        if window is None:
            raise RefusalError(
                f"metres_per_unit is 0 (to be estimated), but only {len(held)} images are held; {count} that are "
                f"{stride} apart are needed: wait, or set metres_per_unit"
            )
        frames, intrinsics = _decode(window)
        poses = [self._lookup(self._p.fixed_frame, frame.stamp, frame.frame_id, frame.stamp) for frame in window]
        return self._estimated_unit(frames, intrinsics, np.stack(poses))

    def _estimated_unit(self, frames: np.ndarray, intrinsics: Intrinsics, T_world_camera: np.ndarray) -> float:
        """Return metres per unit of a window (T, H, W, 3) with poses (T, 4, 4); the first is the reference."""
        count = self._pipeline.config.frames
        if len(frames) < count:
            raise RefusalError(
                f"metres_per_unit is 0 (to be estimated), but {len(frames)} source images are too few for that; "
                f"{count} are needed: send more, or set metres_per_unit"
            )
        try:
            return float(self._pipeline.metres_per_unit(frames[:count], intrinsics, T_world_camera[:count]))
        except ValueError as error:
            raise RefusalError(f"metres_per_unit cannot be estimated: {error}") from error

    def _imagine_source(self, request: Imagine.Goal) -> tuple[np.ndarray, Intrinsics, int, str]:
        newest = self._frames.newest(1)
        live = request.source_image.width == 0 and request.source_image.height == 0
        if live and not newest:
            raise RefusalError("no source frame yet")
        image = newest[0].image if live else request.source_image
        info = request.camera_info
        if conversions.is_zero(info):
            if not newest:
                raise RefusalError("camera_info is empty and there is no live camera to take it from")
            info = newest[0].info
        if not live:
            conversions.check_image(image)
            self._check_pixels("source_image", image, 1)
        rgb, intrinsics = conversions.pinhole_frame(image, info)
        return rgb, intrinsics, conversions.stamp_ns(image.header.stamp), image.header.frame_id


def _decode(frames: list[CameraFrame]) -> tuple[np.ndarray, Intrinsics]:
    """Decode live frames to (N, H, W, 3) and the camera of the first; raises RefusalError if sizes differ."""
    decoded = [frame.decode() for frame in frames]
    if len({rgb.shape for rgb, _ in decoded}) > 1:
        raise RefusalError("the live images changed their size; wait until the buffer holds one size")
    return np.stack([rgb for rgb, _ in decoded]), decoded[0][1]


main = main_of(lambda: [ViewSynthesisNode()])

if __name__ == "__main__":
    raise SystemExit(main(None))
