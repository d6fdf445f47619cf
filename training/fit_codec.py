# SPDX-License-Identifier: Apache-2.0
"""Fit the linear codec and the latent statistics to rendered clips: once, before training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.codec import LinearCodec, fit_basis
from rays_as_pixels_model.joint import RaysAsPixels

from .data.windows import cut_windows

_IMAGE_DEGREE, _VIDEO_DEGREE = 2, 1


def blocks_of(frames: Tensor, cell: int, group: int) -> Tensor:
    """Cut frames (B, T, H, W, 3), T a multiple of group, into (n, group * cell * cell * 3)."""
    b, t, h, w, _ = frames.shape
    x = frames.reshape(b, t // group, group, h // cell, cell, w // cell, cell, 3)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, group * cell * cell * 3)


@torch.no_grad()
def fit_codec(model: RaysAsPixels, source, windows: int = 1024, seed: int = 0) -> None:
    """Set codec bases and normaliser statistics of `model` in place from windows of a `ClipSource`.

    A Wan model's codec is frozen and its latents are normalised already: only the ray statistics are set.
    """
    config = model.config
    rng = np.random.default_rng(seed)
    clips, slots = source.take(windows, rng)
    batch = cut_windows(clips, slots, rng, config.frames, augment=True)
    if not isinstance(model.codec, LinearCodec):
        model.normaliser.fit_rays(model.ray_latents(batch.raxels()).flatten(0, 1))
        return
    cell, group, channels = config.codec.cell, config.codec.group, config.codec.channels
    image, video = batch.frames[:, :1], batch.frames[:, 1:]
    model.codec.image_basis.copy_(fit_basis(blocks_of(image, cell, 1), cell, 1, channels, _IMAGE_DEGREE))
    model.codec.video_basis.copy_(fit_basis(blocks_of(video, cell, group), cell, group, channels, _VIDEO_DEGREE))
    latents = model.codec.encode(batch.frames, config.groups)
    rays = model.ray_latents(batch.raxels()).flatten(0, 1)
    model.normaliser.fit(latents[:, :1].flatten(0, 1), latents[:, 1:].flatten(0, 1), rays)
