# SPDX-License-Identifier: Apache-2.0
"""Errors of cameras and pictures. Axes: N windows. Angles in degrees."""

from __future__ import annotations

import numpy as np

from rays_as_pixels_model.comparison import psnr
from rays_as_pixels_model.geometry import direction_angle_deg, invert, rotation_angle_deg

__all__ = ["LEAST_MOTION", "last_against_first", "pose_errors", "psnr"]

LEAST_MOTION = 0.02  # model units; below it a window has no translation direction to be right about


def last_against_first(T: np.ndarray) -> np.ndarray:
    """(N, T, 4, 4) camera to anything -> (N, 4, 4), last camera in the first."""
    return invert(T[:, 0]) @ T[:, -1]


def pose_errors(estimated: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Summarise (N, 4, 4) relative poses, truth in model units.

    Translation directions count only where the true translation is at least `LEAST_MOTION`; an estimate of exactly zero
    translation counts 90 degrees.
    """
    rotation = rotation_angle_deg(np.swapaxes(truth[:, :3, :3], 1, 2) @ estimated[:, :3, :3])
    moved = np.linalg.norm(truth[:, :3, 3], axis=1) >= LEAST_MOTION
    direction = direction_angle_deg(estimated[moved, :3, 3], truth[moved, :3, 3])
    out = {
        "rotation_error_deg_median": float(np.median(rotation)),
        "rotation_error_deg_p90": float(np.percentile(rotation, 90)),
        "translation_direction_error_deg_median": float(np.median(direction)) if moved.any() else float("nan"),
        "translation_direction_error_deg_p90": float(np.percentile(direction, 90)) if moved.any() else float("nan"),
    }
    for limit in (5, 15, 30):
        out[f"RRA@{limit}"] = float(np.mean(rotation < limit) * 100)
        out[f"RTA@{limit}"] = float(np.mean(direction < limit) * 100) if moved.any() else float("nan")
    return out
