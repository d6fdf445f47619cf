# SPDX-License-Identifier: Apache-2.0
"""From one activation to the next: what fails leaves nothing behind, and what outlives its end does not come back."""

import gc
import threading
import weakref

import pytest
import rclpy
from action_msgs.msg import GoalStatus
from pixel_pipeline import PixelPipeline, picture
from rclpy.action import ActionClient
from rclpy.executors import MultiThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from view_goals import pose_at
from wire import CAMERA, OPTICAL, until

from rays_as_pixels_interfaces.action import RenderViews
from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros.trajectory_node import TrajectoryNode
from rays_as_pixels_ros.view_synthesis_node import ViewSynthesisNode

pytestmark = pytest.mark.slow
SUCCESS, ERROR = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.ERROR
BOTH = pytest.mark.parametrize("make", [TrajectoryNode, ViewSynthesisNode])


class HeldPipeline(PixelPipeline):
    """The first `held` runs of the model wait until they are let go on. Kept: whether a goal went on at each step."""

    def __init__(self, held=0):
        super().__init__()
        self._left, self.begun, self.go_on = held, threading.Event(), threading.Event()
        self.went_on = []  # of each goal, in the order in which they were let go on

    def hold(self):
        self._left -= 1
        if self._left >= 0:
            self.begun.set()
            assert self.go_on.wait(30)

    def estimate_trajectory(self, *arguments, **options):
        self.hold()
        return super().estimate_trajectory(*arguments, **options)

    def render_views(self, *arguments, on_step, **options):
        self.hold()
        answers = []
        self.went_on.append(answers)

        def told(*step):
            answers.append(on_step(*step))
            return answers[-1]

        return super().render_views(*arguments, on_step=told, **options)


@pytest.fixture
def nodes(ros_domain):
    """Make nodes, configured and active; they are taken away at the end."""
    rclpy.init(args=[])
    made = []

    def make_one(make, load_pipeline=lambda *given: HeldPipeline(), **parameters):
        given = [Parameter(name, value=value) for name, value in parameters.items()]
        node = make(load_pipeline=load_pipeline, parameter_overrides=given)
        made.append(node)
        assert node.trigger_configure() == node.trigger_activate() == SUCCESS
        return node

    yield make_one
    for node in made:
        node.stop()
        node.destroy_node()
    rclpy.try_shutdown()


def camera_of(node):
    """The callbacks of a node's subscriptions to the two halves of its camera."""
    image, info = (subscription.callback for subscription in node._inputs[:2])

    def show(index):
        stamp = (index + 1) * 10**8
        image(c.rgb_to_image(picture(index), stamp, OPTICAL))
        info(c.camera_info(CAMERA, stamp, OPTICAL))

    return show


def held_images(node):
    return len(node._windows if isinstance(node, TrajectoryNode) else node._frames)


@BOTH
@pytest.mark.parametrize("transition", ["deactivate", "shutdown"])
def test_after_an_error_in_a_transition_the_model_is_freed_and_the_node_works_again(
    nodes, capfd, monkeypatch, make, transition
):
    """Here the middleware does not destroy a subscription at once."""
    node = nodes(make)
    pipeline, worker = weakref.ref(node._pipeline), getattr(node, "_worker", None)
    refused, destroy = [], node.destroy_subscription

    def refuse_once(subscription):
        if not refused:
            refused.append(subscription)
            raise RuntimeError("not now")
        return destroy(subscription)

    monkeypatch.setattr(node, "destroy_subscription", refuse_once)
    assert getattr(node, f"trigger_{transition}")() == ERROR
    gc.collect()
    assert pipeline() is None, "something still holds the model"
    assert worker is None or not worker.is_alive()
    assert not node.count_subscribers("image_raw") and not node.count_services("~/reset")
    said = capfd.readouterr().err
    assert "RuntimeError: not now" in said and "the node can be configured again" in said
    assert node.trigger_configure() == node.trigger_activate() == SUCCESS
    camera_of(node)(0)
    assert held_images(node) == 1


