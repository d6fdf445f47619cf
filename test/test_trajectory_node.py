# SPDX-License-Identifier: Apache-2.0
"""trajectory_node as a process, met over the wire: what comes out for what goes in, and what happens with bad input."""

import time
from contextlib import contextmanager

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from pixel_pipeline import LEVELS, load, path
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray
from wire import (
    BAD_FRAMES,
    LATCHED,
    OPTICAL,
    Process,
    module_domain,
    play,
    play_in_step,
    show_until_refused,
    until,
)

from rays_as_pixels_interfaces.srv import SaveTrajectory
from rays_as_pixels_model.files import read_trajectory
from rays_as_pixels_model.geometry import invert
from rays_as_pixels_ros import conversions as c
from rays_as_pixels_ros.camera_node import BEST_EFFORT
from rays_as_pixels_ros.parameters import TRAJECTORY
from rays_as_pixels_ros.trajectory_node import TrajectoryNode

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here: the processes live as long as the module."""
    with module_domain() as domain:
        yield domain


@pytest.fixture(scope="module")
def trajectory(peer, tmp_path_factory):
    """A trajectory_node and what it publishes."""
    settings = ("-p", "base_frame:=''", "-p", "loop_every:=0.2", "-p", "publish_raxels:=true")
    with Process(tmp_path_factory.mktemp("trajectory"), "trajectory_node", *settings) as process:
        for kind, topic, qos in (
            (PoseWithCovarianceStamped, "trajectory_node/pose", 100),
            (Odometry, "trajectory_node/odometry", 100),
            (PathMessage, "trajectory_node/path", LATCHED),
            (MarkerArray, "trajectory_node/frusta", LATCHED),
            (TFMessage, "/tf", 100),
            (Image, "trajectory_node/raxels/image_raw", BEST_EFFORT),
        ):
            peer.listen(kind, topic, qos)
        process.until_active()
        until(lambda: peer.image.get_subscription_count() and peer.info.get_subscription_count(), "its subscriptions")
        until(lambda: peer.node.count_publishers("trajectory_node/pose"), "its publishers")
        yield process


@contextmanager
def own_node(peer, folder, name, setting):
    """A trajectory_node of one test alone, which loses no image, and the poses that it publishes."""
    settings = ["-p", "base_frame:=''", "-p", "image_qos:=reliable", "-p", setting]
    poses = peer.listen(PoseWithCovarianceStamped, f"{name}/pose", 100)
    with Process(folder, "trajectory_node", *settings, "-r", f"__node:={name}") as process:
        process.until_active()
        until(lambda: peer.image.get_subscription_count() and peer.info.get_subscription_count(), "its subscription")
        until(lambda: peer.node.count_publishers(f"{name}/pose"), "its publisher")
        yield process, poses


def restart(peer, settle=0.3):
    """Reset the trajectory and forget what was received."""
    assert peer.call(Trigger, "trajectory_node/reset", Trigger.Request()).success
    time.sleep(settle)
    for topic in peer.got:
        peer.got[topic].clear()


def expected_in_map(truth, first_unit):
    """First optical pose turned into REP 103 axes, lengths in the first window's unit."""
    relative = np.linalg.inv(truth[0]) @ truth
    relative[:, :3, 3] *= first_unit
    return c.T_REP103_OPTICAL @ relative


