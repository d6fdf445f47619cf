# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels calibrate`: measure how sure a checkpoint may be of its poses, and keep it in its config.json.

    rays-as-pixels calibrate --checkpoint DIR             # after training; the trajectory node reads it
    rays-as-pixels calibrate --dry-run                    # only print what the shipped checkpoint gives

What is measured: `coverage.py`, docs/trajectory.md.
"""

from __future__ import annotations

import argparse


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    parser = argparse.ArgumentParser(
        prog="rays-as-pixels calibrate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder; without it, the one that is shipped")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--windows", type=int, default=200, help="held-out windows, half of them for the check")
    parser.add_argument("--samples", type=int, default=8, help="posterior samples, as the trajectory node takes")
    parser.add_argument("--textures", metavar="DIR", help="folder of photos; its held-out files are used")
    parser.add_argument("--dry-run", action="store_true", help="print the table and leave the checkpoint as it is")
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.windows < 20 or args.samples < 2:
        parser.error(f"--windows is {args.windows} and --samples {args.samples}; at least 20 and 2 are needed")
    from rays_as_pixels_model.calibration import write_calibration
    from rays_as_pixels_model.pipeline import Pipeline

    from .coverage import calibrate, table, window_errors
    from .held_out import held_out_windows

    pipe = Pipeline.from_checkpoint(args.checkpoint, device=args.device)
    size = (pipe.config.width, pipe.config.height)
    windows = held_out_windows(args.windows, pipe.config.frames, size, args.textures)
    found = calibrate(*window_errors(pipe, windows, args.samples), args.samples)
    print(table(found))
    if not args.dry_run:
        print(f"written to {write_calibration(args.checkpoint, found)}")
    return 0
