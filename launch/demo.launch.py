# SPDX-License-Identifier: Apache-2.0
"""A procedural camera (or any source of camera_player) in front of both nodes, with rviz."""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

SHARE = FindPackageShare("rays_as_pixels_ros")
ARGUMENTS = {
    "source": ("procedural", "procedural, a video file, an image folder, a posed-images folder, webcam:N"),
    "rate": ("0.0", "images per second; 0: the source's own"),
    "device": ("", "auto, cpu, cuda; empty: auto"),
    "rviz": ("true", "start rviz2"),
}


def camera(context):
    """Make the camera: a rendered path turns round at its ends, since one that jumps back to its start is none."""
    value = {name: LaunchConfiguration(name).perform(context) for name in ("source", "rate")}
    parameters = {"source": value["source"], "rate": float(value["rate"])}
    parameters["at_end"] = "bounce" if value["source"] == "procedural" else "loop"
    node = Node(package="rays_as_pixels_ros", executable="camera_player", parameters=[parameters], output="screen")
    return [node]


def generate_launch_description():
    """Start camera_player and include rays_as_pixels.launch.py."""
    declared = [DeclareLaunchArgument(name, default_value=d, description=t) for name, (d, t) in ARGUMENTS.items()]
    both = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(PathJoinSubstitution([SHARE, "launch", "rays_as_pixels.launch.py"])),
        launch_arguments={
            "params_file": PathJoinSubstitution([SHARE, "config", "demo.yaml"]),
            "device": LaunchConfiguration("device"),
            "rviz": LaunchConfiguration("rviz"),
        }.items(),
    )
    return LaunchDescription([*declared, OpaqueFunction(function=camera), both])
