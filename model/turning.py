# SPDX-License-Identifier: Apache-2.0
"""Frames turned back by rotations that are known or were estimated (`ModelConfig.pose_passes`).

A pinhole picture can be turned about its own camera centre without knowing any depth (the homography K R K^-1). So the
rotation that a first pass over a window finds can be taken out of its frames; what a second pass then sees is the rest
of the rotation, which is small, and the parallax of the translation, no longer hidden under the motion of the rotation.

Axes: T frames, H W pixels. Rotations are camera to reference.
"""

from __future__ import annotations

import numpy as np

from .comparison import rotation_warp
from .geometry import Intrinsics
from .raxels import make_raxels


def turn_back(frames: np.ndarray, rotation: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Turn every frame into the orientation of the reference, as far as `rotation` tells it.

    Args:
        frames: (T, H, W, 3) of any type, or any other images of the camera's size; rotation: (T, 3, 3).

    Returns:
        (T, H, W, 3): frame t as a camera of orientation R_t rotation_t^T and the same centre sees it, R_t being its own
        true orientation; where it shows nothing its border is repeated. Frames with rotation I are unchanged.
    """
    still = np.abs(rotation - np.eye(3)).max(axis=(1, 2)) < 1e-9
    turned = zip(frames, rotation, still, strict=True)
    return np.stack([frame if same else rotation_warp(frame, camera, R.T) for frame, R, same in turned])


def turn_on(T: np.ndarray, rotation: np.ndarray) -> np.ndarray:
    """Turn cameras (..., T, 4, 4), found of frames turned back by `rotation` (T, 3, 3), into the frames' own."""
    T = T.copy()
    T[..., :3, :3] = T[..., :3, :3] @ rotation
    return T


def raxels_turned_on(raxels: np.ndarray, T: np.ndarray, rotation: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Turn raxel images of frames turned back into those of the frames' own cameras.

    Args:
        raxels: (T, h, w, 3), as decoded; T: (T, 4, 4), the cameras read from them; rotation: (T, 3, 3), what the frames
            were turned back by.

    Returns:
        (T, h, w, 3): the cameras' own rays, and what the decoded ones were off by, turned as a picture.
    """
    small = camera.resized(raxels.shape[2], raxels.shape[1])
    off = raxels - make_raxels(T, small, small.height, small.width)
    own = make_raxels(turn_on(T, rotation), small, small.height, small.width)
    return own + turn_back(off, np.swapaxes(rotation, 1, 2), small)
