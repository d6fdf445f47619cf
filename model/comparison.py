# SPDX-License-Identifier: Apache-2.0
"""How close two pictures are, and the view that costs nothing: the source picture turned by a homography."""

from __future__ import annotations

import cv2
import numpy as np

from .geometry import Intrinsics, pixel_rays


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """PSNR in dB of uint8 pictures (H, W, 3); 99 when equal."""
    square = (a.astype(np.float64) - b.astype(np.float64)) ** 2
    mse = square.mean()
    return 99.0 if mse == 0 else float(10 * np.log10(255**2 / mse))


def rotation_warp(
    frame: np.ndarray, camera: Intrinsics, R_source_target: np.ndarray, target: Intrinsics | None = None
) -> np.ndarray:
    """Turn a source picture into the target's view as if all were infinitely far: the homography K R K^-1.

    Args:
        frame: (H, W, 3) of any type; camera: its own; target: camera of the view (None: the same).

    Returns:
        (H, W, 3) of the target's size. Where the source shows nothing, also behind it, its border is repeated.
    """
    rays = pixel_rays(target or camera) @ np.asarray(R_source_target).T  # (H, W, 3), in the source's frame
    depth = np.maximum(rays[..., 2], 1e-6)  # at and behind the source's plane: far beyond its border, on the same side
    fx, fy, cx, cy = camera.to_opencv()
    far = 4.0 * max(camera.width, camera.height)
    x, y = (np.clip(f * rays[..., i] / depth + c, -far, far) for i, f, c in ((0, fx, cx), (1, fy, cy)))
    x, y = x.astype(np.float32), y.astype(np.float32)
    return cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of uint8 pictures (H, W, 3), H and W at least 11: the mean over colours, in [-1, 1].

    Note: Wang et al. 2004 with its constants: Gaussian window of 11 pixels and sigma 1.5, K = 0.01 and 0.03; only
        places where the window lies inside the picture count.
    """
    if a.shape != b.shape or min(a.shape[:2]) < 11:
        raise ValueError(f"ssim needs two pictures of one size of at least 11x11, got {a.shape} and {b.shape}")

    def blur(x: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(x, (11, 11), 1.5)[5:-5, 5:-5]

    a, b = a.astype(np.float64), b.astype(np.float64)
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return float((luminance * (2 * covariance + c2) / (var_a + var_b + c2)).mean())
