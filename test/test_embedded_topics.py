# SPDX-License-Identifier: Apache-2.0
"""Topics, QoS, names, remapping, parameters and signals of embedded_ros, between processes over loopback."""

import signal

import numpy as np
import pytest
from embedded_process import Process, spin_until

import embedded_ros

if embedded_ros.install() == "rclpy":
    pytest.skip("a real rclpy is sourced: embedded_ros is not in use", allow_module_level=True)

import rclpy
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
SPIN = """
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
finally:
    node.destroy_node()
    rclpy.try_shutdown()
"""
ECHO = (
    """
from std_msgs.msg import String
from sensor_msgs.msg import CameraInfo, Image
from geometry_msgs.msg import PoseWithCovarianceStamped
from nav_msgs.msg import Path
from rclpy.qos import QoSProfile, ReliabilityPolicy
rclpy.init()
node = Node('echo')
for kind in (String, Image, CameraInfo, PoseWithCovarianceStamped, Path):
    for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT):
        name = f'{kind.__name__}_{reliability.name}'
        qos = QoSProfile(depth=5, reliability=reliability)
        publisher = node.create_publisher(kind, 'back/' + name, qos)
        node.create_subscription(kind, 'there/' + name, publisher.publish, qos)
say('ready')
"""
    + SPIN
)


def _messages():
    image = Image(height=480, width=640, encoding="rgb8", step=1920)
    image.data = np.random.default_rng(1).integers(0, 256, 640 * 480 * 3, np.uint8).tobytes()
    pose = PoseWithCovarianceStamped()
    pose.pose.covariance = np.arange(36, dtype=float)
    path = Path()
    path.header.frame_id = "map"
    for i in range(1024):
        stamped = PoseStamped()
        stamped.pose.position.x = float(i)
        path.poses.append(stamped)
    return [
        String(data="grüße"),
        image,
        CameraInfo(d=[0.1, 0.2, 0.3, 0.4, 0.5], k=[float(i) for i in range(9)]),
        pose,
        path,
    ]


def test_messages_go_to_another_process_and_back_with_both_reliabilities(node):
    with Process(ECHO) as echo:
        echo.line("ready")
        for message in _messages():
            for reliability in (ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT):
                name = f"{type(message).__name__}_{reliability.name}"
                qos = QoSProfile(depth=5, reliability=reliability)
                received = []
                publisher = node.create_publisher(type(message), "there/" + name, qos)
                subscription = node.create_subscription(type(message), "back/" + name, received.append, qos)
                assert spin_until(
                    node, lambda p=publisher, s=subscription: p.get_subscription_count() and s.get_publisher_count()
                )
                for _ in range(20):  # best effort may lose one
                    publisher.publish(message)
                    if spin_until(node, lambda r=received: r, 0.5):
                        break
                assert received and received[0] == message, name
        assert echo.stop() == 0


def test_late_joiner_gets_the_latched_message_and_a_volatile_one_is_gone(node):
    code = (
        """
from std_msgs.msg import String
from rclpy.qos import QoSProfile, DurabilityPolicy
rclpy.init()
node = Node('early')
latched = node.create_publisher(String, 'latched', QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL))
volatile = node.create_publisher(String, 'volatile', 10)
for i in range(3):
    latched.publish(String(data=str(i)))
    volatile.publish(String(data=str(i)))
say('ready')
"""
        + SPIN
    )
    with Process(code) as early:
        early.line("ready")
        latched, volatile = [], []
        node.create_subscription(String, "latched", latched.append, LATCHED)
        node.create_subscription(String, "volatile", volatile.append, 10)
        assert spin_until(node, lambda: latched)
        spin_until(node, lambda: volatile, 0.5)
        assert [message.data for message in latched] == ["2"] and volatile == []
        assert early.stop(signal.SIGTERM) == 0


def test_incompatible_qos_is_seen_by_both_sides(node):
    code = (
        """
from std_msgs.msg import String
from rclpy.qos import QoSProfile, ReliabilityPolicy
rclpy.init()
node = Node('lossy', namespace='there')
node.create_publisher(String, '/words', QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
say('ready')
"""
        + SPIN
    )
    with Process(code) as lossy:
        lossy.line("ready")
        subscription = node.create_subscription(String, "words", lambda _: None, 10)
        assert spin_until(node, lambda: subscription.incompatible_peers())
        assert subscription.get_publisher_count() == 0
        assert spin_until(node, lambda: [i.node_name for i in node.get_publishers_info_by_topic("words")] == ["lossy"])
        info = node.get_publishers_info_by_topic("words")[0]
        assert (info.node_namespace, info.topic_type) == ("/there", "std_msgs/msg/String")
        assert info.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
        assert node.count_subscribers("words") == 1 and node.count_publishers("words") == 1


PARAMETERS = (
    """
from rcl_interfaces.msg import ParameterDescriptor, FloatingPointRange, SetParametersResult
from std_msgs.msg import String
rclpy.init()
node = Node('given')
limit = ParameterDescriptor(floating_point_range=[FloatingPointRange(from_value=0.0, to_value=10.0)])
for name, default in (('rate', 1.0), ('frames', 5), ('model', 'none'), ('sizes', [1, 2]), ('camera.frame', 'x')):
    node.declare_parameter(name, default, limit if name == 'rate' else None)
say('name', node.get_fully_qualified_name())
say('values', [node.get_parameter(n).value for n in ('rate', 'frames', 'model', 'sizes', 'camera.frame')])
def refuse(parameters):
    return SetParametersResult(successful=all(p.value != 13 for p in parameters), reason='unlucky')
node.add_on_set_parameters_callback(refuse)
publisher = node.create_publisher(String, 'words', 10)
say('topic', publisher.topic_name)
say('private', node.create_publisher(String, '~/own', 10).topic_name)
"""
    + SPIN
)


