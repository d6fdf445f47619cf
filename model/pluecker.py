# SPDX-License-Identifier: Apache-2.0
"""Pluecker images of cameras: the encoding that the paper's ablation compares raxels with.

A Pluecker image holds, at pixel u, the unit direction d and the moment o x d of its ray: 6 channels, which pass through
the codec as two images of 3. Outside the model a camera is always a raxel image d + o; both directions are here.

Axes: h w pixels of a raxel image.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pluecker_of_raxels(raxels: Tensor) -> Tensor:
    """Turn raxels of cameras (..., h, w, 3), free of noise, into Pluecker images (..., h, w, 6) of (d, o x d)."""
    points = raxels.double().flatten(-3, -2)  # (..., n, 3)
    o = _sphere_centre(points)[..., None, :]
    d = points - o
    moments = torch.linalg.cross(o.expand_as(d), d)
    return torch.cat([d, moments], dim=-1).unflatten(-2, raxels.shape[-3:-1]).to(raxels.dtype)


def raxels_of_pluecker(images: Tensor) -> Tensor:
    """Turn Pluecker images (..., h, w, 6), which may be noisy, into raxels (..., h, w, 3).

    The camera centre is the point nearest to all rays: least squares of o x d = m over the pixels.
    """
    d, m = images.double().flatten(-3, -2).split(3, dim=-1)  # (..., n, 3) each
    d = torch.nn.functional.normalize(d, dim=-1)
    # |o x d - m|^2 is least where sum (I - d d^T) o = sum d x m.
    information = torch.eye(3, dtype=d.dtype, device=d.device) * d.shape[-2] - d.mT @ d
    o = torch.linalg.solve(_ridged(information), torch.linalg.cross(d, m).sum(-2, keepdim=True).mT).mT
    return (d + o).unflatten(-2, images.shape[-3:-1]).to(images.dtype)


def _sphere_centre(points: Tensor) -> Tensor:
    """Centre (..., 3) of the unit sphere through points (..., n, 3): a linear fit, then Gauss-Newton at radius 1."""
    mean = points.mean(-2, keepdim=True)
    x = points - mean
    a = torch.cat([2 * x, torch.ones_like(x[..., :1])], dim=-1)  # |x|^2 = 2 x o + (1 - |o|^2)
    o = torch.linalg.solve(_ridged(a.mT @ a), a.mT @ x.square().sum(-1, keepdim=True))[..., :3, :].mT
    for _ in range(3):
        d = x - o
        norm = torch.linalg.norm(d, dim=-1, keepdim=True)
        normal = d / norm
        o = o + torch.linalg.solve(_ridged(normal.mT @ normal), normal.mT @ (norm - 1)).mT
    return (mean + o)[..., 0, :]


def _ridged(matrix: Tensor) -> Tensor:
    return matrix + 1e-9 * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
