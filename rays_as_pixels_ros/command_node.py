# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels node NAME` and `rays-as-pixels up`: run nodes, on the ROS 2 that is sourced or on embedded_ros."""

from __future__ import annotations

import argparse

from .arguments import PROGRAM, command_parser

NODES = ("trajectory_node", "view_synthesis_node", "camera_player", "render_client", "rays_as_pixels")
# The tables of parameters.py that a node declares; render_client has arguments of its own instead.
TABLES = {
    "trajectory_node": ("TRAJECTORY",),
    "view_synthesis_node": ("VIEW_SYNTHESIS",),
    "camera_player": ("CAMERA_PLAYER",),
    "rays_as_pixels": ("TRAJECTORY", "VIEW_SYNTHESIS"),
}


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
    if argv[:1] in (["-h"], ["--help"]):
        parser.parse_args(argv)
    return _run("rays_as_pixels", argv)


def _run(name: str, arguments: list[str]) -> int:
    from .entry_points import provide_rclpy, run

    ours = arguments[: arguments.index("--ros-args")] if "--ros-args" in arguments else arguments
    if name in TABLES and {"-h", "--help"} & set(ours):
        provide_rclpy()
        print("\n".join(parameter_help(name)))
        return 0
    return run(name, arguments)


def parameter_help(name: str) -> list[str]:
    """Say in lines how a node is given its parameters, and which it has."""
    from . import parameters

    lines = [
        f"usage: {PROGRAM} node {name} [--ros-args [-p NAME:=VALUE] [--params-file FILE] [-r FROM:=TO] ...]",
        "",
        "parameters (name, default, meaning):",
    ]
    seen = set()
    for table in TABLES[name]:
        for parameter in getattr(parameters, table):
            if parameter.name not in seen:
                seen.add(parameter.name)
                lines.append(f"  {parameter.name:<28} {parameter.default!r:<14} {parameter.description}")
    return lines
