# SPDX-License-Identifier: Apache-2.0
"""view_synthesis_node: views on request from the live camera or from given images (lifecycle, actions).

Every goal is accepted by the action server, so that a refused one gets a result that says why (aborted, success false,
message): the rejection of a ROS 2 action has no field for a reason.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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
from rays_as_pixels_model import memory
from rays_as_pixels_model.geometry import Intrinsics, invert

from . import conversions, goal_checks
from .camera_node import RELIABLE, CameraFrame, CameraNode
from .goal_checks import RefusalError
from .goal_plan import GoalPlanner, ImaginePlan
from .goal_queue import GoalQueue
from .node_process import main_of, reason
from .parameters import VIEW_SYNTHESIS
from .window import RecentFrames

_RENDERED_FRAME = "rendered_view_optical"
_CANCELED = "canceled"
_STOPPING = "the node is stopping"


@dataclass(frozen=True)
class _Task:
    """One action: its type, how its goals are checked as they come, and what is done when their turn comes.

    queue and stopping are those of one activation: a goal that outlives it must not meet those of the next.
    """

    action: Any
    check: Callable[[Any], None]
    work: Callable[[Any, Any, threading.Event], None]
    queue: GoalQueue
    stopping: threading.Event

    def check_running(self) -> None:
        """Raise RefusalError if the node is being stopped."""
        if self.stopping.is_set():
            raise RefusalError(_STOPPING)


class ViewSynthesisNode(CameraNode):
    """Serve `~/render_views` and `~/imagine`."""

    TABLE = VIEW_SYNTHESIS

    def __init__(self, name: str = "view_synthesis_node", **kwargs):
        super().__init__(name, **kwargs)
        self._servers: list[ActionServer] = []
        self._image_publisher = self.create_publisher(Image, "~/rendered/image_raw", RELIABLE)
        self._info_publisher = self.create_publisher(CameraInfo, "~/rendered/camera_info", RELIABLE)
        self._tf_buffer = Buffer()
        self._tf_listener = TransformListener(self._tf_buffer, self)

    # Life

    def _configured(self) -> None:
        self._frames = RecentFrames(self._p.buffer_size)
        self._queue = GoalQueue(self._p.queue_size)
        self._planner = GoalPlanner(self._p, self._frames, self._pipeline, self._lookup, self._can_place)

    def _activated(self) -> None:
        for name, action, check, work in (
            ("~/render_views", RenderViews, self._check_render_views, self._render_views),
            ("~/imagine", Imagine, self._check_imagine, self._imagine),
        ):
            task = _Task(action, check, work, self._queue, self._stopping)
            server = ActionServer(
                self,
                action,
                name,
                execute_callback=partial(self._serve, task),
                goal_callback=lambda request: GoalResponse.ACCEPT,
                handle_accepted_callback=partial(self._on_accepted, task),
                cancel_callback=partial(self._on_cancel, task),
                callback_group=self._free_group,
            )
            self._servers.append(server)

    def _deactivated(self) -> None:
        for task, handle in self._queue.withdraw():
            handle.execute(partial(self._end_goal, task, reason=_STOPPING))
        # A running goal ends at its next denoising step.
        if not self._queue.wait_idle(timeout=self.PATIENCE_S):
            self.get_logger().warning("a goal is still at its denoising step, after which it will end without a result")
            self._queue = GoalQueue(self._p.queue_size)
        time.sleep(0.2)  # for the results of the ended goals to leave
        while self._servers:
            self._servers.pop().destroy()
        self._frames.clear()

    def _unload(self) -> None:
        self._planner = None
        super()._unload()

    def _on_frame(self, frame: CameraFrame) -> None:
        newest = self._frames.newest(1)
        if newest and frame.stamp < newest[0].stamp:
            self.get_logger().warning("time went back (a bag that loops?): the image buffer was emptied")
            self._tf_buffer.clear()  # it takes nothing that is 10 s older than its newest
            self._frames.restart(frame)
            return
        self._frames.push(frame)

    def _status(self, table: dict[str, str]) -> None:
        table["images held"] = str(len(self._frames))
        table["goals in work or waiting"] = str(len(self._queue))

    # Goals: accepted, then running, waiting or refused

    def _on_accepted(self, task: _Task, handle) -> None:
        try:
            task.check_running()
            task.check(handle.request)
            if task.queue.offer((task, handle)):
                handle.execute()
        except Exception as error:  # a goal must never take the node down, whatever is wrong with it
            handle.execute(partial(self._end_goal, task, reason=reason(error)))

    def _on_cancel(self, task: _Task, handle) -> CancelResponse:
        # One that waits ends now, not when its turn comes; the state changes only after this returns.
        for waiting in task.queue.withdraw(lambda item: item[1] is handle):
            self.executor.create_task(self._end_waiting, *waiting)
        return CancelResponse.ACCEPT

    def _end_waiting(self, task: _Task, handle) -> None:
        end = time.monotonic() + 1.0
        while not handle.is_cancel_requested and time.monotonic() < end:
            time.sleep(0.002)
        handle.execute(partial(self._end_goal, task, reason=_CANCELED))

    def _serve(self, task: _Task, handle) -> Any:
        """Run a goal whose turn has come; whatever goes wrong ends in the result and the log, never in the node."""
        result = task.action.Result()
        try:
            if not handle.is_cancel_requested:
                task.check_running()
                task.work(handle, result, task.stopping)
            if handle.is_cancel_requested:
                return self._end_goal(task, handle, _CANCELED)
            task.check_running()
            result.success = True
            self._health.count("goals served")
            handle.succeed()
            return result
        except Exception as error:
            return self._end_goal(task, handle, _STOPPING if task.stopping.is_set() else reason(error))
        finally:
            following = task.queue.finished()
            if following is not None:
                following[1].execute()

    def _end_goal(self, task: _Task, handle, reason: str) -> Any:
        """End a goal without success, and return its result."""
        result = task.action.Result(success=False)
        if handle.is_cancel_requested:
            result.message = _CANCELED
            self.get_logger().info("goal canceled")
            self._health.count("goals canceled")
            handle.canceled()
        else:
            result.message = reason
            self.get_logger().error(f"goal refused: {reason}")
            self._health.count("goals refused")
            handle.abort()
        return result

    # Render

    def _check_render_views(self, request: RenderViews.Goal) -> None:
        goal_checks.check_views_request(request, self._p)
        if not request.source_images and not len(self._frames):
            raise RefusalError(
                f"no source frame yet: no image came on {self.resolve_topic_name(self._image_topic)} "
                "and the goal brings none"
            )

    def _render_views(self, handle, result: RenderViews.Result, stopping: threading.Event) -> None:
        request = handle.request
        held = min(self._p.source_frames, self._p.buffer_size)
        sources = len(request.source_images) or held
        # A scale that is not given is estimated first, from a whole window.
        needs, live = self._pipeline.predict_memory(sources), held
        if not self._p.metres_per_unit:
            needs, live = max(needs, self._pipeline.predict_memory(None)), live + self._pipeline.config.frames
        self._check_memory(self._planner.source_pixels(request, live), len(request.poses), needs)
        plan = self._planner.views(request)

        def on_view(number: int, rgb: np.ndarray, camera: Intrinsics) -> None:
            result.images.append(conversions.rgb_to_image(rgb, plan.stamp, _RENDERED_FRAME))
            result.camera_infos.append(conversions.camera_info(camera, plan.stamp, _RENDERED_FRAME))
            self._publish_rendered(result.images[-1], result.camera_infos[-1])

        self._pipeline.render_views(
            plan.frames,
            plan.T_world_source,
            plan.source_intrinsics,
            plan.T_world_target,
            plan.target_intrinsics,
            metres_per_unit=plan.metres_per_unit,
            steps=plan.steps,
            seed=plan.seed,
            on_step=self._step_reporter(handle, stopping, RenderViews.Feedback, plan.stamp),
            on_view=on_view,
        )
        result.metres_per_unit = float(plan.metres_per_unit)

    # Imagine

    def _check_imagine(self, request: Imagine.Goal) -> None:
        goal_checks.check_imagine_request(request, self._p, self._pipeline.config.frames)

    def _imagine(self, handle, result: Imagine.Result, stopping: threading.Event) -> None:
        request, config = handle.request, self._pipeline.config
        needs = self._pipeline.predict_memory(len(request.source_images) or 1, video=True)
        self._check_memory(self._planner.source_pixels(request, 1), config.frames, needs)
        plan = self._planner.imagine(request)
        video = self._pipeline.imagine(
            plan.frames,
            plan.intrinsics,
            steps=plan.steps,
            seed=plan.seed,
            on_step=self._step_reporter(handle, stopping, Imagine.Feedback, plan.stamp),
        )
        wanted = request.frames or config.frames
        result.images = [conversions.rgb_to_image(rgb, plan.stamp, _RENDERED_FRAME) for rgb in video.frames[:wanted]]
        result.camera_info = conversions.camera_info(video.intrinsics, plan.stamp, _RENDERED_FRAME)
        # Without a known scale the path stays in units of the model, and says so with 0.
        result.metres_per_unit = float(self._p.metres_per_unit)
        result.path = self._imagined_path(plan, video.T_reference_camera[:wanted])
        result.source_path = self._imagined_path(plan, video.T_reference_source)
        for image in result.images:
            self._publish_rendered(image, result.camera_info)

    def _imagined_path(self, plan: ImaginePlan, T_reference_camera: np.ndarray) -> Path:
        """Make the path of cameras (n, 4, 4) in the frame of the first source."""
        scale, start = self._p.metres_per_unit or 1.0, conversions.header(plan.stamp, plan.frame_id)
        path = Path(header=start)
        for T in np.array(T_reference_camera):
            T[:3, 3] *= scale
            path.poses.append(PoseStamped(header=start, pose=conversions.matrix_to_pose(T)))
        return path

    # Shared by both

    def _step_reporter(
        self, handle, stopping: threading.Event, feedback_type, stamp: int
    ) -> Callable[[int, int, np.ndarray], bool]:
        def report(step: int, total: int, preview: np.ndarray) -> bool:
            if handle.is_cancel_requested or stopping.is_set():
                return False
            feedback = feedback_type(step=int(step), total=int(total))
            feedback.preview = conversions.rgb_to_image(preview, stamp, _RENDERED_FRAME)
            handle.publish_feedback(feedback)
            return True

        return report

    def _publish_rendered(self, image: Image, info: CameraInfo) -> None:
        self._image_publisher.publish(image)
        self._info_publisher.publish(info)

    def _check_memory(self, source_pixels: int, views: int, on_device: int) -> None:
        """Refuse what does not fit: pixels of source images, views, and bytes that the model takes on its device."""
        model = self._pipeline
        images = goal_checks.image_bytes(source_pixels, views, model.config.width, model.config.height)
        limit = self._p.max_memory_mib * 2**20 or float("inf")
        device = str(model.device)
        needs = {device: on_device + images} if device == "cpu" else {device: on_device, "cpu": images}
        for where, predicted in needs.items():
            available = min(limit, memory.available_memory(where))
            goal_checks.check_memory(where, predicted, available, memory.MARGIN)

    # TF

    def _can_place(self, frames: set[str], optical: str, stamp: int) -> bool:
        return all(self._tf_buffer.can_transform(frame, optical, Time(nanoseconds=stamp)) for frame in frames)

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


main = main_of(lambda: [ViewSynthesisNode()])

if __name__ == "__main__":
    raise SystemExit(main(None))
