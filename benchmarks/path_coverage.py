# SPDX-License-Identifier: Apache-2.0
"""Coverage of the covariances along stitched paths: python -m benchmarks.path_coverage [--paths 12] [--frames 61].

Held-out procedural paths go through what the trajectory node does: overlapping windows, samples of every fourth one,
the stitcher and the chain of covariances. How many of the published poses lie within their ellipsoid tells whether
errors that add up along a path are owned up to. Coverage of single windows: rays-as-pixels calibrate.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import chi2

from rays_as_pixels_model.geometry import invert, so3_log
from rays_as_pixels_ros.stitching import Stitcher
from rays_as_pixels_ros.uncertainty import CovarianceChain, WindowCovariance, rotate_covariance

from .drift import LongPath, make_paths, windows

LEVELS = (0.68, 0.95)
SAMPLES, EVERY = 8, 4  # the node's defaults


def squared_distances(path: LongPath, pipe) -> dict[str, np.ndarray]:
    """Squared Mahalanobis distances (frames,) of the published poses from the true ones; NaN for the first frame."""
    stitcher, chain = Stitcher(max_scale_step=2.0), CovarianceChain()
    spreads = WindowCovariance(pipe.calibration, SAMPLES, EVERY)
    truth = invert(path.T_world_camera[0]) @ path.T_world_camera
    truth[:, :3, 3] /= path.scale[0]
    out = {name: np.full(len(truth), np.nan) for name in ("translation", "rotation")}
    for ids in windows(len(truth)):
        frames = path.frames[ids]
        estimate = pipe.estimate_trajectory(frames, path.intrinsics)
        spread, _ = spreads.of(pipe, frames, path.intrinsics, estimate)
        added = stitcher.add(ids.tolist(), estimate.T_reference_camera)
        T_map = np.stack([stitcher.pose(frame) for frame in ids.tolist()])
        turn = T_map[-1, :3, :3] @ estimate.T_reference_camera[-1, :3, :3].T
        covariances = chain.add(ids.tolist(), T_map, rotate_covariance(spread, turn, stitcher.scale))
        spreads.refresh(pipe, frames, path.intrinsics, estimate)
        for frame in added:
            if frame.frame == 0:
                continue
            covariance = covariances[ids.tolist().index(frame.frame)]
            error = np.concatenate([
                frame.T_map_camera[:3, 3] - truth[frame.frame, :3, 3],
                so3_log(frame.T_map_camera[:3, :3] @ truth[frame.frame, :3, :3].T),
            ])  # fmt: skip
            for name, b in (("translation", slice(0, 3)), ("rotation", slice(3, 6))):
                out[name][frame.frame] = error[b] @ np.linalg.solve(covariance[b, b], error[b])
    return out


def measure(count: int, frames: int) -> dict[str, np.ndarray]:
    """Squared distances (paths, frames) of `count` paths."""
    from rays_as_pixels_model.pipeline import Pipeline

    pipe = Pipeline.from_checkpoint(None, device="cpu")
    found = [squared_distances(path, pipe) for path in make_paths(count, frames)]
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def table(found: dict[str, np.ndarray]) -> str:
    """Return the coverage at growing distances from the start as Markdown."""
    frames = found["translation"].shape[1]
    edges = np.unique(np.linspace(1, frames, 4).round().astype(int))
    lines = ["| frames | " + " | ".join(f"{name} within {level:.0%}" for name in found for level in LEVELS) + " |",
             "|---|" + "---|" * (len(found) * len(LEVELS))]  # fmt: skip
    for low, high in zip(edges, edges[1:], strict=False):
        parts = [d[:, low:high] for d in found.values()]
        shares = [np.nanmean(part <= chi2.ppf(level, 3)) for part in parts for level in LEVELS]
        lines.append(f"| {low} to {high - 1} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.path_coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=12)
    parser.add_argument("--frames", type=int, default=61)
    args = parser.parse_args()
    print(table(measure(args.paths, args.frames)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
