# SPDX-License-Identifier: Apache-2.0
"""Frames and raxels to latents and back.

The built-in codec is a fitted linear space-time transform with the layout of the paper's video VAE: the first frame of
a video alone, then 4 frames to one latent frame, 8x8 pixels to one cell of C channels. Raxel images pass through the
image path of the SAME codec, one by one. docs/codec.md holds the measurements behind the choice.

Axes: B batch, T frames, L latent frames, H W pixels, h w latent cells, C channels. `groups` lists the frames of each
latent frame, e.g. (1, 4); their sum is T.
"""
from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import CodecConfig


class LinearCodec(nn.Module):
    """Orthonormal projections of 8x8 (image) and 4x8x8 (video) blocks on C basis vectors each.

    The image basis holds every quadratic polynomial of the pixel position, per colour, so smooth fields such as raxels
    survive for any camera; the rest is principal components of what polynomials leave of real content (`fit_basis`).
    """

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        pixels = config.cell**2 * 3
        self.register_buffer("image_basis", torch.eye(pixels)[:config.channels].clone())                    # (C, 192)
        self.register_buffer("video_basis", torch.eye(pixels * config.group)[:config.channels].clone())     # (C, 768)

    def encode(self, frames: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Encode (B, T, H, W, 3) floats to latents (B, L, h, w, C)."""
        if sum(groups) != frames.shape[1]:
            raise ValueError(f"groups {groups} hold {sum(groups)} frames, but {frames.shape[1]} were given")
        if len(set(groups)) == 1:
            return self._blocks(frames, groups[0]) @ self._basis(groups[0], frames).T            # (B, L, h, w, C)
        parts, start = [], 0
        for size, count in _runs(groups):
            part = frames[:, start:start + size * count]
            parts.append(self._blocks(part, size) @ self._basis(size, frames).T)
            start += size * count
        return torch.cat(parts, dim=1)

    def decode(self, latents: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Decode latents (B, L, h, w, C) to (B, T, H, W, 3) floats (not clamped)."""
        if len(groups) != latents.shape[1]:
            raise ValueError(f"groups {groups} do not fit {latents.shape[1]} latent frames")
        parts, start = [], 0
        for size, count in _runs(groups):
            blocks = latents[:, start:start + count] @ self._basis(size, latents)                # (B, l, h, w, 192 n)
            parts.append(rearrange(blocks, "b l h w (n p q c) -> b (l n) (h p) (w q) c",
                                   n=size, p=self.config.cell, q=self.config.cell))
            start += count
        return torch.cat(parts, dim=1)

    def _basis(self, group: int, like: Tensor) -> Tensor:
        return (self.image_basis if group == 1 else self.video_basis).to(like.dtype)

    def _blocks(self, frames: Tensor, group: int) -> Tensor:
        cell = self.config.cell
        return rearrange(frames, "b (l n) (h p) (w q) c -> b l h w (n p q c)", n=group, p=cell, q=cell)


def _runs(groups: tuple[int, ...]) -> list[tuple[int, int]]:
    """(1, 4, 4) -> [(1, 1), (4, 2)]: consecutive equal groups, so that each run is one matrix product."""
    runs: list[tuple[int, int]] = []
    for size in groups:
        if runs and runs[-1][0] == size:
            runs[-1] = (size, runs[-1][1] + 1)
        else:
            runs.append((size, 1))
    return runs


def polynomial_basis(cell: int, group: int, degree: int) -> Tensor:
    """Orthonormal polynomials of (time, y, x) up to a total degree, one set per colour: (3 K, group cell cell 3)."""
    axes = [torch.linspace(-1, 1, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
            for n in (group, cell, cell)]
    t, y, x = torch.meshgrid(*axes, indexing="ij")
    powers = [(a, b, c) for a in range(degree + 1 if group > 1 else 1) for b in range(degree + 1)
              for c in range(degree + 1) if a + b + c <= degree]
    scalar = torch.stack([(t**a * y**b * x**c).flatten() for a, b, c in powers], dim=1)
    q, _ = torch.linalg.qr(scalar)                                                               # (n p q, K)
    return torch.einsum("pk,cd->kcpd", q, torch.eye(3, dtype=torch.float64)).reshape(3 * q.shape[1], -1)


class BlockMoments:
    """First and second moments of blocks seen in parts, in float64: all that a basis and its latents' spread need."""

    def __init__(self) -> None:
        self.count, self.sum, self.gram = 0, torch.zeros(()), torch.zeros(())

    def add(self, blocks: Tensor) -> None:
        """Take blocks (n, d) in."""
        x = blocks.double()
        self.count, self.sum, self.gram = self.count + len(x), self.sum + x.sum(0), self.gram + x.T @ x

    def spread(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (C,) of the blocks' latents on a basis (C, d)."""
        b = basis.double()
        mean = b @ self.sum / self.count
        square = ((b @ self.gram) * b).sum(1) / self.count
        return mean, ((square - mean.square()).clamp(min=0) * (self.count / max(self.count - 1, 1))).sqrt()


def fit_basis(gram: Tensor, cell: int, group: int, channels: int, degree: int) -> Tensor:
    """Fit an orthonormal basis: polynomials first, then principal components of the remainder.

    Args:
        gram: (d, d), d = group * cell * cell * 3: sum of x x^T over samples x of content in [-1, 1].
        channels: basis vectors in all.
        degree: of the polynomials that are kept exactly.

    Returns:
        (channels, d) float32 with orthonormal rows.
    """
    fixed = polynomial_basis(cell, group, degree)
    if channels < len(fixed):
        raise ValueError(f"{channels} channels cannot hold the {len(fixed)} polynomials of degree {degree}")
    away = torch.eye(len(gram), dtype=torch.float64) - fixed.T @ fixed
    rest = away @ gram.double() @ away
    _, vectors = torch.linalg.eigh(0.5 * (rest + rest.T))
    free = vectors.flip(1)[:, :channels - len(fixed)].T
    free = free - free @ fixed.T @ fixed
    q, _ = torch.linalg.qr(free.T)
    return torch.cat([fixed, q.T]).float()


class LatentNormaliser(nn.Module):
    """The linear, invertible map between codec latents and what the transformer denoises.

    Video latents: per channel, shift and a scale of std^-`power` (power 0.5: the noise still reaches the large, smooth
    channels last, and detail does not rule the loss). Ray latents: a per-cell mean camera is removed, then each frame
    is split into its mean over the cells (mostly the camera centre) and deviations from it (rotation, focal length),
    each scaled to unit variance per channel, with a floor. Without the split rotation drowns in noise: docs/codec.md.
    """

    def __init__(self, channels: int, ray_cells: tuple[int, int], ray_channels: int | None = None) -> None:
        super().__init__()
        ray_channels = ray_channels or channels
        for name, shape in {"image_shift": (channels,), "video_shift": (channels,),
                            "ray_shift": (*ray_cells, ray_channels)}.items():
            self.register_buffer(name, torch.zeros(shape))
        for name, count in {"image_scale": channels, "video_scale": channels, "ray_mean_scale": ray_channels,
                            "ray_deviation_scale": ray_channels}.items():
            self.register_buffer(name, torch.ones(count))

    @property
    def rays_fitted(self) -> bool:
        """Whether it holds statistics of ray latents; an imported Wan model has none yet."""
        return bool(self.ray_shift.any())

    @torch.no_grad()
    def fit_frames(self, image: tuple[Tensor, Tensor], video: tuple[Tensor, Tensor], power: float = 0.5) -> None:
        """Set the statistics of video latents from the mean and the standard deviation (C,) of both kinds."""
        for name, (mean, std) in (("image", image), ("video", video)):
            scale = std.clamp(min=1e-4 * std.max()) ** -power
            scale = scale / (std * scale).square().mean().sqrt()              # unit variance over all channels together
            getattr(self, f"{name}_shift").copy_(mean)
            getattr(self, f"{name}_scale").copy_(scale)

    @torch.no_grad()
    def fit_rays(self, parts: Iterable[Tensor], floor: float = 0.05) -> None:
        """Set the statistics of ray latents from rays (n, h, w, C), in any number of parts."""
        count, total, mean, deviation = 0, 0.0, 0.0, 0.0
        for rays in parts:
            x = rays.double()
            own = x.mean((1, 2), keepdim=True)                                                   # (n, 1, 1, C)
            count, total = count + len(x), total + x.sum(0)
            mean = mean + own.square().sum((0, 1, 2))
            deviation = deviation + (x - own).square().mean((1, 2)).sum(0)
        shift = total / count
        own = shift.mean((0, 1))
        self.ray_shift.copy_(shift)
        # mean squares about the shift: those about zero, less the shift's own
        for name, square in (("ray_mean_scale", mean / count - own.square()),
                             ("ray_deviation_scale", deviation / count - (shift - own).square().mean((0, 1)))):
            std = square.clamp(min=0).sqrt()
            getattr(self, name).copy_(1.0 / std.clamp(min=floor * std.max()))

    def _video(self, groups: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        shift = torch.stack([self.image_shift if g == 1 else self.video_shift for g in groups])
        scale = torch.stack([self.image_scale if g == 1 else self.video_scale for g in groups])
        return shift[:, None, None], scale[:, None, None]                                        # (L, 1, 1, C)

    def video_in(self, latents: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Codec latents (B, L, h, w, C) to transformer latents of the same shape."""
        shift, scale = self._video(groups)
        return (latents - shift) * scale

    def video_out(self, z: Tensor, groups: tuple[int, ...]) -> Tensor:
        """Invert `video_in`."""
        shift, scale = self._video(groups)
        return z / scale + shift

    def rays_in(self, latents: Tensor) -> Tensor:
        """Raxel latents (B, T, h, w, C) to transformer latents of the same shape."""
        centred = latents - self._shift_at(latents.shape[2:4])
        mean = centred.mean((2, 3), keepdim=True)
        return mean * self.ray_mean_scale + (centred - mean) * self.ray_deviation_scale

    def rays_out(self, r: Tensor) -> Tensor:
        """Invert `rays_in`."""
        mean = r.mean((2, 3), keepdim=True)
        return mean / self.ray_mean_scale + (r - mean) / self.ray_deviation_scale + self._shift_at(r.shape[2:4])

    def at(self, ray_cells: tuple[int, int]) -> LatentNormaliser:
        """Return it for another number of cells; itself if that is its own."""
        if tuple(self.ray_shift.shape[:2]) == ray_cells:
            return self
        other = deepcopy(self)
        other.ray_shift = self._shift_at(ray_cells).clone()
        return other

    def _shift_at(self, cells: tuple[int, int]) -> Tensor:
        """The mean camera (h, w, C) at another number of cells than it was fitted for: stretched over the view."""
        if self.ray_shift.shape[:2] == tuple(cells):
            return self.ray_shift
        shift = F.interpolate(self.ray_shift.permute(2, 0, 1)[None], size=tuple(cells), mode="bilinear")
        return shift[0].permute(1, 2, 0)
