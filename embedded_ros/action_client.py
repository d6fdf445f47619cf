# SPDX-License-Identifier: Apache-2.0
"""rclpy.action, the client."""

import threading
import time
import uuid
import weakref

from .action import ACCEPTED
from .messages import message_class
from .qos import QoSProfile, qos_profile_action_status_default, qos_profile_services_default
from .task import Future
from .unsupported import lacks

_UUID = "unique_identifier_msgs/msg/UUID"


class ClientGoalHandle:
    """One goal on the client's side."""

    def __init__(self, client, goal_id, response):
        self._client, self.goal_id = client, goal_id
        self.accepted, self.stamp = response.accepted, response.stamp
        self.status = ACCEPTED if response.accepted else 0

    def cancel_goal_async(self):
        """Ask for cancellation; the future gets a CancelGoal response."""
        return self._client.cancel_async(self)

    def cancel_goal(self):
        """Ask for cancellation and wait; another thread must spin."""
        future = self.cancel_goal_async()
        future.wait()
        return future.result()

    def get_result_async(self):
        """Ask for the result; the future gets `.status` and `.result`."""
        return self._client.result_async(self)

    def get_result(self):
        """Wait for the result; another thread must spin."""
        future = self.get_result_async()
        future.wait()
        return future.result()


@lacks("add_future", "add_to_wait_set", "execute", "get_num_entities", "is_ready", "remove_future", "take_data")
class ActionClient:
    """Send goals to an action server."""

    def __init__(
        self, node, action_type, action_name, *, callback_group=None,
        goal_service_qos_profile=qos_profile_services_default,
        result_service_qos_profile=qos_profile_services_default,
        cancel_service_qos_profile=qos_profile_services_default, feedback_sub_qos_profile=None,
        status_sub_qos_profile=qos_profile_action_status_default,
    ):  # fmt: skip
        self._node, self._action_type = node, action_type
        self._lock = threading.Lock()
        self._feedback_callbacks, self._handles, self._statuses = {}, weakref.WeakValueDictionary(), {}
        parts = action_type.Impl
        name = node.resolve_topic_name(action_name)
        group = callback_group or node.default_callback_group

        def client(kind, suffix, profile):
            return node.create_client(kind, f"{name}/_action/{suffix}", qos_profile=profile, callback_group=group)

        self._goal = client(parts.SendGoalService, "send_goal", goal_service_qos_profile)
        self._cancel = client(parts.CancelGoalService, "cancel_goal", cancel_service_qos_profile)
        self._result = client(parts.GetResultService, "get_result", result_service_qos_profile)
        self._feedback = node.create_subscription(
            parts.FeedbackMessage, f"{name}/_action/feedback", self._on_feedback,
            feedback_sub_qos_profile or QoSProfile(depth=10), callback_group=group,
        )  # fmt: skip
        self._status = node.create_subscription(
            parts.GoalStatusMessage, f"{name}/_action/status", self._on_status,
            status_sub_qos_profile, callback_group=group,
        )  # fmt: skip

    def _on_feedback(self, message):
        callback = self._feedback_callbacks.get(bytes(message.goal_id.uuid))
        if callback is not None:
            callback(message)

    def _on_status(self, message):
        # Kept, because a status may arrive before the answer that makes the handle.
        self._statuses = {bytes(status.goal_info.goal_id.uuid): status.status for status in message.status_list}
        for key, status in self._statuses.items():
            handle = self._handles.get(key)
            if handle is not None:
                handle.status = status

    def send_goal_async(self, goal, feedback_callback=None, goal_uuid=None):
        """Send a goal; the future gets a ClientGoalHandle. Feedback messages have `.feedback`."""
        if not isinstance(goal, self._action_type.Goal):
            raise TypeError(f"Expected {self._action_type.Goal}, got {type(goal)}")
        goal_id = goal_uuid or message_class(_UUID)(uuid=list(uuid.uuid4().bytes))
        key = bytes(goal_id.uuid)
        if feedback_callback is not None:
            self._feedback_callbacks[key] = feedback_callback
        asked = self._goal.call_async(self._action_type.Impl.SendGoalService.Request(goal_id=goal_id, goal=goal))
        future = Future()

        def answered(response_future):
            handle = ClientGoalHandle(self, goal_id, response_future.result())
            if handle.accepted:
                self._handles[key] = handle
                handle.status = self._statuses.get(key, handle.status)
            else:
                self._feedback_callbacks.pop(key, None)
            future.set_result(handle)

        asked.add_done_callback(answered)
        return future

    def send_goal(self, goal, **options):
        """Send a goal and wait for its result; another thread must spin."""
        future = self.send_goal_async(goal, **options)
        future.wait()
        return future.result().get_result()

    def cancel_async(self, handle):
        """Ask for the cancellation of a goal."""
        request = self._action_type.Impl.CancelGoalService.Request()
        request.goal_info.goal_id = handle.goal_id
        return self._cancel.call_async(request)

    def result_async(self, handle):
        """Ask for the result of a goal."""
        future = self._result.call_async(self._action_type.Impl.GetResultService.Request(goal_id=handle.goal_id))

        def answered(done):
            handle.status = done.result().status
            self._feedback_callbacks.pop(bytes(handle.goal_id.uuid), None)

        future.add_done_callback(answered)
        return future

    def server_is_ready(self):
        """Whether a server is there with all its parts."""
        services = (self._goal, self._cancel, self._result)
        topics = (self._feedback, self._status)
        return all(s.service_is_ready() for s in services) and all(t.get_publisher_count() for t in topics)

    def wait_for_server(self, timeout_sec=None):
        """Wait until a server is there; returns whether it is."""
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while self._node.context.ok():
            if self.server_is_ready():
                return True
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(0.02)
        return False

    def destroy(self):
        """Delete the client."""
        for entity in (self._goal, self._cancel, self._result, self._feedback, self._status):
            entity.destroy()
