# SPDX-License-Identifier: Apache-2.0
"""Ray casting of procedural scenes in torch: all rays at once, one loop over the primitives, one shading pass.

Scenes with `rotation` are cast by `shapes.py`, all others here, and all are shaded here.

Axis letters: F frames and n pixels of a chunk, N = F n rays. Rays have z = 1 along the optical axis, so the ray
parameter is the z-depth. Pixel (column, row) has its centre at (column + 0.5, row + 0.5).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .scene import BOX, CYLINDER, ROOM, Scene
from .shapes import box_face, rectangles, surface, trace

if TYPE_CHECKING:
    from ..geometry import Intrinsics

_CHUNK = 98_304  # rays at a time; fewer pay more for calls, more pay in memory (about 60 MB)
_NEAR = 1e-3  # metres


@torch.no_grad()
def render(
    scene: Scene,
    T_world_camera: np.ndarray,
    intrinsics: Intrinsics,
    device: str | torch.device = "cpu",
    *,
    distortion: float = 0.0,
    times: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Render a scene from known cameras.

    Args:
        T_world_camera: (T, 4, 4), camera to world, optical axes, metres.
        intrinsics: pinhole camera; its width and height are the size of the frames.
        device: where to compute.
        distortion: k of a lens whose pixel at radius r (slope, from the axis) looks along slope r (1 + k r^2); only
            scenes with `rotation`.
        times: (T,) frame numbers of surfaces that move their texture; None: 0, 1, ...

    Returns:
        frames: (T, H, W, 3) uint8 RGB.
        depth: (T, H, W) float32, metres along the optical axis.
    """
    frames, depth = render_tensors(scene, T_world_camera, intrinsics, device, distortion=distortion, times=times)
    return frames.cpu().numpy(), depth.cpu().numpy()