@BOTH
def test_an_image_that_is_still_being_taken_does_not_get_into_the_next_activation(nodes, make):
    node = nodes(make)
    late = camera_of(node)
    late(5)
    assert held_images(node) == 1
    assert node.trigger_deactivate() == SUCCESS
    late(6)
    assert node.trigger_activate() == SUCCESS
    late(7)
    assert held_images(node) == 0
    camera_of(node)(0)
    assert held_images(node) == 1


def test_a_bag_that_loops_leaves_no_moment_without_a_source_frame(nodes, monkeypatch):
    node, held = nodes(ViewSynthesisNode), []
    monkeypatch.setattr(node._tf_buffer, "clear", lambda: held.append(held_images(node)))
    for index in (5, 6, 0):
        camera_of(node)(index)
    assert held == [2] and [frame.stamp for frame in node._frames.all()] == [10**8]


@pytest.mark.parametrize("anew", [False, True], ids=["activated", "configured"])
def test_a_window_that_outlives_its_activation_is_thrown_away(nodes, capfd, anew):
    pipelines = iter([HeldPipeline(held=1), HeldPipeline()])
    node = nodes(TrajectoryNode, lambda *given: next(pipelines), base_frame="")
    node.PATIENCE_S = 0.05
    published, model, worker = [], node._pipeline, node._worker
    node._pose_publisher = type("Publisher", (), {"publish": published.append})
    show = camera_of(node)
    for index in range(5):
        show(index)
    assert model.begun.wait(30)
    assert node.trigger_deactivate() == SUCCESS
    assert "the model is still at work on its last window" in capfd.readouterr().err
    if anew:
        assert node.trigger_cleanup() == node.trigger_configure() == SUCCESS
    assert node.trigger_activate() == SUCCESS
    model.go_on.set()
    worker.join(30)
    assert not worker.is_alive() and not published
    show = camera_of(node)
    for index in range(10, 15):
        show(index)
    until(lambda: len(published) == 5, "the poses of the new activation")
    assert [c.stamp_ns(pose.header.stamp) // 10**8 - 1 for pose in published] == list(range(10, 15))


def test_a_goal_that_outlives_its_activation_neither_goes_on_nor_holds_up_the_next_one(nodes, capfd):
    model = HeldPipeline(held=1)
    node = nodes(ViewSynthesisNode, lambda *given: model, metres_per_unit=1.0, steps=3)
    node.PATIENCE_S = 0.05
    peer, executor = rclpy.create_node("peer"), MultiThreadedExecutor(num_threads=6)
    for each in (node, peer):
        executor.add_node(each)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    goal = RenderViews.Goal(poses=[pose_at(z=0.1)], source_images=[c.rgb_to_image(picture(3), 0, "given")])
    goal.source_poses, goal.source_camera_info = [pose_at()], c.camera_info(CAMERA, 0, "")

    def send():
        client = ActionClient(peer, RenderViews, "view_synthesis_node/render_views")
        assert client.wait_for_server(timeout_sec=30)
        sent = client.send_goal_async(goal)
        until(sent.done, "the goal's acceptance")
        return client, sent.result().get_result_async()

    try:
        first = send()
        assert model.begun.wait(30)
        assert node.trigger_deactivate() == node.trigger_activate() == SUCCESS
        assert "a goal is still at its denoising step" in capfd.readouterr().err
        client, result = send()
        until(result.done, "the second goal's result, while the first is held")
        assert result.result().status == GoalStatus.STATUS_SUCCEEDED
        model.go_on.set()
        until(lambda: "goal refused: the node is stopping" in capfd.readouterr().err, "the end of the first")
        assert model.went_on == [[True] * 3, [False]] and not len(node._queue)
        del first, client
    finally:
        model.go_on.set()
        executor.shutdown()
        thread.join(30)
        peer.destroy_node()
