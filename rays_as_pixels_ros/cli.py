# SPDX-License-Identifier: Apache-2.0
"""The `rays-as-pixels` command: picks a subcommand and runs it, importing nothing heavy before.

Every subcommand is a function `main(argv) -> int | None` in a module of its own that parses its arguments first.
Exit status: 0 done, 1 the run failed (one line on stderr says why), 2 bad arguments, 130 stopped by Ctrl-C.
RAYS_AS_PIXELS_TRACEBACK=1 shows where a failure came from.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys

from .arguments import PROGRAM, Parser

COMMANDS = {
    "demo": ("rays_as_pixels_ros.demo", "the whole chain on this machine: camera, trajectory, views, report"),
    "node": ("rays_as_pixels_ros.command_node", "run one ROS 2 node: NAME [arguments] [--ros-args ...]"),
    "up": ("rays_as_pixels_ros.command_node:up", "run both nodes in one process over one model"),
    "estimate": ("rays_as_pixels_ros.command_estimate", "video, image folder or posed images to a trajectory"),
    "render": ("rays_as_pixels_ros.command_render", "images to new views along an orbit or a dolly"),
    "bag": ("rays_as_pixels_ros.command_bag", "a ROS 2 bag to a bag with its trajectory, offline, every frame"),
    "cache": ("rays_as_pixels_training.cache", "encode a dataset (bags, posed images, ...) to shards for training"),
    "train": ("rays_as_pixels_training.train", "train a model"),
    "ablation": ("rays_as_pixels_training.ablation", "train the paper's ablation and print its table"),
    "eval": ("rays_as_pixels_training.evaluate", "evaluate a checkpoint beside the baselines"),
    "bench": ("rays_as_pixels_benchmarks.speed", "speed beside the hardware's and beside what else one would use"),
    "export": ("rays_as_pixels_ros.command_export", "a checkpoint to ONNX graphs, checked against torch"),
    "calibrate": ("rays_as_pixels_training.calibrate", "measure how sure a checkpoint may be, and keep it there"),
    "presets": ("rays_as_pixels_ros.command_presets", "the sizes that a model can have"),
    "doctor": ("rays_as_pixels_ros.doctor", "what this machine has, and whether it is enough"),
}


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line's first word."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    parser = Parser(
        prog=PROGRAM,
        description="Camera streams to trajectories and novel views with one joint diffusion model.",
        epilog="\n".join(["commands:", *lines, "", f"{PROGRAM} COMMAND --help lists a command's arguments."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", metavar="COMMAND", choices=COMMANDS, help="one of the commands below")
    parser.add_argument("arguments", metavar="...", nargs=argparse.REMAINDER, help="the command's own arguments")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv) and return its exit status."""
    args = build_parser().parse_args(argv)
    module, _, function = COMMANDS[args.command][0].partition(":")
    try:
        return getattr(importlib.import_module(module), function or "main")(args.arguments) or 0
    except KeyboardInterrupt:
        # Python keeps in mind an interrupt that passed through the `exec` of a text (an import that makes a dataclass
        # is one) until the next `exec`, and under `python -m` ends by SIGINT for it, whatever is returned here.
        exec("")
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) went away: not an error, and nothing more may be written to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        if os.environ.get("RAYS_AS_PIXELS_TRACEBACK"):
            raise
        print(f"{PROGRAM}: error: {one_line(error)}", file=sys.stderr)
        return 1


def one_line(error: BaseException) -> str:
    """Say an exception in one line; file errors without Python's `[Errno 2]`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
