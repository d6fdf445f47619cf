# SPDX-License-Identifier: Apache-2.0
"""Ray casting of procedural scenes in torch: all rays at once, one loop over the primitives, one shading pass.

Axis letters: F frames and n pixels of a chunk, N = F n rays. Rays have z = 1 along the optical axis, so the ray
parameter is the z-depth. Pixel (column, row) has its centre at (column + 0.5, row + 0.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .scene import BOX, CYLINDER, ROOM, Scene

if TYPE_CHECKING:
    from ..geometry import Intrinsics

_CHUNK = 24_576  # rays at a time: working set near the size of a CPU's second-level cache
_NEAR = 1e-3  # metres


@torch.no_grad()
def render(
    scene: Scene, T_world_camera: np.ndarray, intrinsics: Intrinsics, device: str | torch.device = "cpu"
) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene from known cameras.

    Args:
        T_world_camera: (T, 4, 4), camera to world, optical axes, metres.
        intrinsics: pinhole camera; its width and height are the size of the frames.
        device: where to compute.

    Returns:
        frames: (T, H, W, 3) uint8 RGB.
        depth: (T, H, W) float32, metres along the optical axis.
    """
    poses = np.asarray(T_world_camera, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"T_world_camera has shape {poses.shape}; it must be (frames, 4, 4)")
    scene = scene.to(device)
    count, height, width = len(poses), int(intrinsics.height), int(intrinsics.width)
    pixels = height * width
    # fewer pixels in a row of memory when one frame is larger than a chunk, several frames when it is smaller
    step = min(pixels, _CHUNK)
    group = max(1, _CHUNK // pixels)
    visible = _visible(scene, poses, intrinsics)
    x, y = _pixel_rays(intrinsics, device)
    frames = torch.empty((count, pixels, 3), dtype=torch.uint8, device=device)
    depth = torch.empty((count, pixels), dtype=torch.float32, device=device)
    for f in range(0, count, group):
        T = torch.as_tensor(poses[f : f + group], dtype=torch.float32, device=device)
        seen = np.flatnonzero(visible[f : f + group].any(axis=0)).tolist()
        for p in range(0, pixels, step):
            direction = _rotate(T, x[p : p + step], y[p : p + step])
            t, primitive = _intersect(scene, T[:, :3, 3], direction, seen)
            colour = _shade(scene, T[:, :3, 3], direction, t, primitive, 1.0 / float(intrinsics.fx))
            frames[f : f + group, p : p + step] = colour.view(*t.shape, 3)
            depth[f : f + group, p : p + step] = t
    return frames.view(count, height, width, 3).cpu().numpy(), depth.view(count, height, width).cpu().numpy()


@torch.no_grad()
def cast_depth(scene: Scene, T_world_camera: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Return z-depth only. T_world_camera: (T, 4, 4); returns (T, H, W) float32 metres. For few rays: no chunks."""
    poses = np.asarray(T_world_camera, dtype=np.float64)
    T = torch.as_tensor(poses, dtype=torch.float32)
    x, y = _pixel_rays(intrinsics, "cpu")
    seen = np.flatnonzero(_visible(scene, poses, intrinsics).any(axis=0)).tolist()
    t, _ = _intersect(scene, T[:, :3, 3], _rotate(T, x, y), seen)
    return t.view(len(poses), int(intrinsics.height), int(intrinsics.width)).numpy()


def _pixel_rays(intrinsics: Intrinsics, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ray slopes x/z and y/z of all pixels, row by row: two tensors (H W,)."""
    column = (torch.arange(int(intrinsics.width), device=device) + (0.5 - float(intrinsics.cx))) / float(intrinsics.fx)
    row = (torch.arange(int(intrinsics.height), device=device) + (0.5 - float(intrinsics.cy))) / float(intrinsics.fy)
    y, x = torch.meshgrid(row.float(), column.float(), indexing="ij")
    return x.reshape(-1), y.reshape(-1)


def _rotate(T: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """World directions with z-depth 1. T: (F, 4, 4); x, y: (n,). Returns three tensors (F, n)."""
    return [T[:, k, 0:1] * x + T[:, k, 1:2] * y + T[:, k, 2:3] for k in range(3)]


def _visible(scene: Scene, poses: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Which bounding spheres reach into which view. Returns (T, P) bool; the room always counts."""
    centre, radius = scene.centre.cpu().numpy(), scene.half.norm(dim=1).cpu().numpy()
    offset = centre[None] - poses[:, None, :3, 3]
    local = np.einsum("tij,tpi->tpj", poses[:, :3, :3], offset)
    left, right = -intrinsics.cx / intrinsics.fx, (intrinsics.width - intrinsics.cx) / intrinsics.fx
    top, bottom = -intrinsics.cy / intrinsics.fy, (intrinsics.height - intrinsics.cy) / intrinsics.fy
    inside = local[..., 2] > -radius
    for axis, slope, sign in ((0, left, 1), (0, right, -1), (1, top, 1), (1, bottom, -1)):
        inside &= sign * (local[..., axis] - slope * local[..., 2]) / np.hypot(1, slope) > -radius
    return inside | (scene.kind.cpu().numpy() == ROOM)


def _intersect(
    scene: Scene, origin: torch.Tensor, direction: list[torch.Tensor], seen: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Nearest hit of every ray. origin: (F, 3); direction: 3 x (F, n). Returns depth (F, n), primitive (F, n) int64."""
    dx, dy, dz = direction
    inverse_z = dz.reciprocal()
    size_z = inverse_z.abs()
    flat = round_ = None
    best = primitive = None
    kinds, cos, sin = scene.kind.tolist(), torch.cos(scene.yaw).tolist(), torch.sin(scene.yaw).tolist()
    halves, centres = scene.half.tolist(), scene.centre.tolist()
    for p in seen:
        kind, (hx, hy, hz), (px, py, pz) = kinds[p], halves[p], centres[p]
        ox, oy, oz = origin[:, 0:1] - px, origin[:, 1:2] - py, origin[:, 2:3] - pz
        if kind in (ROOM, BOX):
            c, s = cos[p], sin[p]
            lx = dx if s == 0 else torch.add(c * dx, dy, alpha=s)
            ly = dy if s == 0 else torch.sub(c * dy, dx, alpha=s)
            inverse_x, inverse_y = lx.reciprocal(), ly.reciprocal()
            ax, ay = inverse_x * -(c * ox + s * oy), inverse_y * -(c * oy - s * ox)
            az = inverse_z * -oz
            bx, by = inverse_x.abs_().mul_(hx), inverse_y.abs_().mul_(hy)
            bz = size_z * hz
            if kind == ROOM:
                best = torch.minimum(torch.minimum(ax + bx, ay + by), az + bz)
                primitive = torch.full_like(best, p, dtype=torch.int64)
                continue
            near = torch.maximum(torch.maximum(ax - bx, ay - by), az - bz)
            far = torch.minimum(torch.minimum(ax.add_(bx), ay.add_(by)), az.add_(bz))
        else:
            flat = dx * dx + dy * dy if flat is None else flat
            b = ox * dx + oy * dy
            c = ox * ox + oy * oy - hx * hx
            a = flat
            if kind != CYLINDER:
                round_ = flat + dz * dz if round_ is None else round_
                a, b, c = round_, b + oz * dz, c + oz * oz
            root = torch.sqrt(b * b - a * c)  # nan where missed: every comparison below is then false
            near, far = (-b - root) / a, (root - b) / a
            if kind == CYLINDER:
                az, bz = inverse_z * -oz, size_z * hz
                near, far = torch.maximum(near, az - bz), torch.minimum(far, az + bz)
        hit = (near < far) & (near < best) & (near > _NEAR)
        best = torch.where(hit, near, best)
        primitive.masked_fill_(hit, p)
    return best, primitive


def _shade(
    scene: Scene, origin: torch.Tensor, direction: list[torch.Tensor], t: torch.Tensor, primitive: torch.Tensor, pixel: float
) -> torch.Tensor:
    """Colour of every hit. pixel: angle of a pixel in radians at the image centre. Returns (N, 3) uint8."""
    p = primitive.view(-1)
    x, y, z = ((origin[:, k : k + 1] + t * direction[k]).view(-1) for k in range(3))
    table = torch.cat([scene.centre, scene.half.reciprocal(), scene.yaw.cos()[:, None], scene.yaw.sin()[:, None]], dim=1)
    cx, cy, cz, ix, iy, iz, cos, sin = table.t().contiguous()[:, p].unbind(0)
    x, y, z = x - cx, y - cy, z - cz
    lx, ly = cos * x + sin * y, cos * y - sin * x
    rx, ry, rz = (lx * ix).abs_(), (ly * iy).abs_(), (z * iz).abs_()

    # faces of boxes; curved surfaces are patched below
    on_z = (rz >= rx) & (rz >= ry)
    on_x = (rx > ry) & ~on_z
    main = torch.where(on_z, z, torch.where(on_x, lx, ly))
    face = torch.where(on_z, 4, torch.where(on_x, 0, 2)) + (main < 0)
    s, q = torch.where(on_x, ly, lx), torch.where(on_z, ly, z)
    sign = torch.where(main < 0, -1.0, 1.0)
    sign = torch.where(scene.kind[p] == ROOM, -sign, sign)
    along_x, along_y = torch.where(on_x, sign, 0.0), torch.where(on_x | on_z, 0.0, sign)
    nx, ny, nz = cos * along_x - sin * along_y, sin * along_x + cos * along_y, torch.where(on_z, sign, 0.0)
    curved = torch.nonzero(scene.kind[p] >= CYLINDER).view(-1)
    if len(curved):
        k = p[curved]
        radius, ball = scene.half[k, 0], scene.kind[k] != CYLINDER
        vx, vy, vz = x[curved] / radius, y[curved] / radius, z[curved]
        cap = ~ball & (rz[curved] > 1 - 1e-4)
        face[curved] = torch.where(cap, face[curved], 0)
        s[curved] = torch.where(cap, lx[curved], torch.atan2(ly[curved], lx[curved]) * radius)
        q[curved] = torch.where(cap, ly[curved], torch.where(ball, torch.asin((vz / radius).clamp(-1, 1)) * radius, vz))
        nx[curved], ny[curved] = torch.where(cap, 0.0, vx), torch.where(cap, 0.0, vy)
        nz[curved] = torch.where(cap, torch.sign(vz), torch.where(ball, vz / radius, 0.0))

    surface = 6 * p + face
    dx, dy, dz = (d.reshape(-1) for d in direction)
    length = torch.sqrt(dx * dx + dy * dy + dz * dz)
    facing = (nx * dx + ny * dy + nz * dz).abs_() / length
    # side of a pixel's footprint in metres: geometric mean of its two axes on the surface
    footprint = t.view(-1) * pixel * torch.rsqrt(facing.clamp_(min=0.04))
    first = _fetch(scene, surface, 0, s, q, footprint)  # (3, N) each
    second = _fetch(scene, surface, 1, s, q, footprint)
    lambert = (nx * scene.light[0] + ny * scene.light[1] + nz * scene.light[2]).clamp_(min=0.0)
    brightness = (scene.ambient + (1.15 - scene.ambient) * lambert) * scene.exposure
    weight = scene.blend[surface]
    colour = first * (second.sub_(0.5).mul_(2 * weight).add_(1.0)) * scene.tint.t().contiguous()[:, surface] * brightness
    if scene.outdoor:
        colour = torch.where(scene.is_sky[surface], _sky(scene, dz / length, first), colour)
    return colour.mul_(255.0).clamp_(0.0, 255.0).to(torch.uint8).t()


def _sky(scene: Scene, rise: torch.Tensor, clouds: torch.Tensor) -> torch.Tensor:
    """Gradient from the horizon up, with soft clouds from a texture. rise: (N,) sine of the elevation."""
    up = rise.clamp(0.0, 1.0).sqrt()
    gradient = scene.sky[0][:, None] * (1 - up) + scene.sky[1][:, None] * up
    return (gradient * (0.7 + 0.6 * clouds.mean(dim=0))) * scene.exposure


def _fetch(
    scene: Scene, surface: torch.Tensor, layer: int, s: torch.Tensor, q: torch.Tensor, footprint: torch.Tensor
) -> torch.Tensor:
    """Bilinear texture look-up in the mip level that fits, mirrored at the borders. Returns (3, N) float32 in [0, 1]."""
    a, b, c, d, e, f = scene.uv[:, layer].t().contiguous()[:, surface].unbind(0)
    u, v = a * s + b * q + e, c * s + d * q + f
    texture = scene.texture[:, layer][surface]
    log2 = scene.texture_log2[texture]
    lod = torch.log2(footprint * scene.density[:, layer][surface]) + log2
    level = (lod + 0.5).long().clamp_(min=0)
    level = torch.minimum(level, log2)
    size = torch.bitwise_left_shift(torch.ones_like(level), log2 - level)
    last = (size - 1).float()
    # levels before this one hold (4^(log2 + 1) - 4^(log2 - level + 1)) / 3 texels
    start = scene.texture_start[texture] + (torch.bitwise_left_shift(torch.full_like(log2, 4), 2 * log2) - 4 * size * size) // 3

    def texel(w):
        w = w - 2.0 * torch.floor(0.5 * w)
        w = (1.0 - (w - 1.0).abs_()) * size - 0.5
        low = torch.minimum(w.clamp_(min=0.0), last)
        index = low.long()
        return index, torch.minimum(index + 1, size - 1), low - index

    u0, u1, fu = texel(u)
    v0, v1, fv = texel(v)
    v0, v1 = v0 * size + start, v1 * size + start
    fu, fv = fu[:, None], fv[:, None]
    top = torch.lerp(scene.texels[v0 + u0].float(), scene.texels[v0 + u1].float(), fu)
    bottom = torch.lerp(scene.texels[v1 + u0].float(), scene.texels[v1 + u1].float(), fu)
    return torch.lerp(top, bottom, fv).t() * (1.0 / 255.0)
