# SPDX-License-Identifier: Apache-2.0
"""How much the covariance of a window is worth: posterior samples, scaled by what held-out clips have shown.

A window is estimated from the posterior mean (one step), its covariance from draws that take several steps. Draws of a
model that was not trained to the end lie closer together than its errors, and its errors grow with the motion more than
the draws say (it takes a part of every motion for none). What is left over is alike in windows that follow each other.
All three are measured on held-out windows (`rays-as-pixels calibrate`) and kept in the checkpoint's config.json.

Axes: T frames, k draws. A covariance is (6, 6) of (x, y, z, rx, ry, rz), a left perturbation in the reference frame.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from .checkpoint_folder import CheckpointError, read_config
from .files import write_text
from .geometry import sample_covariance, so3_log

STEPS = 2  # of a draw; the first starts from noise alone, so one step gives the mean and no spread
# A few draws tell how far apart they are better than in which direction: this share of the shape is believed.
SHAPE = 0.5


@dataclass(frozen=True)
class Calibration:
    """What was measured of a checkpoint.

    Attributes:
        translation, rotation: factors on the standard deviations of the draws.
        translation_motion, rotation_motion: standard deviation along each axis for a motion of size 1 (`motion_size`).
        correlation_frames: frames over which the correlation of windows' errors falls to 1/e; 0: they are independent.
        max_residual: of the decoded raxels against a camera; a window above it is worse than what training gives.
        samples, windows: draws of each window, and windows, that it was measured with (0: not measured).
        refined: the same of windows that were refined (`refinement.py`), whose covariances need no draws; None: not
            measured.
        coverage: share of other held-out errors within the 50, 68, 90, 95 and 99 % ellipsoid, {'translation': [...],
            'rotation': [...]}.
    """

    translation: float = 1.0
    rotation: float = 1.0
    max_residual: float = float("inf")
    samples: int = 0
    windows: int = 0
    coverage: dict | None = None
    translation_motion: float = 0.0
    rotation_motion: float = 0.0
    correlation_frames: float = 0.0
    refined: Calibration | None = None

    @property
    def measured(self) -> bool:
        """Whether it was measured, or stands for a checkpoint that was not."""
        return self.windows > 0

    def of_errors(self, covariance: np.ndarray, T: np.ndarray) -> np.ndarray:
        """Turn covariances (..., 6, 6) of draws of the motions T (..., 4, 4) into those of the errors."""
        factor = np.repeat([self.translation, self.rotation], 3)
        of_motion = np.diag(np.repeat([self.translation_motion, self.rotation_motion], 3) ** 2)
        return covariance * np.outer(factor, factor) + motion_size(T)[..., None, None] ** 2 * of_motion

    def of(self, refined: bool) -> Calibration:
        """Return what was measured of windows that were refined, or not; factors of 1 where nothing was."""
        return (self.refined or Calibration(max_residual=self.max_residual)) if refined else self

    def correlation(self, frames: float) -> float:
        """Correlation of the errors of two windows that start so many frames apart (a Gauss-Markov process)."""
        return float(np.exp(-frames / self.correlation_frames)) if self.correlation_frames > 0 else 0.0


def root(covariance: np.ndarray) -> np.ndarray:
    """Symmetric square roots of covariances (..., n, n)."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0.0))[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def motion_size(T: np.ndarray) -> np.ndarray:
    """Size (...) of motions (..., 4, 4) by what they do to the image: translation in scene depths, rotation in radians.

    Either moves the image by about as much, and where one is taken for the other both are wrong: the two count alike.
    """
    return np.sqrt((T[..., :3, 3] ** 2).sum(axis=-1) + (so3_log(T[..., :3, :3]) ** 2).sum(axis=-1))


def read_calibration(checkpoint: Path | str | None) -> Calibration:
    """Read what was measured of a checkpoint (None: the shipped one); factors of 1 where nothing was.

    Raises:
        CheckpointError: it cannot be read.
    """
    folder = read_config(checkpoint)[0]
    found = json.loads((folder / "config.json").read_text()).get("calibration")
    if found is None:
        return Calibration()
    refined = found.get("refined") if isinstance(found, dict) else None
    parts = [found] if refined is None else [{**found, "refined": None}, refined]
    if not all(map(_usable, parts)):
        raise CheckpointError(f"{folder / 'config.json'}: calibration is {found}; measure it: rays-as-pixels calibrate")
    return Calibration(**{**found, "refined": None if refined is None else Calibration(**refined)})


def _usable(found: object) -> bool:
    """Whether these are the fields of a calibration, and numbers as they can be."""
    names = {f.name for f in fields(Calibration)} - {"refined"}
    later = {"translation_motion", "rotation_motion", "correlation_frames"}  # not in older checkpoints, and may be 0
    return (
        isinstance(found, dict)
        and not set(found) - names - {"refined"}
        and found.get("refined") is None
        and all(_finite(found.get(name)) and found[name] > 0 for name in names - later - {"coverage"})
        and all(_finite(found.get(name, 0.0)) and found.get(name, 0.0) >= 0 for name in later)
    )


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and bool(np.isfinite(value))


def write_calibration(checkpoint: Path | str | None, calibration: Calibration) -> Path:
    """Keep what was measured in a checkpoint's config.json; returns that file."""
    path = read_config(checkpoint)[0] / "config.json"
    about = json.loads(path.read_text())
    about["calibration"] = asdict(calibration)
    write_text(path, json.dumps(about, indent=1) + "\n")
    return path


def draws_covariance(T_draws: np.ndarray, T_mean: np.ndarray, reading: np.ndarray) -> np.ndarray:
    """Covariance (T, 6, 6) of an estimate (T, 4, 4) from draws (k, T, 4, 4), before the factors.

    The spread of the draws about the estimate, plus that of the reading (`TrajectoryEstimate.covariance`, (T, 6, 6)).
    Half of it as it is, half its mean over all directions (`SHAPE`), for position and rotation each.
    """
    found = sample_covariance(T_draws, T_mean) + reading
    for block in (slice(0, 3), slice(3, 6)):
        mean = np.trace(found[:, block, block], axis1=1, axis2=2)[:, None, None] / 3 * np.eye(3)
        found[:, block, block] = SHAPE * found[:, block, block] + (1 - SHAPE) * mean
    found[:, :3, 3:] *= SHAPE
    found[:, 3:, :3] *= SHAPE
    return found
