# SPDX-License-Identifier: Apache-2.0
"""Services, actions and lifecycle of embedded_ros, between processes over loopback."""

import os
import signal
import subprocess
import sys
import threading

import pytest
from embedded_process import Process, spin_until

import embedded_ros

if embedded_ros.install() == "rclpy":
    pytest.skip("a real rclpy is sourced: embedded_ros is not in use", allow_module_level=True)

import rclpy
from action_msgs.msg import GoalStatus
from rclpy.action import ActionClient
from std_srvs.srv import SetBool, Trigger

from embedded_ros.definitions import definitions
from embedded_ros.messages import action_class

COUNT = "embedded_test_msgs/action/Count"
COUNT_TEXT = "int32 steps\n---\nint32 reached\n---\nint32 step\n"
if COUNT not in definitions().actions:
    definitions().add_action(COUNT, COUNT_TEXT)
Count = action_class(COUNT)

SERVER = f"""
import threading
from embedded_ros.definitions import definitions
from embedded_ros.messages import action_class
definitions().add_action({COUNT!r}, {COUNT_TEXT!r})
Count = action_class({COUNT!r})
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from std_srvs.srv import SetBool
rclpy.init()
node = Node('server')
def execute(handle):
    if handle.request.steps == 666:
        raise RuntimeError('a bug in the callback')
    result = Count.Result()
    for step in range(handle.request.steps):
        if handle.is_cancel_requested:
            handle.canceled()
            return result
        handle.publish_feedback(Count.Feedback(step=step))
        result.reached = step + 1
        time.sleep(0.01)
    handle.succeed()
    return result
def goal(request):
    return GoalResponse.REJECT if request.steps < 0 else GoalResponse.ACCEPT
server = ActionServer(node, Count, '~/count', execute, goal_callback=goal,
                      cancel_callback=lambda handle: CancelResponse.ACCEPT, callback_group=ReentrantCallbackGroup())
def switch(request, response):
    response.success, response.message = request.data, f'set to {{request.data}}'
    return response
node.create_service(SetBool, 'switch', switch)
executor = MultiThreadedExecutor(3)
executor.add_node(node)
say('ready')
try:
    executor.spin()
except (KeyboardInterrupt, ExternalShutdownException):
    pass
finally:
    executor.shutdown()
    rclpy.try_shutdown()
"""


@pytest.fixture
def server(ros_domain):
    with Process(SERVER) as process:
        process.line("ready")
        yield process


def _wait(node, future, timeout=30.0):
    rclpy.spin_until_future_complete(node, future, timeout_sec=timeout)
    assert future.done(), "no answer in time"
    return future.result()


def test_service_between_processes_with_two_clients_that_do_not_mix(node, server):
    clients = [node.create_client(SetBool, "switch") for _ in range(2)]
    assert all(client.wait_for_service(30.0) for client in clients)
    for start in range(0, 60, 10):  # a service keeps the last 10 requests, as in rclpy
        numbers = range(start, start + 10)
        futures = [clients[i % 2].call_async(SetBool.Request(data=i % 3 == 0)) for i in numbers]
        for i, future in zip(numbers, futures, strict=True):
            response = _wait(node, future)
            assert (response.success, response.message) == (i % 3 == 0, f"set to {i % 3 == 0}")
    absent = node.create_client(Trigger, "nobody_serves_this")
    assert not absent.wait_for_service(0.2)
    assert server.stop() == 0
    assert spin_until(node, lambda: not clients[0].service_is_ready())


def test_the_first_request_after_discovery_is_answered(ros_domain):
    """A one-shot client in a process of its own: the server must wait for the reply reader of a new client."""
    code = """
from std_srvs.srv import SetBool
rclpy.init()
node = Node('once')
client = node.create_client(SetBool, 'switch')
assert client.wait_for_service(30.0)
future = client.call_async(SetBool.Request(data=True))
rclpy.spin_until_future_complete(node, future, timeout_sec=30.0)
say('answer', future.result().message)
node.destroy_node()
rclpy.shutdown()
"""
    with Process(SERVER) as server:
        server.line("ready")
        for _ in range(2):
            with Process(code) as once:
                assert once.line("answer") == "set to True"
                assert once.wait() == 0
        assert server.stop(signal.SIGTERM) == 0


