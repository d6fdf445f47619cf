# SPDX-License-Identifier: Apache-2.0
"""Judge a checkpoint beside the baselines on the same windows: held-out rendered scenes, or anybody's posed video.

    rays-as-pixels eval                                   # the shipped checkpoint, 200 held-out windows
    rays-as-pixels eval --checkpoint DIR --windows 500 --json eval.json --plots plots
    rays-as-pixels eval --suite procedural:varied         # or one group of variety: procedural:sensor
    rays-as-pixels eval --suite my_images/ my_bag.mcap --stride 2

What a held-out window is: `held_out.py`. A PATH is any dataset that training reads; its videos are cut into windows
that meet end to end. What the figures mean: `metrics.py`, `trajectory_metrics.py`, docs/evaluation.md.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

from rays_as_pixels_model.arguments import integer

METHODS = (
    "rays_as_pixels", "identity", "constant_velocity", "copy_nearest", "rotation_warp", "plane_warp", "plane_sweep",
    "opencv_vo", "colmap",
)  # fmt: skip
_PROCEDURAL = "procedural"


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="rays-as-pixels eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    whole = integer(1)
    parser.add_argument("--checkpoint", metavar="DIR", help="folder (default: the shipped one)")
    parser.add_argument(
        "--suite", nargs="+", default=[_PROCEDURAL], metavar="PATH",
        help="'procedural' (default), 'procedural:varied' (docs/scenes.md), or paths of datasets",
    )  # fmt: skip
    parser.add_argument("--windows", type=whole, default=200, metavar="N", help="at most this many (default: 200)")
    parser.add_argument("--stride", type=whole, help="frames from one to the next in a window of PATH (default: 1)")
    parser.add_argument("--kind", default="auto", help="what PATH is (default: found by its files)")
    parser.add_argument(
        "--option", action="append", default=[], metavar="NAME=VALUE", help="of the dataset, e.g. image_topic=/camera"
    )
    parser.add_argument("--textures", metavar="DIR", help="folder of photos; its held-out files are used (procedural)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD",
                        help=f"of {', '.join(METHODS)} (default: all)")  # fmt: skip
    parser.add_argument("--steps", type=whole, nargs="+", default=[1, 2, 5, 20], metavar="N", help="of the model")
    parser.add_argument("--colmap-windows", type=whole, default=20, metavar="N",
                        help="COLMAP takes seconds a window and gets at most this many (default: 20)")  # fmt: skip
    parser.add_argument("--least-motion", type=float, default=0.02, metavar="X",
                        help="in scene depths: a window that moved less has no direction (default: 0.02)")  # fmt: skip
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report here")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="write pictures here")
    for name, what in (("lpips", "distance of pictures"), ("fid", "features of pictures"), ("fvd", "of videos")):
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"TorchScript network: {what}")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = make_parser()
    args = parser.parse_args(argv)
    procedural = any(_scenes(name) for name in args.suite)
    if procedural and len(args.suite) > 1:
        parser.error(f"--suite takes 'procedural' or paths, got both: {' '.join(args.suite)}")
    if procedural:
        from .data.procedural import ClipConfig
        from .held_out import split_scenes

        try:
            name, difficulty = split_scenes(_scenes(args.suite[0]))
            ClipConfig(scenes=name, difficulty=difficulty)
        except ValueError as error:
            parser.error(f"--suite {args.suite[0]}: {error}")
    if procedural and (args.stride or args.option or args.kind != "auto"):
        parser.error("--stride, --kind and --option are for --suite PATH; the held-out windows are defined already")
    if not procedural and args.textures:
        parser.error("--textures is for --suite procedural")
    for name in ("lpips", "fid", "fvd"):
        path = getattr(args, name)
        if path and not path.is_file():
            parser.error(f"--{name}: {path}: no such file")
    try:
        return _run(args)
    except (ValueError, OSError) as error:
        print(f"rays-as-pixels eval: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


def _run(args) -> int:
    # Heavy imports only now: --help must answer at once.
    from importlib.util import find_spec

    from rays_as_pixels_model.files import check_writable, write_text
    from rays_as_pixels_model.pipeline import Pipeline

    from .eval_pose import clip_trajectories, find_cameras
    from .eval_report import markdown, to_json
    from .eval_views import render_cases
    from .perceptual import Weights

    for module, what in (("evo", "ATE and RPE"), ("pycolmap", "the row colmap")):
        if find_spec(module) is None:
            _note(f"{what} left out: needs {module} (pip install 'rays_as_pixels_ros[eval]')")
    for path in filter(None, (args.json, args.plots)):
        check_writable(path)
    pipe = Pipeline.from_checkpoint(args.checkpoint, args.device)
    windows = make_windows(args, pipe)
    found = find_cameras(pipe, windows, args.methods, args.steps, args.seed, args.colmap_windows, _note)
    cases = render_cases(pipe, windows, args.methods, args.steps, args.seed, _note)
    trajectories = clip_trajectories(found, windows) if find_spec("evo") is not None else {}
    weights = Weights(args.lpips, args.fid, args.fvd)
    report = make_report(args, pipe, windows, found, cases, trajectories, weights)
    print(markdown(report))
    if args.json:
        write_text(args.json, to_json(report))
    if args.plots:
        from .eval_plots import plot_all

        for path in plot_all(args.plots, report, found, windows, cases, trajectories):
            _note(f"wrote {path}")
    return 0


def _scenes(name: str) -> str | None:
    """What follows 'procedural:' in the name of a suite, 'plain' where nothing does; None for a path."""
    kind, colon, scenes = name.partition(":")
    return (scenes if colon else "plain") if kind == _PROCEDURAL else None


def make_windows(args, pipe) -> list:
    """Cut or render the windows that the arguments ask for."""
    from .eval_windows import video_windows
    from .held_out import held_out_windows

    size = (pipe.config.width, pipe.config.height)
    if scenes := _scenes(args.suite[0]):
        return held_out_windows(args.windows, pipe.config.frames, size, args.textures, scenes)
    from .data import open_dataset
    from .data.registry import parse_options

    options = parse_options(args.option)
    videos = [(path, video) for path in args.suite for video in open_dataset(path, args.kind, **options)]
    names = Counter(video.name for _, video in videos)
    videos = [v if names[v.name] == 1 else replace(v, name=f"{Path(path).resolve()}: {v.name}") for path, v in videos]
    return video_windows(videos, args.windows, pipe.config.frames, size, args.stride or 1, _note)


def make_report(args, pipe, windows, found, cases, trajectories, weights) -> dict:
    """Put the figures together; the keys are the interface."""
    from .eval_pose import pose_report, trajectory_report
    from .eval_views import closed_loop, view_report

    own = "rays_as_pixels" in args.methods
    report = {
        "windows": len(windows),
        "suite": args.suite,
        "stride": None if _scenes(args.suite[0]) else args.stride or 1,
        "seed": args.seed,
        "least_motion": args.least_motion,
        "pose": pose_report(found, windows, least_motion=args.least_motion),
        "views": view_report(pipe, windows, cases, weights, args.seed),
        "closed_loop": closed_loop(pipe, windows, weights, args.seed) if own else {},
    }
    clips = {}
    for row, window in enumerate(windows):
        clips.setdefault(window.clip, []).append(row)
    if not _scenes(args.suite[0]):
        paths = trajectory_report(trajectories)
        report["clips"] = {
            clip: {
                "windows": len(rows),
                "pose": pose_report(found, windows, rows, args.least_motion),
                "trajectory": paths.get(clip, {}),
            }
            for clip, rows in clips.items()
        }
    return report


def _note(text: str) -> None:
    print(f"rays-as-pixels eval: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
