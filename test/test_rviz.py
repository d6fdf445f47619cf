# SPDX-License-Identifier: Apache-2.0
"""config/rays_as_pixels.rviz against the nodes themselves: displays show topics that they offer, as they offer them.

That the file is installed: test_packaging.py.
"""

import ast

import pytest
import rclpy
import yaml
from pixel_pipeline import load
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from rays_as_pixels_ros.camera_player_node import CameraPlayerNode
from rays_as_pixels_ros.connections import End, mismatch, type_name
from rays_as_pixels_ros.trajectory_node import TrajectoryNode
from rays_as_pixels_ros.view_synthesis_node import ViewSynthesisNode

# What rviz's own displays subscribe to.
SHOWN = {
    "rviz_default_plugins/Path": "nav_msgs/msg/Path",
    "rviz_default_plugins/PoseWithCovariance": "geometry_msgs/msg/PoseWithCovarianceStamped",
    "rviz_default_plugins/MarkerArray": "visualization_msgs/msg/MarkerArray",
    "rviz_default_plugins/Odometry": "nav_msgs/msg/Odometry",
    "rviz_default_plugins/Image": "sensor_msgs/msg/Image",
}
WITHOUT_TOPIC = {"rviz_default_plugins/Grid", "rviz_default_plugins/TF"}


def enum(kind, text):
    return kind[text.upper().replace(" ", "_")]


@pytest.fixture
def displays(repository):
    """All displays of the file."""
    text = (repository / "config" / "rays_as_pixels.rviz").read_text()
    return yaml.safe_load(text)["Visualization Manager"]["Displays"]


@pytest.fixture
def offered():
    """Each topic that a camera and the nodes publish, seen from their namespace, with its type and QoS."""
    context = rclpy.Context()
    context.init(args=[])
    small = [Parameter(n, Parameter.Type.INTEGER, v) for n, v in (("frames", 2), ("width", 32), ("height", 24))]
    off = [Parameter("autostart", Parameter.Type.BOOL, False)]
    nodes = [
        TrajectoryNode(load_pipeline=load, namespace="robot", parameter_overrides=off, context=context),
        ViewSynthesisNode(load_pipeline=load, namespace="robot", parameter_overrides=off, context=context),
        CameraPlayerNode(namespace="robot", parameter_overrides=small, context=context),
    ]
    ends = {}
    for node in nodes:
        for publisher in node.publishers:
            name = publisher.topic_name.removeprefix("/robot/")
            ends[name] = End(type_name(publisher.msg_type), publisher.qos_profile)
    yield ends
    for node in nodes:
        node.destroy_node()
    context.try_shutdown()


def test_displays_show_what_the_nodes_publish(displays, offered):
    shown = set()
    for display in displays:
        if display["Class"] in WITHOUT_TOPIC:
            continue
        topic = display["Topic"]
        asked = QoSProfile(
            history=enum(HistoryPolicy, topic["History Policy"]),
            depth=topic["Depth"],
            reliability=enum(ReliabilityPolicy, topic["Reliability Policy"]),
            durability=enum(DurabilityPolicy, topic["Durability Policy"]),
        )
        end = offered[topic["Value"]]
        assert mismatch(end, End(SHOWN[display["Class"]], asked)) is None, display["Name"]
        # A display that starts late must get what is latched.
        assert asked.durability == end.qos_profile.durability, display["Name"]
        shown.add(topic["Value"])
    # Nothing that rviz can show is left out, but the camera player's truth, which is no result.
    can = {topic for topic, end in offered.items() if end.topic_type in SHOWN.values()}
    assert can - shown == {"camera_player/ground_truth"}


def test_the_readme_lists_every_topic(offered, repository):
    """With its type, in one row; what diagnostics, parameters and ROS itself publish is not ours to explain."""
    table = [line for line in (repository / "README.md").read_text().splitlines() if line.startswith("|")]
    for topic, end in offered.items():
        node, _, own = topic.partition("/")
        name = f"~/{own}" if own and node in ("trajectory_node", "view_synthesis_node", "camera_player") else topic
        package, _, kind = end.topic_type.split("/")
        if package in ("rcl_interfaces", "lifecycle_msgs") or topic == "/parameter_events":
            continue
        rows = [row for row in table if f"`{name}`" in row]
        assert any(kind in row for row in rows), f"{name} ({end.topic_type})"


def test_the_fixed_frame_is_the_nodes_map(displays, repository):
    """TF is shown, in the frame that the parameter file names."""
    config = yaml.safe_load((repository / "config" / "rays_as_pixels.rviz").read_text())
    given = yaml.safe_load((repository / "config" / "rays_as_pixels.yaml").read_text())
    frame = config["Visualization Manager"]["Global Options"]["Fixed Frame"]
    assert frame == given["/**/trajectory_node"]["ros__parameters"]["map_frame"]
    assert "rviz_default_plugins/TF" in {display["Class"] for display in displays if display["Enabled"]}


def test_the_window_has_room_for_the_world(displays, repository):
    """Without a layout rviz piles its docks up beside each other, and the world between them is 0 pixels wide."""
    window = yaml.safe_load((repository / "config" / "rays_as_pixels.rviz").read_text())["Window Geometry"]
    assert not window["Hide Left Dock"] and not window["Hide Right Dock"] and window["Width"] >= 1200
    state = bytes.fromhex(window["QMainWindow State"])
    images = [display["Name"] for display in displays if display["Class"] == "rviz_default_plugins/Image"]
    assert len(images) == 3
    for dock in ("Displays", "Time", *images):  # Qt writes names as UTF-16
        assert dock.encode("utf-16-be") in state, dock


def test_the_launch_file_starts_rviz_with_it_on_demand(repository):
    """In the namespace and with the remappings of the nodes, on the condition `rviz`."""
    tree = ast.parse((repository / "launch" / "rays_as_pixels.launch.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "Node"]
    made = [{keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords} for call in calls]
    (rviz,) = [one for one in made if one["package"] == "'rviz2'"]
    (ours,) = [one for one in made if one["package"] == "'rays_as_pixels_ros'"]
    assert "'-d'" in rviz["arguments"] and "'config', 'rays_as_pixels.rviz'" in rviz["arguments"]
    assert rviz["condition"] == "IfCondition(value['rviz'])"
    assert rviz["namespace"] == ours["namespace"] and rviz["remappings"] == ours["remappings"]
