# SPDX-License-Identifier: Apache-2.0
"""A procedural camera (or any source of camera_player) in front of both nodes, with rviz."""

from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution, PythonExpression
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

SHARE = FindPackageShare("rays_as_pixels_ros")
ARGUMENTS = {
    "source": ("procedural", "procedural, a video file, an image folder, a posed-images folder, webcam:N"),
    "rate": ("0.0", "images per second; 0: the source's own"),
    "device": ("", "auto, cpu, cuda; empty: auto"),
    "rviz": ("true", "start rviz2"),
}


def generate_launch_description():
    """Start camera_player and include rays_as_pixels.launch.py."""
    value = {name: LaunchConfiguration(name) for name in ARGUMENTS}
    # A path that jumps back to its start is none: rendered ones turn round at their ends.
    at_end = PythonExpression(["'bounce' if '", value["source"], "' == 'procedural' else 'loop'"])
    return LaunchDescription(
        [DeclareLaunchArgument(name, default_value=d, description=t) for name, (d, t) in ARGUMENTS.items()]
        + [
            Node(
                package="rays_as_pixels_ros",
                executable="camera_player",
                parameters=[
                    {
                        "source": ParameterValue(value["source"], value_type=str),
                        "rate": ParameterValue(value["rate"], value_type=float),
                        "at_end": ParameterValue(at_end, value_type=str),
                    }
                ],
                output="screen",
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(PathJoinSubstitution([SHARE, "launch", "rays_as_pixels.launch.py"])),
                launch_arguments={
                    "params_file": PathJoinSubstitution([SHARE, "config", "demo.yaml"]),
                    "device": value["device"],
                    "rviz": value["rviz"],
                }.items(),
            ),
        ]
    )
