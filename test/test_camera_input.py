# SPDX-License-Identifier: Apache-2.0
"""The camera as drivers give it, met by a node over the wire: lossy, cut and binned, rectified."""

import os
import threading
import time
from types import SimpleNamespace

import pytest
from diagnostic_msgs.msg import DiagnosticArray
from embedded_process import LOSSY
from embedded_process import Process as Program
from pixel_pipeline import load, picture
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CompressedImage, Image
from view_goals import pose_at, render, serving
from wire import CAMERA, START, Process, bad_info, module_domain, until

from rays_as_pixels_interfaces.action import RenderViews
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros.trajectory_node import TrajectoryNode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the peer lives as long as the module."""
    with module_domain() as domain:
        yield domain


SENT = 200
LOSSY_CAMERA = f"""
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
rclpy.init()
node = Node('lossy_camera')
qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
images, infos = node.create_publisher(Image, 'lossy/image_raw', qos), node.create_publisher(CameraInfo, 'lossy/camera_info', qos)
image = Image(width=72, height=48, step=216, encoding='rgb8', data=bytes(range(216)) * 48)
info = CameraInfo(width=72, height=48, k=[60.0, 0.0, 36.0, 0.0, 60.0, 24.0, 0.0, 0.0, 1.0])
while images.get_subscription_count() == 0 or infos.get_subscription_count() == 0:
    time.sleep(0.01)
time.sleep(1.0)
for number in range({SENT}):
    image.header.stamp.sec = info.header.stamp.sec = 1000 + number
    image.header.frame_id = info.header.frame_id = 'camera'
    infos.publish(info)
    images.publish(image)
    time.sleep(0.05)
