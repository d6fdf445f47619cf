# SPDX-License-Identifier: Apache-2.0
"""Codec, latent normalisation and transformer in one module: what a checkpoint holds and what training updates."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from .codec import LatentNormaliser, LinearCodec
from .config import ModelConfig, WanCodecConfig, WanTransformerConfig
from .engine import latent_shapes
from .layout import Layout
from .pluecker import pluecker_of_raxels, raxels_of_pluecker
from .transformer import JointTransformer
from .wan import WanJointTransformer
from .wan_codec import WanCodec


def build_transformer(config: ModelConfig) -> nn.Module:
    """Make the transformer of a config, with random weights."""
    kind = WanJointTransformer if isinstance(config.transformer, WanTransformerConfig) else JointTransformer
    return kind(config)


class RaysAsPixels(nn.Module):
    """Frames and raxel images in, normalised latents and their velocities out; an `engine.Engine` on torch tensors.

    Axes: B batch, T frames, H W pixels, L latent frames, h w cells, C channels.
    """

    def __init__(self, config: ModelConfig, transformer: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        cell = config.codec.cell
        self.codec = WanCodec(config.codec) if isinstance(config.codec, WanCodecConfig) else LinearCodec(config.codec)
        self.normaliser = LatentNormaliser(
            config.codec.channels, (config.height // 2 // cell, config.width // 2 // cell), config.ray_channels
        )
        self.transformer = build_transformer(config) if transformer is None else transformer

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.normaliser.image_shift.device

    def on(self, device: str | torch.device) -> RaysAsPixels:
        """Move to a device, in evaluation mode."""
        return self.to(device).eval()

    def array(self, values: np.ndarray) -> Tensor:
        """Bring numpy values to the device."""
        return torch.from_numpy(values).to(self.device)

    def generator(self, seed: int) -> torch.Generator:
        """Make a source of randomness; it is the CPU's, so that every device has the same noise."""
        return torch.Generator().manual_seed(seed)

    def noise(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Draw float32 numbers from N(0, 1)."""
        return torch.randn(tuple(shape), generator=generator).to(self.device)

    @torch.no_grad()
    def velocity(
        self, z: Tensor, r: Tensor, t_z: Tensor, t_r: Tensor, reference: Tensor, layout: Layout | tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """`forward` without gradients."""
        return self(z, r, t_z, t_r, reference, layout)

    @torch.no_grad()
    def encode_frames(self, frames: Tensor, layout: Layout | tuple[int, ...]) -> Tensor:
        """(B, T, H, W, 3) in [-1, 1] to z: (B, L, h, w, C)."""
        groups = Layout.of(layout).groups
        return self.normaliser.video_in(self.codec.encode(frames, groups), groups)

    @torch.no_grad()
    def decode_frames(self, z: Tensor, layout: Layout | tuple[int, ...]) -> Tensor:
        """z (B, L, h, w, C) to (B, T, H, W, 3), clamped to [-1, 1]."""
        groups = Layout.of(layout).groups
        return self.codec.decode(self.normaliser.video_out(z, groups), groups).clamp(-1, 1)

    @torch.no_grad()
    def encode_rays(self, raxels: Tensor) -> Tensor:
        """Raxels of cameras (B, T, H/2, W/2, 3), free of noise, to r: (B, T, h/2, w/2, C)."""
        return self.normaliser.rays_in(self.ray_latents(raxels))

    @torch.no_grad()
    def ray_latents(self, raxels: Tensor) -> Tensor:
        """Codec latents of cameras before normalisation, by config.camera_encoding: (B, T, h/2, w/2, C).

        Pluecker rays pass through the codec as two images, directions and moments; their latents are stacked to 2 C.
        """
        images = [raxels]
        if self.config.camera_encoding == "pluecker":
            images = pluecker_of_raxels(raxels).split(3, dim=-1)
        scale, groups = self.config.codec.ray_scale, (1,) * raxels.shape[1]
        return torch.cat([self.codec.encode(image * scale, groups) for image in images], dim=-1)

    @torch.no_grad()
    def decode_rays(self, r: Tensor) -> Tensor:
        """Invert `encode_rays`: r, which may be noisy, to raxels (B, T, H/2, W/2, 3)."""
        parts = self.normaliser.rays_out(r).split(self.config.codec.channels, dim=-1)
        images = [self.codec.decode(part, (1,) * r.shape[1]) / self.config.codec.ray_scale for part in parts]
        return images[0] if len(images) == 1 else raxels_of_pluecker(torch.cat(images, dim=-1))

    def forward(
        self,
        z: Tensor,
        r: Tensor,
        t_z: Tensor,
        t_r: Tensor,
        reference: Tensor,
        layout: Layout | tuple[int, ...],
        prompt: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Velocities of z and r; see `JointTransformer.forward`. Only Wan presets take a prompt (B, s, text width)."""
        if prompt is None:
            return self.transformer(z, r, t_z, t_r, reference, layout)
        if not isinstance(self.transformer, WanJointTransformer):
            raise ValueError(f"preset {self.config.preset!r} takes no prompt; the Wan presets do")
        return self.transformer(z, r, t_z, t_r, reference, layout, prompt)

    def latent_shapes(
        self, batch: int, layout: Layout | tuple[int, ...], size: tuple[int, int] | None = None
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of z and r for a batch, a layout and a frame size (height, width; default: the config's)."""
        layout = Layout.of(layout)
        return latent_shapes(self.config, batch, len(layout.groups), layout.frames, size)

    def at(self, *, frames: int | None = None, height: int | None = None, width: int | None = None) -> RaysAsPixels:
        """Return this model for other windows: the same transformer, not a copy, under a config of another size.

        The mean camera of the ray latents is stretched to it, so that the model can be saved as one of that size.
        Rotary positions and places extrapolate; docs/model.md says how far that was measured.

        Raises:
            ConfigError: sizes that the codec and the patches cannot divide.
        """
        changed = {"frames": frames, "height": height, "width": width}
        other = copy(self)
        other._modules = dict(self._modules)
        other.config = replace(self.config, **{k: v for k, v in changed.items() if v is not None})
        _, (_, _, *cells, _) = self.latent_shapes(1, (1,), (other.config.height, other.config.width))
        other.normaliser = self.normaliser.at(tuple(cells))
        return other
