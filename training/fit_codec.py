# SPDX-License-Identifier: Apache-2.0
"""Fit the linear codec and the latent statistics to rendered clips: once, before training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.codec import BlockMoments, LinearCodec, fit_basis
from rays_as_pixels_model.joint import RaysAsPixels

from .data.windows import raxels_of, windows_in_parts

_IMAGE_DEGREE, _VIDEO_DEGREE = 2, 1


def blocks_of(frames: Tensor, cell: int, group: int) -> Tensor:
    """Cut frames (B, T, H, W, 3), T a multiple of group, into (n, group * cell * cell * 3)."""
    b, t, h, w, _ = frames.shape
    x = frames.reshape(b, t // group, group, h // cell, cell, w // cell, cell, 3)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, group * cell * cell * 3)


@torch.no_grad()
def fit_codec(model: RaysAsPixels, source, windows: int = 1024, seed: int = 0) -> None:
    """Set codec bases and normaliser statistics of `model` in place from windows of a `ClipSource`, a few at a time.

    A Wan model's codec is frozen and its latents are normalised already: only the ray statistics are set.
    """
    config, linear = model.config, isinstance(model.codec, LinearCodec)
    cell, group, channels = config.codec.cell, config.codec.group, config.codec.channels
    image, video, cameras = BlockMoments(), BlockMoments(), []
    for batch in windows_in_parts(source, windows, np.random.default_rng(seed), config.frames):
        cameras.append((batch.T_reference_camera, batch.intrinsics))
        if linear:
            image.add(blocks_of(batch.frames[:, :1], cell, 1))
            video.add(blocks_of(batch.frames[:, 1:], cell, group))
    if linear:
        model.codec.image_basis.copy_(fit_basis(image.gram, cell, 1, channels, _IMAGE_DEGREE))
        model.codec.video_basis.copy_(fit_basis(video.gram, cell, group, channels, _VIDEO_DEGREE))
        model.normaliser.fit_frames(image.spread(model.codec.image_basis), video.spread(model.codec.video_basis))
    raxels = (raxels_of(*part, (config.height, config.width)) for part in cameras)
    model.normaliser.fit_rays(model.ray_latents(part).flatten(0, 1) for part in raxels)
