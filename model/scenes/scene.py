# SPDX-License-Identifier: Apache-2.0
"""Procedural static scenes of textured boxes, cylinders and spheres. Metres, world z up, floor at z = 0.

Axis letters: P primitives, S = 6 P surfaces (row 6 p + face), K textures. Faces: +x, -x, +y, -y, +z, -z in the frame
of the primitive; a cylinder uses face 0 for its side, a sphere face 0 for all of it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from .textures import TextureBank

if TYPE_CHECKING:
    from .heights import HeightField
    from .lights import Lighting

ROOM, BOX, CYLINDER, SPHERE, FIELD = range(5)  # ROOM: a box seen from inside, always primitive 0
_TEXTURES_PER_SCENE = 14


@dataclass(frozen=True)
class Scene:
    """Geometry, materials and light of one scene, as tensors.

    kind: (P,) int64; centre: (P, 3); half: (P, 3) half sizes (radius, radius, half height); yaw: (P,) radians about z.
    texture: (S, 2) int64 into K, two layers; uv: (S, 2, 6): (u, v) = uv[:4].reshape(2, 2) @ (s, t) + uv[4:], in
    texture repeats, (s, t) metres on the surface; density: (S, 2) repeats per metre; tint: (S, 3); blend: (S,) weight
    of layer 2; is_sky: (S,) bool. texels: (N,) int32, r | g << 8 | b << 16; texture_start, texture_log2: (K,) int64.
    light: (3,) unit vector towards it; sky: (2, 3) RGB at the horizon and above.

    What follows only varied scenes have (`places.py`, `lights.py`). rotation: (P, 3, 3), axes of each primitive in the
    world, in place of yaw; a sphere is then an ellipsoid. field: ground that is not flat, the primitive of kind FIELD.
    lighting: lamps and shadows. roll: (S, 2) texture repeats that a surface's first layer moves by from frame to frame.
    """

    kind: torch.Tensor
    centre: torch.Tensor
    half: torch.Tensor
    yaw: torch.Tensor
    texture: torch.Tensor
    uv: torch.Tensor
    density: torch.Tensor
    tint: torch.Tensor
    blend: torch.Tensor
    is_sky: torch.Tensor
    texels: torch.Tensor
    texture_start: torch.Tensor
    texture_log2: torch.Tensor
    light: torch.Tensor
    sky: torch.Tensor
    ambient: float
    exposure: float
    rotation: torch.Tensor | None = None
    field: HeightField | None = None
    lighting: Lighting | None = None
    roll: torch.Tensor | None = None

    def to(self, device: str | torch.device) -> Scene:
        """Return the scene with its tensors on `device`."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.to(device) for k, v in parts.items() if hasattr(v, "to")})

    @property
    def outdoor(self) -> bool:
        """True if the scene has a sky instead of walls."""
        return bool(self.is_sky.any())

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Distance from points to the nearest surface, negative inside an object or outside the room.

        Args:
            points: (..., 3) world, metres.
        """
        p = points[..., None, :] - self.centre.numpy().astype(np.float64)
        if self.rotation is None:
            cos, sin = np.cos(self.yaw.numpy()), np.sin(self.yaw.numpy())
            local = np.stack([cos * p[..., 0] + sin * p[..., 1], cos * p[..., 1] - sin * p[..., 0], p[..., 2]], axis=-1)
        else:
            local = np.einsum("...pi,pij->...pj", p, self.rotation.numpy().astype(np.float64))
        half, kind = self.half.numpy(), self.kind.numpy()
        beyond = np.abs(local) - half
        box = np.linalg.norm(np.maximum(beyond, 0), axis=-1) + np.minimum(beyond.max(axis=-1), 0)
        side = np.hypot(local[..., 0], local[..., 1]) - half[:, 0]
        ends = beyond[..., 2]
        cylinder = np.hypot(np.maximum(side, 0), np.maximum(ends, 0)) + np.minimum(np.maximum(side, ends), 0)
        if self.rotation is None:
            sphere = np.linalg.norm(local, axis=-1) - half[:, 0]
        else:  # never more than the distance to the ellipsoid
            sphere = (np.linalg.norm(local / half, axis=-1) - 1) * half.min(axis=-1)
        ground = np.full_like(box, np.inf) if self.field is None else self.field.clearance(points)[..., None]
        distance = np.choose(kind, np.broadcast_arrays(-box, box, cylinder, sphere, ground))
        return distance.min(axis=-1)

    def ground(self, points: np.ndarray) -> np.ndarray:
        """Height of the ground in metres below points (..., 2 or 3)."""
        return np.zeros(points.shape[:-1]) if self.field is None else np.maximum(self.field.height(points), 0.0)


def random_scene(seed: int, bank: TextureBank) -> Scene:
    """Make a scene: about 70 % rooms, 30 % open ground under a sky. The same seed and bank give the same scene."""
    rng = np.random.default_rng([seed, 11])
    outdoor = rng.random() < 0.3
    return furnish(rng, bank, *(_outdoor(rng) if outdoor else _indoor(rng)), outdoor=outdoor)


def furnish(
    rng: np.random.Generator,
    bank: TextureBank,
    kind: np.ndarray,
    centre: np.ndarray,
    half: np.ndarray,
    yaw: np.ndarray,
    *,
    outdoor: bool,
) -> Scene:
    """Draw materials and light for a geometry; its arrays are as in `Scene`."""
    names = bank.sample(rng, _TEXTURES_PER_SCENE)
    textures = [bank.load(name) for name in names]
    sizes = np.array([len(t.texels) for t in textures])
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(25, 75))
    light = [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
    horizon = rng.uniform(0.6, 0.9) * rng.uniform([0.9, 0.9, 0.9], [1.1, 1.0, 1.1])
    sky = [horizon, horizon * rng.uniform([0.35, 0.45, 0.75], [0.8, 0.9, 1.05])]
    return Scene(
        kind=torch.tensor(kind),
        centre=_tensor(centre),
        half=_tensor(half),
        yaw=_tensor(yaw),
        **_materials(rng, half, kind, len(textures), outdoor),
        texels=torch.from_numpy(np.concatenate([t.texels for t in textures])),
        texture_start=torch.from_numpy(np.cumsum(sizes) - sizes),
        texture_log2=torch.tensor([t.log2_size for t in textures]),
        light=_tensor(light),
        sky=_tensor(np.array(sky)),
        ambient=float(rng.uniform(0.45, 0.7)),
        exposure=float(np.exp(rng.normal(0.05, 0.15))),
    )


def _tensor(values) -> torch.Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def _indoor(rng: np.random.Generator):
    """A room of 3 to 8 m with free-standing objects, and things on its walls. Returns kind, centre, half, yaw."""
    size = np.array([rng.uniform(3, 8), rng.uniform(3, 8), rng.uniform(2.3, 3.5)])
    items = [(ROOM, [0, 0, size[2] / 2], size / 2, 0.0)]
    reach = size[:2] / 2
    for _ in range(rng.integers(4, 10)):
        shape = rng.choice([BOX, BOX, BOX, CYLINDER, SPHERE])
        half = np.array([rng.uniform(0.12, 0.5), rng.uniform(0.12, 0.5), rng.uniform(0.15, 0.9)])
        if shape == CYLINDER:
            half = np.array([half[0] * 0.7, half[0] * 0.7, half[2] if rng.random() < 0.6 else size[2] / 2])
        elif shape == SPHERE:
            half = np.full(3, rng.uniform(0.12, 0.4))
        spot = rng.uniform(-1, 1, 2) * np.maximum(reach - half[:2] * 0.7, 0.2)
        floating = rng.random() < 0.25
        height = rng.uniform(half[2], max(size[2] - half[2], half[2] + 0.01)) if floating else half[2]
        items.append((shape, [*spot, height], half, rng.uniform(-np.pi, np.pi)))
    for _ in range(rng.integers(2, 7)):  # pictures, doors, shelves
        wall, depth = rng.integers(4), rng.choice([0.03, 0.03, 0.2])
        half = np.array([rng.uniform(0.25, 0.9), depth, rng.uniform(0.2, 0.8)])
        along = rng.uniform(-1, 1) * max(reach[wall % 2] - half[0], 0)
        yaw = 0.0 if wall % 2 == 0 else np.pi / 2
        away = (1 if wall < 2 else -1) * reach[1 - wall % 2]
        spot = [along, away] if wall % 2 == 0 else [away, along]
        items.append((BOX, [*spot, rng.uniform(0.6, size[2] - 0.6)], half, yaw))
    return _columns(items)


def _outdoor(rng: np.random.Generator):
    """Open ground with boxes, pillars and a few house-sized blocks; the sky is a box 200 m wide around it."""
    items = [(ROOM, [0, 0, 50], [100, 100, 50], 0.0)]
    for _ in range(rng.integers(10, 19)):
        shape = rng.choice([BOX, BOX, CYLINDER, SPHERE])
        distance, angle = rng.uniform(0.8, 1) * np.exp(rng.uniform(np.log(1.0), np.log(14))), rng.uniform(-np.pi, np.pi)
        grow = 0.6 + 0.12 * distance
        half = grow * np.array([rng.uniform(0.15, 0.6), rng.uniform(0.15, 0.6), rng.uniform(0.2, 1.4)])
        if shape == CYLINDER:
            half = np.array([half[0] * 0.5, half[0] * 0.5, half[2] * 1.5])
        elif shape == SPHERE:
            half = np.full(3, half[0])
        spot = [distance * np.cos(angle), distance * np.sin(angle)]
        items.append((shape, [*spot, half[2]], half, rng.uniform(-np.pi, np.pi)))
    for _ in range(rng.integers(3, 7)):  # buildings
        distance, angle = rng.uniform(10, 35), rng.uniform(-np.pi, np.pi)
        half = np.array([rng.uniform(2, 7), rng.uniform(2, 5), rng.uniform(1.5, 6)])
        items.append((BOX, [distance * np.cos(angle), distance * np.sin(angle), half[2]], half, rng.uniform(-3, 3)))
    return _columns(items)


def _columns(items):
    kind, centre, half, yaw = zip(*items, strict=True)
    return np.array(kind, np.int64), np.array(centre), np.array([np.asarray(h) for h in half]), np.array(yaw)


def _materials(rng: np.random.Generator, half: np.ndarray, kind: np.ndarray, textures: int, outdoor: bool) -> dict:
    """Draw textures, their placement and tints for all surfaces. half: (P, 3). Returns the material fields of Scene."""
    primitives = len(half)
    surfaces = 6 * primitives
    own = np.repeat(rng.integers(textures, size=primitives), 6)
    each = rng.integers(textures, size=surfaces)
    per_face = np.repeat((rng.random(primitives) < 0.35) | (kind == ROOM), 6)
    base = np.where(per_face, each, own)
    macro = (base + rng.integers(1, max(textures, 2), size=surfaces)) % textures

    # (s, t) extents of each face: x faces (y, z), y faces (x, z), z faces (x, y)
    width = np.stack([half[:, 1], half[:, 1], half[:, 0], half[:, 0], half[:, 0], half[:, 0]], 1).reshape(-1) * 2
    height = np.stack([half[:, 2], half[:, 2], half[:, 2], half[:, 2], half[:, 1], half[:, 1]], 1).reshape(-1) * 2
    is_room = np.repeat(kind == ROOM, 6)
    stretched = np.repeat((rng.random(primitives) < 0.4) & (kind == BOX), 6)  # a picture over the whole face
    repeat = np.exp(rng.uniform(np.log(0.7), np.log(2.5), surfaces)) * np.where(is_room, 1.3, 1.0)
    repeat = np.where(is_room, repeat, np.minimum(repeat, 3.0 * np.maximum(width, height)))
    if outdoor:
        repeat[:6] = [120, 120, 120, 120, 120, rng.uniform(1.5, 5)]
    angle = np.where(rng.random(surfaces) < 0.3, rng.uniform(-np.pi, np.pi, surfaces), 0.0)
    uv, density = np.zeros((surfaces, 2, 6)), np.zeros((surfaces, 2))
    _place(uv[:, 0], repeat, repeat, np.where(stretched, 0, angle), rng.uniform(0, 2, (surfaces, 2)))
    zero = np.zeros(surfaces)
    uv[stretched, 0] = np.stack([1 / width, zero, zero, -1 / height, zero + 0.5, zero + 0.5], 1)[stretched]
    density[:, 0] = np.where(stretched, 1 / np.sqrt(width * height), 1 / repeat)
    coarse = repeat * rng.uniform(2.5, 6.0, surfaces)
    _place(uv[:, 1], coarse, coarse, rng.uniform(-np.pi, np.pi, surfaces), rng.uniform(0, 2, (surfaces, 2)))
    density[:, 1] = 1 / coarse
    is_sky = np.zeros(surfaces, bool)
    is_sky[:5] = outdoor
    return {
        "texture": torch.from_numpy(np.stack([base, macro], 1)),
        "uv": _tensor(uv),
        "density": _tensor(density),
        "tint": _tensor(rng.uniform(0.75, 1.15, (surfaces, 1)) * rng.uniform(0.85, 1.12, (surfaces, 3))),
        "blend": _tensor(rng.uniform(0.25, 0.8, surfaces)),
        "is_sky": torch.from_numpy(is_sky),
    }


def _place(uv: np.ndarray, repeat_u, repeat_v, angle, offset) -> None:
    """Write rotated, scaled and shifted texture coordinates into uv (S, 6); v grows downwards."""
    uv[:, 0], uv[:, 1] = np.cos(angle) / repeat_u, np.sin(angle) / repeat_u
    uv[:, 2], uv[:, 3] = np.sin(angle) / repeat_v, -np.cos(angle) / repeat_v
    uv[:, 4:] = offset
