# SPDX-License-Identifier: Apache-2.0
"""Light of varied scenes: a coloured sun or window light with shadows, sky light from above, lamps that fade with
distance. Shadows come from one depth map seen from the light: light and scene stand still, so a clip needs one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from .scene import FIELD, ROOM, Scene
from .shapes import rectangles, trace

_SIDE = 128  # texels of the shadow map
_BIAS = 1.2  # texels


@dataclass(frozen=True)
class Lighting:
    """sun, above, below: (3,) RGB; lamps: (L, 3) metres; power: (L, 3) RGB at one metre. shadow: (n, n) depth along the
    light in metres; axes: (3, 3) rows right, down and along the light; corner: (3,) of the map and reach: its side,
    metres.
    """

    sun: torch.Tensor
    above: torch.Tensor
    below: torch.Tensor
    lamps: torch.Tensor
    power: torch.Tensor
    shadow: torch.Tensor
    axes: torch.Tensor
    corner: torch.Tensor
    reach: float

    def to(self, device: str | torch.device) -> Lighting:
        """Return the lighting with its tensors on `device`."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in parts.items() if hasattr(v, "to")})

    def brightness(self, x, y, z, normal: list[torch.Tensor], towards: torch.Tensor) -> torch.Tensor:
        """RGB light (3, N) at points with unit normals; `towards`: (3,) unit vector to the sun."""
        nx, ny, nz = normal
        lambert = (nx * towards[0] + ny * towards[1] + nz * towards[2]).clamp_(min=0.0)
        lambert *= self._lit(x, y, z)
        up = 0.5 + 0.5 * nz
        out = [torch.lerp(self.below[k], self.above[k], up) + self.sun[k] * lambert for k in range(3)]
        for lamp, power in zip(self.lamps, self.power, strict=True):
            px, py, pz = lamp[0] - x, lamp[1] - y, lamp[2] - z
            far = px * px + py * py + pz * pz + 0.05
            fall = ((px * nx + py * ny + pz * nz) * torch.rsqrt(far)).clamp_(min=0.0) / (far + 0.4)
            out = [channel.addcmul_(fall, power[k]) for k, channel in enumerate(out)]
        return torch.stack(out)

    def _lit(self, x, y, z) -> torch.Tensor:
        """Share of the light that reaches points: four texels of the map, blended."""
        n = len(self.shadow)
        px, py, pz = x - self.corner[0], y - self.corner[1], z - self.corner[2]
        u, v, depth = (a[0] * px + a[1] * py + a[2] * pz for a in self.axes)
        scale = n / self.reach
        u, v = (u * scale - 0.5).clamp_(0, n - 1.001), (v * scale - 0.5).clamp_(0, n - 1.001)
        u0, v0 = u.floor(), v.floor()
        index = (v0 * n + u0).to(torch.int32)
        depth = depth - _BIAS / scale
        flat = self.shadow.reshape(-1)
        a, b, c, d = ((flat.index_select(0, index + k) > depth).float() for k in (0, 1, n, n + 1))
        u, v = u - u0, v - v0
        return torch.lerp(torch.lerp(a, b, u), torch.lerp(c, d, u), v)


def lit(rng: np.random.Generator, scene: Scene, difficulty: float) -> Scene:
    """Give a scene (with `rotation`) lights and shadows. The stronger they differ, the higher the difficulty."""
    outdoor = scene.outdoor
    azimuth = rng.uniform(0, 2 * np.pi)
    elevation = np.radians(rng.uniform(8 if outdoor else 20, 75))
    towards = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    contrast = difficulty * rng.uniform(0.2, 1.0) * (1.0 if rng.random() < 0.75 else 0.15)  # overcast, curtains drawn
    warm = difficulty * rng.normal(0.05, 0.16)
    tone = np.exp(warm * np.array([1.0, 0.1, -1.0]))
    ambient = 0.75 - 0.5 * contrast
    above = ambient * np.exp(-0.5 * warm * np.array([1.0, 0.1, -1.0]))
    below = above * rng.uniform(1 - 0.55 * difficulty, 1.0)
    count = int(rng.integers(0, 4)) if not outdoor else int(rng.random() < 0.15)
    half, centre = scene.half[0].numpy(), scene.centre[0].numpy()
    room = np.minimum(half, 6.0)
    spot = centre * [1, 1, 0] + rng.uniform(-0.85, 0.85, (count, 3)) * room
    spot[:, 2] = rng.uniform(0.55, 0.92, count) * min(2 * half[2], 4.0)
    colour = np.exp(difficulty * rng.normal(0, [0.2, 0.06, 0.25], (count, 3)))
    power = difficulty * rng.uniform(0.2, 1.1, (count, 1)) * colour * float(np.clip(room[:2].min() / 2.5, 0.5, 3.0))
    level = rng.uniform(0.85, 1.15) / (ambient + 0.45 * contrast + 0.12 * power.sum() / max(3 * count, 1))

    light = torch.tensor(towards, dtype=torch.float32)
    shadow, axes, corner, reach = _shadows(scene, towards)
    tensors = [torch.tensor(v * level, dtype=torch.float32) for v in (0.95 * contrast * tone, above, below)]
    lighting = Lighting(*tensors, torch.tensor(spot, dtype=torch.float32), torch.tensor(power * level).float(),
                        shadow, axes, corner, reach)  # fmt: skip
    return replace(scene, light=light, lighting=lighting)


def _shadows(scene: Scene, towards: np.ndarray):
    """Depth map seen from the light over the 14 m around the origin (a room's inside): map, axes, corner, side."""
    half = scene.half[0].numpy().astype(np.float64)
    reach = 2 * float(np.hypot(*np.minimum(half[:2], 14.0)) + min(half[2], 3.0))
    right = np.cross(towards, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    down = np.cross(-towards, right)
    axes = np.stack([right, down, -towards])
    middle = np.array([0.0, 0.0, min(half[2], 3.0)])
    corner = middle - axes.T @ np.array([reach / 2, reach / 2, 60.0])
    T = np.eye(4)
    T[:3, :3], T[:3, 3] = axes.T, corner
    boxes = rectangles(scene, lambda p: (p[..., :2] * (_SIDE / reach), 1.0), T[None], _SIDE, _SIDE)
    boxes[:, scene.kind.numpy() == FIELD] = 0  # hills throw no shadow
    line = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) * (reach / _SIDE)
    v, u = torch.meshgrid(line, line, indexing="ij")
    # rays start at the light's plane, or where they enter the room from outside
    start = [(corner[k] + right[k] * u + down[k] * v)[None].float() for k in range(3)]
    direction = [torch.full((1, 1, 1), float(-towards[k])) for k in range(3)]
    depth, primitive = trace(scene, start, direction, boxes)
    depth = torch.where(scene.kind.index_select(0, primitive.view(-1)).view(depth.shape) == ROOM, torch.inf, depth)
    return depth[0], torch.tensor(axes, dtype=torch.float32), torch.tensor(corner, dtype=torch.float32), reach
