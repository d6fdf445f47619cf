# SPDX-License-Identifier: Apache-2.0
"""A checkpoint at frame counts and sizes it never trained on: python -m benchmarks.extrapolation.

The scenes and camera paths of a row are the same but for the number of frames and the size at which they are rendered;
the identity guess and copying the source beside the model tell how hard a row is. Longer windows are estimated a second
time with the frames' places in time squeezed into the span of a trained window (`Layout.times`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.layout import Layout
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_training.eval_pose import find_cameras, pose_report
from rays_as_pixels_training.eval_views import render_cases, view_report
from rays_as_pixels_training.held_out import held_out_windows
from rays_as_pixels_training.perceptual import Weights

from .report import show

SIZES = (
    *((5, 64, 96), (9, 64, 96), (13, 64, 96), (17, 64, 96)),
    *((5, 64, 64), (5, 64, 128), (5, 96, 96), (5, 96, 128), (5, 128, 192)),
)


def measure(checkpoint: str | None, windows: int) -> list[dict]:
    """Return one row per window size."""
    trained = Pipeline.from_checkpoint(checkpoint, "cpu")
    rows = []
    for frames, height, width in SIZES:
        pipe = Pipeline(trained.model.at(frames=frames, height=height, width=width))
        given = held_out_windows(windows, frames, (width, height))
        pose = pose_report(find_cameras(pipe, given, ("rays_as_pixels", "identity"), steps=(1,)), given)
        views = other = None
        if frames == trained.config.frames:
            cases = render_cases(pipe, given, ("rays_as_pixels", "copy_nearest"), steps=(2,))
            views = view_report(pipe, given, cases, Weights())
        else:
            short = Pipeline(squeezed(pipe.model, trained.config.frames - 1))
            other = pose_report(find_cameras(short, given, ("rays_as_pixels",), steps=(1,)), given)["rays_as_pixels"]
        rows.append(
            {
                "window": f"{frames}x{height}x{width}",
                "trained": pipe.config == trained.config,
                "rotation_deg": pose["rays_as_pixels"]["rotation_error_deg_median"],
                "identity_rotation_deg": pose["identity"]["rotation_error_deg_median"],
                "direction_deg": pose["rays_as_pixels"]["translation_direction_error_deg_median"],
                "squeezed_rotation_deg": other and other["rotation_error_deg_median"],
                "squeezed_direction_deg": other and other["translation_direction_error_deg_median"],
                "view_psnr": views and views["rays_as_pixels"]["one_source"]["psnr"],
                "copy_psnr": views and views["copy_nearest"]["one_source"]["psnr"],
            }
        )
        print(rows[-1], flush=True)
    return rows


def squeezed(model: RaysAsPixels, span: float) -> RaysAsPixels:
    """Return the model with the frames of a window spread evenly over 0 .. span."""
    other = model.at()

    def forward(z, r, t_z, t_r, reference, groups):
        times = torch.linspace(0, span, sum(groups))
        return model(z, r, t_z, t_r, reference, Layout(groups, times))

    other.forward = forward
    return other


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| window | rotation error, median deg (identity guess) | direction error, median deg "
        "| the two with times squeezed | view PSNR dB (copying) |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        views = "" if row["view_psnr"] is None else f"{row['view_psnr']:.1f} ({row['copy_psnr']:.1f})"
        squeezed = ""
        if row["squeezed_rotation_deg"] is not None:
            squeezed = f"{row['squeezed_rotation_deg']:.2f}, {row['squeezed_direction_deg']:.0f}"
        lines.append(
            f"| {row['window']}{', trained' * row['trained']} | {row['rotation_deg']:.2f} "
            f"({row['identity_rotation_deg']:.2f}) | {row['direction_deg']:.0f} | {squeezed} | {views} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.extrapolation", description=__doc__)
    parser.add_argument("--checkpoint", help="folder (default: the shipped one)")
    parser.add_argument("--windows", type=int, default=100)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args.checkpoint, args.windows)
    show(rows, table(rows), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
