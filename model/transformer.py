# SPDX-License-Identifier: Apache-2.0
"""The joint video and ray transformer with decoupled self-cross attention (DSCA). Forward only.

Every block: self-attention inside the video tokens z and inside the ray tokens r, then symmetric cross-attention
z <- r and r <- z with the SAME rotary positions, then a feed-forward layer per modality (paper, section "The
transformer"). Each frame of each modality has its own time: 1 is clean, 0 is noise.

Axes: B batch, L latent frames, T frames, h w cells of a video latent frame (a ray latent frame has half of each),
C channels, n tokens of a frame, D width. `layout` is a `Layout`, or its groups: the frames of each latent frame, e.g.
(1, 4).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import ModelConfig, TransformerConfig
from .layers import (
    Embedding,
    Projections,
    SwiGLU,
    TimeEmbedding,
    attend,
    frame_mask,
    keep_existing,
    modulate,
    rotary_tables,
)
from .layout import Layout


class Stream(nn.Module):
    """The layers of one modality in one block."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        if c.projections == "separate":
            self.self_attention = Projections(c.width, c.heads)
            if c.attention == "dsca":
                self.cross_attention = Projections(c.width, c.heads)
        self.feed_forward = SwiGLU(c.width, c.ffn_width)
        self.modulation = nn.Parameter(torch.zeros(modulations(c), c.width))
        with torch.no_grad():
            self.modulation[2::3] = 0.5          # gates start half open: a tiny model trains from step one


class Block(nn.Module):
    """One block over both streams: DSCA, or one joint attention over all tokens (config.attention)."""

    def __init__(self, c: TransformerConfig) -> None:
        super().__init__()
        self.joint = c.attention == "joint"
        self.attention = Projections(c.width, c.heads) if c.projections == "shared" else None
        self.z, self.r = Stream(c), Stream(c)

    def forward(self, z: Tensor, r: Tensor, mod_z: Tensor, mod_r: Tensor, rotary_z, rotary_r,
                mask_z: Tensor | None = None, mask_r: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mz = (mod_z + self.z.modulation).split(1, dim=2)                           # 9 or 6 of (B, L, 1, D)
        mr = (mod_r + self.r.modulation).split(1, dim=2)                           # 9 or 6 of (B, T, 1, D)

        own_z, own_r = self.attention or self.z.self_attention, self.attention or self.r.self_attention
        q_z, k_z, v_z = own_z(modulate(z, *mz[0:2]), rotary_z)                     # (B, heads, N, d)
        q_r, k_r, v_r = own_r(modulate(r, *mr[0:2]), rotary_r)                     # (B, heads, M, d)
        if self.joint:
            k, v = torch.cat([k_z, k_r], dim=2), torch.cat([v_z, v_r], dim=2)      # (B, heads, N + M, d)
            k_z, v_z, k_r, v_r = k, v, k, v
            mask_z = mask_r = None if mask_z is None else torch.cat([mask_z, mask_r], dim=1)
        z = z + mz[2] * own_z.merge(attend(q_z, k_z, v_z, mask_z), z.shape[1])     # (B, L, n, D)
        r = r + mr[2] * own_r.merge(attend(q_r, k_r, v_r, mask_r), r.shape[1])     # (B, T, m, D)

        if not self.joint:
            other_z, other_r = self.attention or self.z.cross_attention, self.attention or self.r.cross_attention
            q_z, k_z, v_z = other_z(modulate(z, *mz[3:5]), rotary_z)
            q_r, k_r, v_r = other_r(modulate(r, *mr[3:5]), rotary_r)
            z = z + mz[5] * other_z.merge(attend(q_z, k_r, v_r, mask_r), z.shape[1])
            r = r + mr[5] * other_r.merge(attend(q_r, k_z, v_z, mask_z), r.shape[1])

        z = z + mz[-1] * self.z.feed_forward(modulate(z, *mz[-3:-1]))
        r = r + mr[-1] * self.r.feed_forward(modulate(r, *mr[-3:-1]))
        return z, r


def modulations(c: TransformerConfig) -> int:
    """(shift, scale, gate) for each attention and for the feed-forward layer."""
    return 9 if c.attention == "dsca" else 6


class JointTransformer(nn.Module):
    """Velocity of video latents and ray latents, given both noisy, their times and which frame is the reference."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c = config.transformer
        token, ray_token = c.patch**2 * config.codec.channels, c.patch**2 * config.ray_channels
        self.embed_image = Embedding(token, c.width, c.embed_hidden)
        self.embed_video = Embedding(token, c.width, c.embed_hidden)
        self.embed_rays = nn.Linear(ray_token, c.width)
        self.embed_place = nn.Linear(2 * 8, c.width)
        self.reference = nn.Parameter(torch.randn(2, c.width) * 0.02)
        self.time_z, self.time_r = TimeEmbedding(c.width), TimeEmbedding(c.width)
        self.modulation_z = nn.Linear(c.width, modulations(c) * c.width)
        self.modulation_r = nn.Linear(c.width, modulations(c) * c.width)
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.head_image = nn.Linear(c.width, token)
        self.head_video = nn.Linear(c.width, token)
        self.head_rays = nn.Linear(c.width, ray_token)
        for layer in (self.modulation_z, self.modulation_r, self.head_image, self.head_video, self.head_rays):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, r: Tensor, t_z: Tensor, t_r: Tensor, reference: Tensor,
                layout: Layout | tuple[int, ...], features: bool = False) -> tuple[Tensor, ...]:
        """Return the velocities of z and r.

        Args:
            z: (B, L, h, w, C) noisy video latents; r: (B, T, h/2, w/2, C) noisy ray latents.
            t_z: (B, L) and t_r: (B, T), times in [0, 1]; 1 is clean.
            reference: (B,) int64, the frame whose camera is the identity.
            layout: of the sequence, or only its groups. The velocity of padding is 0.
                In weights of bfloat16 too the velocities have the dtype of z and r.
            features: return the video features (B, L, n, D) a block past the middle as well (training supervises them).
        """
        layout = Layout.of(layout).to(z.device)
        exists_z, exists_r = layout.latent_exists(), layout.exists
        z, r = keep_existing(exists_z, z), keep_existing(exists_r, r)
        t_z, t_r = keep_existing(exists_z, t_z, 1.0), keep_existing(exists_r, t_r, 1.0)
        patch, width, dtype = self.config.transformer.patch, self.config.transformer.width, self.reference.dtype
        h, w = z.shape[2] // patch, z.shape[3] // patch
        tokens_z = rearrange(z, "b l (h p) (w q) c -> b l (h w) (p q c)", p=patch, q=patch).to(dtype)
        tokens_r = rearrange(r, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch).to(dtype)
        positions_z, positions_r = token_positions(layout, h, w, z.device)
        rotary_width = width // self.config.transformer.heads
        rotary_z, rotary_r = rotary_tables(positions_z, rotary_width), rotary_tables(positions_r, rotary_width)

        images = layout.groups.count(1)                                            # images lead, groups of 4 follow
        x_z = _by_kind(self.embed_image, self.embed_video, tokens_z, images)       # (B, L, n, D)
        x_z = x_z + self._place(positions_z, h, w).unflatten(0, (z.shape[1], -1))                # (B, L, n, D)
        x_r = self.embed_rays(tokens_r) + self._place(positions_r, h, w).unflatten(0, (r.shape[1], -1))
        is_reference = F.one_hot(reference, r.shape[1]).to(x_r.dtype)[..., None, None]            # (B, T, 1, 1)
        x_r = x_r + is_reference * self.reference[0] + (1 - is_reference) * self.reference[1]     # (B, T, m, D)

        mod_z = self.modulation_z(F.silu(self.time_z(t_z))).unflatten(-1, (-1, width))              # (B, L, 9, D)
        mod_r = self.modulation_r(F.silu(self.time_r(t_r))).unflatten(-1, (-1, width))              # (B, T, 9, D)
        masks = frame_mask(exists_z, h * w), frame_mask(exists_r, h * w // 4)
        middle = x_z
        for number, block in enumerate(self.blocks):
            if number == len(self.blocks) // 2 + 1:
                middle = x_z
            x_z, x_r = block(x_z, x_r, mod_z, mod_r, rotary_z, rotary_r, *masks)

        x_z, x_r = F.layer_norm(x_z, (width,)), F.layer_norm(x_r, (width,))
        out_z = _by_kind(self.head_image, self.head_video, x_z, images)
        out_z = rearrange(out_z, "b l (h w) (p q c) -> b l (h p) (w q) c", h=h, p=patch, q=patch)
        out_r = rearrange(self.head_rays(x_r), "b t (h w) (p q c) -> b t (h p) (w q) c", h=h // 2, p=patch, q=patch)
        v_z, v_r = self._velocity(out_z, z, t_z), self._velocity(out_r, r, t_r)
        velocities = keep_existing(exists_z, v_z), keep_existing(exists_r, v_r)
        return (*velocities, middle) if features else velocities

    def _velocity(self, out: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """What the heads give is the data itself or the velocity (config.prediction): v = (x_1 - x_t) / (1 - t)."""
        if self.config.transformer.prediction == "data":
            out = (out - noisy) / (1 - t).clamp(min=1e-3)[..., None, None, None]
        return out.to(noisy.dtype)

    def _place(self, positions: Tensor, h: int, w: int) -> Tensor:
        """Features of the place in the image (N, D): a camera's motion is read from where things move."""
        positions = positions if positions.ndim == 2 else positions[0]                            # places are shared
        place = positions[:, 1:] / torch.tensor([h, w], device=positions.device)                  # (N, 2) in (0, 1)
        angle = place[..., None] * torch.pi * torch.tensor([1.0, 2, 3, 4], device=positions.device)
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).flatten(1)
        return self.embed_place(features.to(self.embed_place.weight.dtype))


