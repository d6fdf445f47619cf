# SPDX-License-Identifier: Apache-2.0
"""Two robots side by side, each with a trajectory_node process in its own namespace: what they meet in the field.

The tests follow each other on the same processes: robot2's camera is compressed and its metres come from odometry;
it runs in simulated time, as from a bag that loops. robot1's camera stops and resumes, its node is killed and started
again over a slow model; both end by signals.
"""

import os
import signal
import time

import cv2
import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Odometry
from nav_msgs.msg import Path as PathMessage
from pixel_pipeline import path, picture
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage
from wire import CAMERA, LATCHED, START, Peer, Process, module_domain, play_in_step, until

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_ros import conversions as c

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
METRES = 3.0  # for one metre of the known path, as robot2's wheels count


class Camera:
    """A camera in a robot's namespace, and what the robot's node says."""

    def __init__(self, peer, robot, compressed=False, intrinsics=CAMERA, simulated=False):
        self.peer, self.robot, self.compressed, self.intrinsics = peer, robot, compressed, intrinsics
        topic, kind = ("image_raw/compressed", CompressedImage) if compressed else ("image_raw", Image)
        self.image = peer.node.create_publisher(kind, f"{robot}/{topic}", 10)
        self.info = peer.node.create_publisher(CameraInfo, f"{robot}/camera_info", 10)
        self.odometry = peer.node.create_publisher(Odometry, f"{robot}/odometry_in", 10)
        self.poses = peer.listen(PoseWithCovarianceStamped, f"{robot}/trajectory_node/pose", 100)
        self.stamps = {}
        self.time = 10**9 if simulated else None
        self.clock = peer.node.create_publisher(Clock, "/clock", 10) if simulated else None

    def tick(self):
        """Return a stamp; simulated time goes on by 0.2 s."""
        if self.clock is None:
            return self.peer.node.get_clock().now().nanoseconds
        self.time += 200_000_000
        self.clock.publish(Clock(clock=c.stamp_message(self.time)))
        return self.time

    def show(self, index):
        """Publish image `index` of the known path and where the wheels say that the robot is."""
        stamp, frame = self.tick(), f"{self.robot}/camera"
        rgb = picture(index, self.intrinsics.height, self.intrinsics.width)
        if self.compressed:
            message = CompressedImage(format="png", data=cv2.imencode(".png", rgb)[1].tobytes())
            message.header = c.header(stamp, frame)
        else:
            message = c.rgb_to_image(rgb, stamp, frame)
        odometry = Odometry(header=c.header(stamp, "wheels"))
        odometry.pose.pose = c.matrix_to_pose(np.diag([METRES, METRES, METRES, 1.0]) @ path()[index] @ np.diag(
            [1 / METRES, 1 / METRES, 1 / METRES, 1.0]))  # fmt: skip
        self.odometry.publish(odometry)
        self.info.publish(c.camera_info(self.intrinsics, stamp, frame))
        self.image.publish(message)
        self.stamps[stamp] = index
        return stamp

    def index(self, pose):
        """Number of the image that a pose belongs to."""
        return self.stamps[c.stamp_ns(pose.header.stamp)]


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here."""
    with module_domain() as domain:
        yield domain


@pytest.fixture(scope="module")
def peer(ros_domain):
    peer = Peer(camera=False)
    peer.listen(TFMessage, "/tf", 100)
    peer.listen(TFMessage, "/robot2/tf", 100)
    peer.listen(DiagnosticArray, "/diagnostics", 100)
    yield peer
    peer.close()


def start(folder, robot, *arguments):
    frames = [f"-p {name}_frame:={robot}/{name}" for name in ("map", "odom")]
    given = " ".join(["-p base_frame:=''", *frames, f"-r __ns:=/{robot}", *arguments]).split(" ")
    return Process(folder, "trajectory_node", *given)


@pytest.fixture(scope="module")
def robots(peer, tmp_path_factory):
    """Both processes, by robot; tests may replace them."""
    folder = tmp_path_factory.mktemp("robots")
    running = {
        "robot1": start(folder, "robot1", "-p silence_timeout:=1.0"),
        "robot2": start(folder, "robot2", "-p image_transport:=compressed", "-p scale_source:=odometry",
                        "-p use_sim_time:=true", "-r /tf:=tf", "-r /tf_static:=tf_static"),
    }  # fmt: skip
    try:
        for process in running.values():
            process.until_active()
        yield running
    finally:
        for process in running.values():
            process.stop()


@pytest.fixture(scope="module")
def cameras(peer, robots):
    made = {"robot1": Camera(peer, "robot1"), "robot2": Camera(peer, "robot2", compressed=True, simulated=True)}
    for camera in made.values():
        wait_for_listeners(camera)
    return made


def wait_for_listeners(camera):
    until(lambda: camera.image.get_subscription_count() and camera.info.get_subscription_count(), "subscriptions")
    until(lambda: camera.peer.node.count_publishers(f"{camera.robot}/trajectory_node/pose"), "its publishers")


def last_status(peer, name):
    """The newest diagnostics of a node: level and table."""
    for message in reversed(peer.got["/diagnostics"]):
        for status in message.status:
            if status.name == f"{name}: camera":
                return status.level, {row.key: row.value for row in status.values}
    return None, {}


def test_each_has_its_own_frames_topics_and_unit(peer, robots, cameras):
    one, two = cameras["robot1"].poses, cameras["robot2"].poses

    def show(number):
        cameras["robot2"].show(40 - number)
        return cameras["robot1"].show(number)

    play_in_step(show, range(15), one)
    until(lambda: len(two) >= 2, f"poses of robot2\n{robots['robot2'].text()}")
    assert {pose.header.frame_id for pose in one} == {"robot1/map"}
    assert {pose.header.frame_id for pose in two} == {"robot2/map"}
    # robot1 in the unit of its first window, robot2 in metres of its wheels from where its scale was known.
    for robot, poses, unit in (("robot1", list(one), 0.7), ("robot2", list(two), METRES)):
        truth = path()[[cameras[robot].index(pose) for pose in poses]]
        found = np.stack([c.pose_to_matrix(pose.pose.pose) for pose in poses])
        moved, expected = np.linalg.inv(found[0]) @ found, np.linalg.inv(truth[0]) @ truth
        expected[:, :3, 3] *= unit
        np.testing.assert_allclose(moved, expected, atol=1e-5)
    frames = {
        topic: {t.child_frame_id for m in peer.got[topic] for t in m.transforms} for topic in ("/tf", "/robot2/tf")
    }
    assert frames["/tf"] == {"robot1/odom", "robot1/camera"}, "robot2 has /tf remapped into its namespace"
    assert frames["/robot2/tf"] == {"robot2/odom", "robot2/camera"}
    for robot in robots:
        until(lambda r=robot: last_status(peer, f"/{r}/trajectory_node")[1].get("poses"), f"diagnostics of {robot}")
    table = last_status(peer, "/robot2/trajectory_node")[1]
    assert (table["scale source"], table["unit of the trajectory"]) == ("odometry", "metre")
    assert float(table["metres per unit"]) * (0.7 + 0.1 * (40 % 7)) == pytest.approx(METRES, rel=1e-3)
    assert last_status(peer, "/robot1/trajectory_node")[1]["unit of the trajectory"] == "scene scale, not metres"
    # 4 (of the calibration, refined) times 1 cm, in the unit of the first window; the first pose is the map itself.
    covariance = np.asarray(one[4].pose.covariance).reshape(6, 6)
    assert np.trace(covariance[:3, :3]) > 3 * (4 * 0.01 * 0.7) ** 2
    assert 0 < np.trace(np.asarray(one[0].pose.covariance).reshape(6, 6)) < 1e-5
    assert np.linalg.eigvalsh(covariance).min() > 0


def test_a_bag_that_loops_starts_anew(peer, robots, cameras):
    camera = cameras["robot2"]
    camera.time, camera.stamps = 10**9, {}  # the same stamps again
    camera.poses.clear()
    for number in range(20, 32):
        camera.show(number)
        time.sleep(0.06)
    until(lambda: len(camera.poses) >= 5, "poses of the second round")
    assert "time went back by 2.800 s (a bag that loops?): reset" in robots["robot2"].text()
    assert {c.stamp_ns(pose.header.stamp) for pose in camera.poses} <= set(camera.stamps)
    found = [c.pose_to_matrix(pose.pose.pose) for pose in (camera.poses[0], camera.poses[-1])]
    truth = path()[[camera.index(pose) for pose in (camera.poses[0], camera.poses[-1])]]
    expected = np.linalg.inv(truth[0]) @ truth[1]
    expected[:3, 3] *= METRES
    np.testing.assert_allclose(np.linalg.inv(found[0]) @ found[1], expected, atol=1e-5)


def test_a_camera_that_stops_is_named_and_may_resume(peer, robots, cameras):
    camera, log = cameras["robot1"], robots["robot1"].text
    camera.poses.clear()
    warning = (
        "no image on /robot1/image_raw for 1 s; this node asks for sensor_msgs/msg/Image (best effort, volatile, keep "
        "last 5); publishers: /peer offers sensor_msgs/msg/Image (reliable, volatile"
    )
    until(lambda: warning in log(), f"the warning\n{log()}")
    until(lambda: last_status(peer, "/robot1/trajectory_node")[0] == b"\x01", "a warning in the diagnostics")
    play_in_step(camera.show, range(15, 23), camera.poses, length=2)
    expected = np.linalg.inv(path()[0]) @ path()[camera.index(camera.poses[-1])]
    expected[:3, 3] *= 0.7
    found = c.pose_to_matrix(camera.poses[-1].pose.pose)
    np.testing.assert_allclose(found, c.T_REP103_OPTICAL @ expected, atol=1e-5)  # the trajectory goes on


def test_ends_that_do_not_fit_are_named(peer, robots):
    log = robots["robot1"].text
    asks_too_much = peer.node.create_subscription(
        PoseWithCovarianceStamped, "robot1/trajectory_node/pose", print, LATCHED
    )
    wrong_type = peer.node.create_publisher(CompressedImage, "robot1/image_raw", 10)
    until(lambda: log().count("nothing passes on") >= 2, f"two warnings\n{log()}")
    assert (
        "nothing passes on /robot1/trajectory_node/pose: volatile is offered, transient local is asked for; this node "
        "offers geometry_msgs/msg/PoseWithCovarianceStamped (reliable, volatile, keep last 10), /peer asks for "
        "geometry_msgs/msg/PoseWithCovarianceStamped (reliable, transient local"
    ) in log()
    assert (
        "nothing passes on /robot1/image_raw: the types differ; this node asks for sensor_msgs/msg/Image (best effort, "
        "volatile, keep last 5), /peer offers sensor_msgs/msg/CompressedImage (reliable, volatile"
    ) in log()
    peer.node.destroy_subscription(asks_too_much)
    peer.node.destroy_publisher(wrong_type)


def test_a_killed_node_comes_back_and_a_slow_model_drops_the_oldest(peer, robots, cameras, tmp_path):
    robots["robot1"].kill()
    robots["robot1"] = restarted = start(tmp_path, "robot1", "-p checkpoint:=slow", "-p queue_size:=6")
    restarted.until_active()
    large = Camera(peer, "robot1", intrinsics=Intrinsics.from_fov(70.0, 640, 480))
    wait_for_listeners(large)
    late = peer.listen(PathMessage, "robot1/trajectory_node/path", LATCHED)
    shown, memory, waiting = [], [], []
    while len(shown) < 60:  # 0.3 s a window of 2 new images, ten images a second
        shown.append(large.stamps[large.show(len(shown))])
        time.sleep(0.1)
        _, table = last_status(peer, "/robot1/trajectory_node")
        if table.get("dropped images"):
            memory.append(int(table["memory (MiB)"]))
            waiting.append(int(table["images waiting"]))
    until(lambda: large.poses and large.index(large.poses[-1]) >= 57, f"the newest images\n{restarted.text()}")
    indices = [large.index(pose) for pose in large.poses]
    assert indices == sorted(indices) and len(indices) < 50, "some were dropped, none came twice"
    assert max(waiting) <= 6 and "images dropped so far" in restarted.text()
    assert memory[-1] - memory[len(memory) // 4] < 20, f"60 images are 55 MB: {memory}"
    assert late and c.stamp_ns(late[0].poses[0].header.stamp) in large.stamps, "a path of the new process only"


def test_signals_leave_nothing_behind(peer, robots, tmp_path):
    names = {("trajectory_node", "/robot1"), ("trajectory_node", "/robot2")}
    until(lambda: names <= set(peer.node.get_node_names_and_namespaces()), "both nodes in the graph")
    for robot, number in (("robot1", signal.SIGINT), ("robot2", signal.SIGTERM)):
        process = robots[robot]
        children = f"/proc/{process.pid}/task/{process.pid}/children"
        assert not os.path.exists(children) or not open(children).read(), "no process of its own"
        assert process.stop(number) == 0, process.text()
        assert "Traceback" not in process.text(), process.text()
    until(lambda: not names & set(peer.node.get_node_names_and_namespaces()), "the graph without them", START)
    assert not peer.node.count_publishers("robot1/trajectory_node/pose")
    assert not peer.node.count_subscribers("robot2/image_raw/compressed")
