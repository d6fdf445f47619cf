# SPDX-License-Identifier: Apache-2.0
"""Ray casting of scenes whose primitives are turned any way: boxes, cylinders, ellipsoids and a height field.

`render.py` casts the plain scenes and shades both. Here a primitive is met only by the rays of the rectangle that its
corners span in the picture, so that clutter and thin things cost little. Axis letters: F frames, h x w rays of a chunk.
"""

from __future__ import annotations

import numpy as np
import torch

from .scene import BOX, CYLINDER, FIELD, ROOM, SPHERE, Scene

_NEAR = 1e-3  # metres
_FEW = 4096  # rays of a primitive, below which it is cast together with others
_BEHIND = 0.05  # metres: a corner nearer than this does not bound a rectangle
Vector = list[torch.Tensor]  # x, y, z


def rectangles(scene: Scene, to_pixels, poses: np.ndarray, height: int, width: int) -> np.ndarray:
    """Rows and columns that each primitive can reach, (F, P, 4) int: row from, to, column from, to; empty if unseen.

    Args:
        to_pixels: points (..., 3) in the camera to (u, v), and what to widen the rectangles by, pixels.
        poses: (F, 4, 4) camera to world.
    """
    kind = scene.kind.cpu().numpy()
    signs = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3, indexing="ij"), -1).reshape(8, 3)
    half, axes = scene.half.cpu().numpy().astype(np.float64), scene.rotation.cpu().numpy().astype(np.float64)
    corners = scene.centre.cpu().numpy()[:, None] + np.einsum("pij,pcj->pci", axes, signs * half[:, None])
    local = np.einsum("fji,fpcj->fpci", poses[:, :3, :3], corners[None] - poses[:, None, None, :3, 3])
    ahead = local[..., 2] > _BEHIND
    uv, margin = to_pixels(np.where(ahead[..., None], local, [0.0, 0.0, 1.0]))
    low, high = np.floor(uv.min(axis=2) - margin), np.ceil(uv.max(axis=2) + margin)
    size = np.array([width, height])
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    whole = ~ahead.all(axis=2) | (kind == ROOM)
    low[whole], high[whole] = 0, size
    high[~ahead.any(axis=2) & (kind != ROOM)] = 0
    return np.stack([low[..., 1], high[..., 1], low[..., 0], high[..., 0]], axis=-1).astype(int)


