# SPDX-License-Identifier: Apache-2.0
"""The joint transformer of the Wan presets: Wan 2.1's text-to-video transformer and a ray stream beside it.

With the rays off the video stream computes what Wan computes (`wan_weights.py` loads its weights). z and r share the
attention projections, in the self step, in the cross step z <- r, r <- z, and in the attention to the text; each has
its own norms, modulation, feed-forward layer, time embedding and layers in and out. The cross step's gates start at
zero, so that a freshly loaded model gives Wan's videos whatever the rays are.

Axes: B batch, L latent frames, T frames, h w cells, C channels, n tokens of a frame, N tokens, D width, d width of a
head, S text tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .config import ModelConfig, WanTransformerConfig
from .layers import attend, frame_mask, keep_existing, rotary_angles
from .layout import Layout
from .transformer import position_grid

_EPS = 1e-6


class WanAttention(nn.Module):
    """Queries, keys and values with norms over the whole width, rotary positions in neighbouring pairs."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(width, eps=_EPS), nn.RMSNorm(width, eps=_EPS)

    def queries(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, F, n, D) to (B, heads, N, d)."""
        return _rotate_pairs(self._heads(self.norm_q(self.q(x))), rotary)

    def keys_values(self, x: Tensor, rotary: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """(B, F, n, D) to two of (B, heads, N, d)."""
        return _rotate_pairs(self._heads(self.norm_k(self.k(x))), rotary), self._heads(self.v(x))

    def merge(self, attended: Tensor, frames: int) -> Tensor:
        """(B, heads, N, d) to (B, F, n, D)."""
        return self.out(rearrange(attended, "b h (f n) d -> b f n (h d)", f=frames))

    def _heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "b f n (h d) -> b h (f n) d", h=self.heads)


def _rotate_pairs(x: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Apply rotary positions to x (B, heads, N, d): neighbours in a head are the pairs."""
    if rotary is None:
        return x
    cos, sin = rotary
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2).to(x.dtype)


class WanStream(nn.Module):
    """The layers of one modality in one block."""

    def __init__(self, c: WanTransformerConfig) -> None:
        super().__init__()
        self.norm_text = nn.LayerNorm(c.width, eps=_EPS)
        self.feed_forward = nn.Sequential(
            nn.Linear(c.width, c.ffn_width), nn.GELU(approximate="tanh"), nn.Linear(c.ffn_width, c.width)
        )
        self.modulation = nn.Parameter(torch.randn(1, 6, c.width) / c.width**0.5)
        if c.attention == "dsca":
            self.cross_modulation = nn.Parameter(torch.empty(1, 3, c.width))