def test_parameters_from_yaml_and_command_line_remapping_and_namespace(node, tmp_path):
    file = tmp_path / "parameters.yaml"
    file.write_text(
        "/**:\n  ros__parameters: {rate: 2.0, frames: 9, camera: {frame: all}}\n"
        "/robot/other:\n  ros__parameters: {frames: 1}\n"
        "/robot:\n  renamed:\n    ros__parameters: {model: small, sizes: [3, 4, 5]}\n"
    )
    arguments = ["--ros-args", "-r", "__node:=renamed", "-r", "__ns:=/robot", "--params-file", str(file)]
    arguments += ["-p", "rate:=1e-1", "-r", "words:=/spoken", "--log-level", "error"]
    with Process(PARAMETERS, *arguments) as given:
        assert given.line("name") == "/robot/renamed"
        assert given.line("values") == "[0.1, 9, 'small', [3, 4, 5], 'all']"
        assert given.line("topic") == "/spoken"
        assert given.line("private") == "/robot/renamed/own"

        from rcl_interfaces.srv import DescribeParameters, GetParameters, ListParameters, SetParameters
        from rclpy.parameter import Parameter

        def call(kind, name, request):
            client = node.create_client(kind, f"/robot/renamed/{name}")
            assert client.wait_for_service(30.0)
            future = client.call_async(request)
            rclpy.spin_until_future_complete(node, future, timeout_sec=30.0)
            return future.result()

        listed = call(ListParameters, "list_parameters", ListParameters.Request()).result.names
        assert listed == ["camera.frame", "frames", "model", "rate", "sizes", "use_sim_time"]
        wanted = [Parameter("frames", value=7), Parameter("rate", value=11.0), Parameter("frames", value=13)]
        wanted += [Parameter("frames", value="seven"), Parameter("absent", value=1)]
        request = SetParameters.Request(parameters=[p.to_parameter_msg() for p in wanted])
        results = call(SetParameters, "set_parameters", request).results
        assert [r.successful for r in results] == [True, False, False, False, False]
        assert "range" in results[1].reason and results[2].reason == "unlucky"
        values = call(GetParameters, "get_parameters", GetParameters.Request(names=["frames", "rate"])).values
        assert (values[0].integer_value, values[1].double_value) == (7, 0.1)
        described = call(DescribeParameters, "describe_parameters", DescribeParameters.Request(names=["rate"]))
        assert described.descriptors[0].floating_point_range[0].to_value == 10.0
        assert given.stop() == 0


def test_bad_parameter_values_are_refused_at_declaration(ros_domain):
    from rclpy.exceptions import InvalidParameterTypeException, ParameterAlreadyDeclaredException

    rclpy.init(args=["--ros-args", "-p", "frames:=many"])
    node = Node("strict")
    try:
        with pytest.raises(InvalidParameterTypeException, match="frames"):
            node.declare_parameter("frames", 5)
        node.declare_parameter("rate", 5.0)
        with pytest.raises(ParameterAlreadyDeclaredException):
            node.declare_parameter("rate", 5.0)
    finally:
        rclpy.shutdown()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_a_node_cleanly_and_leave_no_ghost(node, number):
    code = """
from rclpy.executors import MultiThreadedExecutor
rclpy.init()
node = Node('mortal')
node.create_timer(0.01, lambda: None)
executor = MultiThreadedExecutor(2)
executor.add_node(node)
try:
    say('ready')
    executor.spin()
    say('spin returned')
except KeyboardInterrupt:
    say('interrupted')
except ExternalShutdownException:
    say('shut down')
say('ok', rclpy.ok())
"""
    with Process(code) as mortal:
        mortal.line("ready")
        assert spin_until(node, lambda: "mortal" in node.get_node_names())
        assert mortal.stop(number) == 0, mortal.errors
        # Between two waits spin() returns, during one it raises.
        assert mortal.line() in (["interrupted"] if number == signal.SIGINT else ["shut down", "spin returned"])
        assert mortal.line("ok") == "False"
        assert spin_until(node, lambda: "mortal" not in node.get_node_names(), 5)


def test_exception_in_a_callback_ends_spin(node):
    def fail():
        raise ValueError("from the timer")

    node.create_timer(0.01, fail)
    with pytest.raises(ValueError, match="from the timer"):
        spin_until(node, lambda: False)


def test_simulated_time_drives_clock_and_timers(ros_domain):
    from rosgraph_msgs.msg import Clock

    rclpy.init(args=["--ros-args", "-p", "use_sim_time:=true"])
    node = Node("follower")
    try:
        calls = []
        node.create_timer(1.0, lambda: calls.append(node.get_clock().now().nanoseconds))
        publisher = node.create_publisher(Clock, "/clock", BEST_EFFORT)
        for second in range(1, 6):
            message = Clock()
            message.clock.sec = 100 + second
            publisher.publish(message)
            assert spin_until(node, lambda s=second: node.get_clock().now().nanoseconds == (100 + s) * 10**9)
            spin_until(node, lambda: False, 0.05)
        assert len(calls) == 4 and calls[-1] == 105 * 10**9
    finally:
        rclpy.shutdown()
