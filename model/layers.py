# SPDX-License-Identifier: Apache-2.0
"""Attention with rotary positions, modulation and feed-forward layers.

Axes: B batch, F frames (of one modality), n tokens of a frame, N = F n tokens, D width, d width of a head.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Times (B, F) in [0, 1] to features (B, F, D): sinusoids, then a small MLP."""

    def __init__(self, width: int, features: int = 64) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        frequencies = torch.exp(torch.linspace(0, math.log(200.0), self.features // 2, device=t.device))
        angle = t[..., None] * frequencies
        return self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.mlp[0].weight.dtype))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then shift and scale per frame: x (B, F, n, D), shift and scale (B, F, 1, D)."""
    return F.layer_norm(x, (int(x.shape[-1]),)) * (1 + scale) + shift


def rotary_angles(positions: Tensor, head_width: int, base: float = 100.0) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the rotary embedding for positions (N, 3) or (B, N, 3) in (frames, rows, columns).

    They are (N, d / 2), or (B, 1, N, d / 2) where each window of a batch has its own positions.

    The pairs of a head are dealt to time, y and x in the ratio of Wan 2.1 (d - 4 (d // 6), 2 (d // 6), 2 (d // 6)).
    """
    space = 2 * (head_width // 6)
    angles = []
    for axis, width in enumerate((head_width - 2 * space, space, space)):
        frequency = base ** (-torch.arange(0, width, 2, device=positions.device) / width)
        angles.append(positions[..., axis:axis + 1] * frequency)
    angle = torch.cat(angles, dim=-1)
    angle = angle[:, None] if angle.ndim == 3 else angle
    return angle.cos(), angle.sin()


def rotary_tables(positions: Tensor, head_width: int) -> tuple[Tensor, Tensor]:
    """`rotary_angles` as `rotate` takes them: for whole heads, (..., N, d), the sines with their signs."""
    cos, sin = rotary_angles(positions, head_width)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions, float32, to x (..., heads, N, d) of any dtype: the halves of a head are the pairs."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([b, a], dim=-1) * sin).to(x.dtype)


class Projections(nn.Module):
    """Queries, keys, values with normalised, rotated queries and keys; and the output projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_q = nn.RMSNorm(width // heads, eps=1e-6)
        self.norm_k = nn.RMSNorm(width // heads, eps=1e-6)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, F, n, D) to q, k, v: (B, heads, N, d)."""
        qk, v = rearrange(self.qkv(x), "b f n (s h d) -> s b h (f n) d", s=3, h=self.heads).split([2, 1])
        weight = torch.stack([self.norm_q.weight, self.norm_k.weight])[:, None, None, None]       # (2, 1, 1, 1, d)
        qk = F.rms_norm(qk, (int(qk.shape[-1]),), eps=self.norm_q.eps) * weight                   # (2, B, heads, N, d)
        q, k = rotate(qk, rotary).unbind(0)           # both at once: a small window's time goes into calls
        return q, k, v[0]

    def merge(self, attended: Tensor, frames: int) -> Tensor:
        """(B, heads, N, d) to (B, F, n, D)."""
        return self.out(rearrange(attended, "b h (f n) d -> b f n (h d)", f=frames))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention of q (B, heads, N, d) over k and v (B, heads, M, d): (B, heads, N, d); mask (B, M) bool of tokens seen.
    """
    return F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None])


def frame_mask(exists: Tensor | None, tokens: int) -> Tensor | None:
    """Which tokens exist, (B, N), from which frames do, (B, F) or None for all, at `tokens` per frame."""
    return None if exists is None else exists.repeat_interleave(tokens, dim=1)


def keep_existing(exists: Tensor | None, x: Tensor, value: float = 0.0) -> Tensor:
    """Replace what padding holds in x (B, F, ...) by `value`; exists (B, F) or None for all."""
    return x if exists is None else torch.where(exists.reshape(*exists.shape, *[1] * (x.ndim - 2)), x, value)


class SwiGLU(nn.Module):
    """Gated feed-forward: out(silu(a) * b). Its product lets one layer multiply gradients in space and time."""

    def __init__(self, width: int, hidden: int, out_width: int | None = None) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, out_width or width)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.expand(x).chunk(2, dim=-1)
        return self.out(F.silu(a) * b)


class Embedding(nn.Linear):
    """Tokens to features: a linear layer, and beside it a gated one (`hidden` > 0) that starts at zero."""

    def __init__(self, token: int, width: int, hidden: int = 0) -> None:
        super().__init__(token, width)
        self.gated = SwiGLU(token, hidden, width) if hidden else None
        if self.gated is not None:
            nn.init.zeros_(self.gated.out.weight)
            nn.init.zeros_(self.gated.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        embedded = super().forward(x)
        return embedded if self.gated is None else embedded + self.gated(x)
