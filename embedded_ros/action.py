# SPDX-License-Identifier: Apache-2.0
"""rclpy.action, the server: three services, a feedback topic and a status topic below `<name>/_action/`."""

import threading
import time
import traceback
from enum import Enum

from .messages import message_class
from .qos import QoSProfile, qos_profile_action_status_default, qos_profile_services_default
from .services import Service
from .task import Future
from .unsupported import lacks

ACCEPTED, EXECUTING, CANCELING, SUCCEEDED, CANCELED, ABORTED = 1, 2, 3, 4, 5, 6
_ACTIVE = (ACCEPTED, EXECUTING, CANCELING)


class GoalResponse(Enum):
    """Answer of a goal callback."""

    REJECT = 1
    ACCEPT = 2


class CancelResponse(Enum):
    """Answer of a cancel callback."""

    REJECT = 1
    ACCEPT = 2


def default_goal_callback(goal_request):
    """Accept every goal."""
    return GoalResponse.ACCEPT


def default_cancel_callback(cancel_request):
    """Refuse every cancellation."""
    return CancelResponse.REJECT


def default_handle_accepted_callback(goal_handle):
    """Execute an accepted goal at once."""
    goal_handle.execute()


class ServerGoalHandle:
    """One accepted goal on the server's side."""

    def __init__(self, server, goal_id, goal, stamp):
        self._server, self.goal_id, self.request, self.stamp = server, goal_id, goal, stamp
        self._lock = threading.RLock()
        self._status = ACCEPTED
        self.result_future = Future()
        self.finished_at = None

    @property
    def status(self):
        """The status, as in GoalStatus."""
        return self._status

    @property
    def is_active(self):
        """Whether it is accepted, executing or being cancelled."""
        return self._status in _ACTIVE

    @property
    def is_cancel_requested(self):
        """Whether a cancellation was accepted."""
        return self._status == CANCELING

    def execute(self, execute_callback=None):
        """Run the execute callback as a task of the executor."""
        with self._lock:  # a cancellation must not come in between
            if not self.is_cancel_requested:
                self._move(EXECUTING, (ACCEPTED,))
        self._server.notify_execute(self, execute_callback)

    def publish_feedback(self, feedback):
        """Send feedback; some may be lost before the client is discovered."""
        if not isinstance(feedback, self._server.action_type.Feedback):
            raise TypeError(f"Expected {self._server.action_type.Feedback}, got {type(feedback)}")
        with self._lock:
            if self.is_active:
                self._server.publish_feedback(self.goal_id, feedback)

    def succeed(self, response=None):
        """End as succeeded."""
        self._move(SUCCEEDED, (EXECUTING, CANCELING), response)

    def abort(self, response=None):
        """End as aborted."""
        self._move(ABORTED, (EXECUTING, CANCELING), response)

    def canceled(self, response=None):
        """End as cancelled; a cancellation must have been accepted."""
        self._move(CANCELED, (CANCELING,), response)

    def _move(self, status, allowed, response=None):
        with self._lock:
            if self._status not in allowed:
                raise RuntimeError(f"goal cannot go from status {self._status} to {status}")
            self._status = status
            if status not in _ACTIVE:
                self.finished_at = time.monotonic()
        self._server.publish_status()
        if response is not None:
            self._server.set_result(self, response)

    def destroy(self):
        """Forget the goal."""
        self._server.forget_goal(self)


class _ResultService(Service):
    """A get_result service: the answer is sent when the goal ends, and holds no callback group until then."""

    server = None

    async def _answer(self, request, header, publication):
        handle = self.server.find(request.goal_id)
        if handle is None:
            self.send(self.srv_type.Response(status=0), header, publication)
            return

        def reply(future):
            response = self.srv_type.Response(status=handle.status, result=future.result())
            self.send(response, header, publication)

        handle.result_future.add_done_callback(reply)


