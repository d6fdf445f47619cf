# SPDX-License-Identifier: Apache-2.0
"""embedded_ros against a real ROS 2 on the same machine: each test has one side of each, in processes of their own.

This process and those that it starts are on the real rclpy, except those started `without_ros`: they are on
embedded_ros. docs/interop.md says how to run it and what was seen.
"""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import embedded_ros

if embedded_ros.install() != "rclpy" or shutil.which("ros2") is None:
    pytest.skip(
        "needs a sourced ROS 2 Jazzy (rclpy, rmw_cyclonedds_cpp, ros2cli, tf2_ros) and this workspace built by colcon",
        allow_module_level=True,
    )

import rclpy
from action_msgs.msg import GoalStatus
from embedded_process import Process as Program
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.action import ActionClient
from rclpy.time import Time
from wire import OPTICAL, WAIT, WORLD, Process, module_domain, play, until

from rays_as_pixels_ros import conversions as c

if rclpy.get_rmw_implementation_identifier() != "rmw_cyclonedds_cpp":
    pytest.skip("needs RMW_IMPLEMENTATION=rmw_cyclonedds_cpp", allow_module_level=True)
interfaces = pytest.importorskip(
    "rays_as_pixels_interfaces.action", reason="needs rays_as_pixels_interfaces built by colcon and sourced"
)
RenderViews = interfaces.RenderViews

pytestmark = pytest.mark.slow

# A process with this environment sees no ROS 2 and takes embedded_ros.
WITHOUT_ROS = {
    "PYTHONPATH": os.pathsep.join(
        folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        if folder and not any((Path(folder) / name).is_dir() for name in ("rclpy", "rays_as_pixels_interfaces"))
    ),
    "AMENT_PREFIX_PATH": "",
    "LD_LIBRARY_PATH": "",
}  # fmt: skip
VIEWS = ["-p", f"fixed_frame:={WORLD}", "-p", "steps:=5", "-p", "max_views:=6", "-p", "tf_timeout:=0.3"]
NODE = "/view_synthesis_node"