def test_stream_in_trajectory_out(peer, trajectory, tmp_path):
    restart(peer)
    poses = peer.got["trajectory_node/pose"]
    stamps = play_in_step(peer.show, range(25), poses)
    assert [stamps[c.stamp_ns(pose.header.stamp)] for pose in poses] == list(range(25))
    assert {pose.header.frame_id for pose in poses} == {"map"}
    found = np.stack([c.pose_to_matrix(pose.pose.pose) for pose in poses])
    np.testing.assert_allclose(found, expected_in_map(path()[:25], 0.7), atol=1e-6)
    assert np.asarray(poses[7].pose.covariance).reshape(6, 6)[0, 0] > 0
    assert "drawn" not in trajectory.text(), "refined windows have covariances of their own"
    # The forward axis of the first camera is the x axis of map.
    np.testing.assert_allclose(found[0][:3, 2], [1, 0, 0], atol=1e-9)

    odometry = peer.got["trajectory_node/odometry"]
    until(lambda: len(odometry) >= 25, "odometry")
    assert (odometry[0].header.frame_id, odometry[0].child_frame_id) == ("odom", OPTICAL)
    assert odometry[0].twist.covariance[0] > 1e5, "nobody knows how fast the camera is from one pose"
    moved = np.linalg.inv(found[10]) @ found[11]
    seconds = (c.stamp_ns(poses[11].header.stamp) - c.stamp_ns(poses[10].header.stamp)) * 1e-9
    speed = odometry[11].twist.twist.linear
    np.testing.assert_allclose([speed.x, speed.y, speed.z], moved[:3, :3].T @ moved[:3, 3] / seconds, atol=1e-5)

    paths = peer.got["trajectory_node/path"]
    until(lambda: paths and len(paths[-1].poses) == 25, "the whole path")
    assert [(p.header.stamp, p.pose) for p in paths[-1].poses] == [(p.header.stamp, p.pose.pose) for p in poses]

    frusta = peer.got["trajectory_node/frusta"]
    until(lambda: frusta and frusta[-1].markers[-1].header.stamp == poses[24].header.stamp, "all frusta")
    old, newest = frusta[-1].markers
    assert (old.ns, newest.ns, newest.header.frame_id) == ("path", "newest", "map")
    assert len(old.points) == 24 * 16 and len(newest.points) == 16 and newest.type == Marker.LINE_LIST
    apex = newest.points[0]
    np.testing.assert_allclose([apex.x, apex.y, apex.z], found[24][:3, 3], atol=1e-9)

    raxels = peer.got["trajectory_node/raxels/image_raw"]
    assert raxels and {c.stamp_ns(image.header.stamp) for image in raxels} <= set(stamps)
    np.testing.assert_array_equal(c.image_to_rgb(raxels[-1]), np.full((32, 48, 3), 127))  # the pixel pipeline's zeros

    transforms = {}
    for message in peer.got["/tf"]:
        for transform in message.transforms:
            key = transform.header.frame_id, transform.child_frame_id
            at = c.stamp_ns(transform.header.stamp)
            transforms.setdefault(key, {})[at] = c.transform_to_matrix(transform.transform)
    stamp = c.stamp_ns(poses[20].header.stamp)
    chained = transforms["map", "odom"][stamp] @ transforms["odom", OPTICAL][stamp]
    np.testing.assert_allclose(chained, found[20], atol=1e-9)

    saved = peer.call(SaveTrajectory, "trajectory_node/save_trajectory",
                      SaveTrajectory.Request(path=str(tmp_path / "t.txt")))  # fmt: skip
    assert saved.success and saved.poses == 25
    np.testing.assert_allclose(read_trajectory(tmp_path / "t.txt")[1], found, atol=1e-6)


def test_a_late_joiner_gets_the_path(peer, trajectory):
    restart(peer)
    play(peer, range(6))
    until(lambda: peer.got["trajectory_node/pose"], "a pose")
    late = []
    subscription = peer.node.create_subscription(PathMessage, "trajectory_node/path", late.append, LATCHED)
    until(lambda: late and len(late[-1].poses) >= 5, "the path for a late joiner")
    peer.node.destroy_subscription(subscription)


def test_reset_and_time_going_back_start_anew(peer, trajectory):
    restart(peer)
    play(peer, range(10, 17))
    poses = peer.got["trajectory_node/pose"]
    until(lambda: len(poses) >= 7, "poses")
    poses.clear()
    now = peer.node.get_clock().now().nanoseconds
    hour = 3600 * 10**9
    for step, number in enumerate(range(30, 35)):
        peer.show(number, stamp=now - hour + step * 10**8)
        time.sleep(0.06)
    until(lambda: len(poses) >= 5, "poses after the jump")
    np.testing.assert_allclose(c.pose_to_matrix(poses[0].pose.pose), c.T_REP103_OPTICAL, atol=1e-9)
    assert "time went back" in trajectory.text()
    clear = [m for a in peer.got["trajectory_node/frusta"] for m in a.markers if m.action == Marker.DELETEALL]
    assert clear, "the old cameras are taken off the display"
    until(lambda: len(peer.got["trajectory_node/path"][-1].poses) == 5, "a path that starts anew")


def test_pause_and_resume(peer, trajectory):
    restart(peer)
    assert peer.call(Trigger, "trajectory_node/pause", Trigger.Request()).success
    play(peer, range(8), period=0.03)
    time.sleep(0.5)
    assert not peer.got["trajectory_node/pose"]
    assert peer.call(Trigger, "trajectory_node/resume", Trigger.Request()).success
    play(peer, range(8, 13))
    until(lambda: len(peer.got["trajectory_node/pose"]) == 5, "poses after resume")


