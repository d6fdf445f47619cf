# SPDX-License-Identifier: Apache-2.0
"""How far off a checkpoint is when it says how sure it is.

Held-out windows with known cameras are estimated as the trajectory node does it. On every second one the factor on the
standard deviations is measured, for position and rotation, so that 95 % of the errors lie in the 95 % ellipsoid; on the
others it is checked. Errors have long tails: a factor from their mean square would leave the tail out.

Axes: N windows, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from rich.progress import track
from scipy.stats import chi2

from rays_as_pixels_model.calibration import Calibration, draws_covariance
from rays_as_pixels_model.geometry import so3_log
from rays_as_pixels_model.pipeline import Pipeline

from .eval_windows import EvalWindow

LEVELS = (0.50, 0.68, 0.90, 0.95, 0.99)
_FITTED_AT = 0.95
# Residuals of real clips reach beyond those of rendered ones; what shows no scene reaches further: docs/trajectory.md.
_LOST_ABOVE = (2.0, 0.99)  # so many times this quantile of the held-out windows' residuals
_BLOCKS = {"translation": slice(0, 3), "rotation": slice(3, 6)}


def pose_error(T: np.ndarray, T_true: np.ndarray) -> np.ndarray:
    """Errors (..., 6) of poses (..., 4, 4) as a covariance counts them: shift, and left rotation vector."""
    turn = so3_log(T[..., :3, :3] @ np.swapaxes(T_true[..., :3, :3], -1, -2))
    return np.concatenate([T[..., :3, 3] - T_true[..., :3, 3], turn], axis=-1)


def distances(error: np.ndarray, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """Squared Mahalanobis distances (...) of errors (..., 6) for position and rotation, 3 degrees of freedom each."""
    return {
        name: np.einsum("...i,...ij,...j->...", error[..., b], np.linalg.inv(covariance[..., b, b]), error[..., b])
        for name, b in _BLOCKS.items()
    }


def coverage(squared: np.ndarray) -> list[float]:
    """Share of squared distances within the ellipsoid of each of LEVELS."""
    return [round(float(np.mean(squared <= chi2.ppf(level, 3))), 3) for level in LEVELS]


def window_errors(pipe: Pipeline, windows: Sequence[EvalWindow], samples: int) -> tuple:
    """Estimate windows: errors (N, T - 1, 6), covariances before the factors (N, T - 1, 6, 6), residuals (N,)."""
    errors, covariances, residuals = [], [], []
    for number, window in enumerate(track(windows, "estimating", transient=True)):
        found = pipe.estimate_trajectory(window.frames, window.intrinsics)
        draws = pipe.draw_cameras(window.frames, window.intrinsics, samples, seed=number)
        spread = draws_covariance(draws, found.T_reference_camera, found.covariance)
        errors.append(pose_error(found.T_reference_camera, window.T_first_camera())[1:])
        covariances.append(spread[1:])
        residuals.append(np.median(found.residual))
    return np.stack(errors), np.stack(covariances), np.array(residuals)


def calibrate(errors: np.ndarray, covariances: np.ndarray, residuals: np.ndarray, samples: int) -> Calibration:
    """Fit the factors on every second window and check them on the others (what `window_errors` returns)."""
    fitted = {name: d[::2].ravel() for name, d in distances(errors, covariances).items()}
    factor = {name: float(np.sqrt(np.quantile(d, _FITTED_AT) / chi2.ppf(_FITTED_AT, 3))) for name, d in fitted.items()}
    lost = float(_LOST_ABOVE[0] * np.quantile(residuals, _LOST_ABOVE[1]))
    found = Calibration(**factor, max_residual=lost, samples=samples, windows=len(errors))
    checked = distances(errors[1::2], found.scaled(covariances[1::2]))
    return replace(found, coverage={name: coverage(d) for name, d in checked.items()})


def table(found: Calibration) -> str:
    """Return what was measured as Markdown."""
    head = " | ".join(f"within {level:.0%}" for level in LEVELS)
    lines = [f"| | factor | {head} |", "|---|---|" + "---|" * len(LEVELS)]
    for name, shares in found.coverage.items():
        lines.append(f"| {name} | {getattr(found, name):.2f} | " + " | ".join(f"{s:.1%}" for s in shares) + " |")
    lines.append(
        f"\n{found.windows} windows, {found.samples} samples; a window is lost above {found.max_residual:.4f}."
    )
    return "\n".join(lines)
