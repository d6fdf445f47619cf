# SPDX-License-Identifier: Apache-2.0
"""The sources of a view as the model takes them (`ModelConfig.views`).

A pinhole picture can be turned about its own camera centre without knowing any depth: the homography K R K^-1. With
views='difference' every source is turned into the orientation and the intrinsics of the requested camera first, so that
only what the translation changes is left to find, and what is denoised is the target's latent minus that of the nearest
source: a small model cannot pass all numbers of a token through its width, and here it need not.

Axes: S sources, the nearest first, H W pixels. Poses are camera to a common frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .comparison import rotation_warp
from .config import ModelConfig
from .geometry import Intrinsics, invert, rotation_angle_deg
from .raxels import make_raxels

if TYPE_CHECKING:
    from torch import Tensor

    from .layout import Layout


def view_sources(config: ModelConfig, frames: np.ndarray, T_source: np.ndarray, source_camera: Intrinsics,
                 T_target: np.ndarray, target_camera: Intrinsics | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Arrange the sources of one view; the first of them is its reference.

    Args:
        frames: (S, H, W, 3) uint8 at the model's size; T_source: (S, 4, 4), T_target: (4, 4), translation in the
            model's unit; target_camera: None takes the sources'.

    Returns:
        frames (S, H, W, 3) uint8, and raxels (S + 1, H/2, W/2, 3), the target last.
    """
    target_camera, size = target_camera or source_camera, (config.height // 2, config.width // 2)
    T = np.concatenate([T_source, np.asarray(T_target)[None]])
    if config.views == "difference":
        frames, T = turn_sources(frames, T, source_camera, target_camera)
        return frames, make_raxels(T, target_camera, *size)
    T = invert(T[0]) @ T
    raxels = [make_raxels(T[:-1], source_camera, *size), make_raxels(T[-1:], target_camera, *size)]
    return frames, np.concatenate(raxels)


def turn_sources(frames: np.ndarray, T: np.ndarray, source_camera: Intrinsics, target_camera: Intrinsics
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Turn pictures (S, H, W, 3) of cameras T (S + 1, 4, 4) into the orientation of the last, the target.

    Returns:
        The pictures as `target_camera` sees them, where they show nothing their border repeated; and the cameras
        (S + 1, 4, 4), camera to the first one turned: they differ in translation only.
    """
    turns = np.swapaxes(T[:-1, :3, :3], 1, 2) @ T[-1, :3, :3]                               # target to each source
    turned = [rotation_warp(f, source_camera, R, target_camera) for f, R in zip(frames, turns, strict=True)]
    moved = np.tile(np.eye(4), (len(T), 1, 1))
    moved[:, :3, 3] = (T[:, :3, 3] - T[0, :3, 3]) @ T[-1, :3, :3]
    return np.stack(turned), moved


def reference_latents(z: Tensor, reference: Sequence[int] | Tensor, layout: Layout, noisy: Tensor) -> Tensor:
    """What the difference of single images is taken from: the latent of each row's reference image, else 0.

    Args:
        z: (B, L, h, w, C); reference: (B,), an image of the sequence; noisy: (B, L) bool.

    Returns:
        (B, L, h, w, C), which is not 0 at noisy images only.
    """
    images = layout.groups.count(1)
    base = z.new_zeros(z.shape)
    chosen = z[range(len(z)), reference][:, None]
    base[:, :images] = chosen * noisy[:, :images, None, None, None]
    return base


def pose_distance(poses: np.ndarray, target: np.ndarray, unit: float) -> np.ndarray:
    """How far cameras (S, 4, 4) are from a target (4, 4): radians of rotation plus translation in units."""
    turn = np.radians(rotation_angle_deg(np.swapaxes(poses[:, :3, :3], 1, 2) @ target[:3, :3]))
    return turn + np.linalg.norm(poses[:, :3, 3] - target[:3, 3], axis=1) / unit