@torch.no_grad()
def render_tensors(
    scene: Scene,
    T_world_camera: np.ndarray,
    intrinsics: Intrinsics,
    device: str | torch.device = "cpu",
    *,
    distortion: float = 0.0,
    times: np.ndarray | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `render`, with the results left on the device."""
    poses = np.asarray(T_world_camera, dtype=np.float64)
    if poses.ndim != 3 or poses.shape[1:] != (4, 4):
        raise ValueError(f"T_world_camera has shape {poses.shape}; it must be (frames, 4, 4)")
    scene = scene.to(device)
    turned = scene.rotation is not None
    if distortion and not turned:
        raise ValueError(f"distortion is {distortion}; it must be 0 for a scene without rotation")
    count, height, width = len(poses), int(intrinsics.height), int(intrinsics.width)
    pixels = height * width
    # fewer pixels in a row of memory when one frame is larger than a chunk, several frames when it is smaller
    step = min(pixels, _CHUNK)
    if turned:
        step = max(width, step // width * width)
    group = max(1, _CHUNK // pixels)
    x, y = _pixel_rays(intrinsics, device)
    if turned:
        stretch = 1 + distortion * (x * x + y * y)
        x, y = x * stretch, y * stretch
        visible = rectangles(scene, _projection(intrinsics, distortion), poses, height, width)
    else:
        visible = _visible(scene, poses, intrinsics)
    tables = _tables(scene)
    number = torch.as_tensor(np.arange(count) if times is None else times, dtype=torch.float32, device=device)
    frames = torch.empty((count, pixels, 3), dtype=torch.uint8, device=device)
    depth = torch.empty((count, pixels), dtype=torch.float32, device=device)
    for f in range(0, count, group):
        T = torch.as_tensor(poses[f : f + group], dtype=torch.float32, device=device)
        for p in range(0, pixels, step):
            direction = _rotate(T, x[p : p + step], y[p : p + step])
            if turned:
                t, primitive = _trace_rows(scene, T, direction, visible[f : f + group], p // width, width)
            else:
                seen = np.flatnonzero(visible[f : f + group].any(axis=0)).tolist()
                t, primitive = _intersect(scene, T[:, :3, 3], direction, seen)
            pixel, now = 1.0 / float(intrinsics.fx), number[f : f + group]
            colour = _shade(scene, tables, T[:, :3, 3], direction, t, primitive, pixel, now)
            frames[f : f + group, p : p + step] = colour.view(*t.shape, 3)
            depth[f : f + group, p : p + step] = t
    return frames.view(count, height, width, 3), depth.view(count, height, width)


def _projection(intrinsics: Intrinsics, distortion: float):
    """Points in the camera to pixels, and how far off the lens may put them."""
    left, right = intrinsics.cx / intrinsics.fx, (intrinsics.width - intrinsics.cx) / intrinsics.fx
    top, bottom = intrinsics.cy / intrinsics.fy, (intrinsics.height - intrinsics.cy) / intrinsics.fy
    radius = np.hypot(max(left, right), max(top, bottom))
    margin = 1.0 + 1.5 * abs(distortion) * radius**3 * max(intrinsics.fx, intrinsics.fy)

    def project(points: np.ndarray) -> tuple[np.ndarray, float]:
        uv = points[..., :2] / points[..., 2:] * [intrinsics.fx, intrinsics.fy] + [intrinsics.cx, intrinsics.cy]
        return uv, margin

    return project


def _trace_rows(scene: Scene, T: torch.Tensor, direction: list[torch.Tensor], reach: np.ndarray, row: int, width: int):
    """Cast the rows from `row` on. T: (F, 4, 4); direction: 3 x (F, n); returns depth and primitive, both (F, n)."""
    count, n = direction[0].shape
    own = reach.copy()
    own[..., :2] = np.clip(own[..., :2] - row, 0, n // width)
    origin = [T[:, k, 3].view(-1, 1, 1) for k in range(3)]
    t, primitive = trace(scene, origin, [d.view(count, -1, width) for d in direction], own)
    return t.view(count, n), primitive.view(count, n)


@torch.no_grad()
def cast_depth(scene: Scene, T_world_camera: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Return z-depth only. T_world_camera: (T, 4, 4); returns (T, H, W) float32 metres. For few rays: no chunks."""
    poses = np.asarray(T_world_camera, dtype=np.float64)
    T = torch.as_tensor(poses, dtype=torch.float32)
    x, y = _pixel_rays(intrinsics, "cpu")
    if scene.rotation is not None:
        size = int(intrinsics.height), int(intrinsics.width)
        reach = rectangles(scene, _projection(intrinsics, 0.0), poses, *size)
        return _trace_rows(scene, T, _rotate(T, x, y), reach, 0, size[1])[0].view(-1, *size).numpy()
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


def _reciprocal(x: torch.Tensor) -> torch.Tensor:
    """1 / x, finite also for a ray that runs exactly along a face (inf - inf would be nan)."""
    return x.reciprocal().clamp_(-1e9, 1e9)


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
    """Nearest hit of every ray. origin: (F, 3); direction: 3 x (F, n). Returns depth (F, n), primitive (F, n) int32."""
    dx, dy, dz = direction
    inverse_z = _reciprocal(dz)
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
            inverse_x, inverse_y = _reciprocal(lx), _reciprocal(ly)
            ax, ay = inverse_x * -(c * ox + s * oy), inverse_y * -(c * oy - s * ox)
            az = inverse_z * -oz
            bx, by = inverse_x.abs_().mul_(hx), inverse_y.abs_().mul_(hy)
            bz = size_z * hz
            if kind == ROOM:
                best = torch.minimum(torch.minimum(ax + bx, ay + by), az + bz)
                primitive = torch.full_like(best, p, dtype=torch.int32)
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


def _tables(scene: Scene) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather-friendly copies: primitives (9, P) and surfaces (23, S), float32."""
    geometry = [scene.centre, 1 / scene.half, scene.yaw.cos()[:, None], scene.yaw.sin()[:, None], scene.kind[:, None]]
    rows = [scene.tint, scene.blend[:, None], scene.is_sky[:, None]]
    for layer in (0, 1):
        texture = scene.texture[:, layer]
        log2, start = scene.texture_log2[texture][:, None], scene.texture_start[texture][:, None]
        texels_per_metre = scene.density[:, layer, None] * 2.0**log2
        rows += [scene.uv[:, layer], texels_per_metre, log2, start]
    return torch.cat(geometry, 1).t().contiguous(), torch.cat(rows, 1).t().contiguous()


def _shade(
    scene: Scene,
    tables: tuple[torch.Tensor, torch.Tensor],
    origin: torch.Tensor,
    direction: list[torch.Tensor],
    t: torch.Tensor,
    primitive: torch.Tensor,
    pixel: float,
    number: torch.Tensor,
) -> torch.Tensor:
    """Colour of every hit. pixel: angle of a pixel in radians at the image centre. Returns (N, 3) uint8."""
    primitives, surfaces = tables
    p = primitive.view(-1)
    x, y, z = ((origin[:, k : k + 1] + t * direction[k]).view(-1) for k in range(3))
    if scene.rotation is None:
        face, s, q, (nx, ny, nz) = _surface(primitives, p, x, y, z)
    else:
        face, s, q, (nx, ny, nz) = surface(scene, p, x, y, z)

    dx, dy, dz = (d.reshape(-1) for d in direction)
    length = torch.sqrt(dx * dx + dy * dy + dz * dz)
    facing = (nx * dx + ny * dy + nz * dz).abs_() / length
    # side of a pixel's footprint in metres: geometric mean of its two axes on the surface
    footprint = t.view(-1) * pixel * torch.rsqrt(facing.clamp_(min=0.04))
    row = 6 * p + face.int()
    material = surfaces.index_select(1, row)
    shift = None
    if scene.roll is not None:
        shift = scene.roll.t().index_select(1, row) * number[:, None].expand_as(t).reshape(-1)
    first = _fetch(scene.texels, material[5:14], s, q, footprint, shift)  # (3, N)
    second = _fetch(scene.texels, material[14:23], s, q, footprint)
    if scene.lighting is None:
        lambert = (nx * scene.light[0] + ny * scene.light[1] + nz * scene.light[2]).clamp_(min=0.0)
        brightness = (scene.ambient + (1.08 - scene.ambient) * lambert) * scene.exposure
    else:
        brightness = scene.lighting.brightness(x, y, z, [nx, ny, nz], scene.light) * scene.exposure
    tint, blend, is_sky = material[:3], material[3], material[4]
    colour = first * (second.sub_(0.5).mul_(2 * blend).add_(1.0)) * tint * brightness
    if scene.outdoor:
        colour = torch.lerp(colour, _sky(scene, dz / length, first), is_sky)
    colour = colour.mul_(408.0).div_(colour.mul(0.8 / 408.0).add_(1.0))  # 255 * 1.6 x / (1 + 0.8 x): soft highlights
    return colour.clamp_(0.0, 255.0).to(torch.uint8).t()


def _surface(primitives: torch.Tensor, p: torch.Tensor, x: torch.Tensor, y: torch.Tensor, z: torch.Tensor):
    """Face, surface coordinates in metres and outward normal of hits (N,) on upright primitives."""
    cx, cy, cz, ix, iy, iz, cos, sin, kind = primitives.index_select(1, p).unbind(0)
    x, y, z = x - cx, y - cy, z - cz
    lx, ly = cos * x + sin * y, cos * y - sin * x
    # faces of boxes; curved surfaces are patched below
    on_x, on_y, on_z, main, face, s, q = box_face((lx, ly, z), (ix, iy, iz))
    inside_out = (kind != ROOM).float() * 2 - 1
    outward = torch.copysign(torch.ones_like(main), main * inside_out)
    along_x, along_y = on_x * outward, on_y * outward
    nx, ny, nz = cos * along_x - sin * along_y, sin * along_x + cos * along_y, on_z * outward
    curved = torch.nonzero(kind >= CYLINDER).view(-1)
    if len(curved):
        radius, ball = 1.0 / ix[curved], kind[curved] != CYLINDER
        vx, vy, vz = x[curved] / radius, y[curved] / radius, z[curved]
        cap = ~ball & ((z[curved] * iz[curved]).abs() > 1 - 1e-4)
        face[curved] = torch.where(cap, 4.0 + (vz < 0), 0.0)
        s[curved] = torch.where(cap, lx[curved], torch.atan2(ly[curved], lx[curved]) * radius)
        q[curved] = torch.where(cap, ly[curved], torch.where(ball, torch.asin((vz / radius).clamp(-1, 1)) * radius, vz))
        nx[curved], ny[curved] = torch.where(cap, 0.0, vx), torch.where(cap, 0.0, vy)
        nz[curved] = torch.where(cap, torch.sign(vz), torch.where(ball, vz / radius, 0.0))
    return face, s, q, (nx, ny, nz)


def _sky(scene: Scene, rise: torch.Tensor, clouds: torch.Tensor) -> torch.Tensor:
    """Gradient from the horizon up, with soft clouds from a texture. rise: (N,) sine of the elevation."""
    up = rise.clamp(0.0, 1.0).sqrt()
    gradient = scene.sky[0][:, None] * (1 - up) + scene.sky[1][:, None] * up
    return (gradient * (0.8 + 0.4 * clouds.mean(dim=0))) * scene.exposure


def _fetch(
    texels: torch.Tensor,
    material: torch.Tensor,
    s: torch.Tensor,
    q: torch.Tensor,
    footprint: torch.Tensor,
    shift: torch.Tensor | None = None,
) -> torch.Tensor:
    """Trilinear texture look-up, mirrored at the borders. material: (9, N); s, q, footprint: (N,) metres;
    shift: (2, N) texture repeats.

    Returns (3, N) float32 in [0, 1]. Indices are kept in float32, exact below 2^24.
    """
    a, b, c, d, e, f, texels_per_metre, log2, start = material.unbind(0)
    if shift is not None:
        e, f = e + shift[0], f + shift[1]
    u, v = _mirror(a * s + b * q + e), _mirror(c * s + d * q + f)
    lod = torch.minimum(torch.log2(footprint * texels_per_metre).clamp_(min=0.0), log2)
    fine = lod.floor()
    coarse = torch.minimum(fine + 1, log2)
    base = torch.exp2(2 * log2 + 2)  # levels before one of side n hold (base - 4 n^2) / 3 texels
    colours = [_bilinear(texels, u, v, torch.exp2(log2 - level), base, start) for level in (fine, coarse)]
    weight = lod - fine
    return torch.stack([torch.lerp(x, y, weight) for x, y in zip(*colours, strict=True)]).mul_(1.0 / 255.0)


def _mirror(w: torch.Tensor) -> torch.Tensor:
    """Fold the line onto [0, 1]: 0 to 1, back to 0, and so on."""
    half = 0.5 * w
    return (2 * (half - torch.round(half))).abs_()


def _bilinear(texels: torch.Tensor, u, v, size, base, start) -> list[torch.Tensor]:
    """Blend of four texels of the level with `size` texels a side. Returns three channels (N,) in [0, 255]."""
    last = size - 1
    u = torch.minimum((u * size - 0.5).clamp_(min=0.0), last)
    v = torch.minimum((v * size - 0.5).clamp_(min=0.0), last)
    u0, v0 = u.floor(), v.floor()
    right = (torch.minimum(u0 + 1, last) - u0).int()
    down = ((torch.minimum(v0 + 1, last) - v0) * size).int()
    index = (start + (base - 4 * size * size) / 3 + v0 * size + u0).int()
    below = index + down
    corners = [texels.index_select(0, i) for i in (index, index + right, below, below + right)]
    u, v = u - u0, v - v0
    channels = []
    for shift in (0, 8, 16):
        x = [((corner >> shift) & 255).float() for corner in corners]
        channels.append(torch.lerp(torch.lerp(x[0], x[1], u), torch.lerp(x[2], x[3], u), v))
    return channels
