# SPDX-License-Identifier: Apache-2.0
"""Figures and the picture of a trajectory, alone or beside the true one.

Poses are camera to some frame, (T, 4, 4), optical axes; the estimate's unit is free, the truth's is its own.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from rays_as_pixels_model.files import replacing
from rays_as_pixels_model.geometry import align_sim3, direction_angle_deg, invert, make_pose, rotation_angle_deg


def errors_against_truth(T_map_camera: np.ndarray, T_world_camera: np.ndarray, span: int) -> dict:
    """Compare relative motion over `span` frames and positions after Sim(3) alignment.

    Args:
        T_map_camera: (T, 4, 4) estimate.
        T_world_camera: (T, 4, 4) truth.
        span: frames between the two poses of a compared motion; at most T - 1 is used.

    Returns:
        rotation and translation-direction errors in degrees, with the truth's own rotation over the same spans (what
        "no motion" would get); ATE and path length in the truth's unit. Directions count only where the camera moved
        at least a tenth of the median distance, and are 90 (no knowledge) if it never moved.
    """
    span = min(span, len(T_map_camera) - 1)
    found = invert(T_map_camera[:-span]) @ T_map_camera[span:]
    true = invert(T_world_camera[:-span]) @ T_world_camera[span:]
    rotation = rotation_angle_deg(found[:, :3, :3].transpose(0, 2, 1) @ true[:, :3, :3])
    distance = np.linalg.norm(true[:, :3, 3], axis=1)
    moved = distance > 0.1 * np.median(distance)
    direction = direction_angle_deg(found[moved, :3, 3], true[moved, :3, 3])
    aligned = align_to(T_map_camera, T_world_camera)
    position_errors = np.linalg.norm(aligned[:, :3, 3] - T_world_camera[:, :3, 3], axis=1)
    steps = np.linalg.norm(np.diff(T_world_camera[:, :3, 3], axis=0), axis=1)
    return {
        "span_frames": span,
        "rotation_error_deg_median": float(np.median(rotation)),
        "rotation_error_deg_p90": float(np.percentile(rotation, 90)),
        "rotation_of_truth_deg_median": float(np.median(rotation_angle_deg(true[:, :3, :3]))),
        "direction_error_deg_median": float(np.median(direction)) if moved.any() else 90.0,
        "ate_rmse": float(np.sqrt((position_errors**2).mean())),
        "path_length": float(steps.sum()),
    }


def align_to(T_map_camera: np.ndarray, T_world_camera: np.ndarray) -> np.ndarray:
    """Move the estimate into the truth's frame and unit by the Sim(3) that fits the positions best."""
    scale, rotation, translation = align_sim3(T_map_camera[:, :3, 3], T_world_camera[:, :3, 3])
    positions = scale * T_map_camera[:, :3, 3] @ rotation.T + translation
    return make_pose(rotation @ T_map_camera[:, :3, :3], positions)


def plot_trajectory(
    path: Path, seconds: list[float], T_map_camera: np.ndarray, T_world_camera: np.ndarray | None, title: str
) -> None:
    """Draw the path from above and from the side, and the rotation over time, with the truth where it is known.

    Everything is drawn in the first camera's axes; with truth, in its unit and aligned to it.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    origin = invert(T_map_camera[0] if T_world_camera is None else T_world_camera[0])
    estimate = origin @ (T_map_camera if T_world_camera is None else align_to(T_map_camera, T_world_camera))
    curves = [("estimate", estimate, T_map_camera, "tab:blue")]
    if T_world_camera is not None:
        curves.insert(0, ("truth", origin @ T_world_camera, T_world_camera, "0.6"))
    unit = "first window's scene scale" if T_world_camera is None else "unit of the truth, Sim(3) aligned"

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    above, side, turn = figure.subplots(1, 3)
    elapsed = np.asarray(seconds) - seconds[0]
    for name, placed, own, colour in curves:
        x, y, z = placed[:, :3, 3].T
        above.plot(x, z, color=colour, label=name)
        side.plot(z, -y, color=colour, label=name)
        above.plot(x[:1], z[:1], "o", color=colour)
        side.plot(z[:1], -y[:1], "o", color=colour)
        turn.plot(elapsed, rotation_angle_deg((invert(own[:1]) @ own)[:, :3, :3]), color=colour, label=name)
    above.set(xlabel="right", ylabel="forward", title="from above", aspect="equal", adjustable="datalim")
    side.set(xlabel="forward", ylabel="up", title="from the side", aspect="equal", adjustable="datalim")
    turn.set(xlabel="seconds", ylabel="degrees", title="rotation since the first frame")
    for axes in (above, side, turn):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.suptitle(f"{title} ({unit})", fontsize="medium")
    with replacing(path) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a file's name in letters that the font lacks
        figure.savefig(temporary, dpi=110)
