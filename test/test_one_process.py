# SPDX-License-Identifier: Apache-2.0
"""Both nodes in one process over one model, and what cleanup gives back."""

import gc
import time
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from geometry_msgs.msg import PoseWithCovarianceStamped
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from pixel_pipeline import HEAVY
from rclpy.action import ActionClient
from rclpy.lifecycle import TransitionCallbackReturn
from sensor_msgs.msg import Image
from view_goals import pose_at, result_of
from wire import OPTICAL, START, WAIT, Process, module_domain, until

from rays_as_pixels_interfaces.action import RenderViews
from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros.rays_as_pixels import make_nodes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the peer lives as long as the module."""
    with module_domain() as domain:
        yield domain


def texture(number):
    """A smooth random picture that moves sideways."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 40, 3), dtype=np.uint8)
    return np.ascontiguousarray(cv2.resize(noise, (160, 48), interpolation=cv2.INTER_CUBIC)[:, number : number + 72])


def test_one_process_gives_a_pose_and_a_view(peer, tmp_path):
    poses = peer.listen(PoseWithCovarianceStamped, "trajectory_node/pose", 100)
    rendered = peer.listen(Image, "view_synthesis_node/rendered/image_raw", 100)
    arguments = ["base_frame:=''", "device:=cpu", "max_residual:=10.0", "samples:=2"]
    words = [word for argument in arguments for word in ("-p", argument)]
    # Only this node has the parameter at 0 (estimated) by default.
    words += ["-p", "view_synthesis_node:metres_per_unit:=1.0"]
    with Process(tmp_path, "up", *words, command=("-m", "rays_as_pixels_ros.cli")) as process:
        until(lambda: process.text().count("active: listening") == 2 or not process.alive(), "both nodes", START)
        assert process.alive(), process.text()
        until(lambda: {peer.image.get_subscription_count(), peer.info.get_subscription_count()} == {2}, "they listen")
        end = time.monotonic() + START
        for number in range(80):
            peer.show(number, image=c.rgb_to_image(texture(number), 0, OPTICAL))
            time.sleep(0.2)
            if len(poses) >= 5:
                break
        assert len(poses) >= 5 and time.monotonic() < end, process.text()
        client = ActionClient(peer.node, RenderViews, "view_synthesis_node/render_views")
        assert client.wait_for_server(timeout_sec=WAIT)
        sent = client.send_goal_async(RenderViews.Goal(poses=[pose_at(x=0.05)], steps=1))
        until(sent.done, "the goal's acceptance")
        answer = result_of(sent.result())
        assert answer.result.success, answer.result.message
        until(lambda: len(rendered) == 1, "the rendered view")
        assert np.ptp(c.image_to_rgb(rendered[0])) > 50, "a picture, not a grey field"
        client.destroy()


def test_cleanup_of_both_nodes_frees_their_model(peer):
    """They share it: it lives while one of them needs it, and goes with the last."""
    nodes = make_nodes()
    try:
        for node in nodes:
            assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        first, second = (node._pipeline for node in nodes)
        assert first is second
        weights = [weakref.ref(parameter) for parameter in first.model.parameters()]
        del first, second
        for node in nodes:
            node.trigger_activate()
            node.trigger_deactivate()
        nodes[0].trigger_cleanup()
        gc.collect()
        assert all(weight() is not None for weight in weights) and weights
        nodes[1].trigger_cleanup()
        gc.collect()
        assert not any(weight() is not None for weight in weights), "something still holds the model"
        assert nodes[0].trigger_configure() == TransitionCallbackReturn.SUCCESS
    finally:
        for node in nodes:
            node.stop()
            node.destroy_node()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc (Linux)")
@pytest.mark.parametrize("name", ["trajectory_node", "view_synthesis_node"])
def test_cleanup_gives_memory_back_to_the_system(peer, tmp_path, name):
    """The resident memory of the process falls with the model and grows again with the next one."""

    def transition(number):
        request = ChangeState.Request(transition=Transition(id=number))
        assert peer.call(ChangeState, f"{name}/change_state", request).success

    with Process(tmp_path, name, "-p", "checkpoint:=heavy") as process:
        process.until_active()

        def resident():
            return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * 4096

        loaded = resident()
        for number in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP):
            transition(number)
        assert loaded - resident() > 0.9 * HEAVY
        transition(Transition.TRANSITION_CONFIGURE)
        assert abs(loaded - resident()) < 0.1 * HEAVY
