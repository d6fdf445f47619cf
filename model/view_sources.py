# SPDX-License-Identifier: Apache-2.0
"""The sources of a view as the model takes them (`ModelConfig.views`).

With views='warped' every source is warped into the requested camera first, by the depth at which the sources agree
(`plane_sweep.py`), and what is denoised is the target's latent minus that of what they show together: a small model
cannot pass all numbers of a token through its width, and here it need not. What is left to find is what the warp got
wrong and what no source shows. GEN3C (Ren et al. 2025) conditions a video model in this way.

Axes: S sources, the nearest first, H W pixels. Poses are camera to a common frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from .config import ModelConfig
from .geometry import Intrinsics, invert, rotation_angle_deg
from .plane_sweep import sweep_sources
from .raxels import make_raxels

if TYPE_CHECKING:
    from torch import Tensor

    from .layout import Layout


SOURCES_OF_A_VIEW = 2  # at most; a third gains 0.3 dB where the view lies beyond all of them (docs/model.md)
_AWAY_DEG = 60.0  # a camera turned from the view by more hardly sees what it shows


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
    if config.views == "warped":
        frames, T = warp_sources(frames, T, source_camera, target_camera)
        return frames, make_raxels(T, target_camera, *size)
    T = invert(T[0]) @ T
    raxels = [make_raxels(T[:-1], source_camera, *size), make_raxels(T[-1:], target_camera, *size)]
    return frames, np.concatenate(raxels)


def warp_sources(frames: np.ndarray, T: np.ndarray, source_camera: Intrinsics, target_camera: Intrinsics
                 ) -> tuple[np.ndarray, np.ndarray]:
    """Warp pictures (S, H, W, 3) of cameras T (S + 1, 4, 4), lengths in the model's unit, into the last, the target.

    Returns:
        What `target_camera` sees of them, first of all together, then of each but the nearest (`sweep_sources`); and
        the cameras (S + 1, 4, 4) with the target's orientation, camera to the first of them: they differ in translation
        only, which tells from which side a picture was taken.
    """
    warped, _ = sweep_sources(frames, invert(T[:-1]) @ T[-1], source_camera, target_camera)
    moved = np.tile(np.eye(4), (len(T), 1, 1))
    moved[:, :3, 3] = (T[:, :3, 3] - T[0, :3, 3]) @ T[-1, :3, :3]
    return warped, moved


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
    return np.radians(_turn_deg(poses, target)) + np.linalg.norm(poses[:, :3, 3] - target[:3, 3], axis=1) / unit


def _turn_deg(poses: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Angles (S,) between the orientations of cameras and of a target."""
    return rotation_angle_deg(np.swapaxes(poses[:, :3, :3], 1, 2) @ target[:3, :3])


def choose_sources(poses: np.ndarray, target: np.ndarray, unit: float, count: int = SOURCES_OF_A_VIEW) -> np.ndarray:
    """Choose the sources of a view, nearest first.

    Sources tell depth where they stand apart and see the same. So of those that look the target's way, if there are
    any, each further one is the nearest to the target that is at least as far from every chosen one as the target is
    from the first; if there is none, the farthest from these.

    Args:
        poses: (S, 4, 4); target: (4, 4); unit: length of one model unit in theirs; count: at most so many.

    Returns:
        (min(S, count),) indices.
    """
    distance = pose_distance(poses, target, unit)
    chosen = [int(np.argmin(distance))]
    wanted = np.linalg.norm(target[:3, 3] - poses[chosen[0], :3, 3])
    away = _turn_deg(poses, target) > _AWAY_DEG
    while len(chosen) < min(len(poses), count):
        left = np.setdiff1d(np.arange(len(poses)), chosen)
        left = left[~away[left]] if not away[left].all() else left
        between = np.linalg.norm(poses[left, None, :3, 3] - poses[chosen, :3, 3], axis=-1).min(axis=1)
        apart = left[between >= max(wanted, 1e-9)]
        chosen.append(int(apart[np.argmin(distance[apart])] if len(apart) else left[np.argmax(between)]))
    return np.array(chosen)
