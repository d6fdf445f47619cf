# SPDX-License-Identifier: Apache-2.0
"""Console scripts of the nodes: put rclpy in place where no ROS 2 is sourced, then run one node's main().

Also `python -m rays_as_pixels_ros.entry_points NODE [arguments] [--ros-args ...]`.
"""

from __future__ import annotations

import faulthandler
import importlib
import sys

_MODULES = {
    "trajectory_node": "trajectory_node",
    "view_synthesis_node": "view_synthesis_node",
    "camera_player": "camera_player_node",
    "render_client": "render_client",
    "rays_as_pixels": "rays_as_pixels",
}


def provide_rclpy() -> None:
    """Make `import rclpy` and `import cv_bridge` work: the real ones where they import, else the embedded ones."""
    import embedded_ros

    embedded_ros.install()


def run(node: str, args: list[str] | None = None) -> int:
    """Run a node by name; args are the command line without the program's name (default: sys.argv)."""
    if node not in _MODULES:
        print(f"unknown node '{node}'; it must be one of {', '.join(_MODULES)}", file=sys.stderr)
        return 2
    # A crash below Python (middleware, model) would else end the process without a word.
    faulthandler.enable(sys.__stderr__)
    provide_rclpy()
    module = importlib.import_module(f".{_MODULES[node]}", __package__)
    return module.main(sys.argv[1:] if args is None else args)


def trajectory_node() -> int:
    """Run trajectory_node."""
    return run("trajectory_node")


def view_synthesis_node() -> int:
    """Run view_synthesis_node."""
    return run("view_synthesis_node")


def camera_player() -> int:
    """Run camera_player."""
    return run("camera_player")


def render_client() -> int:
    """Run render_client."""
    return run("render_client")


def rays_as_pixels() -> int:
    """Run both nodes in one process over one model."""
    return run("rays_as_pixels")


if __name__ == "__main__":
    sys.exit(run(*(sys.argv[1:2] or [""]), sys.argv[2:]))
