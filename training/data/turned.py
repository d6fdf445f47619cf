# SPDX-License-Identifier: Apache-2.0
"""Windows for the second pass of a pose (`model/turning.py`): frames turned back by a rotation that is nearly theirs.

Axes: B batch, T frames, h w cells.
"""

from __future__ import annotations

import numpy as np
import torch

from rays_as_pixels_model.geometry import Intrinsics, pixel_rays, rotation_angle_deg, so3_exp
from rays_as_pixels_model.turning import turn_back, turn_on

from .windows import WindowBatch

# What a first pass is wrong by in the farthest frame: standard deviation along each axis, degrees, for no motion and
# for each degree of it, times a factor drawn from a log-normal (docs/model.md, "A second pass").
_STILL, _OF_MOTION, _SPREAD = 1.2, 0.1, 0.4
_JITTER = 0.15  # of each frame by itself, as a share of the above


def draw_errors(rotation: np.ndarray, reference: int, rng: np.random.Generator) -> np.ndarray:
    """Draw how wrong a first pass may be about the rotations (T, 3, 3) of a window, camera to reference.

    Returns:
        (T, 3, 3): W, the guess being W^T R. The error grows with the time from the reference, where it is 0.
    """
    away = np.abs(np.arange(len(rotation)) - reference)
    far = int(away.argmax())
    sigma = np.radians(_STILL + _OF_MOTION * rotation_angle_deg(rotation[far])) * np.exp(_SPREAD * rng.normal())
    vector = sigma * (away / away[far])[:, None] * rng.normal(size=3)
    vector = vector + _JITTER * sigma * (away > 0)[:, None] * rng.normal(size=(len(rotation), 3))
    return so3_exp(vector)


def turn_windows(windows: WindowBatch, rng: np.random.Generator, share: float) -> WindowBatch:
    """Turn the frames of a share of the windows back by a guess of their rotation, as a second pass meets them.

    Cameras and inverse depth of these windows become those of the turned frames.
    """
    chosen = np.flatnonzero(rng.random(len(windows.reference)) < share)
    frames, T = windows.frames.numpy().copy(), windows.T_reference_camera.numpy().copy()
    depth = None if windows.inverse_depth is None else windows.inverse_depth.numpy().copy()
    height, width = frames.shape[2:4]
    for row in chosen:
        camera = Intrinsics(*windows.intrinsics[row].tolist(), width, height)
        R = T[row, :, :3, :3]
        guess = np.swapaxes(draw_errors(R, int(windows.reference[row]), rng), 1, 2) @ R
        frames[row] = turn_back(frames[row], guess, camera)
        T[row] = turn_on(T[row], np.swapaxes(guess, 1, 2))
        if depth is not None:
            depth[row] = _turned_depth(depth[row], guess, camera)
    depth = None if depth is None else torch.from_numpy(depth)
    return WindowBatch(torch.from_numpy(frames), torch.from_numpy(T), windows.intrinsics, windows.reference, depth)


def _turned_depth(inverse_depth: np.ndarray, rotation: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Inverse depths (T, h, w) along the turned axes: a point at z along a ray d lies at z (d' / d)_z along d'."""
    small = camera.resized(inverse_depth.shape[2], inverse_depth.shape[1])
    rays = pixel_rays(small)
    before = np.einsum("tji,hwj->thwi", rotation, rays)  # (T, h, w, 3): R^T d, the rays in the cameras as they were
    ratio = np.clip(before[..., 2] / rays[..., 2], 0.0, None)
    return (turn_back(inverse_depth, rotation, small) * ratio).astype(np.float32)
