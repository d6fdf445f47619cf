# SPDX-License-Identifier: Apache-2.0
"""A node that does not become active says why, on stderr and by its exit code: rclpy swallows what a step raises."""

import signal
import subprocess
import sys

import pytest
import rclpy
from pixel_pipeline import load
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from wire import HERE, START, Process, until

from rays_as_pixels_ros import camera_player_node, render_client
from rays_as_pixels_ros.node_process import run_nodes, start_ros
from rays_as_pixels_ros.trajectory_node import TrajectoryNode
from rays_as_pixels_ros.view_synthesis_node import ViewSynthesisNode

pytestmark = pytest.mark.slow


@pytest.fixture
def ros(ros_domain):
    rclpy.init(args=[])
    yield
    rclpy.try_shutdown()


@pytest.mark.parametrize("make", [TrajectoryNode, ViewSynthesisNode])
def test_whatever_activate_raises_is_said_and_undone(ros, capfd, monkeypatch, make):
    """Here the middleware refuses the node's second subscription once."""
    node = make(load_pipeline=load, namespace="start_up")
    try:
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        create, calls = node.create_subscription, []

        def refuse_the_second(*arguments, **options):
            calls.append(arguments)
            if len(calls) == 2:
                raise RuntimeError("out of entities")
            return create(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(node, "create_subscription", refuse_the_second)
            assert node.trigger_activate() == TransitionCallbackReturn.FAILURE
        assert "cannot be activated: RuntimeError: out of entities" in capfd.readouterr().err
        until(lambda: not node.count_subscribers("/start_up/image_raw"), "the first one to be taken back")
        assert node.trigger_activate() == TransitionCallbackReturn.SUCCESS
        assert "active: listening to /start_up/image_raw" in capfd.readouterr().err
    finally:
        node.stop()
        node.destroy_node()


def test_an_unforeseen_error_in_configure_is_named(ros, capfd):
    given = [Parameter("checkpoint", value="unforeseen")]
    node = TrajectoryNode("unready", load_pipeline=load, parameter_overrides=given)
    try:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert "cannot be configured: KeyError: 'frames'" in capfd.readouterr().err
    finally:
        node.destroy_node()


def test_a_process_that_cannot_be_configured_ends_with_the_reason(ros_domain, tmp_path):
    process = Process(tmp_path, "trajectory_node", "-p", "checkpoint:=broken")
    assert process.wait() == 1
    said = process.text()
    assert "cannot be configured: broken: not a checkpoint" in said and "Traceback" not in said
    assert "the process ends with exit code 1: trajectory_node could not be made active" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_node_is_active_is_said(ros_domain, tmp_path, number):
    process = Process(tmp_path, "trajectory_node", "-p", "checkpoint:=endless")
    until(lambda: "loading" in process.text() or not process.alive(), "the load", START)
    assert process.stop(number) == 128 + number
    said = process.text()
    assert f"{number.name} came before the nodes were active" in said and "Traceback" not in said


@pytest.mark.parametrize("environment, arguments, code", [
    ({"ROS_DOMAIN_ID": "seven"}, [], 1), ({}, ["-p", "nonsense"], 2), ({"CYCLONEDDS_URI": "<nonsense"}, [], 1),
    ({}, ["-p", "use_sim_time:=seven"], 1),
], ids=["domain", "arguments", "network", "parameter"])  # fmt: skip
def test_ros_that_cannot_be_started_is_said(ros_domain, tmp_path, monkeypatch, environment, arguments, code):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process = Process(tmp_path, "trajectory_node", "-p", "checkpoint:=broken", *arguments)
    assert process.wait() == code
    said = process.text()
    assert f"exit code {code}: ROS cannot be started: " in said and "Traceback" not in said


WRONG_REMAPS = {
    "__node:=bad-name": "'bad-name' (of __node:=bad-name) is no name of a node: these have letters, digits and _",
    "camera_player:__name:=2nd": "'2nd' (of camera_player:__name:=2nd) is no name of a node",
    "__ns:=bad": "'bad' (of __ns:=bad) is no namespace: these start with /, as /robot1",
    "__ns:=/robot/": "'/robot/' (of __ns:=/robot/) is no namespace",
    "image_raw:=/left//image-raw": "'/left//image-raw' (of image_raw:=/left//image-raw) is no name of a topic",
    "image_raw:={node}/raw": "'{node}/raw' (of image_raw:={node}/raw) is no name of a topic",
    "image_raw": "'image_raw' is no remapping rule: these are FROM:=TO",
}


@pytest.mark.parametrize("rule", WRONG_REMAPS)
@pytest.mark.parametrize("main, ours", [
    (camera_player_node.main, []), (render_client.main, ["dolly", "--out", "views"]),
    (lambda arguments: run_nodes(list, arguments), []),
], ids=["camera_player", "render_client", "nodes"])  # fmt: skip
def test_a_name_that_cannot_be_is_named_with_what_would_be_right(capfd, main, ours, rule):
    assert main([*ours, "--ros-args", "-r", rule]) == 2
    said = capfd.readouterr().err
    assert f"exit code 2: ROS cannot be started: {WRONG_REMAPS[rule]}" in said and said.count("\n") == 1


@pytest.mark.parametrize("rule", [
    "__node:=left_2", "__ns:=/", "__ns:=/robot1/camera", "trajectory_node:__node:=left", "~/pose:=~/left/pose",
    "image_raw:=/left/image_raw", "image_raw:=left/image_raw", "rostopic://image_raw:=left_raw",
])  # fmt: skip
def test_remapping_rules_of_ros_pass(ros_domain, rule):
    """Before and behind the ROS arguments nothing is a rule."""
    arguments = ["-r", "nonsense", "--ros-args", "-r", rule, "--", "-r", "nonsense"]
    assert start_ros(arguments) == 0
    rclpy.try_shutdown()


CRASH = """
import ctypes, sys, types
from rays_as_pixels_ros import entry_points
module = types.ModuleType("rays_as_pixels_ros.crash")
module.main = lambda arguments: ctypes.string_at(0)
sys.modules[module.__name__] = module
entry_points._MODULES["crash"] = "crash"
entry_points.run("crash", [])
"""

SHUT_DOWN = f"""
import sys, threading
sys.path.insert(0, {str(HERE)!r})
import embedded_ros
embedded_ros.install()
import rclpy
from pixel_pipeline import load
from rays_as_pixels_ros.node_process import run_nodes
from rays_as_pixels_ros.trajectory_node import TrajectoryNode
class Shut(TrajectoryNode):
    def _activated(self):
        super()._activated()
        threading.Timer(0.5, rclpy.try_shutdown).start()
sys.exit(run_nodes(lambda: [Shut(load_pipeline=load)], []))
"""


@pytest.mark.parametrize("code, says", [
    (CRASH, "Segmentation fault"), (SHUT_DOWN, "the process ends with exit code 1: ROS was shut down"),
], ids=["crash", "shut_down"])  # fmt: skip
def test_a_node_that_is_ended_from_below_says_so(ros_domain, code, says):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=START)
    assert done.returncode != 0 and says in done.stderr, done