def test_a_window_in_which_the_camera_paused_is_sampled_afresh(peer, tmp_path):
    """Its frames are further apart than those of the windows whose samples it would have had."""
    with own_node(peer, tmp_path, "sampled", "refine:=false") as (process, poses):
        start = peer.node.get_clock().now().nanoseconds

        def show(number):
            return peer.show(number, stamp=start + number * 10**8)

        play_in_step(show, range(7), poses)
        play_in_step(show, range(40, 44), poses, length=2)
        drawn = [line for line in process.text().splitlines() if line.startswith("drawn")]
    assert drawn == [f"drawn {numbers}" for numbers in ([0, 1, 2, 3, 4], [4, 5, 6, 40, 41], [6, 40, 41, 42, 43])]
    found = c.pose_to_matrix(poses[-1].pose.pose)
    np.testing.assert_allclose(found, expected_in_map(path()[[0, 43]], 0.7)[1], atol=1e-5)  # the trajectory goes on


def test_bad_images_are_refused_in_one_line_and_the_trajectory_goes_on(peer, trajectory):
    restart(peer)
    for changes, reason in BAD_FRAMES:
        show_until_refused(peer, trajectory, changes, reason)
    play(peer, range(7))
    until(lambda: len(peer.got["trajectory_node/pose"]) == 7, "poses after the bad images")
    assert trajectory.alive()


def test_the_closed_loop_is_in_the_diagnostics(peer, trajectory):
    """Figures of one of the windows shown; a loop that fails is counted, and costs no pose."""
    statuses = peer.listen(DiagnosticArray, "/diagnostics", 100)
    poses = peer.got["trajectory_node/pose"]

    def table():
        found = [s for m in statuses for s in m.status if s.name == "trajectory_node: camera"]
        return {value.key: value.value for value in found[-1].values} if found else {}

    for first, wanted in ((0, "closed loops"), (24, "failed closed loops")):
        restart(peer)
        before = int(table().get(wanted, 0))
        for number in range(first, first + 15):
            play_in_step(peer.show, [number], poses)
            time.sleep(0.1)
        until(lambda before=before, wanted=wanted: int(table().get(wanted, 0)) > before, wanted)
        until(lambda: len(poses) == 15, "all poses")
    assert table()["self-consistency rotation (deg)"] in {f"{k}.00" for k in range(0, 11, 2)}
    assert float(table()["self-consistency translation (scene depths)"]) in range(0, 11, 2)
    assert table()["self-consistency PSNR (dB)"] == "21.0"


def test_a_covered_lens_is_lost_and_says_so(peer, trajectory):
    restart(peer)
    statuses = peer.listen(DiagnosticArray, "/diagnostics", 100)
    poses = peer.got["trajectory_node/pose"]
    play_in_step(peer.show, range(5), poses)

    def lost():
        found = [s for m in statuses for s in m.status if s.name == "trajectory_node: camera"]
        return found and found[-1].level == b"\x02" and "an image shows nothing" in found[-1].message

    for number in range(5, 40):
        dark = c.rgb_to_image(np.zeros((48, 72, 3), np.uint8), 0, OPTICAL)
        peer.show(number, image=dark)
        time.sleep(0.1)
        if lost():
            break
    assert lost() and len(poses) == 5, "no pose of what was not seen"
    play(peer, range(40, 50))
    until(lambda: len(poses) >= 10, "poses once there is something to see")
    position = np.asarray(poses[-1].pose.covariance).reshape(6, 6)[0, 0]
    assert position > 1e5, "nobody knows how far the camera went meanwhile"
    until(lambda: not lost(), "diagnostics without it")


def test_one_lost_window_is_bridged_by_the_frame_that_its_neighbours_share(peer, tmp_path):
    """Of windows 0-4, 2-6, 4-8 and 6-10 the third is lost: the fourth still starts at a frame whose place is known."""
    with own_node(peer, tmp_path, "bridged", "checkpoint:=blurred") as (_, poses):
        stamps = play(peer, range(11))
        until(lambda: len(poses) == 11, "a pose of every frame")
    assert [stamps[c.stamp_ns(pose.header.stamp)] for pose in poses] == list(range(11))
    found = np.stack([c.pose_to_matrix(pose.pose.pose) for pose in poses])
    turned = invert(expected_in_map(path()[:11], 1.0)) @ found
    np.testing.assert_allclose(turned[:, :3, :3], np.tile(np.eye(3), (11, 1, 1)), atol=1e-6)
    assert np.asarray(poses[-1].pose.covariance).reshape(6, 6)[0, 0] < 10, "nothing was missed"


def test_a_fast_camera_loses_frames_but_not_the_trajectory(peer, trajectory):
    """A burst of 60 frames overflows the queue; what comes out is still on the true path."""
    restart(peer)
    numbers = list(range(LEVELS))
    stamps = play(peer, numbers, period=0.0)
    poses = peer.got["trajectory_node/pose"]
    until(lambda: len(poses) >= 5, "poses")
    time.sleep(1.0)
    shown = [stamps[c.stamp_ns(pose.header.stamp)] for pose in poses]
    assert shown == sorted(shown)
    truth = path()[shown]
    unit = 0.7 + 0.1 * (shown[0] % 7)
    np.testing.assert_allclose(
        np.stack([c.pose_to_matrix(pose.pose.pose) for pose in poses]), expected_in_map(truth, unit), atol=1e-5
    )


