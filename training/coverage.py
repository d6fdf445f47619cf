# SPDX-License-Identifier: Apache-2.0
"""How far off a checkpoint is when it says how sure it is.

Held-out clips with known cameras are estimated as the trajectory node does it: in pairs of windows that meet end to
end, the second with the draws of the first, at every frame and at every second one. Two weights are fitted, of the
draws' covariance and of the motion's size, for position and rotation each. What is kept is fitted on all clips; it is
checked by fits on either half of the clips whose ellipsoids must hold the errors of the other half.

Errors have long tails. The two weights are therefore those of the most likely Student t distribution, and their common
size is such that 95 % of the errors lie in the 95 % ellipsoid: a size from the mean square would leave the tail out.

Axes: N clips, S strides, W = 2 windows, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from rich.progress import track
from scipy.optimize import minimize
from scipy.stats import chi2

from rays_as_pixels_model.calibration import Calibration, draws_covariance, motion_size, root
from rays_as_pixels_model.geometry import so3_log
from rays_as_pixels_model.pipeline import Pipeline

from .data.procedural import Clip
from .eval_windows import in_first_camera

STRIDES = (1, 2)
LEVELS = (0.50, 0.68, 0.90, 0.95, 0.99)
_FITTED_AT = 0.95
_FREEDOM = 4.0  # degrees of freedom of the t distribution
# Residuals of real clips reach beyond those of rendered ones; what shows no scene reaches further: docs/trajectory.md.
_LOST_ABOVE = (2.0, 0.99)  # so many times this quantile of the residuals of windows of the largest stride
_BLOCKS = {"translation": slice(0, 3), "rotation": slice(3, 6)}


@dataclass(frozen=True)
class WindowErrors:
    """What windows were estimated as, without their reference frames.

    errors: (N, S, W, T - 1, 6). spread: (N, S, W, T - 1, 6, 6), covariances of the draws. T_reference_camera: (N, S, W,
    T - 1, 4, 4). residual: (N, S, W).
    """

    errors: np.ndarray
    spread: np.ndarray
    T_reference_camera: np.ndarray
    residual: np.ndarray

    def __getitem__(self, clips: slice) -> WindowErrors:
        return WindowErrors(*(getattr(self, f.name)[clips] for f in fields(self)))


def clip_length(window: int) -> int:
    """Frames of a clip that holds its windows of `window` frames."""
    return 2 * max(STRIDES) * (window - 1) + 1


def pose_error(T: np.ndarray, T_true: np.ndarray) -> np.ndarray:
    """Errors (..., 6) of poses (..., 4, 4) as a covariance counts them: shift, and left rotation vector."""
    turn = so3_log(T[..., :3, :3] @ np.swapaxes(T_true[..., :3, :3], -1, -2))
    return np.concatenate([T[..., :3, 3] - T_true[..., :3, 3], turn], axis=-1)


def distances(error: np.ndarray, covariance: np.ndarray) -> dict[str, np.ndarray]:
    """Squared Mahalanobis distances (...) of errors (..., 6) for position and rotation, 3 degrees of freedom each."""
    return {name: _distance(error[..., b], covariance[..., b, b]) for name, b in _BLOCKS.items()}


def _distance(error: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    return np.einsum("...i,...ij,...j->...", error, np.linalg.inv(covariance), error)


def coverage(squared: np.ndarray) -> list[float]:
    """Share of squared distances within the ellipsoid of each of LEVELS."""
    return [round(float(np.mean(squared <= chi2.ppf(level, 3))), 3) for level in LEVELS]


def window_errors(pipe: Pipeline, clips: Sequence[Clip], samples: int, refine: bool = False) -> WindowErrors:
    """Estimate the windows of clips of `clip_length` frames; refined ones have covariances of their own."""
    rows = []
    for number, clip in enumerate(track(clips, "estimating", transient=True)):
        for stride in STRIDES:
            spread = None
            for start in (0, stride * (pipe.config.frames - 1)):
                ids = start + stride * np.arange(pipe.config.frames)
                found = pipe.estimate_trajectory(clip.frames[ids], clip.intrinsics, refine=refine)
                T, T_true = found.T_reference_camera, in_first_camera(clip.T_world_camera[ids], clip.scene_scale[start])
                if refine:
                    spread = found.covariance
                elif spread is None:
                    draws = pipe.draw_cameras(
                        clip.frames[ids], clip.intrinsics, samples, seed=number, turned_by=found.turned_by
                    )
                    spread = draws_covariance(draws, T, found.covariance)
                rows.append((pose_error(T, T_true)[1:], spread[1:], T[1:], np.median(found.residual)))
    shape = (len(clips), len(STRIDES), 2)
    return WindowErrors(*(np.stack(column).reshape(*shape, *np.shape(column[0])) for column in zip(*rows, strict=True)))


def calibrate(found: WindowErrors, samples: int) -> Calibration:
    """Fit on all clips; the coverage is that of each half of them with the fit on the other half."""
    halves, squared = (found[::2], found[1::2]), []
    for checked, fitted in (halves, halves[::-1]):
        covariance = _fit(fitted).of_errors(checked.spread, checked.T_reference_camera)
        squared.append(distances(checked.errors, covariance))
    shares = {name: coverage(np.concatenate([half[name].ravel() for half in squared])) for name in _BLOCKS}
    lost = float(_LOST_ABOVE[0] * np.quantile(found.residual[:, -1], _LOST_ABOVE[1]))
    return replace(_fit(found), max_residual=lost, samples=samples, windows=found.residual.size, coverage=shares)


def _fit(found: WindowErrors) -> Calibration:
    weights, moved = {}, motion_size(found.T_reference_camera)
    for name, b in _BLOCKS.items():
        weights[name], weights[f"{name}_motion"] = _weights(found.errors[..., b], found.spread[..., b, b], moved)
    measured = Calibration(**weights)
    return replace(measured, correlation_frames=_correlation_frames(found, measured))


def _weights(errors: np.ndarray, spread: np.ndarray, motion: np.ndarray) -> tuple[float, float]:
    """Fit errors (..., 3) with covariances a^2 spread + b^2 motion^2 I; returns a and b."""
    errors, spread = errors.reshape(-1, 3), spread.reshape(-1, 3, 3)
    moved = motion.reshape(-1, 1, 1) ** 2 * np.eye(3)

    def covariance(logs: np.ndarray) -> np.ndarray:
        return np.exp(2 * logs[0]) * spread + np.exp(2 * logs[1]) * moved

    def loss(logs: np.ndarray) -> float:  # negative mean log likelihood of the t distribution, less a constant
        C = covariance(logs)
        tail = 0.5 * (_FREEDOM + 3) * np.log1p(_distance(errors, C) / _FREEDOM)
        return float(np.mean(0.5 * np.linalg.slogdet(C)[1] + tail))

    logs = minimize(loss, np.log([1.0, 0.1]), method="Nelder-Mead").x
    size = np.quantile(_distance(errors, covariance(logs)), _FITTED_AT) / chi2.ppf(_FITTED_AT, 3)
    factor, motion_factor = np.exp(logs) * np.sqrt(size)
    return float(factor), float(motion_factor)


def _correlation_frames(found: WindowErrors, measured: Calibration) -> float:
    """Frames over which the correlation of the errors of windows that meet end to end falls to 1/e.

    Of the errors of the last frames, position and rotation, in standard deviations and in the axes of the first window;
    those outside the 95 % ellipsoid are drawn back to it, or a few of them would decide.
    """
    T = found.T_reference_camera[..., -1, :, :]
    covariance = measured.of_errors(found.spread[..., -1, :, :], T)
    product = power = 0.0
    for b in _BLOCKS.values():
        w = np.linalg.solve(root(covariance[..., b, b]), found.errors[..., -1, b, None])  # (N, S, W, 3, 1)
        w /= np.maximum(1.0, np.linalg.norm(w, axis=-2, keepdims=True) / np.sqrt(chi2.ppf(_FITTED_AT, 3)))
        product += (w[:, :, 0] * (T[:, :, 0, :3, :3] @ w[:, :, 1])).sum()
        power += 0.5 * (w**2).sum()
    correlation = min(product / power, 0.99)
    return float(-found.errors.shape[-2] / np.log(correlation)) if correlation > 0 else 0.0


def table(found: Calibration) -> str:
    """Return what was measured as Markdown."""
    head = " | ".join(f"within {level:.0%}" for level in LEVELS)
    lines = [f"| | factor on the draws | for a motion of 1 | {head} |", "|---|---|---|" + "---|" * len(LEVELS)]
    for name, shares in found.coverage.items():
        weights = f"{getattr(found, name):.2f} | {getattr(found, f'{name}_motion'):.3f}"
        lines.append(f"| {name} | {weights} | " + " | ".join(f"{s:.1%}" for s in shares) + " |")
    lines.append(
        f"\n{found.windows} windows, {found.samples} samples; errors stay correlated over "
        f"{found.correlation_frames:.1f} frames; a window is lost above {found.max_residual:.4f}."
    )
    return "\n".join(lines)
