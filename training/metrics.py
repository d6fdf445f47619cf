# SPDX-License-Identifier: Apache-2.0
"""Errors of cameras and pictures. Axes: N windows, T frames, H W pixels. Angles in degrees."""

from __future__ import annotations

import numpy as np

from rays_as_pixels_model.comparison import psnr, ssim
from rays_as_pixels_model.geometry import direction_angle_deg, invert, rotation_angle_deg

__all__ = ["LEAST_MOTION", "area_under_accuracy", "camera_errors", "last_against_first", "pose_errors", "psnr", "ssim"]

LEAST_MOTION = 0.02  # model units; below it a window has no translation direction to be right about
LIMITS = (5, 15, 30)


def last_against_first(T: np.ndarray) -> np.ndarray:
    """(N, T, 4, 4) camera to anything -> (N, 4, 4), last camera in the first."""
    return invert(T[:, 0]) @ T[:, -1]


def area_under_accuracy(errors: np.ndarray, limit: float) -> float:
    """Percent of the area under the curve "share of windows with an error below x" for x from 0 to `limit`.

    The integral is exact: each window adds the part of the range that lies above its error. (Published figures are
    often means over whole degrees, which differ by up to half a degree's worth.)
    """
    return float(np.mean(np.clip(1 - np.asarray(errors) / limit, 0, 1)) * 100)


def pose_errors(estimated: np.ndarray, truth: np.ndarray, least_motion: float = LEAST_MOTION) -> dict[str, float]:
    """Summarise (N, 4, 4) relative poses, truth in model units.

    Translation directions count only where the true translation is at least `least_motion`; an estimate of exactly zero
    translation counts 90 degrees.

    Returns:
        rotation and direction errors: median and p90.
        RRA@x, RTA@x: percent of windows whose rotation (direction) error is below x degrees.
        AUC@x: area under the accuracy curve up to x degrees, a window's error being the larger of the two (of rotation
            alone where the camera did not move).
        moving: windows whose camera moved enough to have a direction.
        mRRA@30: the mean of RRA over all limits up to 30 degrees, which is the area under the rotation accuracy curve.

    Note: The paper reports mRRA@30, and what we have of it does not say which mean that is. Read here as the mAA@30 of
    the pose literature (the mean over the limits), for rotation alone. RRA@30 itself is beside it.
    """
    rotation = rotation_angle_deg(np.swapaxes(truth[:, :3, :3], 1, 2) @ estimated[:, :3, :3])
    moved = np.linalg.norm(truth[:, :3, 3], axis=1) >= least_motion
    direction = direction_angle_deg(estimated[moved, :3, 3], truth[moved, :3, 3])
    worst = rotation.copy()
    worst[moved] = np.maximum(rotation[moved], direction)
    out = {
        "rotation_error_deg_median": float(np.median(rotation)),
        "rotation_error_deg_p90": float(np.percentile(rotation, 90)),
        "translation_direction_error_deg_median": float(np.median(direction)) if moved.any() else float("nan"),
        "translation_direction_error_deg_p90": float(np.percentile(direction, 90)) if moved.any() else float("nan"),
    }
    for limit in LIMITS:
        out[f"RRA@{limit}"] = float(np.mean(rotation < limit) * 100)
        out[f"RTA@{limit}"] = float(np.mean(direction < limit) * 100) if moved.any() else float("nan")
        out[f"AUC@{limit}"] = area_under_accuracy(worst, limit)
    out["moving"] = int(moved.sum())
    out["mRRA@30"] = area_under_accuracy(rotation, 30)
    return out


def camera_errors(estimated: np.ndarray, asked: np.ndarray) -> dict[str, float]:
    """R_err and T_err of rendered videos: the cameras found in them against the cameras asked for.

    Args:
        estimated, asked: (N, T, 4, 4), camera to the first frame, model units.

    Returns:
        R_err: mean rotation error in radians, T_err: mean distance of the camera centres in model units (scene depths);
        both over all frames but the first, which is given.
    """
    difference = invert(asked[:, 1:]) @ estimated[:, 1:]
    return {
        "R_err": float(np.radians(rotation_angle_deg(difference[..., :3, :3])).mean()),
        "T_err": float(np.linalg.norm(difference[..., :3, 3], axis=-1).mean()),
    }
