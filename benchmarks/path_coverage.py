# SPDX-License-Identifier: Apache-2.0
"""Coverage of the covariances along stitched paths: python -m benchmarks.path_coverage [--paths 12] [--frames 89].

Held-out procedural paths, none of them used to calibrate, go through what the trajectory node does: overlapping windows
of every frame and of every second one, samples of every fourth window, the stitcher and the chain of covariances. How
many of the published poses lie within their ellipsoid tells whether errors that add up along a path are owned up to.
Coverage of single windows: rays-as-pixels calibrate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import chi2

from rays_as_pixels_model.geometry import invert
from rays_as_pixels_ros.placing import WindowPlacer
from rays_as_pixels_ros.stitching import Stitcher
from rays_as_pixels_training.coverage import STRIDES, distances, pose_error

from .drift import LongPath, make_paths, windows

LEVELS = (0.68, 0.95)
SAMPLES, EVERY, MAX_SCALE_STEP = 8, 4, 2.0  # the node's defaults
_EDGES = (0, 4, 10, 20)  # windows


def squared_distances(path: LongPath, pipe, stride: int) -> dict[str, np.ndarray]:
    """Squared Mahalanobis distances (windows,) of the newest pose of each window from the true one, as published."""
    placer = WindowPlacer(Stitcher(max_scale_step=MAX_SCALE_STEP), pipe.calibration.of(True), SAMPLES, EVERY)
    truth = invert(path.T_world_camera[0]) @ path.T_world_camera[::stride]
    truth[:, :3, 3] /= path.scale[0]
    rows = []
    for ids in windows(len(truth)):
        frames = path.frames[::stride][ids]
        estimate = pipe.estimate_trajectory(frames, path.intrinsics)
        covariances = placer.spreads.of(pipe, frames, path.intrinsics, estimate)
        newest = placer.place(ids.tolist(), estimate.T_reference_camera, covariances)[-1]
        placer.spreads.refresh(pipe, frames, path.intrinsics, estimate)
        error = pose_error(newest.stitched.T_map_camera, truth[newest.stitched.frame])
        rows.append(distances(error, newest.covariance))
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def measure(count: int, frames: int, checkpoint: Path | None = None) -> dict[int, dict[str, np.ndarray]]:
    """Squared distances (paths, windows) of `count` paths, for each stride."""
    from rays_as_pixels_model.pipeline import Pipeline

    pipe, paths = Pipeline.from_checkpoint(checkpoint, device="cpu"), make_paths(count, frames)
    found = {stride: [squared_distances(path, pipe, stride) for path in paths] for stride in STRIDES}
    return {stride: {name: np.stack([e[name] for e in each]) for name in each[0]} for stride, each in found.items()}


def table(found: dict[int, dict[str, np.ndarray]]) -> str:
    """Return the coverage at growing distances from the start as Markdown."""
    names = list(next(iter(found.values())))
    lines = ["| frames | windows | " + " | ".join(f"{name} within {level:.0%}" for name in names for level in LEVELS)
             + " |", "|---|---|" + "---|" * (len(names) * len(LEVELS))]  # fmt: skip
    for stride, squared in found.items():
        count = squared[names[0]].shape[1]
        edges = [edge for edge in _EDGES if edge < count] + [count]
        for low, high in zip(edges, edges[1:], strict=False):
            shares = [np.mean(squared[n][:, low:high] <= chi2.ppf(level, 3)) for n in names for level in LEVELS]
            used = "every" if stride == 1 else f"every {stride}."
            lines.append(f"| {used} | {low + 1} to {high} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.path_coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--frames", type=int, default=89)
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    args = parser.parse_args()
    print(table(measure(args.paths, args.frames, args.checkpoint)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
