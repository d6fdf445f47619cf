# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels calibrate`: measure how sure a checkpoint may be of its poses, and keep it in its config.json.

    rays-as-pixels calibrate --checkpoint DIR             # after training; the trajectory node reads it
    rays-as-pixels calibrate --dry-run                    # only print what the shipped checkpoint gives

What is measured: `coverage.py`, docs/trajectory.md.
"""

from __future__ import annotations

import argparse
from dataclasses import replace


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    parser = argparse.ArgumentParser(
        prog="rays-as-pixels calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder; without it, the one that is shipped")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--clips", type=int, default=200, help="held-out clips, half varied; halves check halves")
    parser.add_argument("--samples", type=int, default=8, help="posterior samples, as the trajectory node takes")
    parser.add_argument("--textures", metavar="DIR", help="folder of photos; its held-out files are used")
    parser.add_argument("--dry-run", action="store_true", help="print the table and leave the checkpoint as it is")
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.clips < 10 or args.samples < 2:
        parser.error(f"--clips is {args.clips} and --samples {args.samples}; at least 10 and 2 are needed")
    from rays_as_pixels_model.calibration import write_calibration
    from rays_as_pixels_model.pipeline import Pipeline

    from .coverage import calibrate, clip_length, table, window_errors
    from .data.procedural import ClipConfig
    from .held_out import held_out_clips

    pipe = Pipeline.from_checkpoint(args.checkpoint, device=args.device)
    width, height = pipe.config.picture_size
    size = {"frames": clip_length(pipe.config.frames), "width": width, "height": height}
    counts = {"plain": args.clips - args.clips // 2, "varied": args.clips // 2}
    clips = [c for kind, n in counts.items() for c in held_out_clips(n, ClipConfig(scenes=kind, **size), args.textures)]
    found = calibrate(window_errors(pipe, clips, args.samples), args.samples)
    refined = calibrate(window_errors(pipe, clips, args.samples, refine=True), args.samples)
    print(f"the model alone\n\n{table(found)}\n\nrefined\n\n{table(refined)}")
    found = replace(found, refined=refined)
    if not args.dry_run:
        print(f"written to {write_calibration(args.checkpoint, found)}")
    return 0
