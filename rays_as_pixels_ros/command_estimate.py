# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels estimate PATH`: a recording to a trajectory, without ROS.

Frames: `map` is the first camera (optical axes: x right, y down, z forward), its unit the first window's scene scale.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from .arguments import (
    add_camera_arguments,
    add_estimate_arguments,
    add_model_arguments,
    command_parser,
    given_intrinsics,
    integer,
    number,
)


def build_parser():
    """Make the argument parser."""
    parser = command_parser(
        "estimate",
        "Estimate the camera's trajectory in a video file, an image folder or a folder of posed images. Writes "
        "trajectory.txt (TUM), trajectory.png and summary.json; posed images are compared with their true poses.",
    )
    parser.add_argument("path", metavar="PATH", help="video file, image folder, posed images, webcam number")
    parser.add_argument("--out", default="out/estimate", metavar="DIR", help="folder for the results")
    add_camera_arguments(parser)
    parser.add_argument("--stride", type=integer(1), default=1, help="use every stride-th frame")
    parser.add_argument("--hop", type=integer(1), help="new frames in each window (default: half of the window)")
    parser.add_argument("--max-frames", type=integer(2), help="stop after this many used frames (default: all)")
    parser.add_argument("--fps", type=number(0, float("inf")), help="frame rate of an image folder (default: 30)")
    parser.add_argument("--samples", type=integer(1), default=1, help="posterior samples in each window")
    parser.add_argument("--max-residual", type=number(0, float("inf"), inclusive=True), default=0.0,
                        help="a window above it is lost; 0: as measured with the checkpoint; 10: never")  # fmt: skip
    add_model_arguments(parser, steps=1)
    add_estimate_arguments(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    args = build_parser().parse_args(argv)
    # Heavy imports only now: --help must answer at once.
    from rays_as_pixels_model.files import check_writable, write_text, write_trajectory
    from rays_as_pixels_model.media import MediaError, open_video
    from rays_as_pixels_model.pipeline import Pipeline

    from .trajectory_report import errors_against_truth, plot_trajectory

    out = Path(args.out)
    check_writable(out / "summary.json")
    video = open_video(args.path, fps=args.fps)
    given = given_intrinsics(args, video.width, video.height)
    pipeline = Pipeline.from_checkpoint(args.checkpoint, device=args.device)
    length = pipeline.config.frames
    hop = args.hop or (length - 1) // 2
    expected = None if video.frame_count is None else -(-video.frame_count // args.stride)
    if expected is not None and expected < length:
        raise MediaError(
            f"{args.path}: {video.frame_count} frames give {expected} at stride {args.stride}; "
            f"one window needs {length}"
        )
    used, T_map_camera, summary = _estimate(pipeline, video, given, hop, args)
    seconds = [video.time(index) for index in used]
    summary = {"input": args.path, "size": list(video.size), "stride": args.stride, "hop": hop, **summary}
    truth = None if video.T_world_camera is None else video.T_world_camera[used]
    if truth is not None:
        summary["errors"] = errors_against_truth(T_map_camera, truth, span=length - 1)

    note = "camera to first camera, optical axes (x right, y down, z forward), up to scale"
    write_trajectory(out / "trajectory.txt", seconds, T_map_camera, note)
    plot_trajectory(out / "trajectory.png", seconds, T_map_camera, truth, title=Path(args.path).name)
    write_text(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    _print(summary, out)
    return 0


def _fitted(video, given, args, size: tuple[int, int]):
    """Yield every stride-th frame, at most --max-frames, fitted to (width, height)."""
    from rays_as_pixels_model.geometry import fit_frames

    from .offline_track import DecodedFrame

    for index, rgb in islice(islice(enumerate(video), 0, None, args.stride), args.max_frames):
        camera = given or (video.frame_intrinsics[index] if video.frame_intrinsics else None)
        fitted, camera = fit_frames(rgb[None], camera, *size)
        yield DecodedFrame(index, fitted[0], camera)


def _estimate(pipeline, video, given, hop: int, args):
    """Run every window; return frame numbers, poses T_map_camera (T, 4, 4) and the run's figures."""
    import numpy as np

    from rays_as_pixels_model.media import MediaError

    from .offline_track import OfflineTracker
    from .progress import progress

    tracker = OfflineTracker(
        pipeline, hop, steps=args.steps, passes=args.passes, refine=args.refine, draws=args.samples, seed=args.seed,
        max_residual=args.max_residual,
    )
    tally, length = tracker.tally, tracker.length
    total = None if video.frame_count is None else -(-video.frame_count // args.stride)
    with progress("estimating", min(filter(None, (total, args.max_frames)), default=None)) as advance:
        placed = tracker.place(_fitted(video, given, args, pipeline.config.picture_size), advance)
    if not placed:
        why = f"every window was lost: {tally.reason}" if tally.windows else f"fewer frames than a window, {length}"
        raise MediaError(f"{args.path}: {why}")
    source = "given" if given else "cameras.json" if video.frame_intrinsics else "estimated"
    figures = {
        "frames": len(placed),
        "window_frames": length,
        "windows": tally.windows,
        "lost_windows": tally.lost,
        "lost_reason": tally.reason,
        "breaks": tally.breaks,
        "steps": args.steps,
        "passes": args.passes or pipeline.config.pose_passes,
        "refined": args.refine,
        "samples": args.samples,
        "seed": args.seed,
        "intrinsics": source,
        "horizontal_fov_deg": float(np.median(tally.fov_deg)),
        "residual_median": float(np.median(tally.residuals)),
        "unit": "scene scale of the first window, not metres",
        "model_seconds": tally.seconds,
        "frames_per_s": len(placed) / tally.seconds,
    }
    frames = [frame.stitched for frame in placed]
    return [frame.frame for frame in frames], np.stack([frame.T_map_camera for frame in frames]), figures


def _print(summary: dict, out: Path) -> None:
    print(f"{summary['frames']} frames in {summary['windows']} windows, {summary['frames_per_s']:.1f} frames/s", end="")
    print(f", field of view {summary['horizontal_fov_deg']:.1f} deg ({summary['intrinsics']})")
    if summary["lost_windows"]:
        print(f"{summary['lost_windows']} windows lost (the last: {summary['lost_reason']}), ", end="")
        print(f"{summary['breaks']} breaks in the trajectory")
    if "errors" in summary:
        errors = summary["errors"]
        print(
            f"against the true poses: over {errors['span_frames']} frames rotation is off by "
            f"{errors['rotation_error_deg_median']:.2f} deg (standing still: "
            f"{errors['rotation_of_truth_deg_median']:.2f}), "
            f"direction by {errors['direction_error_deg_median']:.1f} deg; "
            f"ATE {errors['ate_rmse']:.3f} after Sim(3) on a path of {errors['path_length']:.3f}"
        )
    print(f"wrote {out / 'trajectory.txt'}, {out / 'trajectory.png'}, {out / 'summary.json'}")
