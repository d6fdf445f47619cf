# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels node NAME` and `rays-as-pixels up`: run nodes, on the ROS 2 that is sourced or on embedded_ros."""

from __future__ import annotations

import argparse

from .arguments import command_parser

NODES = ("trajectory_node", "view_synthesis_node", "camera_player", "render_client", "rays_as_pixels")


def main(argv: list[str]) -> int:
    """Run the node that argv names, with the rest of argv as its own arguments."""
    parser = command_parser("node", "Run one ROS 2 node; --ros-args and the like are the node's.")
    parser.add_argument("name", metavar="NAME", choices=NODES, help=", ".join(NODES))
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="[arguments] [--ros-args ...]")
    args = parser.parse_args(argv)
    return _run(args.name, args.arguments)


def up(argv: list[str]) -> int:
    """Run both nodes in one process."""
    parser = command_parser("up", "Run both nodes in one process over one model, as `node rays_as_pixels` does.")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="--ros-args ...")
    return _run("rays_as_pixels", parser.parse_args(argv).arguments if argv[:1] in (["-h"], ["--help"]) else argv)


def _run(name: str, arguments: list[str]) -> int:
    from .entry_points import run

    return run(name, arguments)
