# SPDX-License-Identifier: Apache-2.0
"""How close two pictures are, and the view that costs nothing: the source picture turned by a homography."""

from __future__ import annotations

import cv2
import numpy as np

from .geometry import Intrinsics


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of uint8 pictures (H, W, 3); 99 when equal."""
    square = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    mse = square.mean()
    return 99.0 if mse == 0 else float(10 * np.log10(255**2 / mse))


def rotation_warp(frame: np.ndarray, camera: Intrinsics, R_source_target: np.ndarray) -> np.ndarray:
    """Turn a source picture into the target's view as if all were infinitely far: the homography K R K^-1.

    Pixels outside the source repeat its border.
    """
    fx, fy, cx, cy = camera.to_opencv()
    k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
    homography = k @ R_source_target @ np.linalg.inv(k)  # target pixel -> source pixel
    return cv2.warpPerspective(
        frame, homography, (camera.width, camera.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE,
    )  # fmt: skip
