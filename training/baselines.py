# SPDX-License-Identifier: Apache-2.0
"""What costs nothing, to stand beside the model: identity, constant velocity, copy the nearest frame, rotation warp."""
from __future__ import annotations

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics


def constant_velocity(T_before: np.ndarray, steps: int) -> np.ndarray:
    """Continue the true motion of the step before the window: (N, 4, 4) to the relative pose `steps` steps later."""
    out = np.broadcast_to(np.eye(4), T_before.shape)
    for _ in range(steps):
        out = out @ T_before
    return out


def rotation_warp(frame: np.ndarray, camera: Intrinsics, R_source_target: np.ndarray) -> np.ndarray:
    """Turn a source picture into the target's view as if all were infinitely far: the homography K R K^-1.

    Pixels outside the source repeat its border.
    """
    fx, fy, cx, cy = camera.to_opencv()
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    homography = k @ R_source_target @ np.linalg.inv(k)                                 # target pixel -> source pixel
    return cv2.warpPerspective(frame, homography, (camera.width, camera.height),
                               flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE)