@lacks(
    "action_type", "add_future", "add_to_wait_set", "execute", "get_num_entities", "is_ready", "notify_goal_done",
    "remove_future", "take_data",
)  # fmt: skip
class ActionServer:
    """Serve an action."""

    def __init__(
        self, node, action_type, action_name, execute_callback, *, callback_group=None,
        goal_callback=default_goal_callback, handle_accepted_callback=default_handle_accepted_callback,
        cancel_callback=default_cancel_callback, goal_service_qos_profile=qos_profile_services_default,
        result_service_qos_profile=qos_profile_services_default,
        cancel_service_qos_profile=qos_profile_services_default, feedback_pub_qos_profile=None,
        status_pub_qos_profile=qos_profile_action_status_default, result_timeout=10,
    ):  # fmt: skip
        self._node, self.action_type = node, action_type
        self._execute_callback, self._goal_callback = execute_callback, goal_callback
        self._accepted_callback, self._cancel_callback = handle_accepted_callback, cancel_callback
        self._result_timeout = result_timeout
        self._lock, self._goals, self._destroyed = threading.RLock(), {}, False
        parts = action_type.Impl
        name = node.resolve_topic_name(action_name)
        self._name = name
        group = callback_group or node.default_callback_group
        self._status = node.create_publisher(parts.GoalStatusMessage, f"{name}/_action/status", status_pub_qos_profile)
        self._feedback = node.create_publisher(
            parts.FeedbackMessage, f"{name}/_action/feedback", feedback_pub_qos_profile or QoSProfile(depth=10)
        )
        result = _ResultService(
            node, parts.GetResultService, f"{name}/_action/get_result", None, result_service_qos_profile, group
        )
        result.server = self
        node.add_entity(result)
        cancel = node.create_service(
            parts.CancelGoalService, f"{name}/_action/cancel_goal", self._on_cancel,
            qos_profile=cancel_service_qos_profile, callback_group=group,
        )  # fmt: skip
        goal = node.create_service(
            parts.SendGoalService, f"{name}/_action/send_goal", self._on_goal,
            qos_profile=goal_service_qos_profile, callback_group=group,
        )  # fmt: skip
        self._entities = [goal, cancel, result, self._feedback, self._status]

    def register_handle_accepted_callback(self, callback):
        """Set what is done with accepted goals."""
        self._accepted_callback = callback or default_handle_accepted_callback

    def register_goal_callback(self, callback):
        """Set who decides on goals."""
        self._goal_callback = callback or default_goal_callback

    def register_cancel_callback(self, callback):
        """Set who decides on cancellations."""
        self._cancel_callback = callback or default_cancel_callback

    def register_execute_callback(self, callback):
        """Set what runs a goal."""
        self._execute_callback = callback

    def find(self, goal_id):
        """Return the handle of a goal, or None."""
        return self._goals.get(bytes(goal_id.uuid))

    async def _on_goal(self, request, response):
        self._drop_expired()
        key = bytes(request.goal_id.uuid)
        response.stamp = self._node.get_clock().now().to_msg()
        if key in self._goals:
            self._node.get_logger().error(f"{self._name}: a goal with this id was sent before; refused")
            return response
        try:
            answer = self._goal_callback(request.goal)
            if hasattr(answer, "__await__"):
                answer = await answer
            if not isinstance(answer, GoalResponse):
                raise TypeError(f"goal callback returned {answer!r}, not a GoalResponse")
        except Exception as error:
            self._node.get_logger().error(f"Error raised in goal callback: {error}\n{traceback.format_exc()}")
            return response
        if answer is not GoalResponse.ACCEPT:
            return response
        handle = ServerGoalHandle(self, request.goal_id, request.goal, response.stamp)
        with self._lock:
            self._goals[key] = handle
        response.accepted = True
        self.publish_status()
        # As a task of its own: a slow callback must not hold the answer back.
        self._node.executor.create_task(self._accepted_callback, handle)
        return response

    def _on_cancel(self, request, response):
        wanted, stamp = bytes(request.goal_info.goal_id.uuid), request.goal_info.stamp
        nanoseconds = stamp.sec * 10**9 + stamp.nanosec
        with self._lock:
            goals = dict(self._goals)

        def chosen(key, handle):
            if key == wanted:
                return True
            if any(wanted) and not nanoseconds:
                return False
            return not nanoseconds or handle.stamp.sec * 10**9 + handle.stamp.nanosec <= nanoseconds

        selected = [handle for key, handle in goals.items() if chosen(key, handle)]
        live = [handle for handle in selected if handle.status in (ACCEPTED, EXECUTING)]
        for handle in live:
            try:
                accepted = self._cancel_callback(handle) is CancelResponse.ACCEPT
                if accepted:
                    handle._move(CANCELING, (ACCEPTED, EXECUTING))
            except Exception as error:
                self._node.get_logger().error(f"Error raised in cancel callback: {error}")
                accepted = False
            if accepted:
                info = message_class("action_msgs/msg/GoalInfo")(goal_id=handle.goal_id, stamp=handle.stamp)
                response.goals_canceling.append(info)
        if not response.goals_canceling:
            if live:
                response.return_code = response.ERROR_REJECTED
            elif any(wanted) and not selected:
                response.return_code = response.ERROR_UNKNOWN_GOAL_ID
            elif any(wanted):
                response.return_code = response.ERROR_GOAL_TERMINATED
        return response

    def notify_execute(self, handle, execute_callback):
        """Queue the execution of a goal."""
        callback = execute_callback or self._execute_callback
        if callback is None:
            raise RuntimeError("Registered callback is None: no execute callback")
        self._node.executor.create_task(self._run, handle, callback)

    async def _run(self, handle, callback):
        logger = self._node.get_logger()
        try:
            result = callback(handle)
            if hasattr(result, "__await__"):
                result = await result
        except Exception as error:
            logger.error(f"Error raised in execute callback: {error}\n{traceback.format_exc()}")
            result = None
        if result is None:
            result = self.action_type.Result()
        if handle.is_active:
            logger.warning(f"Goal state not set, assuming aborted. Goal ID: {bytes(handle.goal_id.uuid).hex()}")
            if handle.status == ACCEPTED:
                handle._move(EXECUTING, (ACCEPTED,))
            handle.abort()
        self.set_result(handle, result)

    def set_result(self, handle, result):
        """Give the result to all who ask."""
        if not isinstance(result, self.action_type.Result):
            self._node.get_logger().error(f"{self._name}: {type(result)} is not a {self.action_type.Result}")
            result = self.action_type.Result()
        handle.result_future.set_result(result)

    def publish_feedback(self, goal_id, feedback):
        """Send feedback of one goal."""
        if self._node.context.ok() and not self._destroyed:
            self._feedback.publish(self.action_type.Impl.FeedbackMessage(goal_id=goal_id, feedback=feedback))

    def publish_status(self):
        """Send the status of all goals."""
        if self._destroyed or not self._node.context.ok():
            return
        with self._lock:
            goals = list(self._goals.values())
        info, status = message_class("action_msgs/msg/GoalInfo"), message_class("action_msgs/msg/GoalStatus")
        self._status.publish(
            self.action_type.Impl.GoalStatusMessage(
                status_list=[
                    status(goal_info=info(goal_id=goal.goal_id, stamp=goal.stamp), status=goal.status) for goal in goals
                ]
            )
        )

    def _drop_expired(self):
        now = time.monotonic()
        with self._lock:
            for key, goal in list(self._goals.items()):
                if goal.finished_at is not None and now - goal.finished_at > self._result_timeout:
                    del self._goals[key]

    def forget_goal(self, handle):
        """Drop a goal."""
        with self._lock:
            self._goals.pop(bytes(handle.goal_id.uuid), None)

    def destroy(self):
        """Delete the server."""
        if not self._destroyed:
            self._destroyed = True
            for entity in self._entities:
                entity.destroy()
