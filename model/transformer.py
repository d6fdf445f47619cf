# SPDX-License-Identifier: Apache-2.0
"""The joint video and ray transformer with decoupled self-cross attention (DSCA). Forward only.

Every block: self-attention inside the video tokens z and inside the ray tokens r, then symmetric cross-attention
z <- r and r <- z with the SAME rotary positions, then a feed-forward layer per modality (paper, section "The
transformer"). Each frame of each modality has its own time: 1 is clean, 0 is noise.

Axes: B batch, L latent frames, T frames, h w cells of a video latent frame (a ray latent frame has half of each),
C channels, n tokens of a frame, D width. `groups` lists the frames of each latent frame, e.g. (1, 4).
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import ModelConfig
from .layers import Embedding, Projections, SwiGLU, TimeEmbedding, modulate, rotary_angles

_MODULATIONS = 9          # (shift, scale, gate) for self-attention, cross-attention and feed-forward


class Stream(nn.Module):
    """The layers of one modality in one block."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.self_attention = Projections(width, heads)
        self.cross_attention = Projections(width, heads)
        self.feed_forward = SwiGLU(width, ffn_width)
        self.modulation = nn.Parameter(torch.zeros(_MODULATIONS, width))
        with torch.no_grad():
            self.modulation[2::3] = 0.5          # gates start half open: a tiny model trains from step one


class Block(nn.Module):
    """One DSCA block over both streams."""

    def __init__(self, width: int, heads: int, ffn_width: int) -> None:
        super().__init__()
        self.z = Stream(width, heads, ffn_width)
        self.r = Stream(width, heads, ffn_width)

    def forward(self, z: Tensor, r: Tensor, mod_z: Tensor, mod_r: Tensor, rotary_z, rotary_r) -> tuple[Tensor, Tensor]:
        mz = (mod_z + self.z.modulation).unsqueeze(2).unbind(3)                    # 9 of (B, L, 1, D)
        mr = (mod_r + self.r.modulation).unsqueeze(2).unbind(3)                    # 9 of (B, T, 1, D)

        z = z + mz[2] * _self_attend(self.z.self_attention, modulate(z, *mz[0:2]), rotary_z)      # (B, L, n, D)
        r = r + mr[2] * _self_attend(self.r.self_attention, modulate(r, *mr[0:2]), rotary_r)      # (B, T, m, D)

        q_z, k_z, v_z = self.z.cross_attention(modulate(z, *mz[3:5]), rotary_z)    # (B, heads, N, d)
        q_r, k_r, v_r = self.r.cross_attention(modulate(r, *mr[3:5]), rotary_r)    # (B, heads, M, d)
        z = z + mz[5] * self.z.cross_attention.merge(F.scaled_dot_product_attention(q_z, k_r, v_r), z.shape[1])
        r = r + mr[5] * self.r.cross_attention.merge(F.scaled_dot_product_attention(q_r, k_z, v_z), r.shape[1])

        z = z + mz[8] * self.z.feed_forward(modulate(z, *mz[6:8]))
        r = r + mr[8] * self.r.feed_forward(modulate(r, *mr[6:8]))
        return z, r


def _self_attend(projections: Projections, x: Tensor, rotary) -> Tensor:
    q, k, v = projections(x, rotary)
    return projections.merge(F.scaled_dot_product_attention(q, k, v), x.shape[1])