def ros2(*words, seconds=None, timeout=180.0, fails=False):
    """Run the ros2 command line and return what it printed; `seconds`: end it by SIGINT after so long."""
    process = subprocess.Popen(
        ["ros2", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        if seconds is not None:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
        text = process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    print(f"$ ros2 {' '.join(words)}\n{text}")
    assert fails or seconds is not None or process.returncode == 0, text
    return text


def without_ros(start):
    """Call `start` with the environment that a process needs to be on embedded_ros."""
    before = {name: os.environ.get(name, "") for name in WITHOUT_ROS}
    os.environ.update(WITHOUT_ROS)
    try:
        return start()
    finally:
        os.environ.update(before)


@pytest.fixture(scope="module")
def ros_domain():
    """One domain for all tests here; the ros2 daemon that the command line starts in it ends with them."""
    with module_domain() as domain:
        yield domain
        ros2("daemon", "stop", fails=True)


@pytest.fixture(scope="module")
def embedded(peer, tmp_path_factory):
    """The view synthesis node on embedded_ros, after the (real) camera has moved before it."""
    folder = tmp_path_factory.mktemp("embedded")
    with without_ros(lambda: Process(folder, "view_synthesis_node", *VIEWS)) as process:
        process.until_active()
        until(lambda: peer.image.get_subscription_count(), "the subscription of view_synthesis_node")
        play(peer, range(10, 34), truth=True)
        time.sleep(0.3)
        yield process


def goal(*distances, **options):
    poses = [PoseStamped(header=c.header(0, OPTICAL)) for _ in distances]
    for pose, z in zip(poses, distances, strict=True):
        pose.pose.position.z, pose.pose.orientation.w = z, 1.0
    return RenderViews.Goal(poses=poses, **options)


def done(future, what):
    until(future.done, what)
    return future.result()


def brightness(message):
    return int(c.image_to_rgb(message)[0, 0, 0])


# -- actions ---------------------------------------------------------------------------------------------------------
def test_real_client_of_an_embedded_server(peer, embedded):
    client = ActionClient(peer.node, RenderViews, f"{NODE}/render_views")
    assert client.wait_for_server(timeout_sec=WAIT)
    seen = []

    def send(request, feedback=None):
        handle = done(client.send_goal_async(request, feedback_callback=feedback), "the goal's acceptance")
        assert handle.accepted
        return handle

    handle = send(goal(0.2, 0.6, 0.0, steps=6), lambda message: seen.append(message.feedback))
    answer = done(handle.get_result_async(), "the result")
    assert answer.status == GoalStatus.STATUS_SUCCEEDED
    assert [brightness(image) for image in answer.result.images] == [10, 30, 0]
    assert seen and {f.total for f in seen} == {18} and [f.step for f in seen] == sorted({f.step for f in seen})

    handle = send(goal(0.1, steps=60))
    until(lambda: handle.status == GoalStatus.STATUS_EXECUTING, "the status topic to say that it runs")
    cancelled = done(handle.cancel_goal_async(), "the answer to cancel")
    assert len(cancelled.goals_canceling) == 1
    assert done(handle.get_result_async(), "the result").status == GoalStatus.STATUS_CANCELED

    refused = done(send(goal(*[0.1] * 7)).get_result_async(), "the refusal")
    assert refused.status == GoalStatus.STATUS_ABORTED and "max_views" in refused.result.message
    client.destroy()


CLIENT = """
from rclpy.action import ActionClient
from geometry_msgs.msg import PoseStamped
from rays_as_pixels_interfaces.action import RenderViews
assert embedded_ros.runtime() == 'embedded'
rclpy.init()
node = Node('embedded_client')
client = ActionClient(node, RenderViews, '/real/render_views')
assert client.wait_for_server(60.0)
say('server', 'found')
sys.stdin.readline()
def wait(future):
    rclpy.spin_until_future_complete(node, future, timeout_sec=60.0)
    return future.result()
def goal(*distances, **options):
    poses = [PoseStamped() for _ in distances]
    for pose, z in zip(poses, distances):
        pose.header.frame_id, pose.pose.position.z, pose.pose.orientation.w = 'camera_optical', z, 1.0
    return RenderViews.Goal(poses=poses, **options)
steps = []
handle = wait(client.send_goal_async(goal(0.2, 0.6, 0.0, steps=6), lambda m: steps.append(m.feedback.step)))
answer = wait(handle.get_result_async())
say('views', answer.status, [image.data[0] for image in answer.result.images])
say('feedback', len(steps) > 0 and steps == sorted(steps))
handle = wait(client.send_goal_async(goal(0.1, steps=60)))
result = handle.get_result_async()
say('cancelling', len(wait(handle.cancel_goal_async()).goals_canceling))
say('cancelled', wait(result).status)
answer = wait(wait(client.send_goal_async(goal(*[0.1] * 7))).get_result_async())
say('refused', answer.status, 'max_views' in answer.result.message)
node.destroy_node()
rclpy.shutdown()
"""


def test_embedded_client_of_a_real_server(peer, tmp_path):
    with (
        Process(tmp_path, "view_synthesis_node", *VIEWS, "-r", "__node:=real") as process,
        without_ros(lambda: Program(CLIENT)) as client,
    ):
        process.until_active()
        until(lambda: peer.image.get_subscription_count() and peer.node.count_subscribers("image_raw"), "it listens")
        client.line("server")
        play(peer, range(10, 34), truth=True)
        client.tell("go")
        assert client.line("views") == "4 [10, 30, 0]"
        assert client.line("feedback") == "True"
        assert client.line("cancelling") == "1" and client.line("cancelled") == "5"
        assert client.line("refused") == "6 True"
        assert client.wait() == 0, client.errors


# -- the command line on an embedded node ----------------------------------------------------------------------------
def test_ros2_node_list_and_info(embedded):
    assert NODE in ros2("node", "list").split()
    info = ros2("node", "info", NODE)
    assert "/image_raw: sensor_msgs/msg/Image" in info and "/camera_info: sensor_msgs/msg/CameraInfo" in info
    assert f"{NODE}/rendered/image_raw: sensor_msgs/msg/Image" in info
    assert f"{NODE}/set_parameters_atomically: rcl_interfaces/srv/SetParametersAtomically" in info
    assert f"{NODE}/render_views: rays_as_pixels_interfaces/action/RenderViews" in info.split("Action Servers:")[1]


def test_ros2_topic_echo_hz_and_info(peer, embedded):
    info = ros2("topic", "info", "-v", f"{NODE}/rendered/image_raw")
    assert "Publisher count: 1" in info and "Node name: view_synthesis_node" in info
    assert "Topic type hash: RIHS01_" in info and "sensor_msgs/msg/Image" in info
    with without_ros(lambda: Program(TALKER)) as talker:
        talker.line("ready")
        assert "data: word" in ros2("topic", "echo", "--once", "/words", "std_msgs/msg/String")
        assert "average rate:" in ros2("topic", "hz", "/words", seconds=40)
        latched = ("--qos-durability", "transient_local", "--qos-reliability", "reliable")
        assert "data: once" in ros2("topic", "echo", "--once", *latched, "/latched", "std_msgs/msg/String")
        assert talker.stop() == 0


TALKER = """
from std_msgs.msg import String
from rclpy.qos import DurabilityPolicy, QoSProfile
assert embedded_ros.runtime() == 'embedded'
rclpy.init()
node = Node('talker')
words = node.create_publisher(String, '/words', 10)
node.create_timer(0.05, lambda: words.publish(String(data='word')))
latched = node.create_publisher(String, '/latched', QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
latched.publish(String(data='once'))
say('ready')
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


def test_ros2_param(embedded):
    listed = ros2("param", "list", NODE).split()
    assert "steps" in listed and "use_sim_time" in listed
    assert "Integer value is: 5" in ros2("param", "get", NODE, "steps")
    described = ros2("param", "describe", NODE, "steps")
    assert "Type: integer" in described and "Description:" in described and "Max value:" in described
    assert "successful" in ros2("param", "set", NODE, "steps", "6")
    assert "Integer value is: 6" in ros2("param", "get", NODE, "steps")
    assert "range" in ros2("param", "set", NODE, "steps", "-7", fails=True)
    assert "steps: 6" in ros2("param", "dump", NODE)
    assert "successful" in ros2("param", "set", NODE, "steps", "5")


def test_ros2_action(embedded):
    assert "Action servers: 1" in ros2("action", "info", f"{NODE}/render_views")
    text = "{poses: [{header: {frame_id: " + OPTICAL + "}, pose: {position: {z: 0.2}}}], steps: 3}"
    kind = "rays_as_pixels_interfaces/action/RenderViews"
    sent = ros2("action", "send_goal", "-f", f"{NODE}/render_views", kind, text)
    assert "Goal accepted" in sent and "Goal finished with status: SUCCEEDED" in sent
    assert "Feedback:" in sent and "total: 3" in sent


def test_ros2_lifecycle_and_service(embedded):
    assert NODE in ros2("lifecycle", "nodes").split()
    assert "active [3]" in ros2("lifecycle", "get", NODE)
    assert "deactivate [4]" in ros2("lifecycle", "list", NODE)
    assert "successful" in ros2("lifecycle", "set", NODE, "deactivate")
    state = ros2("service", "call", f"{NODE}/get_state", "lifecycle_msgs/srv/GetState", "{}")
    assert "id=2, label='inactive'" in state
    assert "successful" in ros2("lifecycle", "set", NODE, "activate")
    assert "active [3]" in ros2("lifecycle", "get", NODE)


# -- tf2 -------------------------------------------------------------------------------------------------------------
def transform(parent, child, x, seconds=0.0):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, Time(nanoseconds=int(seconds * 1e9)).to_msg()
    message.transform.translation.x, message.transform.rotation.w = x, 1.0
    return message


SENDER = """
from geometry_msgs.msg import TransformStamped
from rclpy.time import Time
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster
assert embedded_ros.runtime() == 'embedded'
rclpy.init()
node = Node('sender')
def transform(parent, child, x, seconds=0.0):
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, Time(nanoseconds=int(seconds * 1e9)).to_msg()
    message.transform.translation.x, message.transform.rotation.w = x, 1.0
    return message
StaticTransformBroadcaster(node).sendTransform(transform('base', 'camera', 0.5))
moving = TransformBroadcaster(node)
node.create_timer(0.1, lambda: [moving.sendTransform(transform('odom', 'base', x, x)) for x in (10.0, 20.0)])
say('ready')
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


def test_a_real_buffer_over_embedded_broadcasters(peer):
    from tf2_ros import Buffer, TransformListener

    buffer = Buffer()
    listener = TransformListener(buffer, peer.node)
    with without_ros(lambda: Program(SENDER)) as sender:
        sender.line("ready")
        at = Time(seconds=13)
        until(lambda: buffer.can_transform("odom", "camera", at), "the chain odom, base, camera")
        found = buffer.lookup_transform("odom", "camera", at)
        assert found.transform.translation.x == pytest.approx(13.5)
        assert sender.stop() == 0
    listener.unregister()


LOOKER = """
import threading
from rclpy.duration import Duration
from rclpy.time import Time
from tf2_ros import Buffer, TransformListener
assert embedded_ros.runtime() == 'embedded'
rclpy.init()
node = Node('looker')
buffer = Buffer()
listener = TransformListener(buffer, node)
threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
say('ready')
found = buffer.lookup_transform('odom', 'camera', Time(seconds=13), timeout=Duration(seconds=60))
say('x', found.transform.translation.x)
rclpy.shutdown()
"""


def test_an_embedded_buffer_waits_for_real_broadcasters(peer):
    from tf2_ros import StaticTransformBroadcaster

    static = StaticTransformBroadcaster(peer.node)
    static.sendTransform(transform("base", "camera", 0.5))
    with without_ros(lambda: Program(LOOKER)) as looker:
        looker.line("ready")
        end = time.monotonic() + 60
        while looker.alive() and time.monotonic() < end:
            peer.tf.sendTransform(transform("odom", "base", 10.0, 10.0))
            peer.tf.sendTransform(transform("odom", "base", 20.0, 20.0))
            time.sleep(0.2)
        assert float(looker.line("x")) == pytest.approx(13.5)
        assert looker.wait() == 0, looker.errors


# -- the nodes under ros2 launch, a camera on embedded_ros ------------------------------------------------------------
def test_ros2_launch_runs_the_nodes_on_the_real_rclpy(peer, tmp_path, repository):
    from geometry_msgs.msg import PoseWithCovarianceStamped

    index = pytest.importorskip("ament_index_python", reason="needs a sourced ROS 2 (ament_index_python)")
    try:
        index.get_package_prefix("rays_as_pixels_ros")
    except index.PackageNotFoundError:
        pytest.skip("needs rays_as_pixels_ros built by colcon and sourced")
    poses = peer.listen(PoseWithCovarianceStamped, "/launched/trajectory_node/pose")
    log = tmp_path / "launch.log"
    command = ["ros2", "launch", "rays_as_pixels_ros", "rays_as_pixels.launch.py", "namespace:=launched", "device:=cpu"]
    command.append(f"params_file:={repository / 'config' / 'demo.yaml'}")  # no base_frame, so no transform is missing
    with log.open("wb") as output:
        launch = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        until(lambda: log.read_text().count("active: listening") == 2 or launch.poll() is not None, "both nodes", 300)
        assert launch.poll() is None, log.read_text()
        entry = ("-m", "rays_as_pixels_ros.entry_points")
        options = ["-p", "at_end:=loop", "-p", "rate:=2.0", "-r", "__ns:=/launched"]
        with without_ros(lambda: Process(tmp_path, "camera_player", *options, command=entry)) as player:
            until(lambda: len(poses) >= 3 or not player.alive() or launch.poll() is not None, "poses", 300)
        assert len(poses) >= 3, log.read_text()
        assert poses[-1].header.frame_id
    finally:
        if launch.poll() is None:
            launch.send_signal(signal.SIGINT)
        code = launch.wait(120)
    assert code == 0, log.read_text()


def test_type_hashes_are_the_real_ones(peer, embedded):
    for topic in ("/image_raw", "/camera_info", "/tf", "/parameter_events", "/rosout"):
        found = peer.node.get_publishers_info_by_topic(topic) + peer.node.get_subscriptions_info_by_topic(topic)
        hashes = {info.node_name: str(info.topic_type_hash) for info in found}
        assert hashes["view_synthesis_node"] == hashes["peer"] != "INVALID", topic
