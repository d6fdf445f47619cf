# SPDX-License-Identifier: Apache-2.0
"""Both nodes in one process over one model: camera stream to trajectory, and views on request."""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

SHARE = FindPackageShare("rays_as_pixels_ros")
ARGUMENTS = {
    "namespace": ("", "namespace of both nodes"),
    "params_file": (PathJoinSubstitution([SHARE, "config", "rays_as_pixels.yaml"]), "parameters of both nodes"),
    "checkpoint": ("", "model folder; empty: what params_file says"),
    "device": ("", "auto, cpu, cuda; empty: what params_file says"),
    "base_frame": ("", "robot frame; optical: the camera itself; empty: what params_file says"),
    "image": ("image_raw", "image topic, without /compressed"),
    "camera_info": ("camera_info", "camera_info topic"),
    "image_transport": ("", "raw or compressed; empty: what params_file says"),
    "use_sim_time": ("false", "take time from /clock"),
    "rviz": ("false", "start rviz2"),
    "autostart": ("true", "configure and activate the nodes"),
    "log_level": ("info", "debug, info, warn, error"),
}


def nodes(context):
    """Make the process of both nodes, and rviz; an argument that was not given leaves the parameter file alone."""
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    given = {name: ParameterValue(value[name], value_type=bool) for name in ("use_sim_time", "autostart")}
    for name in ("checkpoint", "device", "image_transport"):
        if value[name].perform(context):
            given[name] = ParameterValue(value[name], value_type=str)
    if base := value["base_frame"].perform(context):
        given["base_frame"] = "" if base == "optical" else base
    remappings = [
        ("image_raw", value["image"]),
        ("image_raw/compressed", [value["image"], "/compressed"]),
        ("camera_info", value["camera_info"]),
    ]
    return [
        Node(
            package="rays_as_pixels_ros",
            executable="rays_as_pixels",
            namespace=value["namespace"],
            parameters=[value["params_file"], given],
            remappings=remappings,
            arguments=["--ros-args", "--log-level", value["log_level"]],
            output="screen",
        ),
        Node(
            package="rviz2",
            executable="rviz2",
            namespace=value["namespace"],
            arguments=["-d", PathJoinSubstitution([SHARE, "config", "rays_as_pixels.rviz"])],
            parameters=[{"use_sim_time": given["use_sim_time"]}],
            remappings=remappings,
            condition=IfCondition(value["rviz"]),
        ),
    ]


def generate_launch_description():
    """Declare the arguments and start the processes."""
    declared = [DeclareLaunchArgument(name, default_value=d, description=t) for name, (d, t) in ARGUMENTS.items()]
    return LaunchDescription([*declared, OpaqueFunction(function=nodes)])
