# SPDX-License-Identifier: Apache-2.0
"""The other candidate for the codec: a small causal video VAE in the layout of `LinearCodec`. Measured, not used.

The first frame alone, then 4 frames to one latent frame by causal convolutions in time, 8x8 pixels to a cell of C
channels. Axes: B batch, T frames, L latent frames, H W pixels, h w cells, C channels; inside, (B, C, T, H, W).
"""
from __future__ import annotations

import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from rays_as_pixels_training.data.windows import cut_windows

_KL_WEIGHT = 1e-6
_RAXEL_WEIGHT = 4.0          # smooth fields have small errors, and cameras need them smaller still


class _CausalConv(nn.Conv3d):
    """A convolution that sees no later frame: the first frame is repeated in front."""

    def forward(self, x: Tensor) -> Tensor:
        front = x[:, :, :1].expand(-1, -1, self.kernel_size[0] - 1, -1, -1)
        return super().forward(torch.cat([front, x], dim=2))


class _Block(nn.Module):
    """Residual block on the cells of each latent frame; the norm is per position, so it looks at no other frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        self.second = nn.Conv3d(width, width, (1, 3, 3), padding=(0, 1, 1))
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-4)
        return x + self.second(F.silu(self.first(F.silu(y))))


class CausalVAE(nn.Module):
    """Convolutions beside a linear strided one: the linear path learns first, the convolutions add what it cannot."""

    def __init__(self, channels: int, widths: tuple[int, int, int] = (48, 96, 128)) -> None:
        super().__init__()
        a, b, c = widths
        self.channels, self.widths = channels, widths
        self.linear_in = nn.Conv3d(3, channels, (4, 8, 8), (4, 8, 8), bias=False)
        self.linear_out = nn.ConvTranspose3d(channels, 3, (4, 8, 8), (4, 8, 8), bias=False)
        nn.init.orthogonal_(self.linear_in.weight.data.view(channels, -1))
        self.linear_out.weight.data.copy_(self.linear_in.weight.data)
        self.stem = nn.Conv3d(3, a, (1, 4, 4), (1, 4, 4))
        self.down = _CausalConv(a, b, (3, 2, 2), (2, 2, 2))
        self.squeeze = _CausalConv(b, c, (3, 1, 1), (2, 1, 1))
        self.mix_in = _Block(c)
        self.head = nn.Conv3d(c, 2 * channels, 1)
        self.open = _CausalConv(channels, c, (3, 1, 1))
        self.mix_out = _Block(c)
        self.stretch = nn.Conv3d(c, 2 * b, 1)
        self.up = nn.Conv3d(b, 2 * 4 * a, 1)
        self.paint = nn.Conv3d(a, 48, (1, 3, 3), padding=(0, 1, 1))
        for last in (self.head, self.paint):
            nn.init.normal_(last.weight, std=1e-3)
            nn.init.zeros_(last.bias)
        self.head.bias.data[channels:] = -6.0                              # log variance

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 1 + 4k, H, W) to mean and log variance, (B, C, 1 + k, h, w) each."""
        front = video[:, :, :1].expand(-1, -1, 3, -1, -1)
        linear = self.linear_in(torch.cat([front, video], dim=2))         # (B, C, 1 + k, h, w)
        x = F.silu(self.stem(video))                                       # (B, a, 1 + 4k, H/4, W/4)
        x = F.silu(self.down(x))                                           # (B, b, 1 + 2k, h, w)
        x = self.mix_in(self.squeeze(x))                                   # (B, c, 1 + k, h, w)
        mean, log_variance = self.head(F.silu(x)).chunk(2, dim=1)
        return mean + linear, log_variance.clamp(-20, 4)

    def reconstruct(self, z: Tensor) -> Tensor:
        """(B, C, 1 + k, h, w) to (B, 3, 1 + 4k, H, W)."""
        linear = self.linear_out(z)[:, :, 3:]
        x = F.silu(self.mix_out(self.open(z)))                             # (B, c, 1 + k, h, w)
        x = rearrange(self.stretch(x), "b (n c) t h w -> b c (t n) h w", n=2)[:, :, 1:]
        x = rearrange(self.up(F.silu(x)), "b (n p q c) t h w -> b c (t n) (h p) (w q)", n=2, p=2, q=2)[:, :, 1:]
        x = self.paint(F.silu(x))                                          # (B, 48, 1 + 4k, H/4, W/4)
        return linear + rearrange(x, "b (p q c) t h w -> b c t (h p) (w q)", p=4, q=4)

    def loss(self, frames: Tensor) -> Tensor:
        """Mean squared error plus a tiny KL of (B, T, H, W, 3)."""
        video = rearrange(frames, "b t h w c -> b c t h w")
        mean, log_variance = self.moments(video)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        return F.mse_loss(self.reconstruct(z), video) + _KL_WEIGHT * kl

    @torch.no_grad()
    def encode(self, frames: Tensor, groups: tuple[int, ...]) -> Tensor:
        """As `LinearCodec.encode`; groups is (1, 4, 4, ...) for a video or all ones for images. Returns the mean."""
        video = rearrange(frames, "b t h w c -> b c t h w" if 4 in groups else "b t h w c -> (b t) c 1 h w")
        return rearrange(self.moments(video)[0], "(b n) c l h w -> b (n l) h w c", b=len(frames))

    @torch.no_grad()
    def decode(self, latents: Tensor, groups: tuple[int, ...]) -> Tensor:
        """As `LinearCodec.decode`."""
        z = rearrange(latents, "b l h w c -> b c l h w" if 4 in groups else "b l h w c -> (b l) c 1 h w")
        return rearrange(self.reconstruct(z), "(b n) c t h w -> b (n t) h w c", b=len(latents))


def train_vae(channels: int, pool, *, steps: int, with_raxels: bool, batch: int = 16, lr: float = 2e-3,
              seed: int = 0) -> tuple[CausalVAE, dict]:
    """Train on crops of half the height and width, the size of a raxel image.

    Args:
        pool: clips as `cut_windows` takes them.
        with_raxels: let half of each batch be raxel images, through the image path.

    Returns:
        The model and {'steps', 'windows', 'raxel_images', 'cpu_seconds', 'loss'}, loss the mean of the last 50 steps.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng([seed, channels])
    vae = CausalVAE(channels)
    optimizer = torch.optim.Adam(vae.parameters(), lr=lr, betas=(0.9, 0.99))
    height, width = pool.frames.shape[2] // 2, pool.frames.shape[3] // 2
    start, losses = time.process_time(), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min((step + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * step / steps))
        window = cut_windows(pool, rng.integers(0, len(pool.frames), batch), rng, 5)
        top, left = rng.integers(0, height + 1), rng.integers(0, width + 1)
        loss = vae.loss(window.frames[:, :, top:top + height, left:left + width])
        if with_raxels:
            images = window.raxels().flatten(0, 1)[torch.from_numpy(rng.permutation(5 * batch)[:batch])]
            loss = loss + _RAXEL_WEIGHT * vae.loss(images[:, None])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return vae.eval(), {"steps": steps, "windows": steps * batch, "raxel_images": steps * batch * with_raxels,
                        "cpu_seconds": time.process_time() - start, "loss": float(np.mean(losses[-50:]))}
