# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels render PATH`: new views of what one or several images show, without ROS.

Lengths on the command line are in the model's unit (the source's mean depth is 1). Frames: `world` is the source's own
(cameras.json), or the source camera where poses are not known.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from .arguments import (
    add_camera_arguments,
    add_model_arguments,
    command_parser,
    given_intrinsics,
    integer,
    number,
    offset,
)


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    parser = command_parser(
        "render",
        "Render views along a path that starts at a frame of an image, image folder, video or folder of posed images. "
        "Writes view_NNN.png, views.mp4 and poses.txt (TUM).",
    )
    parser.add_argument("path", metavar="PATH", help="image, image folder, video file or posed images")
    parser.add_argument("--out", default="out/render", metavar="DIR", help="folder for the results")
    add_camera_arguments(parser)
    parser.add_argument("--frame", type=integer(0), default=0, help="the frame that the path starts at")
    parser.add_argument("--sources", type=integer(1), default=1, help="source frames from there on (posed images only)")
    parser.add_argument("--metres-per-unit", type=number(0, math.inf), metavar="M",
                        help="unit of the file's poses for one model unit (default: measured; several sources only)")
    parser.add_argument("--stride", type=integer(1), default=1, help="frames between two sources")
    parser.add_argument("--motion", choices=("orbit", "dolly"), default="orbit", help="kind of path")
    parser.add_argument("--degrees", type=number(-360, 360), default=20.0, help="orbit: how far round, to the right")
    parser.add_argument("--distance", type=number(0, math.inf), default=1.0, help="orbit: its centre is so far ahead")
    parser.add_argument("--offset", type=offset, default=(0.0, 0.0, 0.3), metavar="X,Y,Z",
                        help="dolly: how far to the right, down and forward; write --offset=-1,0,0")
    parser.add_argument("--views", type=integer(1), default=8, help="views along the path")
    add_model_arguments(parser, steps=1)
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    # Heavy imports only now: --help must answer at once.
    import numpy as np

    from rays_as_pixels_model.files import check_writable, write_png, write_trajectory, write_video
    from rays_as_pixels_model.media import open_video
    from rays_as_pixels_model.pipeline import Pipeline

    from . import paths
    from .progress import progress

    out = Path(args.out)
    check_writable(out / "poses.txt")
    video = open_video(args.path)
    numbers = [args.frame + index * args.stride for index in range(args.sources)]
    metric = args.sources > 1
    if metric and video.T_world_camera is None:
        parser.error("--sources above 1 needs posed images: the poses of these frames are not known")
    camera = given_intrinsics(args, video.width, video.height) or video.intrinsics
    if camera is None:
        parser.error("the camera of these images is not known: give --fov or --intrinsics")

    pipeline = Pipeline.from_checkpoint(args.checkpoint, device=args.device)
    if args.sources >= pipeline.config.frames:
        parser.error(f"--sources is {args.sources}; a window holds {pipeline.config.frames} frames with the view")
    measured = metric and args.metres_per_unit is None
    window = [args.frame + index * args.stride for index in range(pipeline.config.frames)]
    images = _read(video, window if measured else numbers)  # the window holds the sources
    frames = np.stack(images[: args.sources])
    T_world_source = video.T_world_camera[numbers] if metric else np.eye(4)[None]
    # Several posed sources state lengths in their own unit; one image alone is its own scale.
    metres_per_unit = args.metres_per_unit if metric and args.metres_per_unit else 1.0
    if measured:
        metres_per_unit = pipeline.metres_per_unit(np.stack(images), camera, video.T_world_camera[window])
    if args.motion == "orbit":
        T_start_camera = paths.orbit(args.views, args.degrees, args.distance)
    else:
        T_start_camera = paths.dolly(args.views, np.array(args.offset))
    T_start_camera[:, :3, 3] *= metres_per_unit
    T_world_target = T_world_source[0] @ T_start_camera

    started = time.perf_counter()
    with progress("rendering", args.steps) as advance:

        def on_step(step: int, total: int, preview: np.ndarray) -> bool:
            advance(step, total)
            return True

        views = pipeline.render_views(
            frames, T_world_source, camera, T_world_target, camera,
            metres_per_unit=metres_per_unit, steps=args.steps, seed=args.seed, on_step=on_step,
        )  # fmt: skip
    seconds = time.perf_counter() - started

    for index, view in enumerate(views.frames):
        write_png(out / f"view_{index:03d}.png", view)
    write_video(out / "views.mp4", views.frames, fps=8)
    write_trajectory(out / "poses.txt", np.arange(len(T_world_target)) / 8, T_world_target)
    size = f"{views.intrinsics.width}x{views.intrinsics.height}"
    print(f"{len(views.frames)} views of {size} in {seconds:.1f} s; wrote them to {out}")
    return 0


def _read(video, numbers: list[int]) -> list:
    """Return the frames of these numbers (increasing)."""
    from rays_as_pixels_model.media import MediaError

    wanted, found = set(numbers), []
    for index, frame in enumerate(video):
        if index in wanted:
            found.append(frame)
        if index >= numbers[-1]:
            return found
    count = video.frame_count or "fewer"
    raise MediaError(f"{video.name}: frame {numbers[-1]} is needed, but there are {count} frames (the first is 0)")