def _by_kind(image: nn.Linear, video: nn.Linear, x: Tensor, images: int) -> Tensor:
    """Apply one layer to the first `images` latent frames, the other to the rest: their channels mean other things."""
    if images == x.shape[1]:
        return image(x)
    if images == 0:
        return video(x)
    return torch.cat([image(x[:, :images]), video(x[:, images:])], dim=1)


def token_positions(layout: Layout | tuple[int, ...], h: int, w: int, device=None) -> tuple[Tensor, Tensor]:
    """Positions (frame, row, column) of video and ray tokens, (N, 3) and (M, 3) or (B, N, 3) and (B, M, 3).

    All are in units of video tokens. A latent frame of 4 sits at the mean of its frames; a ray token at the centre of
    the 2x2 video tokens it covers.
    """
    layout = Layout.of(layout)
    times = layout.frame_times(device)
    z = position_grid(layout.latent_mean(times), torch.arange(h) + 0.5, torch.arange(w) + 0.5)
    return z, position_grid(times, 2 * torch.arange(h // 2) + 1.0, 2 * torch.arange(w // 2) + 1.0)


def position_grid(times: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Positions (..., F h w, 3) of the tokens of frames at times (..., F)."""
    place = torch.stack(torch.meshgrid(rows.to(times), columns.to(times), indexing="ij"), dim=-1).flatten(0, 1)
    times = times[..., None, None].expand(*times.shape, len(place), 1)
    return torch.cat([times, place.expand(*times.shape[:-1], 2)], dim=-1).flatten(-3, -2)