@pytest.mark.parametrize("name, value, reason", [
    ("checkpoint", "broken", "broken: not a checkpoint"),
    ("window_hop", 5, "window hop is 5; it must be between 1 and 4"),
    ("scale_source", "model", "this checkpoint's unit is scene scale"),
    ("odom_frame", "map", "map_frame and odom_frame are both 'map'; they must differ, or publish_map_to_odom_tf be"),
    ("map_frame", "", "parameter map_frame is empty; it must name a frame"),
    ("image_qos", "maybe", "image_qos is 'maybe'; it must be one of best_effort, reliable"),
])  # fmt: skip
def test_a_bad_parameter_fails_in_configure_with_the_reason(peer, capfd, name, value, reason):
    """And once it was set right, configure works."""
    node = TrajectoryNode("unready", load_pipeline=load, parameter_overrides=[Parameter(name, value=value)])
    try:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        said = capfd.readouterr().err
        assert "cannot be configured: " in said and reason in said
        right = next(parameter.default for parameter in TRAJECTORY if parameter.name == name)
        assert node.set_parameters([Parameter(name, value=right)])[0].successful
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    finally:
        node.destroy_node()


def test_without_the_base_transform_it_says_which_one_is_missing(peer, trajectory, tmp_path):
    """The other node here publishes odom to the optical frame, so this one leaves TF alone."""
    arguments = ["-p", "base_frame:=base_link", "-r", "__node:=based", "-p", "publish_odom_to_base_tf:=false"]
    poses = peer.listen(PoseWithCovarianceStamped, "based/pose", 100)
    statuses = peer.listen(DiagnosticArray, "/diagnostics", 100)

    def said(node):
        return [status.message for array in statuses for status in array.status if node in status.name]

    def rounds(begin):
        """Poses of the first round, and of the second, which begins an hour before."""
        split = [], []
        for pose in list(poses):
            split[c.stamp_ns(pose.header.stamp) < begin + 60 * 10**9].append(pose)
        return split

    arguments += ["-p", "publish_map_to_odom_tf:=false", "-p", "image_qos:=reliable"]
    with Process(tmp_path, "trajectory_node", *arguments) as process:
        process.until_active()
        until(lambda: peer.image.get_subscription_count() >= 2, "its subscription")
        stamps = play(peer, range(6))
        missing = f"the transform from '{OPTICAL}' to base_frame 'base_link' is missing"
        until(lambda: missing in process.text(), "the reason")
        until(lambda: any("no transform from" in text for text in said("based")), "the reason in the diagnostics")
        assert not poses
        mounted = c.T_REP103_OPTICAL.copy()
        mounted[:3, 3] = [0.1, 0.0, 0.4]
        for number in range(6, 12):
            now = peer.node.get_clock().now().nanoseconds
            peer.tf.sendTransform(c.transform_message(np.linalg.inv(mounted), now, OPTICAL, "base_link"))
            stamps[peer.show(number, stamp=now)] = number
            time.sleep(0.06)
        until(lambda: len(poses) >= 4, "poses once TF is there")
        # A bag of an hour begins again, with the camera elsewhere: TF takes nothing that old beside what it has.
        moved, begin = mounted.copy(), peer.node.get_clock().now().nanoseconds - 3600 * 10**9
        moved[:3, 3] = [0.0, 0.3, 0.5]
        for number in range(21, 28):
            at = begin + number * 10**8
            peer.tf.sendTransform(c.transform_message(np.linalg.inv(moved), at, OPTICAL, "base_link"))
            stamps[peer.show(number, stamp=at)] = number
            time.sleep(0.06)
        until(lambda: len(rounds(begin)[1]) >= 5, "poses of the second round")
    sent = {(t.header.frame_id, t.child_frame_id) for m in peer.got["/tf"] for t in m.transforms}
    assert ("odom", "base_link") not in sent, "that was switched off"
    first_round, second_round = rounds(begin)
    for start, mount, found in ((0, mounted, first_round), (21, moved, second_round)):
        for pose in found:
            relative = np.linalg.inv(path()[start]) @ path()[stamps[c.stamp_ns(pose.header.stamp)]]
            relative[:3, 3] *= 0.7
            expected = mount @ relative @ np.linalg.inv(mount)
            np.testing.assert_allclose(c.pose_to_matrix(pose.pose.pose), expected, atol=1e-6)