say('sent')
time.sleep(60)
"""  # noqa: E501


def test_images_that_were_lost_on_their_way_are_in_the_diagnostics(peer, tmp_path):
    """Of a camera that loses three of ten packets, an image that did not come is told by its camera_info that did."""
    statuses = peer.listen(DiagnosticArray, "/diagnostics", 100)

    def table():
        found = [s for m in statuses for s in m.status if s.name == "trajectory_node: camera"]
        return {value.key: value.value for value in found[-1].values} if found else {}

    arguments = ["-p", "base_frame:=''", "-r", "image_raw:=lossy/image_raw", "-r", "camera_info:=lossy/camera_info"]
    lossy = {"CYCLONEDDS_URI": os.environ["CYCLONEDDS_URI"] + LOSSY}
    with (
        Process(tmp_path, "trajectory_node", *arguments) as process,
        Program(LOSSY_CAMERA, environment=lossy) as camera,
    ):
        assert camera.line("sent", START) is not None
        before = len(statuses)
        until(lambda: len(statuses) >= before + 3, "diagnostics after the last image")
        said = process.text()
    came, missing = int(table()["images"]), int(table()["images missing for a camera_info"])
    assert missing >= 10 and came + missing <= SENT, table()  # a busy node takes fewer than came: 5 may wait
    assert int(table()["camera_infos missing for an image"]) >= 10
    assert any("missing for" in s.message for m in statuses for s in m.status), "a warning while they rise"
    assert "had no partner with the same stamp on /lossy/image_raw" in said and "net.core.rmem_max" in said


def test_losses_that_the_middleware_tells_are_in_the_diagnostics(peer, monkeypatch):
    """Where rclpy has the event (it is not raised by Cyclone DDS), its counts are shown."""
    asked = {}
    create = Node.create_subscription

    def listening(self, kind, topic, callback, qos, *, event_callbacks=None, **options):
        asked[topic] = event_callbacks
        return create(self, kind, topic, callback, qos, **options)

    monkeypatch.setattr(Node, "create_subscription", listening)
    node = TrajectoryNode("told", load_pipeline=load)
    try:
        node.trigger_configure()
        node.trigger_activate()
        for change in (2, 1):
            asked["image_raw"].message_lost(SimpleNamespace(total_count_change=change))
        asked["camera_info"].message_lost(SimpleNamespace(total_count_change=4))
        level, line, table = node._health.report()
        assert (table["images lost in transit"], table["camera_infos lost in transit"]) == ("3", "4")
        assert level == 1 and line == "3 images lost in transit"
        assert node._health.report()[0] == 0, "a warning only while they rise"
    finally:
        node.stop()
        node.destroy_node()


def test_no_input_is_destroyed_while_the_watch_looks_at_it(peer):
    node = TrajectoryNode("watched", load_pipeline=load)
    stopping, destroyed = threading.Thread(target=node.stop), []
    destroy = node.destroy_subscription
    node.destroy_subscription = lambda own: (destroyed.append(own), destroy(own))[1]

    def look(topic):
        if stopping.ident is None:
            stopping.start()
            time.sleep(0.2)
        assert not destroyed
        return []

    node.get_publishers_info_by_topic, node.get_subscriptions_info_by_topic = look, lambda topic: []
    try:
        node.trigger_configure()
        node.trigger_activate()
        node._watch()
        stopping.join(30)
        assert len(destroyed) == 2
    finally:
        node.stop()
        node.destroy_node()


def test_an_end_that_does_not_fit_is_told_in_the_diagnostics_until_it_leaves(peer):
    node = TrajectoryNode(
        "picky", load_pipeline=load, namespace="picky", parameter_overrides=[Parameter("silence_timeout", value=3600.0)]
    )

    said = []
    status = SimpleNamespace(summary=lambda level, message: said.append(message), add=lambda key, value: None)

    def line():
        node._watch()
        node._diagnose(status)
        return said[-1]

    try:
        node.trigger_configure()
        node.trigger_activate()
        assert line() == "ok"
        wrong = peer.node.create_publisher(CompressedImage, "picky/image_raw", 10)
        until(lambda: "another type or QoS" in line(), "the warning")
        peer.node.destroy_publisher(wrong)
        until(lambda: line() == "ok", "the end of the warning")
    finally:
        node.stop()
        node.destroy_node()


def test_images_without_a_frame_id_give_poses_but_no_tf_to_a_frame_without_a_name(peer, capfd):
    node = TrajectoryNode("nameless", load_pipeline=load, parameter_overrides=[Parameter("base_frame", value="")])
    poses, sent = [], []
    node._pose_publisher = SimpleNamespace(publish=poses.append)
    node._tf_broadcaster = SimpleNamespace(sendTransform=sent.extend)
    try:
        node.trigger_configure()
        node.trigger_activate()
        for number in range(5):
            node._on_half(1, c.camera_info(CAMERA, number + 1, ""))
            node._on_half(0, c.rgb_to_image(picture(number), number + 1, ""))
        until(lambda: len(poses) == len(sent) == 5, "a window's poses")
        assert {transform.child_frame_id for transform in sent} == {"odom"}
        assert "no transform from 'odom' to the camera is published: its images have" in capfd.readouterr().err
    finally:
        node.stop()
        node.destroy_node()


FULL = Intrinsics(120.0, 130.0, 70.0, 50.0, 160, 120)  # of a sensor whose middle is published, binned


def cut_and_binned(**changes):
    info = c.camera_info(FULL, 0, "")
    info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = 8, 12, 144, 96
    info.binning_x = info.binning_y = 2
    for name, value in changes.items():
        setattr(info, name, value)
    return info


def test_cut_binned_and_rectified_images_have_the_camera_that_their_info_tells(peer, tmp_path):
    """What K and D say would bend these images; their topic is named image_rect, so P is their camera."""
    bent = cut_and_binned(k=bad_info().k, d=[-0.3, 0.1, 0.0, 0.0, 0.0])
    arguments = ["steps:=1", "metres_per_unit:=1.0"]
    with serving(peer, tmp_path, *arguments, remaps=["image_raw:=camera/image_rect"]) as views:
        assert "active: listening to /camera/image_rect (rectified: P of camera_info is their camera)" in views.text()
        image = peer.node.create_publisher(Image, "camera/image_rect", 10)
        until(image.get_subscription_count, "the subscription of view_synthesis_node")
        until(peer.info.get_subscription_count, "its subscription to camera_info")
        for stamp in range(10**9, 4 * 10**9, 10**9):
            message = c.rgb_to_image(picture(3), stamp, "camera_optical")
            bent.header = message.header
            peer.info.publish(bent)
            image.publish(message)
            time.sleep(0.2)
        answer = render(views, RenderViews.Goal(poses=[pose_at()]))
        assert answer.result.success, answer.result.message
        found, _ = c.camera_from_info(answer.result.camera_infos[0])
    wanted = FULL.cropped(8, 12, 144, 96).binned(2, 2).resized(96, 64)
    assert (found.fx, found.fy, found.cx, found.cy) == pytest.approx((wanted.fx, wanted.fy, wanted.cx, wanted.cy))
