# SPDX-License-Identifier: Apache-2.0
"""Places of varied scenes: rooms, corridors, halls, streets, gardens, hills; furniture, thin things and clutter.

Metres, world z up. A place is built around the origin, where the camera is. Yaw turns about z, counter-clockwise.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from .heights import HeightField, random_field
from .scene import BOX, CYLINDER, FIELD, ROOM, SPHERE, Scene, furnish
from .textures import TextureBank

_UP = np.eye(3)
_TALLEST_FIELD = 30.0
_FREE = 1.0  # metres around the origin without large things


def random_place(seed: int, bank: TextureBank, difficulty: float) -> Scene:
    """Make a scene of one of the `PLACES`; difficulty in (0, 1] sets how much stands and lies around."""
    rng = np.random.default_rng([seed, 101])
    names = list(PLACES)
    name = names[int(rng.choice(len(names), p=[0.24, 0.12, 0.14, 0.18, 0.14, 0.18]))]
    parts = _Parts()
    field = PLACES[name](rng, parts, difficulty)
    kind, centre, half, axes = (np.array(v) for v in zip(*parts.items, strict=True))
    scene = furnish(rng, bank, kind, centre, half, np.zeros(len(kind)), outdoor=name in _OUTDOOR)
    return replace(scene, rotation=torch.from_numpy(axes.astype(np.float32)), field=field)


def _yaw(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _along(direction: np.ndarray) -> np.ndarray:
    """Axes whose z is `direction`."""
    z = direction / np.linalg.norm(direction)
    x = np.cross([0.0, 0.0, 1.0] if abs(z[2]) < 0.9 else [1.0, 0.0, 0.0], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z], axis=1)


class _Parts:
    """A list of primitives; `frame` (axes, position) places what is added next."""

    def __init__(self) -> None:
        self.items: list[tuple[int, np.ndarray, np.ndarray, np.ndarray]] = []
        self.axes, self.position = _UP, np.zeros(3)

    def at(self, x: float, y: float, z: float = 0.0, yaw: float = 0.0) -> _Parts:
        self.axes, self.position = _yaw(yaw), np.array([x, y, z])
        return self

    def add(self, kind: int, centre, half, axes: np.ndarray = _UP) -> None:
        place = self.position + self.axes @ np.asarray(centre, float)
        self.items.append((kind, place, np.asarray(half, float), self.axes @ axes))

    def box(self, x, y, z, hx, hy, hz, axes: np.ndarray = _UP) -> None:
        self.add(BOX, (x, y, z), (hx, hy, hz), axes)

    def tube(self, start, end, radius: float) -> None:
        start, end = np.asarray(start, float), np.asarray(end, float)
        length = np.linalg.norm(end - start) / 2
        self.add(CYLINDER, (start + end) / 2, (radius, radius, length), _along(end - start))

    def ball(self, x, y, z, hx, hy, hz) -> None:
        self.add(SPHERE, (x, y, z), (hx, hy, hz))


def _clutter(rng, parts: _Parts, count: int, reach_x: float, reach_y: float, z: float, size: float) -> None:
    """Small things that stand and lie on a surface, some tilted."""
    for _ in range(count):
        h = size * np.exp(rng.uniform(-0.9, 0.5, 3))
        x, y = rng.uniform(-1, 1, 2) * np.maximum([reach_x, reach_y], 0.02)
        kind = rng.choice([BOX, BOX, CYLINDER, SPHERE])
        axes = _yaw(rng.uniform(-np.pi, np.pi))
        if kind == CYLINDER and rng.random() < 0.3:  # lying
            axes = axes @ _along(np.array([1.0, 0, 0]))
            h[1] = h[0]
            parts.add(kind, (x, y, z + h[0]), h, axes)
        elif kind == BOX and rng.random() < 0.25:  # leaning
            tilt = rng.uniform(0.2, 0.9)
            parts.add(kind, (x, y, z + h[2]), h, axes @ _along(np.array([np.sin(tilt), 0, np.cos(tilt)])))
        else:
            h[1] = h[0] if kind != BOX else h[1]
            parts.add(kind, (x, y, z + h[2]), h, axes)


def _table(rng, parts: _Parts, difficulty: float) -> None:
    hx, hy, z = rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.5), rng.uniform(0.42, 0.9)
    parts.box(0, 0, z, hx, hy, 0.02)
    for i in (-1, 1):
        for j in (-1, 1):
            parts.tube((i * (hx - 0.05), j * (hy - 0.05), 0), (i * (hx - 0.05), j * (hy - 0.05), z), 0.02)
    _clutter(rng, parts, int(rng.integers(1, 3 + 5 * difficulty)), hx - 0.1, hy - 0.1, z + 0.02, 0.09)


def _chair(rng, parts: _Parts) -> None:
    parts.box(0, 0, 0.45, 0.22, 0.22, 0.02)
    parts.box(0, 0.21, 0.75, 0.21, 0.015, 0.2)
    for i in (-0.19, 0.19):
        parts.tube((i, 0.2, 0), (i, 0.21, 0.6), 0.016)
        parts.tube((i, -0.2, 0), (i, -0.18, 0.45), 0.016)


def _shelf(rng, parts: _Parts, difficulty: float, width: float, height: float, depth: float) -> None:
    levels = int(np.clip(round(height / 0.5), 2, 4))
    for i in (-1, 1):
        parts.box(i * width, 0, height / 2, 0.02, depth, height / 2)
    for k in range(levels):
        z = 0.1 + k * (height - 0.1) / levels
        parts.box(0, 0, z, width, depth, 0.015)
        size = 0.3 * (height / levels)
        _clutter(rng, parts, int(rng.integers(1, 2 + 3 * difficulty)), width - 0.15, 0.4 * depth, z + 0.015, size)


def _lamp(rng, parts: _Parts) -> None:
    height = rng.uniform(1.2, 1.8)
    parts.tube((0, 0, 0), (0, 0, height), 0.015)
    parts.ball(0, 0, height, 0.18, 0.18, 0.13)


def _tree(rng, parts: _Parts, size: float) -> None:
    height = size * rng.uniform(1.2, 2.2)
    lean = rng.normal(0, 0.12, 2) * height
    top = np.array([*lean, height])
    parts.tube((0, 0, -0.3), top, 0.05 * size)
    for _ in range(rng.integers(1, 4)):
        branch = top * rng.uniform(0.5, 0.9)
        end = branch + size * rng.normal(0, 0.5, 3) + [0, 0, 0.5 * size]
        parts.tube(branch, end, 0.022 * size)
        parts.ball(*end, *(size * rng.uniform(0.3, 0.75, 3)))
    if rng.random() < 0.7:
        parts.ball(*top, *(size * rng.uniform(0.4, 1.0, 3)))


def _fence(rng, parts: _Parts, length: float) -> None:
    posts = int(rng.integers(3, 7))
    height, radius = rng.uniform(0.7, 1.3), rng.uniform(0.02, 0.05)
    for x in np.linspace(-length, length, posts):
        parts.tube((x, 0, -0.3), (x, 0, height), radius)
    for z in np.linspace(0.35, 0.95, int(rng.integers(1, 4))) * height:
        parts.tube((-length, 0, z), (length, 0, z), 0.5 * radius)


def _car(rng, parts: _Parts) -> None:
    parts.box(0, 0, 0.6, 2.0, 0.82, 0.32)
    parts.box(-0.2, 0, 1.1, 1.05, 0.74, 0.28)
    for x in (-1.2, 1.2):
        parts.tube((x, -0.86, 0.32), (x, 0.86, 0.32), 0.32)


def _around(rng, least: float, most: float) -> tuple[float, float]:
    """A spot at a distance from the origin, nearer ones as likely as farther ones."""
    distance, angle = np.exp(rng.uniform(np.log(least), np.log(most))), rng.uniform(-np.pi, np.pi)
    return distance * np.cos(angle), distance * np.sin(angle)


def _inside(rng, reach: np.ndarray, margin: float) -> tuple[float, float]:
    """A spot in a room, towards its walls."""
    spot = rng.uniform(-1, 1, 2) * np.maximum(reach - margin, 0.1)
    if np.hypot(*spot) < _FREE:
        spot *= _FREE / max(np.hypot(*spot), 0.1)
    return tuple(np.clip(spot, -reach, reach))


def _walls(rng, parts: _Parts, size: np.ndarray, count: int) -> None:
    """Pictures, doors, cupboards, radiators on the walls of a room."""
    reach = size[:2] / 2
    for _ in range(count):
        wall = int(rng.integers(4))
        across, along = reach[wall % 2], reach[1 - wall % 2]
        wide, deep, high = rng.uniform(0.2, 0.9), rng.choice([0.02, 0.04, 0.18]), rng.uniform(0.15, 0.9)
        shift = rng.uniform(-1, 1) * max(along - wide, 0)
        z = high if rng.random() < 0.4 else rng.uniform(min(high, 1.0), max(size[2] - high, high))
        x, y = _yaw(wall * np.pi / 2)[:2, :2] @ [across, 0.0]
        side = _yaw(wall * np.pi / 2)[:2, :2] @ [0.0, shift]
        parts.at(x + side[0], y + side[1], 0, wall * np.pi / 2).box(0, 0, z, deep, wide, high)


def _room(rng, parts: _Parts, difficulty: float) -> None:
    size = np.array([rng.uniform(3, 8), rng.uniform(3, 8), rng.uniform(2.3, 3.4)])
    parts.add(ROOM, (0, 0, size[2] / 2), size / 2)
    reach = size[:2] / 2
    for _ in range(rng.integers(1, 3)):
        parts.at(*_inside(rng, reach, 0.7), 0, rng.uniform(-np.pi, np.pi))
        _table(rng, parts, difficulty)
    for _ in range(rng.integers(0, 2 + 2 * difficulty)):
        parts.at(*_inside(rng, reach, 0.4), 0, rng.uniform(-np.pi, np.pi))
        _chair(rng, parts)
    if rng.random() < 0.6:
        parts.at(rng.uniform(-0.7, 0.7) * reach[0], reach[1] - 0.18, 0)
        _shelf(rng, parts, difficulty, rng.uniform(0.4, 0.8), rng.uniform(1.0, 2.1), 0.16)
    if rng.random() < 0.6:
        parts.at(*_inside(rng, reach, 0.3))
        _lamp(rng, parts)
    if rng.random() < 0.4:  # a sofa or bed
        parts.at(*_inside(rng, reach, 0.8), 0, rng.integers(4) * np.pi / 2)
        parts.box(0, 0, 0.22, 0.9, 0.45, 0.22)
        parts.box(0, 0.4, 0.45, 0.9, 0.12, 0.45)
    if rng.random() < 0.3:  # the ceiling slopes
        parts.at(0, reach[1], size[2]).box(0, 0, 0, reach[0], 1.2, 0.05, _along(np.array([0, 0.6, 0.8])))
    parts.at(0, 0)
    _clutter(rng, parts, int(rng.integers(2, 4 + 10 * difficulty)), reach[0] - 0.3, reach[1] - 0.3, 0, 0.14)
    _walls(rng, parts, size, int(rng.integers(3, 8)))


def _corridor(rng, parts: _Parts, difficulty: float) -> None:
    size = np.array([rng.uniform(10, 24), rng.uniform(1.9, 3.2), rng.uniform(2.3, 3.2)])
    parts.add(ROOM, (0, 0, size[2] / 2), size / 2)
    reach = size[:2] / 2
    for side in (-1, 1):
        for x in np.arange(-reach[0] + 1.5, reach[0] - 1, rng.uniform(2.2, 4)):
            if rng.random() < 0.8:  # doors and frames
                parts.at(x, side * reach[1]).box(0, 0, 1.0, 0.45, 0.06, 1.0)
    for _ in range(rng.integers(1, 4)):  # pipes below the ceiling
        y, z = rng.uniform(-1, 1) * reach[1] * 0.9, size[2] - rng.uniform(0.1, 0.35)
        parts.at(0, 0).tube((-reach[0], y, z), (reach[0], y, z), rng.uniform(0.02, 0.1))
    for _ in range(rng.integers(1, 4 + 6 * difficulty)):
        x, side = rng.uniform(1.0, reach[0]) * rng.choice([-1, 1]), rng.choice([-1, 1])
        parts.at(x, side * (reach[1] - 0.25), 0)
        _clutter(rng, parts, 2, 0.3, 0.15, 0, 0.2)
    parts.at(rng.uniform(2, reach[0]), 0).box(0, rng.choice([-1, 1]) * reach[1], size[2] / 2, 0.25, 0.35, size[2] / 2)


def _hall(rng, parts: _Parts, difficulty: float) -> None:
    size = np.array([rng.uniform(12, 30), rng.uniform(10, 24), rng.uniform(4, 8)])
    parts.add(ROOM, (0, 0, size[2] / 2), size / 2)
    aisle, yaw = rng.uniform(1.6, 2.6), rng.integers(2) * np.pi / 2
    for side in (-1, 1):
        for k in (-1, 0, 1):
            if rng.random() < 0.75:
                turn = _yaw(yaw)[:2, :2] @ [k * 3.2, side * aisle]
                parts.at(*turn, 0, yaw)
                _shelf(rng, parts, difficulty * 0.6, 1.4, rng.uniform(1.8, 3.2), 0.45)
    for _ in range(rng.integers(2, 5)):  # pillars
        x, y = _around(rng, 4.5, 12)
        parts.at(x, y).box(0, 0, size[2] / 2, 0.2, 0.2, size[2] / 2)
    for x in np.linspace(-0.4, 0.4, 3) * size[0]:  # beams
        parts.at(x, 0).tube((0, -size[1] / 2, size[2] - 0.4), (0, size[1] / 2, size[2] - 0.4), 0.12)
    parts.at(0, 0)
    _clutter(rng, parts, int(rng.integers(1, 3 + 5 * difficulty)), 4.0, 4.0, 0, 0.25)
    _walls(rng, parts, size, 4)


def _sky(parts: _Parts) -> None:
    parts.add(ROOM, (0, 0, 50), (100, 100, 50))


def _street(rng, parts: _Parts, difficulty: float) -> None:
    _sky(parts)
    width, yaw = rng.uniform(3.0, 7.0), rng.uniform(-np.pi, np.pi)
    turn = _yaw(yaw)

    def at(x, y, z=0.0, own=0.0):
        return parts.at(*(turn[:2, :2] @ [x, y]), z, yaw + own)

    for side in (-1, 1):
        x = -40.0
        while x < 40:
            wide, high = rng.uniform(2.5, 7), rng.uniform(2.0, 6.0)
            if rng.random() < 0.88:
                deep = rng.uniform(3, 5)
                front = width + rng.uniform(0, 0.8)
                at(x + wide, side * (front + deep)).box(0, 0, high, wide, deep, high)
                if abs(x + wide) < 16:  # what stands out of a front: balcony, sign, porch
                    for _ in range(rng.integers(1, 2 + 3 * difficulty)):
                        h = rng.uniform([0.3, 0.08, 0.1], [1.2, 0.5, 0.6])
                        at(x + wide + rng.uniform(-0.7, 0.7) * wide, side * front).box(
                            0, 0, rng.uniform(0.6, 1.6 * high), *h
                        )
            x += 2 * wide + rng.uniform(0, 1.5)
        kerb = width - 1.3
        at(0, side * (kerb + 0.65)).box(0, 0, 0.06, 40, 0.65, 0.06)
        for x in np.arange(-16, 17, rng.uniform(6, 9)) + rng.uniform(-2, 2):
            at(x, side * kerb).tube((0, 0, 0), (0, 0, 4.5), 0.05)
    for z in rng.uniform(4.0, 5.0, rng.integers(0, 4)):  # wires
        y = rng.uniform(-0.9, 0.9) * width
        at(0, 0).tube((-40, y, z), (40, y + rng.uniform(-2, 2), z), 0.02)
    for _ in range(rng.integers(1, 3 + 2 * difficulty)):
        x, y = rng.uniform(2.8, 18) * rng.choice([-1, 1]), rng.choice([-1, 1]) * max(width - 2.2, 1.8)
        at(x, y, own=rng.normal(0, 0.05))
        _car(rng, parts)
    for _ in range(rng.integers(0, 3)):
        at(rng.uniform(3, 18) * rng.choice([-1, 1]), rng.choice([-1, 1]) * (width - 0.7))
        _tree(rng, parts, rng.uniform(1.0, 2.0))
    at(0, 0)
    _clutter(rng, parts, int(rng.integers(1, 3 + 5 * difficulty)), 6, width - 0.5, 0, 0.25)


def _garden(rng, parts: _Parts, difficulty: float) -> None:
    _sky(parts)
    for _ in range(rng.integers(2, 5)):
        parts.at(*_around(rng, 2.0, 12))
        _tree(rng, parts, rng.uniform(0.8, 2.0))
    for _ in range(rng.integers(2, 4 + 5 * difficulty)):  # bushes and hedges
        parts.at(*_around(rng, 1.6, 12), 0, rng.uniform(-np.pi, np.pi))
        h = rng.uniform([0.3, 0.3, 0.3], [1.6, 0.7, 1.0])
        parts.ball(0, 0, 0.6 * h[2], *h)
    for _ in range(rng.integers(1, 3)):
        parts.at(*_around(rng, 2.0, 7), 0, rng.uniform(-np.pi, np.pi))
        _fence(rng, parts, rng.uniform(1.5, 4))
    parts.at(*_around(rng, 9, 16), 0, rng.uniform(-np.pi, np.pi)).box(0, 0, 2.2, rng.uniform(3, 6), 3, 2.2)  # the house
    for side in (-1, 1):
        parts.box(0, side * 1.7, 4.9, 6.2, 2.3, 0.1, _along(np.array([0, side * 0.5, 0.87])))
    if rng.random() < 0.6:
        parts.at(*_around(rng, 1.8, 4), 0, rng.uniform(-np.pi, np.pi))
        _table(rng, parts, difficulty)
    parts.at(0, 0)
    _clutter(rng, parts, int(rng.integers(2, 4 + 8 * difficulty)), 4, 4, 0, 0.15)


def _hills(rng, parts: _Parts, difficulty: float) -> HeightField:
    _sky(parts)
    extent = rng.uniform(25, 45)
    field = random_field(rng, extent, rng.uniform(0.6, 2.0 + 2.5 * difficulty))
    parts.at(0, 0).add(FIELD, (0, 0, 0), (extent, extent, _TALLEST_FIELD))

    def at(x, y, own=0.0):
        return parts.at(x, y, float(field.height(np.array([x, y]))), own)

    for _ in range(rng.integers(3, 8)):
        at(*_around(rng, 2.5, 0.7 * extent))
        _tree(rng, parts, rng.uniform(1.0, 2.5))
    for _ in range(rng.integers(4, 8 + 10 * difficulty)):  # stones and bushes
        at(*_around(rng, 1.4, 15), rng.uniform(-np.pi, np.pi))
        h = np.exp(rng.uniform(-1.8, 0.1)) * rng.uniform(0.6, 1.2, 3)
        parts.ball(0, 0, 0.3 * h[2], *h)
    for _ in range(rng.integers(0, 3)):
        at(*_around(rng, 2.5, 9), rng.uniform(-np.pi, np.pi))
        _fence(rng, parts, rng.uniform(1.0, 2.0))
    if rng.random() < 0.4:
        at(*_around(rng, 10, 20), rng.uniform(-np.pi, np.pi)).box(0, 0, 1.4, 2.5, 2, 1.8)
    return field


PLACES = {
    "room": _room, "corridor": _corridor, "hall": _hall, "street": _street, "garden": _garden, "hills": _hills,
}  # fmt: skip
_OUTDOOR = ("street", "garden", "hills")
