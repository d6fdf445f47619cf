# SPDX-License-Identifier: Apache-2.0
"""What `estimate` makes of posed clips: python -m benchmarks.real_clips CLIPS --out out/real_clips.

Runs the command on each clip of a folder (posed images: a folder each, with cameras.json) at each stride, prints the
table of docs/real_clips.md and puts the pictures of the smallest stride on one sheet (real_clips.png).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rays_as_pixels_model.files import replacing
from rays_as_pixels_ros.command_estimate import main as estimate

from .report import show


def measure(clips: list[Path], strides: list[int], out: Path, more: list[str]) -> list[dict]:
    """Estimate every clip at every stride; one row each, figures in the unit of the clip's truth."""
    rows = []
    for clip in clips:
        for stride in strides:
            folder = result_folder(out, clip, stride)
            estimate([str(clip), "--stride", str(stride), "--out", str(folder), *more])
            errors = json.loads((folder / "summary.json").read_text())["errors"]
            rows.append({"clip": clip.name, "stride": stride, **errors})
    return rows


def result_folder(out: Path, clip: Path, stride: int) -> Path:
    """Where the results of one run lie."""
    return out / f"{clip.name}_stride_{stride}"


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| clip | stride | rotation error, median deg | still | translation direction, median deg | "
        "ATE after Sim(3) | path length |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['clip']} | {r['stride']} | {r['rotation_error_deg_median']:.1f} | "
            f"{r['rotation_of_truth_deg_median']:.1f} | {r['direction_error_deg_median']:.0f} | "
            f"{r['ate_rmse']:.2g} | {r['path_length']:.3g} |"
        )
    return "\n".join(lines)


def sheet(pictures: list[Path], path: Path) -> None:
    """Put pictures on one sheet, two to a row, at half their size."""
    from PIL import Image

    images = [Image.open(p).convert("RGB").reduce(2) for p in pictures]
    width, height = max(i.width for i in images), max(i.height for i in images)
    columns = min(2, len(images))
    canvas = Image.new("RGB", (columns * width, -(-len(images) // columns) * height), "white")
    for number, image in enumerate(images):
        canvas.paste(image, (number % columns * width, number // columns * height))
    with replacing(path) as temporary:
        canvas.save(temporary)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_clips", description=__doc__.splitlines()[0])
    parser.add_argument("clips", type=Path, metavar="CLIPS", help="folder of posed clips")
    parser.add_argument("--strides", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--checkpoint", help="default: the shipped one")
    parser.add_argument("--out", type=Path, default=Path("out/real_clips"))
    args = parser.parse_args()
    clips = sorted(p.parent for p in args.clips.glob("*/cameras.json"))
    if not clips:
        parser.error(f"{args.clips} holds no posed clips (a folder each, with cameras.json)")
    more = ["--checkpoint", args.checkpoint] if args.checkpoint else []
    rows = measure(clips, args.strides, args.out, more)
    show(rows, table(rows), args.out / "real_clips.json")
    pictures = [result_folder(args.out, clip, args.strides[0]) / "trajectory.png" for clip in clips]
    sheet(pictures, args.out / "real_clips.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
