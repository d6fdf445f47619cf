# SPDX-License-Identifier: Apache-2.0
"""What the tasks of the pipeline return.

Axes: T frames of a window, V views, K windows, k posterior draws, H W pixels. The unit of translation is the model's.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .geometry import Intrinsics
from .refinement import Refined


@dataclass(frozen=True)
class TrajectoryEstimate:
    """Cameras of one window.

    Attributes:
        T_reference_camera: (T, 4, 4) float64, model units.
        intrinsics: of the frames as the model saw them: given, or found.
        residual: (T,) rms distance of the decoded raxels from those of the camera read from them.
        covariance: (T, 6, 6) of (x, y, z, rx, ry, rz); left perturbation in the reference frame, model units, radians.
            It says how well a camera explains the decoded raxels, plus how far the draws lie apart; raxels that agree
            with each other on a wrong camera show only in the draws.
        raxels: (T, H/2, W/2, 3) float32, decoded; the mean over the draws.
        draws: (k, T, 4, 4), the cameras of each posterior draw; None if there was one.
        refined: what bundle adjustment made of the cameras (`refinement.py`), None if it was not asked for; then
            T_reference_camera and covariance are its own, while residual, raxels and draws are the model's.
        turned_by: (T, 3, 3), the rotations, camera to reference, that the frames were turned back by for the last pass;
            the identity if there was one.
    """

    T_reference_camera: np.ndarray
    intrinsics: Intrinsics
    residual: np.ndarray
    covariance: np.ndarray
    raxels: np.ndarray
    draws: np.ndarray | None = None
    turned_by: np.ndarray | None = None
    refined: Refined | None = None


@dataclass(frozen=True)
class RenderedViews:
    """frames: (V, H, W, 3) uint8 in the order of the poses, at the model's size; intrinsics: their camera.

    draws: (k, V, H, W, 3) posterior draws, the first being `frames`; None if there was one.
    """

    frames: np.ndarray
    intrinsics: Intrinsics
    draws: np.ndarray | None = None


@dataclass(frozen=True)
class RenderedVideo:
    """frames: (N, H, W, 3) uint8, the video, and targets: (V, H, W, 3), in the order of their poses; intrinsics: their
    camera. N or V may be 0.

    draws: posterior draws of both, (k, N, H, W, 3) and (k, V, H, W, 3), the first being the above; None if there was
    one.
    """

    frames: np.ndarray
    targets: np.ndarray
    intrinsics: Intrinsics
    draws: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class Imagined:
    """frames: (T, H, W, 3) uint8, the first close to the first source; T_reference_camera: (T, 4, 4), model units.

    T_reference_source: (S, 4, 4), the cameras of the sources; the first is the identity.
    draws: posterior draws of both, (k, T, H, W, 3) and (k, T, 4, 4), the first being the above; None if there was one.
    """

    frames: np.ndarray
    T_reference_camera: np.ndarray
    T_reference_source: np.ndarray
    intrinsics: Intrinsics
    draws: tuple[np.ndarray, np.ndarray] | None = None


@dataclass(frozen=True)
class LoopReport:
    """Video to trajectory to video to trajectory: the second trajectory against the first, the video against the given.

    Attributes:
        R_err: radians; T_err: model units (scene depths); means over all frames but the reference of every window.
        psnr (dB), ssim: means over the rendered frames.
        fid, fvd: Frechet distances of rendered and given frames and windows; None without feature weights.
        frames: (..., T - 1, H, W, 3) uint8, rendered; leading axis K if several windows were given.
        T_first, T_again: (..., T, 4, 4), both trajectories.
    """

    R_err: float
    T_err: float
    psnr: float
    ssim: float
    fid: float | None
    fvd: float | None
    frames: np.ndarray
    T_first: np.ndarray
    T_again: np.ndarray

    @property
    def rotation_error_deg(self) -> float:
        """R_err in degrees."""
        return float(np.degrees(self.R_err))
