# SPDX-License-Identifier: Apache-2.0
"""What the subcommands' argument parsers share; imports nothing heavy, so that --help is quick."""

from __future__ import annotations

import argparse
import math
import sys
from typing import NoReturn

from rays_as_pixels_model.arguments import integer

PROGRAM = "rays-as-pixels"


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage text before it."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        print(f"{PROGRAM}: error: {message} (see {self.prog} --help)", file=sys.stderr)
        sys.exit(2)


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Show defaults, except those that are None."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def command_parser(command: str, description: str) -> Parser:
    """Make the parser of a subcommand."""
    return Parser(prog=f"{PROGRAM} {command}", description=description, formatter_class=_Formatter)


def number(low: float, high: float, inclusive: bool = False):
    """Make an argument type: a finite number strictly between low and high, or with `inclusive` one of them too."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a number") from None
        if not (low <= value <= high if inclusive else low < value < high) or math.isinf(value):
            least, both = ("at least", "from {:g} to {:g}") if inclusive else ("above", "between {:g} and {:g}")
            wanted = f"{least} {low:g}" if math.isinf(high) else both.format(low, high)
            raise argparse.ArgumentTypeError(f"{text} is out of range, it must be {wanted}")
        return value

    return parse


def pinhole(text: str) -> tuple[float, float, float, float]:
    """Argument type: fx,fy,cx,cy in pixels, the top-left pixel's centre at (0, 0) as in OpenCV and CameraInfo."""
    try:
        fx, fy, cx, cy = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not four numbers fx,fy,cx,cy") from None
    if not all(map(math.isfinite, (fx, fy, cx, cy))) or fx <= 0 or fy <= 0:
        raise argparse.ArgumentTypeError(f"'{text}': numbers must be finite, fx and fy positive")
    return fx, fy, cx, cy


def offset(text: str) -> tuple[float, float, float]:
    """Argument type: X,Y,Z, finite."""
    try:
        x, y, z = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not three numbers X,Y,Z") from None
    if not all(map(math.isfinite, (x, y, z))):
        raise argparse.ArgumentTypeError(f"'{text}': numbers must be finite")
    return x, y, z


def device(text: str) -> str:
    """Argument type: auto, cpu, cuda or cuda:N."""
    kind, _, index = text.partition(":")
    if text not in ("auto", "cpu") and (kind != "cuda" or (index and not index.isdecimal()) or text.endswith(":")):
        raise argparse.ArgumentTypeError(f"'{text}' is not auto, cpu, cuda or cuda:N")
    return text


def add_model_arguments(parser: argparse.ArgumentParser, steps: int) -> None:
    """Add the arguments that choose and drive the model."""
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder; without it, the one that is shipped")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--steps", type=integer(1), default=steps, help="denoising steps")
    parser.add_argument("--seed", type=integer(0), default=0, help="of the sampler's noise")


def add_estimate_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say how a window is estimated: how often, and whether it is refined."""
    parser.add_argument(
        "--passes", type=integer(0), default=0,
        help="times a window is estimated, each from frames turned back by the rotations found before; 0: as the "
             "checkpoint was trained for",
    )  # fmt: skip
    parser.add_argument(
        "--no-refine", dest="refine", action="store_false",
        help="the model alone: do not adjust the cameras to points tracked in the images",
    )  # fmt: skip


def add_camera_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that state the camera of the given images."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--fov", type=number(0, 180), metavar="DEG", help="horizontal field of view, degrees")
    group.add_argument(
        "--intrinsics", type=pinhole, metavar="fx,fy,cx,cy", help="pixels, centre of the top-left pixel at 0,0"
    )


def given_intrinsics(args: argparse.Namespace, width: int, height: int):
    """Return the Intrinsics that the arguments state for width x height images, or None."""
    from rays_as_pixels_model.geometry import Intrinsics

    if args.intrinsics:
        return Intrinsics.from_opencv(*args.intrinsics, width, height)
    return Intrinsics.from_fov(args.fov, width, height) if args.fov else None