class JointTransformer(nn.Module):
    """Velocity of video latents and ray latents, given both noisy, their times and which frame is the reference."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c = config.transformer
        token = c.patch**2 * config.codec.channels
        self.embed_image = Embedding(token, c.width, c.embed_hidden)
        self.embed_video = Embedding(token, c.width, c.embed_hidden)
        self.embed_rays = nn.Linear(token, c.width)
        self.embed_place = nn.Linear(2 * 8, c.width)
        self.reference = nn.Parameter(torch.randn(2, c.width) * 0.02)
        self.time_z, self.time_r = TimeEmbedding(c.width), TimeEmbedding(c.width)
        self.modulation_z = nn.Linear(c.width, _MODULATIONS * c.width)
        self.modulation_r = nn.Linear(c.width, _MODULATIONS * c.width)
        self.blocks = nn.ModuleList(Block(c.width, c.heads, c.ffn_width) for _ in range(c.depth))
        self.head_image = nn.Linear(c.width, token)
        self.head_video = nn.Linear(c.width, token)
        self.head_rays = nn.Linear(c.width, token)
        for layer in (self.modulation_z, self.modulation_r, self.head_image, self.head_video, self.head_rays):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, z: Tensor, r: Tensor, t_z: Tensor, t_r: Tensor, reference: Tensor, groups: tuple[int, ...],
                features: bool = False) -> tuple[Tensor, ...]:
        """Return the velocities of z and r.

        Args:
            z: (B, L, h, w, C) noisy video latents; r: (B, T, h/2, w/2, C) noisy ray latents.
            t_z: (B, L) and t_r: (B, T), times in [0, 1]; 1 is clean.
            reference: (B,) int64, the frame whose camera is the identity.
            groups: frames of each latent frame.
            features: return the video features (B, L, n, D) a block past the middle as well (training supervises them).
        """
        if list(groups) != sorted(groups):
            raise ValueError(f"groups must hold single images first, then groups of frames, got {groups}")
        patch = self.config.transformer.patch
        h, w = z.shape[2] // patch, z.shape[3] // patch
        tokens_z = rearrange(z, "b l (h p) (w q) c -> b l (h w) (p q c)", p=patch, q=patch)      # (B, L, n, P)
        tokens_r = rearrange(r, "b t (h p) (w q) c -> b t (h w) (p q c)", p=patch, q=patch)      # (B, T, m, P)
        positions_z, positions_r = token_positions(groups, h, w, z.device)
        rotary_width = self.config.transformer.width // self.config.transformer.heads
        rotary_z, rotary_r = rotary_angles(positions_z, rotary_width), rotary_angles(positions_r, rotary_width)

        images = groups.count(1)                                                   # images lead, groups of 4 follow
        x_z = _by_kind(self.embed_image, self.embed_video, tokens_z, images)       # (B, L, n, D)
        x_z = x_z + self._place(positions_z, h, w).unflatten(0, (len(groups), -1))                # (B, L, n, D)
        x_r = self.embed_rays(tokens_r) + self._place(positions_r, h, w).unflatten(0, (r.shape[1], -1))
        is_reference = F.one_hot(reference, r.shape[1]).to(x_r.dtype)[..., None, None]            # (B, T, 1, 1)
        x_r = x_r + is_reference * self.reference[0] + (1 - is_reference) * self.reference[1]     # (B, T, m, D)

        mod_z = self.modulation_z(F.silu(self.time_z(t_z))).unflatten(-1, (_MODULATIONS, -1))     # (B, L, 9, D)
        mod_r = self.modulation_r(F.silu(self.time_r(t_r))).unflatten(-1, (_MODULATIONS, -1))     # (B, T, 9, D)
        for number, block in enumerate(self.blocks):
            if number == len(self.blocks) // 2 + 1:
                middle = x_z
            x_z, x_r = block(x_z, x_r, mod_z, mod_r, rotary_z, rotary_r)

        x_z, x_r = F.layer_norm(x_z, x_z.shape[-1:]), F.layer_norm(x_r, x_r.shape[-1:])
        out_z = _by_kind(self.head_image, self.head_video, x_z, images)
        out_z = rearrange(out_z, "b l (h w) (p q c) -> b l (h p) (w q) c", h=h, p=patch, q=patch)
        out_r = rearrange(self.head_rays(x_r), "b t (h w) (p q c) -> b t (h p) (w q) c", h=h // 2, p=patch, q=patch)
        velocities = self._velocity(out_z, z, t_z), self._velocity(out_r, r, t_r)
        return (*velocities, middle) if features else velocities

    def _velocity(self, out: Tensor, noisy: Tensor, t: Tensor) -> Tensor:
        """What the heads give is the data itself or the velocity (config.prediction): v = (x_1 - x_t) / (1 - t)."""
        if self.config.transformer.prediction == "velocity":
            return out
        return (out - noisy) / (1 - t).clamp(min=1e-3)[..., None, None, None]

    def _place(self, positions: Tensor, h: int, w: int) -> Tensor:
        """Features of the place in the image (N, D): a camera's motion is read from where things move."""
        place = positions[:, 1:] / torch.tensor([h, w], device=positions.device)                  # (N, 2) in (0, 1)
        angle = place[..., None] * torch.pi * torch.tensor([1.0, 2, 3, 4], device=positions.device)
        return self.embed_place(torch.cat([angle.cos(), angle.sin()], dim=-1).flatten(1))


def _by_kind(image: nn.Linear, video: nn.Linear, x: Tensor, images: int) -> Tensor:
    """Apply one layer to the first `images` latent frames, the other to the rest: their channels mean other things."""
    if images == x.shape[1]:
        return image(x)
    if images == 0:
        return video(x)
    return torch.cat([image(x[:, :images]), video(x[:, images:])], dim=1)


def token_positions(groups: tuple[int, ...], h: int, w: int, device=None) -> tuple[Tensor, Tensor]:
    """Positions (frame, row, column) of video tokens (N, 3) and ray tokens (M, 3), both in units of video tokens.

    A latent frame of 4 sits at the mean of its frames; a ray token at the centre of the 2x2 video tokens it covers.
    """
    def grid(times: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return torch.stack(torch.meshgrid(times, rows, columns, indexing="ij"), dim=-1).flatten(0, 2)

    ends = torch.tensor(groups, dtype=torch.float32).cumsum(0)
    times_z = ends - (torch.tensor(groups) + 1) / 2                               # (1, 4) -> 0, 2.5
    z = grid(times_z, torch.arange(h) + 0.5, torch.arange(w) + 0.5)
    r = grid(torch.arange(float(sum(groups))), 2 * torch.arange(h // 2) + 1.0, 2 * torch.arange(w // 2) + 1.0)
    return z.to(device), r.to(device)