def test_action_with_feedback_cancel_refusal_failure_and_two_goals_at_once(node, server):
    client = ActionClient(node, Count, "/server/count")
    assert client.wait_for_server(30.0)

    feedback = []
    handle = _wait(node, client.send_goal_async(Count.Goal(steps=20), feedback_callback=feedback.append))
    assert handle.accepted
    outcome = _wait(node, handle.get_result_async())
    assert (outcome.status, outcome.result.reached) == (GoalStatus.STATUS_SUCCEEDED, 20)
    steps = [message.feedback.step for message in feedback]
    assert len(steps) >= 15 and steps == sorted(steps) and steps[-1] >= 18

    refused = _wait(node, client.send_goal_async(Count.Goal(steps=-1)))
    assert not refused.accepted

    feedback.clear()
    handle = _wait(node, client.send_goal_async(Count.Goal(steps=1000), feedback_callback=feedback.append))
    result = handle.get_result_async()
    assert spin_until(node, lambda: feedback) and handle.status == GoalStatus.STATUS_EXECUTING
    cancelled = _wait(node, handle.cancel_goal_async())
    assert len(cancelled.goals_canceling) == 1
    outcome = _wait(node, result)
    assert outcome.status == GoalStatus.STATUS_CANCELED and 0 < outcome.result.reached < 1000
    again = _wait(node, handle.cancel_goal_async())
    assert again.return_code == again.ERROR_GOAL_TERMINATED and not again.goals_canceling

    failed = _wait(node, client.send_goal_async(Count.Goal(steps=666)))
    assert _wait(node, failed.get_result_async()).status == GoalStatus.STATUS_ABORTED
    assert spin_until(node, lambda: "a bug in the callback" in server.errors)

    both = [_wait(node, client.send_goal_async(Count.Goal(steps=n))) for n in (5, 7)]
    assert [_wait(node, h.get_result_async()).result.reached for h in both] == [5, 7]
    assert server.stop() == 0


LIFECYCLE = """
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn as Return
class Managed(LifecycleNode):
    def on_configure(self, state):
        if self.get_parameter('broken').value:
            self.get_logger().error('told to fail')
            return Return.FAILURE
        say('configured from', state.label)
        return Return.SUCCESS
    def on_activate(self, state):
        raise RuntimeError('cannot start') if self.get_parameter('raises').value else None
    def on_error(self, state):
        return Return.SUCCESS
rclpy.init()
node = Managed('managed')
node.declare_parameter('broken', True)
node.declare_parameter('raises', True)
say('ready')
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


def test_lifecycle_over_its_services(node):
    from lifecycle_msgs.msg import State, Transition, TransitionEvent
    from lifecycle_msgs.srv import ChangeState, GetAvailableTransitions, GetState
    from rcl_interfaces.srv import SetParameters
    from rclpy.parameter import Parameter

    with Process(LIFECYCLE) as managed:
        managed.line("ready")
        change = node.create_client(ChangeState, "/managed/change_state")
        get = node.create_client(GetState, "/managed/get_state")
        available = node.create_client(GetAvailableTransitions, "/managed/get_available_transitions")
        setter = node.create_client(SetParameters, "/managed/set_parameters")
        events = []
        subscription = node.create_subscription(TransitionEvent, "/managed/transition_event", events.append, 10)
        assert all(client.wait_for_service(30.0) for client in (change, get, available, setter))
        assert spin_until(node, lambda: subscription.get_publisher_count())

        def move(number):
            request = ChangeState.Request()
            request.transition.id = number
            return _wait(node, change.call_async(request)).success

        def state():
            return _wait(node, get.call_async(GetState.Request())).current_state.id

        def switch(name, value):
            request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
            assert _wait(node, setter.call_async(request)).results[0].successful

        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        assert not move(Transition.TRANSITION_ACTIVATE)
        assert not move(Transition.TRANSITION_CONFIGURE)
        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        switch("broken", False)
        assert move(Transition.TRANSITION_CONFIGURE)
        assert managed.line("configured from") == "unconfigured"
        assert state() == State.PRIMARY_STATE_INACTIVE
        found = _wait(node, available.call_async(GetAvailableTransitions.Request())).available_transitions
        assert sorted(t.transition.label for t in found) == ["activate", "cleanup", "shutdown"]
        assert not move(Transition.TRANSITION_ACTIVATE)  # raises, and on_error recovers
        assert state() == State.PRIMARY_STATE_UNCONFIGURED
        assert "cannot start" in managed.errors
        assert spin_until(node, lambda: [e.goal_state.label for e in events][-1:] == ["unconfigured"])
        assert managed.stop() == 0


def test_many_goals_leave_no_growth_and_no_threads(node, server):
    client = ActionClient(node, Count, "/server/count")
    assert client.wait_for_server(30.0)
    for _ in range(60):
        handle = _wait(node, client.send_goal_async(Count.Goal(steps=0)))
        assert _wait(node, handle.get_result_async()).status == GoalStatus.STATUS_SUCCEEDED
    assert not client._goal._pending and not client._result._pending and not client._feedback_callbacks
    assert threading.active_count() < 10
    assert server.stop() == 0


def test_tools_of_the_package_do_not_hang_without_a_network(ros_domain):
    """A process that inits and shuts down ends at once and with nothing on standard error."""
    code = "import embedded_ros; embedded_ros.install(); import rclpy; rclpy.init(); rclpy.shutdown()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
