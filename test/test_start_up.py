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


@pytest.mark.parametrize("environment, arguments", [
    ({"ROS_DOMAIN_ID": "seven"}, []), ({}, ["-p", "nonsense"]), ({"CYCLONEDDS_URI": "<nonsense"}, []),
], ids=["domain", "arguments", "network"])  # fmt: skip
def test_ros_that_cannot_be_started_is_said(ros_domain, tmp_path, monkeypatch, environment, arguments):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    process = Process(tmp_path, "trajectory_node", "-p", "checkpoint:=broken", *arguments)
    assert process.wait() == 1
    said = process.text()
    assert "exit code 1: ROS cannot be started: " in said and "Traceback" not in said


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
from rays_as_pixels_ros.camera_node import run_nodes
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