def trace(scene: Scene, origin: Vector, direction: Vector, reach: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest hit of every ray.

    Args:
        origin, direction: x, y, z, each of three axes that broadcast to (F, h, w).
        reach: (F, P, 4), `rectangles` of this chunk.

    Returns:
        The ray parameter and the primitive (int32), both (F, h, w).
    """
    shape = torch.broadcast_shapes(*(x.shape for x in (*origin, *direction)))
    kinds, centres, halves = scene.kind.tolist(), scene.centre.tolist(), scene.half.tolist()
    axes = scene.rotation.tolist()
    best = _leave_room(centres[0], halves[0], origin, direction).expand(shape).contiguous()
    primitive = torch.zeros(shape, dtype=torch.int32, device=best.device)
    area = (reach[..., 1] - reach[..., 0]).clip(0) * (reach[..., 3] - reach[..., 2]).clip(0)  # (F, P)
    few = (area.sum(axis=0) <= _FEW) & np.isin(kinds, (BOX, CYLINDER, SPHERE))
    _trace_few(scene, origin, direction, reach, area * few, best, primitive)
    for p in np.flatnonzero(~few)[1:].tolist():
        frames = np.flatnonzero(area[:, p])
        if len(frames) == 0:
            continue
        r0, c0 = reach[frames, p, 0].min(), reach[frames, p, 2].min()
        r1, c1 = reach[frames, p, 1].max(), reach[frames, p, 3].max()
        piece = (slice(frames[0], frames[-1] + 1), slice(r0, r1), slice(c0, c1))
        o = [_cut(x, piece) - centre for x, centre in zip(origin, centres[p], strict=True)]
        d = [_cut(x, piece) for x in direction]
        if kinds[p] == FIELD:
            near = scene.field.hit([x + centre for x, centre in zip(o, centres[p], strict=True)], d, best[piece])
            hit = (near < best[piece]) & (near > _NEAR)
        else:
            near, far = _hit(kinds[p], halves[p], _turn(axes[p], o), _turn(axes[p], d))
            hit = (near < far) & (near < best[piece]) & (near > _NEAR)
        best[piece] = torch.where(hit, near, best[piece])
        primitive[piece].masked_fill_(hit, p)
    return best, primitive


def _trace_few(
    scene: Scene, origin: Vector, direction: Vector, reach: np.ndarray, area: np.ndarray, best, primitive
) -> None:
    """Cast, in place, all primitives of a kind in one batch: pairs of a ray and a primitive that it may meet.

    Many things are small in the picture, and in a small picture all are: there calls cost more than arithmetic.
    area: (F, P), rays of each rectangle that count.
    """
    shape, kinds = best.shape, scene.kind.cpu().numpy()
    table = torch.cat([scene.centre, scene.half, scene.rotation.flatten(1)], 1).t().contiguous()  # (15, P)
    flat = [[x.expand(shape).reshape(-1) for x in v] for v in (origin, direction)]
    near, rays, of = [], [], []
    for kind in (BOX, CYLINDER, SPHERE):
        frame, p = np.nonzero(area * (kinds == kind))
        if len(p) == 0:
            continue
        counts, (r0, _, c0, c1) = area[frame, p], reach[frame, p].T
        pair = np.repeat(np.arange(len(p)), counts)
        row, column = np.divmod(np.arange(len(pair)) - (np.cumsum(counts) - counts)[pair], (c1 - c0)[pair])
        ray = ((frame * shape[1] + r0)[pair] + row) * shape[2] + c0[pair] + column
        ray, p = (torch.from_numpy(v).to(best.device) for v in (ray, p[pair]))
        cx, cy, cz, hx, hy, hz, *axes = table.index_select(1, p).unbind(0)
        o = [x[ray] - c for x, c in zip(flat[0], (cx, cy, cz), strict=True)]
        o, d = (
            [torch.addcmul(torch.addcmul(v[0] * axes[k], v[1], axes[3 + k]), v[2], axes[6 + k]) for k in range(3)]
            for v in (o, [x[ray] for x in flat[1]])
        )
        enter, leave = _hit(kind, [hx, hy, hz], o, d)
        near.append(torch.where((enter < leave) & (enter > _NEAR), enter, torch.inf))
        rays.append(ray)
        of.append(p)
    if not near:
        return
    near, ray, of = torch.cat(near), torch.cat(rays), torch.cat(of)
    before, after, first = best.view(-1), best.clone().view(-1), primitive.view(-1)
    after.scatter_reduce_(0, ray, near, "amin")
    nearest = torch.nonzero((near == after[ray]) & (near < before[ray])).view(-1)
    # of two that are equally near, the first
    first[ray[nearest]] = len(kinds)
    first.scatter_reduce_(0, ray[nearest], of[nearest].int(), "amin")
    before.copy_(after)


def _cut(x: torch.Tensor, piece: tuple[slice, ...]) -> torch.Tensor:
    """A piece of a tensor that broadcasts: axes of one are kept."""
    return x[tuple(s if n > 1 else slice(None) for s, n in zip(piece, x.shape, strict=True))]


def _turn(axes: list[list[float]], v: Vector) -> Vector:
    """World to the primitive's own axes (the columns of `axes`)."""
    x, y, z = v
    if axes[2][2] == 1.0:  # upright
        c, s = axes[0][0], axes[1][0]
        return [torch.add(c * x, y, alpha=s), torch.sub(c * y, x, alpha=s), z]
    return [(x * axes[0][k]).add(y, alpha=axes[1][k]).add(z, alpha=axes[2][k]) for k in range(3)]


def _slab(o: torch.Tensor, d: torch.Tensor, half: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rays enter and leave |x| < half."""
    inverse = d.reciprocal().clamp_(-1e9, 1e9)  # finite also for a ray along the face
    middle, reach = inverse * -o, inverse.abs() * half
    return middle - reach, middle + reach


def _leave_room(centre: list[float], half: list[float], origin: Vector, direction: Vector) -> torch.Tensor:
    far = [_slab(o - c, d, h)[1] for o, c, d, h in zip(origin, centre, direction, half, strict=True)]
    return torch.minimum(torch.minimum(far[0], far[1]), far[2])


def _hit(kind: int, half: list[float], o: Vector, d: Vector) -> tuple[torch.Tensor, torch.Tensor]:
    """Where rays in the primitive's own axes enter and leave it; nan or the wrong way round where they miss."""
    if kind not in (CYLINDER, SPHERE):
        pairs = [_slab(*axis) for axis in zip(o, d, half, strict=True)]
        near = torch.maximum(torch.maximum(pairs[0][0], pairs[1][0]), pairs[2][0])
        return near, torch.minimum(torch.minimum(pairs[0][1], pairs[1][1]), pairs[2][1])
    axes = range(2 if kind == CYLINDER else 3)
    # scaled to radius 1. The ray's nearest approach to the axis keeps small numbers small: thin things seen from afar
    x, y = [o[k] / half[k] for k in axes], [d[k] / half[k] for k in axes]
    a, b = sum(v * v for v in y), sum(u * v for u, v in zip(x, y, strict=True))
    middle = -b / a
    beside = sum(torch.addcmul(u.expand(middle.shape), v, middle) ** 2 for u, v in zip(x, y, strict=True))
    reach = torch.sqrt((1 - beside) / a)  # nan where missed: every comparison is then false
    near, far = middle - reach, middle + reach
    if kind == CYLINDER:
        enter, leave = _slab(o[2], d[2], half[2])
        near, far = torch.maximum(near, enter), torch.minimum(far, leave)
    return near, far


def box_face(local: tuple[torch.Tensor, ...], inverse_half: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    """Which face of its box a point lies on, all (N,): on_x, on_y, on_z (1 or 0), its coordinate along that axis, the
    number of the face (0 to 5) and its coordinates s and t on the face."""
    (lx, ly, lz), (ix, iy, iz) = local, inverse_half
    rx, ry, rz = (lx * ix).abs_(), (ly * iy).abs_(), (lz * iz).abs_()
    on_z = ((rz >= rx) & (rz >= ry)).float()
    on_x = (rx > ry).float() * (1 - on_z)
    on_y = 1 - on_x - on_z
    main = on_x * lx + on_y * ly + on_z * lz
    face = 2 * on_y + 4 * on_z + (main < 0)
    return on_x, on_y, on_z, main, face, on_x * ly + (1 - on_x) * lx, on_z * ly + (1 - on_z) * lz


def surface(
    scene: Scene, primitive: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Vector]:
    """Face (0 to 5), surface coordinates s and t in metres and outward normal of the points of hits, each (N,)."""
    kinds = scene.kind.index_select(0, primitive)
    table = torch.cat([scene.centre, 1 / scene.half, scene.rotation.flatten(1)], 1).t().contiguous()
    cx, cy, cz, ix, iy, iz, *axes = table.index_select(1, primitive).unbind(0)
    px, py, pz = x - cx, y - cy, z - cz
    lx, ly, lz = (axes[k] * px + axes[3 + k] * py + axes[6 + k] * pz for k in range(3))
    on_x, on_y, on_z, main, face, s, q = box_face((lx, ly, lz), (ix, iy, iz))
    outward = torch.copysign(torch.ones_like(main), main * ((kinds != ROOM).float() * 2 - 1))
    nx, ny, nz = on_x * outward, on_y * outward, on_z * outward
    curved = torch.nonzero((kinds == CYLINDER) | (kinds == SPHERE)).view(-1)
    if len(curved):
        ball = kinds[curved] == SPHERE
        bx, by, bz = lx[curved], ly[curved], lz[curved]
        jx, jy, jz = ix[curved], iy[curved], torch.where(ball, iz[curved], 0.0)
        ux, uy, uz = bx * jx, by * jy, bz * jz
        gx, gy, gz = ux * jx, uy * jy, uz * jz
        size = torch.rsqrt(gx * gx + gy * gy + gz * gz)
        cap = ~ball & ((lz[curved] * iz[curved]).abs() > 1 - 1e-4)
        face[curved] = torch.where(cap, 4.0 + (bz < 0), 0.0)
        s[curved] = torch.where(cap, bx, torch.atan2(uy, ux) / jx)
        q[curved] = torch.where(cap, by, torch.where(ball, torch.asin(uz.clamp(-1, 1)) / iz[curved], bz))
        nx[curved], ny[curved] = torch.where(cap, 0.0, gx * size), torch.where(cap, 0.0, gy * size)
        nz[curved] = torch.where(cap, torch.sign(bz), gz * size)
    normal = [axes[3 * k] * nx + axes[3 * k + 1] * ny + axes[3 * k + 2] * nz for k in range(3)]
    if scene.field is not None:
        ground = torch.nonzero(kinds == FIELD).view(-1)
        face[ground], s[ground], q[ground] = 0.0, x[ground], y[ground]
        for axis, value in zip(normal, scene.field.normal(x[ground], y[ground]), strict=True):
            axis[ground] = value
    return face, s, q, normal


def turned(yaw: np.ndarray) -> torch.Tensor:
    """Axes (P, 3, 3) of upright primitives. yaw: (P,) radians about z."""
    cos, sin, zero, one = np.cos(yaw), np.sin(yaw), np.zeros(len(yaw)), np.ones(len(yaw))
    rows = [[cos, -sin, zero], [sin, cos, zero], [zero, zero, one]]
    return torch.from_numpy(np.stack([np.stack(r, -1) for r in rows], -2).astype(np.float32))