class WanBlock(nn.Module):
    """Self-attention in z and in r, z <- r and r <- z, both <- text, feed-forward."""

    def __init__(self, c: WanTransformerConfig) -> None:
        super().__init__()
        self.joint = c.attention == "joint"
        self.attention = WanAttention(c.width, c.heads)
        self.text_attention = WanAttention(c.width, c.heads)
        if c.projections == "separate":
            self.ray_attention, self.ray_text_attention = (WanAttention(c.width, c.heads) for _ in range(2))
        else:
            self.ray_attention = self.ray_text_attention = None
        self.z, self.r = WanStream(c), WanStream(c)

    def forward(self, z: Tensor, r: Tensor | None, mod_z: Tensor, mod_r: Tensor | None, text: Tensor,
                rotary_z, rotary_r, mask_z: Tensor | None, mask_r: Tensor | None
                ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """z (B, L, n, D), r (B, T, m, D) or None, mod_z (B, L, 6, D), mod_r (B, T, 6, D), text (B, 1, S, D)."""
        own_r, text_r = self.ray_attention or self.attention, self.ray_text_attention or self.text_attention
        mz = (mod_z + self.z.modulation).unsqueeze(3).unbind(2)  # 6 of (B, L, 1, D)
        q_z, k_z, v_z = _project(self.attention, _modulate(z, *mz[0:2]), rotary_z)
        if r is None:
            z = _gated(z, mz[2], self.attention.merge(attend(q_z, k_z, v_z, mask_z), z.shape[1]))
            z = _read_text(self.text_attention, self.z, z, self.text_attention.keys_values(text))
            return _feed_forward(self.z, z, mz), None

        mr = (mod_r + self.r.modulation).unsqueeze(3).unbind(2)  # 6 of (B, T, 1, D)
        q_r, k_r, v_r = _project(own_r, _modulate(r, *mr[0:2]), rotary_r)
        if self.joint:
            k_z = k_r = torch.cat([k_z, k_r], dim=2)  # (B, heads, N + M, d)
            v_z = v_r = torch.cat([v_z, v_r], dim=2)
            mask_z = mask_r = None if mask_z is None else torch.cat([mask_z, mask_r], dim=1)
        z = _gated(z, mz[2], self.attention.merge(attend(q_z, k_z, v_z, mask_z), z.shape[1]))
        r = _gated(r, mr[2], own_r.merge(attend(q_r, k_r, v_r, mask_r), r.shape[1]))

        if not self.joint:
            cz, cr = _cross_modulation(self.z, mod_z), _cross_modulation(self.r, mod_r)
            q_z, k_z, v_z = _project(self.attention, _modulate(z, *cz[0:2]), rotary_z)
            q_r, k_r, v_r = _project(own_r, _modulate(r, *cr[0:2]), rotary_r)
            z = _gated(z, cz[2], self.attention.merge(attend(q_z, k_r, v_r, mask_r), z.shape[1]))
            r = _gated(r, cr[2], own_r.merge(attend(q_r, k_z, v_z, mask_z), r.shape[1]))

        read = self.text_attention.keys_values(text)
        z = _read_text(self.text_attention, self.z, z, read)
        r = _read_text(text_r, self.r, r, read if text_r is self.text_attention else text_r.keys_values(text))
        return _feed_forward(self.z, z, mz), _feed_forward(self.r, r, mr)


def _project(attention: WanAttention, x: Tensor, rotary) -> tuple[Tensor, Tensor, Tensor]:
    return attention.queries(x, rotary), *attention.keys_values(x, rotary)


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LayerNorm without parameters, then shift and scale, in float32."""
    return (F.layer_norm(x.float(), x.shape[-1:], eps=_EPS) * (1 + scale) + shift).to(x.dtype)


def _gated(x: Tensor, gate: Tensor, change: Tensor) -> Tensor:
    return (x.float() + change * gate).to(x.dtype)


def _cross_modulation(stream: WanStream, mod: Tensor) -> tuple[Tensor, ...]:
    """Shift and scale share the self step's part of the time; the gate is learnt alone, from zero."""
    shift, scale, gate = stream.cross_modulation.unsqueeze(2).unbind(1)  # (1, 1, D) each
    return mod[:, :, 0, None] + shift, mod[:, :, 1, None] + scale, gate


def _read_text(attention: WanAttention, stream: WanStream, x: Tensor, read: tuple[Tensor, Tensor]) -> Tensor:
    norm = stream.norm_text
    y = F.layer_norm(x.float(), x.shape[-1:], norm.weight.float(), norm.bias.float(), norm.eps).to(x.dtype)
    return x + attention.merge(attend(attention.queries(y), *read), x.shape[1])


def _feed_forward(stream: WanStream, x: Tensor, m: tuple[Tensor, ...]) -> Tensor:
    return _gated(x, m[5], stream.feed_forward(_modulate(x, *m[3:5])).float())


class WanEnds(nn.Module):
    """What one modality has outside the blocks: layers in and out, and its time."""

    def __init__(self, c: WanTransformerConfig, channels: int) -> None:
        super().__init__()
        kernel = (1, c.patch, c.patch)
        self.features = c.time_features
        self.embed = nn.Conv3d(channels, c.width, kernel, stride=kernel)
        self.time = nn.Sequential(nn.Linear(c.time_features, c.width), nn.SiLU(), nn.Linear(c.width, c.width))
        self.time_modulation = nn.Linear(c.width, 6 * c.width)
        self.head = nn.Linear(c.width, c.patch**2 * channels)
        self.head_modulation = nn.Parameter(torch.randn(1, 2, c.width) / c.width**0.5)

    def tokens(self, x: Tensor) -> Tensor:
        """(B, F, h, w, C) to (B, F, n, D)."""
        x = rearrange(x, "b f h w c -> b c f h w").to(self.embed.weight.dtype)
        return rearrange(self.embed(x), "b d f h w -> b f (h w) d")

    def times(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Times (B, F) to features (B, F, D) and modulation (B, F, 6, D). Wan counts from 1000, noise, to 0, data."""
        half = self.features // 2
        frequency = 10000 ** (-torch.arange(half, device=t.device, dtype=torch.float32) / half)
        angle = 1000 * (1 - t.float())[..., None] * frequency
        features = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.head.weight.dtype)
        time = self.time(features)
        return time, self.time_modulation(F.silu(time)).unflatten(-1, (6, -1)).float()

    def velocity(self, x: Tensor, time: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
        """(B, F, n, D) to (B, F, h, w, C). Wan's velocity is noise - data, ours data - noise."""
        shift, scale = (self.head_modulation + time.unsqueeze(2)).float().unsqueeze(3).unbind(2)  # (B, F, 1, D)
        out = -self.head(_modulate(x, shift, scale)).float()
        return rearrange(out, "b f (h w) (p q c) -> b f (h p) (w q) c", h=grid[0], p=patch, q=patch)


class WanJointTransformer(nn.Module):
    """Velocities of video and ray latents, as `JointTransformer` gives them, and an optional prompt."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        c = config.transformer
        self.z, self.r = WanEnds(c, config.codec.channels), WanEnds(c, config.ray_channels)
        self.text = nn.Sequential(
            nn.Linear(c.text_width, c.width), nn.GELU(approximate="tanh"), nn.Linear(c.width, c.width)
        )
        self.reference = nn.Parameter(torch.empty(2, c.width))
        self.register_buffer("empty_prompt", torch.empty(1, c.text_width))
        self.blocks = nn.ModuleList(WanBlock(c) for _ in range(c.depth))
        self.initialise_added()

    @torch.no_grad()
    def initialise_added(self) -> None:
        """Set what Wan does not have to where it changes nothing: the cross gates, the reference mark, the prompt."""
        self.reference.zero_()
        self.empty_prompt.zero_()
        for name, parameter in self.blocks.named_parameters():
            if name.endswith("cross_modulation"):
                parameter.zero_()

    def forward(self, z: Tensor, r: Tensor | None, t_z: Tensor, t_r: Tensor | None, reference: Tensor | None,
                layout: Layout | tuple[int, ...], prompt: Tensor | None = None
                ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        """Return the velocities of z and r.

        Args:
            z, r, t_z, t_r, reference, layout: see `JointTransformer.forward`; r (and t_r) may be None: rays off.
            prompt: (B, s, text_width) embeddings of the prompt by Wan's text encoder, s <= text_tokens; None is the
                empty prompt, the buffer `empty_prompt`.
        """
        layout = Layout.of(layout).to(z.device)
        exists_z, exists_r = layout.latent_exists(), layout.exists
        patch, c = self.config.transformer.patch, self.config.transformer
        h, w = z.shape[2] // patch, z.shape[3] // patch
        rotary_z, rotary_r = (
            rotary_angles(p, c.width // c.heads, base=10000.0) for p in wan_positions(layout, h, w, z.device)
        )
        text = self.text(self._padded(prompt, len(z)))[:, None]  # (B, 1, S, D)

        time_z, mod_z = self.z.times(keep_existing(exists_z, t_z, 1.0))
        x_z = self.z.tokens(keep_existing(exists_z, z))  # (B, L, n, D)
        x_r = mod_r = mask_r = None
        if r is not None:
            time_r, mod_r = self.r.times(keep_existing(exists_r, t_r, 1.0))
            is_reference = F.one_hot(reference, r.shape[1])[..., None, None].to(self.reference.dtype)  # (B, T, 1, 1)
            mark = is_reference * self.reference[0] + (1 - is_reference) * self.reference[1]
            x_r = self.r.tokens(keep_existing(exists_r, r)) + mark  # (B, T, m, D)
            mask_r = frame_mask(exists_r, h * w // 4)
        mask_z = frame_mask(exists_z, h * w)
        for block in self.blocks:
            x_z, x_r = block(x_z, x_r, mod_z, mod_r, text, rotary_z, rotary_r, mask_z, mask_r)

        v_z = keep_existing(exists_z, self.z.velocity(x_z, time_z, (h, w), patch))
        if r is None:
            return v_z, None
        return v_z, keep_existing(exists_r, self.r.velocity(x_r, time_r, (h // 2, w // 2), patch))

    def _padded(self, prompt: Tensor | None, batch: int) -> Tensor:
        """Prompt embeddings (B, S, text_width), padded with zeros as Wan was trained."""
        c = self.config.transformer
        if prompt is None:
            prompt = self.empty_prompt.expand(batch, -1, -1)
        if prompt.ndim != 3 or prompt.shape[1] > c.text_tokens or prompt.shape[::2] != (batch, c.text_width):
            raise ValueError(
                f"prompt must be ({batch}, at most {c.text_tokens}, {c.text_width}), got {tuple(prompt.shape)}"
            )
        return F.pad(prompt, (0, 0, 0, c.text_tokens - prompt.shape[1])).to(self.text[0].weight.dtype)


def wan_positions(layout: Layout, h: int, w: int, device=None) -> tuple[Tensor, Tensor]:
    """Positions of video and ray tokens as `token_positions`, in Wan's units: latent frames, rows and columns from 0.

    Frame 0 of the video is latent frame 0, frames 4k - 3 .. 4k are latent frame k: a ray token's time is spread evenly
    about its latent frame's.
    """
    times = layout.frame_times(device)  # (T,) or (B, T)
    start = times[..., layout.images, None] if layout.images < layout.frames else times.new_zeros(1)
    latent = latent_time(times - start)
    z = position_grid(layout.latent_mean(latent), torch.arange(h), torch.arange(w))
    return z, position_grid(latent, 2 * torch.arange(h // 2) + 0.5, 2 * torch.arange(w // 2) + 0.5)


def latent_time(frames: Tensor) -> Tensor:
    """Times in frames of the video to times in latent frames: 0 to 0, the mean of 4k - 3 .. 4k to k, linear between."""
    return torch.where(frames >= 1, (frames + 1.5) / 4, torch.where(frames > 0, 0.625 * frames, frames / 4))
