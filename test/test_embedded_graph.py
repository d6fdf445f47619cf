# SPDX-License-Identifier: Apache-2.0
"""Parameter services, callback groups, graph queries and named refusals of embedded_ros, between processes."""

import time

import pytest
from embedded_process import Process, spin_until

import embedded_ros

if embedded_ros.install() == "rclpy":
    pytest.skip("a real rclpy is sourced: embedded_ros is not in use", allow_module_level=True)

import rclpy
from std_msgs.msg import String
from std_srvs.srv import Trigger

SPIN = """
say('ready')
try:
    executor.spin()
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""
PARAMETERS = (
    """
from rclpy.executors import SingleThreadedExecutor
from rcl_interfaces.msg import FloatingPointRange, ParameterDescriptor
rclpy.init()
node = Node('holder')
node.declare_parameter('rate', 2.0, ParameterDescriptor(
    description='images a second', floating_point_range=[FloatingPointRange(from_value=0.0, to_value=10.0)]))
node.declare_parameter('model', 'small', ParameterDescriptor(description='set at start', read_only=True))
node.declare_parameter('camera.left.frame', 'left')
node.declare_parameter('camera.gain', 3)
node.declare_parameter('sizes', [1, 2])
executor = SingleThreadedExecutor()
executor.add_node(node)
"""
    + SPIN
)
GROUPS = (
    """
import threading
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from std_srvs.srv import Trigger
rclpy.init()
node = Node('groups')
lock, now, most = threading.Lock(), {}, {}
def serve(name):
    def callback(request, response):
        with lock:
            now[name] = now.get(name, 0) + 1
            most[name] = max(most.get(name, 0), now[name])
        time.sleep(0.15)
        with lock:
            now[name] -= 1
        response.message = str(most[name])
        return response
    return callback
for name, group in (('exclusive', MutuallyExclusiveCallbackGroup()), ('reentrant', ReentrantCallbackGroup())):
    node.create_service(Trigger, name, serve(name), callback_group=group)
executor = MultiThreadedExecutor(4)
executor.add_node(node)
"""
    + SPIN
)


def _call(node, kind, name, request):
    client = node.create_client(kind, name)
    assert client.wait_for_service(30.0)
    future = client.call_async(request)
    rclpy.spin_until_future_complete(node, future, timeout_sec=30.0)
    node.destroy_client(client)
    return future.result()


def test_all_six_parameter_services(node):
    from rcl_interfaces import srv
    from rclpy.parameter import Parameter

    def ask(name, **fields):
        kind = getattr(srv, "".join(word.capitalize() for word in name.split("_")))
        return _call(node, kind, f"/holder/{name}", kind.Request(**fields))

    def message(name, value):
        return Parameter(name, value=value).to_parameter_msg()

    def values(*names):
        return [Parameter.from_parameter_msg(_named(v)).value for v in ask("get_parameters", names=names).values]

    def _named(value):
        from rcl_interfaces.msg import Parameter as Message

        return Message(name="x", value=value)

    with Process(PARAMETERS) as holder:
        holder.line("ready")
        found = ask("list_parameters", prefixes=["camera"], depth=0).result
        assert (found.names, found.prefixes) == (["camera.gain", "camera.left.frame"], ["camera", "camera.left"])
        assert ask("list_parameters", prefixes=["camera"], depth=1).result.names == ["camera.gain"]
        assert "camera.gain" not in ask("list_parameters", depth=1).result.names

        types = ask("get_parameter_types", names=["rate", "model", "camera.gain", "sizes"]).types
        assert list(types) == [Parameter.Type.DOUBLE, Parameter.Type.STRING, Parameter.Type.INTEGER, 7]
        rate, model = ask("describe_parameters", names=["rate", "model"]).descriptors
        assert (rate.description, rate.floating_point_range[0].to_value) == ("images a second", 10.0)
        assert (model.description, model.read_only, rate.read_only) == ("set at start", True, False)

        refused = ask("set_parameters", parameters=[message("model", "large")]).results[0]
        assert not refused.successful and "read-only" in refused.reason
        together = ask("set_parameters_atomically", parameters=[message("camera.gain", 9), message("rate", 99.0)])
        assert not together.result.successful and "range" in together.result.reason
        assert values("camera.gain", "rate", "model") == [3, 2.0, "small"]  # all or none
        together = ask("set_parameters_atomically", parameters=[message("camera.gain", 9), message("rate", 9.0)])
        assert together.result.successful and values("camera.gain", "rate") == [9, 9.0]
        assert not ask("get_parameters", names=["rate", "absent"]).values
        assert holder.stop() == 0


@pytest.mark.parametrize(("group", "at_once"), [("exclusive", "1"), ("reentrant", "several")])
def test_callback_groups_decide_what_runs_at_the_same_time(node, group, at_once):
    with Process(GROUPS) as server:
        server.line("ready")
        client = node.create_client(Trigger, group)
        assert client.wait_for_service(30.0)
        futures = [client.call_async(Trigger.Request()) for _ in range(4)]
        assert spin_until(node, lambda: all(future.done() for future in futures))
        most = max(int(future.result().message) for future in futures)
        assert (most == 1) if at_once == "1" else (most > 1)
        assert server.stop() == 0


OWNER = (
    """
