# SPDX-License-Identifier: Apache-2.0
"""Ground that is not flat: heights on a square grid around the origin, bilinear between its nodes. Metres, z up."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch

_NODES = 129
_STEPS, _GROWTH, _FIRST = 28, 1.22, 0.25  # of the march: metres of the first step
_REFINED = 6
BELOW = -1.0  # outside the grid: under the floor, which is seen there instead


@dataclass(frozen=True)
class HeightField:
    """heights: (n, n), row i at y = -extent + i * spacing, column likewise x; extent: metres from the origin to each
    side; steepest: largest slope."""

    heights: torch.Tensor
    extent: float
    steepest: float

    def to(self, device: str | torch.device) -> HeightField:
        """Return the field with its tensors on `device`."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in parts.items() if hasattr(v, "to")})

    def height(self, points: np.ndarray) -> np.ndarray:
        """Height below points (..., 2 or 3), metres."""
        x, y = (torch.as_tensor(np.asarray(points)[..., k], dtype=torch.float32) for k in (0, 1))
        return self.at(x, y).numpy().astype(np.float64)

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Distance from points (..., 3) to the ground, or less."""
        return (np.asarray(points)[..., 2] - self.height(points)) / np.hypot(1.0, self.steepest)

    def at(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Bilinear height at x, y of any one shape."""
        n = len(self.heights)
        scale = (n - 1) / (2 * self.extent)
        u, v = ((w + self.extent).mul_(scale) for w in (x, y))
        inside = (u >= 0) & (u <= n - 1) & (v >= 0) & (v <= n - 1)
        u, v = u.clamp_(0, n - 1), v.clamp_(0, n - 1)
        u0, v0 = u.floor().clamp_(max=n - 2), v.floor().clamp_(max=n - 2)
        index = (v0 * n + u0).to(torch.int32).view(-1)
        flat = self.heights.reshape(-1)
        a, b, c, d = (flat.index_select(0, index + k).view(u.shape) for k in (0, 1, n, n + 1))
        u, v = u - u0, v - v0
        return torch.where(inside, torch.lerp(torch.lerp(a, b, u), torch.lerp(c, d, u), v), BELOW)

    def normal(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Upward unit normal, smooth from cell to cell: it is taken from differences over a whole spacing."""
        step = 2 * self.extent / (len(self.heights) - 1)
        slope_x = (self.at(x + 0.5 * step, y) - self.at(x - 0.5 * step, y)) / step
        slope_y = (self.at(x, y + 0.5 * step) - self.at(x, y - 0.5 * step)) / step
        up = torch.rsqrt(1 + slope_x * slope_x + slope_y * slope_y)
        return -slope_x * up, -slope_y * up, up

    def hit(
        self, origin: list[torch.Tensor], direction: list[torch.Tensor], limit: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Ray parameter where rays first go below the ground; inf where they do not.

        A march in growing steps, then false position. What is narrower than a step can be jumped over at a grazing
        angle; the hits found lie on the surface.

        Args:
            origin, direction: 3 tensors each that broadcast to one shape.
            limit: of that shape, ray parameters beyond which a hit does not count and need not be found.
        """
        length = torch.sqrt(direction[0] ** 2 + direction[1] ** 2 + direction[2] ** 2).clamp_(min=1e-6)
        shape = torch.broadcast_shapes(length.shape, origin[0].shape)
        limit = length.new_full((1,), torch.inf) if limit is None else limit
        parts = (*origin, *direction, length, limit)
        marching = torch.stack([x.expand(shape).reshape(-1) for x in parts])  # (8, rays)
        rays = torch.arange(marching.shape[1], device=length.device)
        top, found, ends = max(float(self.heights.max()), BELOW), [], []
        step, reach = _FIRST, 0.0
        for _ in range(_STEPS):
            before, reach, step = reach, reach + step, step * _GROWTH
            t = reach / marching[6]
            x, y, z = (marching[k] + marching[3 + k] * t for k in range(3))
            under = z < self.at(x, y)
            hit = torch.nonzero(under).view(-1)
            found.append(rays[hit])
            ends.append(torch.cat([marching[:6, hit], (before / marching[6, hit])[None], t[hit][None]]))
            # what is above all hills and rises stays there
            left = torch.nonzero(~(under | (t > marching[7]) | ((z > top) & (marching[5] >= 0)))).view(-1)
            marching, rays = marching.index_select(1, left), rays[left]
        *start, low, high = torch.cat(ends, dim=1)
        out = torch.full((shape.numel(),), torch.inf, device=length.device)
        return out.scatter_(0, torch.cat(found), self._refine(start[:3], start[3:], low, high)).view(shape)

    def _refine(self, o, d, low, high) -> torch.Tensor:
        def gap(t):
            return torch.addcmul(o[2], d[2], t) - self.at(torch.addcmul(o[0], d[0], t), torch.addcmul(o[1], d[1], t))

        at_low, at_high = gap(low), gap(high)
        for _ in range(_REFINED):  # false position, the end that stays put counting half (Illinois)
            t = torch.lerp(low, high, (at_low / (at_low - at_high)).nan_to_num_(0.5).clamp_(0.0, 1.0))
            value = gap(t)
            over = value > 0
            at_high_kept, at_low_kept = at_high * 0.5, at_low * 0.5
            low, high = torch.where(over, t, low), torch.where(over, high, t)
            at_low, at_high = torch.where(over, value, at_low_kept), torch.where(over, at_high_kept, value)
        return torch.where(value.abs() < 0.02 * t.clamp(min=1.0), t, torch.inf)


def random_field(rng: np.random.Generator, extent: float, height: float) -> HeightField:
    """Hills over several octaves, of about `height` metres from valley to hilltop, falling to the floor at the rim."""
    total, amplitude, cells = np.zeros((_NODES, _NODES), np.float32), 1.0, int(rng.integers(3, 6))
    persistence = rng.uniform(0.3, 0.5)
    while cells < _NODES // 4:
        grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
        total += amplitude * cv2.resize(grid, (_NODES, _NODES), interpolation=cv2.INTER_CUBIC)
        amplitude, cells = amplitude * persistence, cells * 2
    low, high = np.percentile(total, [10, 90])
    heights = np.clip((total - low) / (high - low), -0.2, 1.2) * height + 0.25 * height
    line = np.linspace(-1, 1, _NODES)
    rim = np.clip((1 - np.maximum(np.abs(line)[:, None], np.abs(line)[None])) / 0.1, 0, 1)
    heights = (heights * rim + 0.5 * BELOW * (1 - rim)).astype(np.float32)
    spacing = 2 * extent / (_NODES - 1)
    slope = np.hypot(*(np.abs(np.diff(heights, axis=k)).max() / spacing for k in (0, 1)))
    return HeightField(torch.from_numpy(heights), float(extent), float(slope))
