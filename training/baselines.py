# SPDX-License-Identifier: Apache-2.0
"""What costs nothing, to stand beside the model: identity, constant velocity, copy the nearest frame, rotation warp.

The two that compute are in `baselines_opencv.py` and `baselines_colmap.py`.
"""

from __future__ import annotations

import numpy as np

from rays_as_pixels_model.comparison import rotation_warp

__all__ = ["constant_velocity", "constant_velocity_path", "identity_path", "rotation_warp"]


def identity_path(count: int, frames: int) -> np.ndarray:
    """Return cameras that never move: (N, T, 4, 4)."""
    return np.tile(np.eye(4), (count, frames, 1, 1))


def constant_velocity(T_before: np.ndarray, steps: int) -> np.ndarray:
    """Continue the true motion of the step before the window: (N, 4, 4) to the relative pose `steps` steps later."""
    out = np.broadcast_to(np.eye(4), T_before.shape)
    for _ in range(steps):
        out = out @ T_before
    return out


def constant_velocity_path(T_before: np.ndarray, frames: int) -> np.ndarray:
    """`constant_velocity` at every frame of the window: (N, 4, 4) to (N, T, 4, 4), camera to the first."""
    return np.stack([constant_velocity(T_before, step) for step in range(frames)], axis=1)
