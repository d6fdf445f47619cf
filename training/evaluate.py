# SPDX-License-Identifier: Apache-2.0
"""Judge a checkpoint on held-out procedural windows, beside the baselines on the same windows.

    rays-as-pixels eval                                   # the shipped checkpoint, 200 windows
    rays-as-pixels eval --checkpoint DIR --windows 500 --json eval.json

What a window is, and what the errors are: `held_out.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="rays-as-pixels eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", help="folder (default: the shipped one)")
    parser.add_argument("--windows", type=int, default=200)
    parser.add_argument("--textures", help="folder of photos; its held-out files are used")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the report here")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = make_parser().parse_args(argv)
    if args.windows < 1:
        print(f"rays-as-pixels eval: error: --windows must be at least 1, got {args.windows}", file=sys.stderr)
        return 2
    from rays_as_pixels_model.media import MediaError, write_text
    from rays_as_pixels_model.pipeline import Pipeline

    from .data.procedural import ClipConfig
    from .held_out import clip_length, evaluate_pose, evaluate_views, held_out_clips, markdown

    try:
        pipe = Pipeline.from_checkpoint(args.checkpoint, args.device)
        size = {"height": pipe.config.height, "width": pipe.config.width}
        clips = held_out_clips(args.windows, ClipConfig(frames=clip_length(pipe.config.frames), **size), args.textures)
        report = {
            "windows": args.windows,
            "pose": evaluate_pose(pipe, clips, seed=args.seed),
            "views": evaluate_views(pipe, clips, seed=args.seed),
        }
        print(markdown(report))
        if args.json:
            write_text(args.json, json.dumps(report, indent=1) + "\n")
    except (ValueError, MediaError, OSError) as error:
        print(f"rays-as-pixels eval: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
