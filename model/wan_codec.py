# SPDX-License-Identifier: Apache-2.0
"""The frozen Wan 2.1 VAE (diffusers' AutoencoderKLWan) behind the interface of `LinearCodec`.

Axes: B batch, T frames, L latent frames, H W pixels, h w latent cells, C channels.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from .config import WanCodecConfig
from .layout import Layout


def wan_vae_class() -> type:
    """Return diffusers' AutoencoderKLWan; raises ImportError that names the extra."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise ImportError(
            f"the Wan presets need diffusers ({error}); install it with: pip install 'rays_as_pixels_ros[wan]'"
        ) from None
    return AutoencoderKLWan


class WanCodec(nn.Module):
    """Frames to Wan latents, normalised by the mean and standard deviation that come with the VAE, and back.

    The latent is the posterior's mode, so encoding draws nothing. The VAE never trains.
    """

    def __init__(self, config: WanCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.vae = wan_vae_class()(base_dim=config.base, z_dim=config.channels, num_res_blocks=config.blocks)
        self.vae.requires_grad_(False)
        self.register_buffer("mean", torch.tensor(self.vae.config.latents_mean[: config.channels]))  # (C,)
        self.register_buffer("std", torch.tensor(self.vae.config.latents_std[: config.channels]))

    def encode(self, frames: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Encode (B, T, H, W, 3) floats in [-1, 1] to (B, L, h, w, C): single images alone, the video causally."""
        layout = Layout.of(groups)
        if layout.frames != frames.shape[1]:
            raise ValueError(f"groups {groups} hold {layout.frames} frames, but {frames.shape[1]} were given")
        images, video = frames[:, : layout.images], frames[:, layout.images :]
        parts = []
        if layout.images:
            parts.append(self._encode(images.flatten(0, 1)[:, None]).unflatten(0, images.shape[:2])[:, :, 0])
        if video.shape[1]:
            parts.append(self._encode(video))
        return torch.cat(parts, dim=1)

    def decode(self, latents: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Decode latents (B, L, h, w, C) to (B, T, H, W, 3) in [-1, 1]."""
        layout = Layout.of(groups)
        if len(layout.groups) != latents.shape[1]:
            raise ValueError(f"groups {groups} do not fit {latents.shape[1]} latent frames")
        images, video = latents[:, : layout.images], latents[:, layout.images :]
        parts = []
        if layout.images:
            parts.append(self._decode(images.flatten(0, 1)[:, None]).unflatten(0, images.shape[:2])[:, :, 0])
        if video.shape[1]:
            parts.append(self._decode(video))
        return torch.cat(parts, dim=1)

    def _encode(self, video: Tensor) -> Tensor:
        """One causal video each: (b, t, H, W, 3) to (b, l, h, w, C)."""
        pixels = rearrange(video, "b t h w c -> b c t h w").to(self.vae.dtype)
        latents = rearrange(self.vae.encode(pixels).latent_dist.mode(), "b c l h w -> b l h w c")
        return (latents.to(video.dtype) - self.mean) / self.std

    def _decode(self, latents: Tensor) -> Tensor:
        raw = rearrange(latents * self.std + self.mean, "b l h w c -> b c l h w").to(self.vae.dtype)
        return rearrange(self.vae.decode(raw).sample, "b c t h w -> b t h w c").to(latents.dtype)