from rclpy.executors import SingleThreadedExecutor
from std_msgs.msg import String
from std_srvs.srv import Trigger
rclpy.init()
node = Node('owner', namespace='/robot')
node.create_publisher(String, 'spoken', 1)
node.create_subscription(String, 'heard', lambda message: None, 1)
node.create_service(Trigger, 'served', lambda request, response: response)
node.create_client(Trigger, 'called')
executor = SingleThreadedExecutor()
executor.add_node(node)
"""
    + SPIN
)


def test_who_owns_what_on_the_network(node):
    from rclpy.topic_endpoint_info import TopicEndpointTypeEnum

    string, trigger, owner = ["std_msgs/msg/String"], ["std_srvs/srv/Trigger"], ("owner", "/robot")
    node.create_publisher(String, "/mine", 1)
    with Process(OWNER) as process:
        process.line("ready")
        assert spin_until(node, lambda: "/robot/owner" in node.get_fully_qualified_node_names())
        # Writers and readers are discovered one by one, in no set order.
        assert spin_until(node, lambda: node.count_clients("/robot/called") and node.count_services("/robot/served"))
        assert spin_until(node, lambda: node.count_publishers("/robot/spoken") and node.count_publishers("/rosout") > 1)
        assert spin_until(node, lambda: node.count_subscribers("/robot/heard"))
        assert spin_until(node, lambda: node.count_services("/robot/owner/list_parameters"))
        assert spin_until(node, lambda: node.get_client_names_and_types_by_node(*owner))
        published = node.get_publisher_names_and_types_by_node(*owner)
        assert ("/robot/spoken", string) in published and ("/rosout", ["rcl_interfaces/msg/Log"]) in published
        assert ("/robot/heard", string) not in published
        assert not any(topic == "/mine" for topic, _ in published)
        assert node.get_subscriber_names_and_types_by_node(*owner) == [("/robot/heard", string)]
        served = node.get_service_names_and_types_by_node(*owner)
        assert ("/robot/served", trigger) in served and ("/robot/called", trigger) not in served
        assert ("/robot/owner/list_parameters", ["rcl_interfaces/srv/ListParameters"]) in served
        assert node.get_client_names_and_types_by_node(*owner) == [("/robot/called", trigger)]
        assert (node.count_services("/robot/served"), node.count_services("/robot/called")) == (1, 0)
        with pytest.raises(RuntimeError, match="nobody"):
            node.get_publisher_names_and_types_by_node("nobody", "/")

        (info,) = node.get_publishers_info_by_topic("/robot/spoken")
        assert (info.node_name, info.node_namespace, info.topic_type) == ("owner", "/robot", string[0])
        assert info.endpoint_type == TopicEndpointTypeEnum.PUBLISHER
        # The hash that Jazzy states for std_msgs/msg/String.
        assert info.topic_type_hash == "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
        assert process.stop() == 0


@pytest.mark.parametrize("arguments, reason", [
    (["-r", "__ns:=left"], "Invalid namespace: 'left'"), (["-r", "__node:=a-b"], "Invalid node name: 'a-b'"),
    (["-r", "image:=/a//b"], "Invalid topic name: '/a//b'"), (["-r", "image"], "not a remapping rule: 'image'"),
    (["--params-file", "/nowhere.yaml"], "/nowhere.yaml"), (["-p", "a:=["], "while parsing"),
])  # fmt: skip
def test_arguments_that_cannot_be_are_refused_at_the_start_as_by_rcl(arguments, reason):
    from rclpy._rclpy_pybind11 import RCLInvalidROSArgsError

    with pytest.raises(RCLInvalidROSArgsError, match=f"^Failed to parse ROS arguments: .*{reason}"):
        rclpy.init(args=["--ros-args", *arguments])
    assert not rclpy.ok()


def test_what_is_lacking_is_named(node):
    publisher = node.create_publisher(String, "x", 1)
    for thing, name in (
        (node, "add_pre_set_parameters_callback"), (node, "add_waitable"), (publisher, "assert_liveliness"),
        (node.create_client(Trigger, "y"), "configure_introspection"), (node.get_clock(), "create_jump_callback"),
    ):  # fmt: skip
        with pytest.raises(NotImplementedError, match=rf"\.{name} is not supported"):
            getattr(thing, name)
        assert not hasattr(thing, name)
    with pytest.raises(NotImplementedError, match="no_demangle"):
        node.get_topic_names_and_types(no_demangle=True)


CLOCKED = (
    """
from rclpy.executors import SingleThreadedExecutor
from std_srvs.srv import Trigger
rclpy.init()
node = Node('clocked')
def now():
    return str(node.get_clock().now().nanoseconds // 10**9)
def tell(request, response):
    response.message = now()
    return response
node.create_service(Trigger, '~/now', tell)
node.create_timer(1.0, lambda: say('tick', now()))
executor = SingleThreadedExecutor()
executor.add_node(node)
"""
    + SPIN
)


def test_a_clock_of_another_process_drives_a_node_and_may_go_back(node):
    from rosgraph_msgs.msg import Clock

    with Process(CLOCKED, "--ros-args", "-p", "use_sim_time:=true") as clocked:
        clocked.line("ready")
        publisher = node.create_publisher(Clock, "/clock", 10)
        assert spin_until(node, publisher.get_subscription_count)

        def show(second):
            message = Clock()
            message.clock.sec = second
            publisher.publish(message)
            # A clock and a call come by two ways: on a loaded machine fifty calls may be answered before it.
            patience, answer = time.monotonic() + 20, None
            while answer != str(second):
                assert time.monotonic() < patience, f"it is {answer} there, not {second}"
                answer = _call(node, Trigger, "/clocked/now", Trigger.Request()).message

        for start in (100, 10):
            show(start)
            show(start + 1)
            assert clocked.line("tick") == str(start + 1)
        assert clocked.stop() == 0
