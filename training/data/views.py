# SPDX-License-Identifier: Apache-2.0
"""Views for training as they are rendered (`model/view_sources.py`): sources warped into the target's camera.

Axes: B batch, S sources, the nearest first, H W pixels.
"""

from __future__ import annotations

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.view_sources import pose_distance, warp_sources

from .posed import DatasetError
from .windows import WindowBatch, cut_frames, cut_windows

LATENT_VIEWS = (
    "views of this model are learnt from pictures, and the clips are latents: cache frames (--store frames), or leave "
    "views out (--tasks 0.9,0,0.1)"
)


def cut_views(
    pool, slots: np.ndarray, rng: np.random.Generator, views: str, sources: int, *, augment: bool = True
) -> WindowBatch:
    """Cut one view from each slot of a pool of clips: any frames, the last of them the target.

    Args:
        pool, slots, augment: see `windows.cut_windows`.
        views: of the model's config: 'warped', or 'picture': in the order drawn, nothing is warped.
        sources: S, at most one less than a clip has frames.

    Returns:
        (B, S + 1) frames and cameras; the reference is image 0: what all sources show of the target. There is no
        depth: it would be that of the sources before they were warped.

    Raises:
        DatasetError: clips of latents, which cannot be warped.
    """
    if views == "picture":
        return cut_windows(pool, slots, rng, sources + 1, scattered=True, augment=augment, references=1)
    if hasattr(pool, "cut"):
        raise DatasetError(LATENT_VIEWS)
    count, total = len(slots), pool.frames.shape[1]
    index = np.argsort(rng.random((count, total)), axis=1)[:, : sources + 1]  # (B, S + 1)
    poses, scales = np.asarray(pool.poses)[slots[:, None], index], np.asarray(pool.scales)[slots, index[:, -1]]
    for row in range(count):
        distance = pose_distance(poses[row, :-1], poses[row, -1], float(scales[row]))
        index[row, :-1] = index[row, :-1][np.argsort(distance, kind="stable")]
    windows = cut_frames(pool, slots, rng, index, np.zeros(count, int), augment=augment)
    height, width = windows.frames.shape[2:4]
    frames, cameras = windows.frames.numpy(), windows.T_reference_camera.numpy()
    for row, k in enumerate(windows.intrinsics.tolist()):
        camera = Intrinsics(*k, width, height)
        frames[row, :-1], cameras[row] = warp_sources(frames[row, :-1], cameras[row], camera, camera)
    return WindowBatch(windows.frames, windows.T_reference_camera, windows.intrinsics, windows.reference)
