# SPDX-License-Identifier: Apache-2.0
"""What costs nothing, to stand beside the model: identity, constant velocity, copy the nearest frame, rotation warp."""

from __future__ import annotations

import numpy as np

from rays_as_pixels_model.comparison import rotation_warp

__all__ = ["constant_velocity", "rotation_warp"]


def constant_velocity(T_before: np.ndarray, steps: int) -> np.ndarray:
    """Continue the true motion of the step before the window: (N, 4, 4) to the relative pose `steps` steps later."""
    out = np.broadcast_to(np.eye(4), T_before.shape)
    for _ in range(steps):
        out = out @ T_before
    return out
