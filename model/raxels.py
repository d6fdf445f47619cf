# SPDX-License-Identifier: Apache-2.0
"""Cameras to raxel images and back (paper, section "Raxels").

A raxel image holds, at pixel u, d + o: the unit ray direction d = R K^-1 u / |K^-1 u| and the camera centre o, both in
the reference frame. The directions of one camera lie on a unit sphere, so its raxels lie on a unit sphere around o.

Axes: T frames, h w raxel pixels. `T_reference_camera` is camera to reference.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .geometry import GeometryError, Intrinsics, invert, make_pose, pixel_rays, so3_exp

if TYPE_CHECKING:
    import torch


def make_raxels(T_reference_camera: np.ndarray, intrinsics: Intrinsics, height: int, width: int) -> np.ndarray:
    """Render cameras as raxel images.

    Args:
        T_reference_camera: (..., 4, 4) camera to reference, translation in model units.
        intrinsics: the camera, of any size; the raxel image covers the same view.
        height, width: of the raxel image.

    Returns:
        (..., height, width, 3) float32: d + o.
    """
    rays = pixel_rays(intrinsics, width, height)                                         # (h, w, 3)
    directions = np.einsum("...ij,hwj->...hwi", T_reference_camera[..., :3, :3], rays)   # (..., h, w, 3)
    return (directions + T_reference_camera[..., None, None, :3, 3]).astype(np.float32)


def make_raxels_batch(rotation: torch.Tensor, centre: torch.Tensor, intrinsics: torch.Tensor,
                      image_size: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """`make_raxels` for a batch with a camera of its own each, on any device.

    Args:
        rotation: (B, T, 3, 3) and centre: (B, T, 3), camera to reference.
        intrinsics: (B, 4) fx, fy, cx, cy for images of image_size (width, height).

    Returns:
        (B, T, height, width, 3) of the dtype of `rotation`.
    """
    import torch  # only here: reading cameras runs without torch

    fx, fy, cx, cy = intrinsics.to(rotation)[..., None].unbind(1)                       # (B, 1) each
    u = (torch.arange(width, device=rotation.device) + 0.5) * (image_size[0] / width)
    v = (torch.arange(height, device=rotation.device) + 0.5) * (image_size[1] / height)
    x = ((u - cx) / fx)[:, None, :].expand(-1, height, -1)                              # (B, h, w)
    y = ((v - cy) / fy)[:, :, None].expand(-1, -1, width)
    rays = torch.nn.functional.normalize(torch.stack([x, y, torch.ones_like(x)], -1), dim=-1)
    directions = rays.flatten(1, 2)[:, None] @ rotation.transpose(-1, -2)               # (B, T, h w, 3)
    return (directions + centre[:, :, None]).unflatten(2, (height, width))


@dataclass(frozen=True)
class CameraReading:
    """What `read_cameras` found.

    Attributes:
        T_reference_camera: (T, 4, 4).
        intrinsics: the camera used or found, at the size asked for.
        residual: (T,) weighted rms of |raxel - (R d + o)|, in model units.
        covariance: (T, 6, 6) of (x, y, z, rx, ry, rz), the rotation a left perturbation in the reference frame,
            from the residuals (what they are taken to be: `read_cameras`, cell).
    """

    T_reference_camera: np.ndarray
    intrinsics: Intrinsics
    residual: np.ndarray
    covariance: np.ndarray


def read_cameras(raxels: np.ndarray, intrinsics: Intrinsics | None, *, image_size: tuple[int, int] | None = None,
                 cell: int = 1) -> CameraReading:
    """Read the cameras back from noisy raxel images.

    Per frame: o and R by weighted orthogonal Procrustes of the raxels against the camera's own rays, the weights by
    iteratively reweighted least squares: Cauchy's function finds the neighbourhood, Tukey's then gives outliers no say
    at all. Without intrinsics the focal lengths come first, by `estimate_focal`.

    Args:
        raxels: (T, h, w, 3).
        intrinsics: the camera, of any size; None estimates fx and fy, shared by all frames.
        image_size: (width, height) of the returned intrinsics when none are given (default: twice the raxel image).
        cell: pixels of a side that were decoded from one latent and are wrong together: 8 for what a codec decodes, 1
            if every pixel has noise of its own. It matters to the covariance only, which counts cells.

    Raises:
        GeometryError: a value is not finite, or no one camera explains the raxels: they do not spread over directions,
            or lie on a line, so that a rotation is not determined.

    Note: independent noise of standard deviation s a pixel leaves a rotation error that no unbiased reading can beat;
        least squares reaches that bound, this reading is within 5 %. For s = 0.02 on 48x64 pixels the median is below
        0.1 degrees from 78 degrees of view on (0.08 at 90); it is 0.10 at 65 and 0.17 at 40, where the bound itself is
        above 0.1 (test/test_raxels.py).
    """
    raxels = np.asarray(raxels, dtype=np.float64)
    if raxels.ndim != 4 or raxels.shape[-1] != 3 or 0 in raxels.shape:
        raise GeometryError(f"raxels must be (T, h, w, 3) and not empty, got {raxels.shape}")
    if not np.all(np.abs(raxels) < _LARGEST):
        raise GeometryError(f"raxels hold a value that is not finite, or above {_LARGEST:g}")
    frames, height, width = raxels.shape[:3]
    if height % cell or width % cell:
        raise GeometryError(f"raxel images of {height}x{width} do not split into cells of {cell}x{cell}")
    spread = np.sqrt(((raxels - raxels.mean((1, 2), keepdims=True)) ** 2).sum(-1).mean((1, 2)))
    if np.any(spread < 1e-3):
        raise GeometryError(f"raxels of frame {int(spread.argmin())} spread by {spread.min():.2g} only: no camera has "
                            "such rays (all pixels look the same way)")
    if intrinsics is None:
        image_width, image_height = image_size or (2 * width, 2 * height)
        intrinsics = estimate_focal(raxels).resized(image_width, image_height)
    rays = pixel_rays(intrinsics, width, height).reshape(1, -1, 3)                  # (1, n, 3)
    points = raxels.reshape(frames, -1, 3)                                          # (T, n, 3)
    weights = np.ones(points.shape[:2])
    products, design = _products(points, rays), np.concatenate([rays, np.ones_like(rays[..., :1])], axis=-1)
    for iteration in range(_CAUCHY + _TUKEY):
        rotation, origin = _fit(*_moments(products, weights))
        error = points - design @ np.concatenate([np.swapaxes(rotation, 1, 2), origin[:, None]], axis=1)    # (T, n, 3)
        squares = np.einsum("...i,...i->...", error, error)
        before, weights = weights, _weights(squares, redescend=iteration >= _CAUCHY)
        if iteration > _CAUCHY and np.abs(weights - before).max() < 0.01:
            break
    _check_determined(_moments(products, weights)[2])
    residual = np.sqrt((weights * squares).sum(1) / weights.sum(1))
    directions = rays @ np.swapaxes(rotation, 1, 2)
    covariance = _covariance(directions, weights, error, (height // cell, cell, width // cell, cell))
    return CameraReading(make_pose(rotation, origin), intrinsics, residual, covariance)


def fit_cameras(raxels: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Least-squares cameras of raxel images, every pixel counted alike.

    Much quicker than `read_cameras`, for posterior draws: no outliers are sought and no covariance is made.

    Args:
        raxels: (..., h, w, 3).

    Returns:
        (..., 4, 4) camera to reference.
    """
    *lead, height, width, _ = raxels.shape
    points = np.asarray(raxels, dtype=np.float64).reshape(-1, height * width, 3)
    rotation, origin = _procrustes(points, pixel_rays(intrinsics, width, height).reshape(1, -1, 3),
                                   np.ones(points.shape[:2]))
    return make_pose(rotation, origin).reshape(*lead, 4, 4)


_CAUCHY, _TUKEY = 5, 10        # iterations of each weight function
_CUT = 3.5                     # errors beyond this many medians have no say; for Gaussian noise that is 5.4 sigma
_KEPT = 0.86                   # share of the variance of Gaussian noise that is left under Tukey's weights at _CUT
_LARGEST = 1e6                 # squares and their sums stay far from overflow


def _weights(squares: np.ndarray, redescend: bool) -> np.ndarray:
    """Weights (T, n) of squared error norms: Cauchy's, or Tukey's, which are 0 from the cut on."""
    middle = (squares.shape[1] - 1) // 2, squares.shape[1] // 2
    median = np.sqrt(np.partition(squares, middle, axis=1)[:, middle]).mean(1, keepdims=True)
    median = np.maximum(median, 1e-9)
    if redescend:
        return np.maximum(1 - squares / (_CUT * median) ** 2, 0.0) ** 2
    return 1.0 / (1.0 + squares / (1.5 * 1.4826 * median) ** 2)


def _products(points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """What weighted fits of points (T, n, 3) to rays (1, n, 3) sum: both, and their products, (T, n, 15)."""
    rays = np.broadcast_to(rays, points.shape)
    outer = (points[..., :, None] * rays[..., None, :]).reshape(*points.shape[:2], 9)
    return np.concatenate([points, rays, outer], axis=-1)


def _moments(products: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weighted means of points and rays, (T, 1, 3) each, and their cross-covariance (T, 3, 3)."""
    sums = (weights / weights.sum(1, keepdims=True))[:, None] @ products            # (T, 1, 15)
    mean_p, mean_d = sums[..., :3], sums[..., 3:6]
    return mean_p, mean_d, sums[..., 6:].reshape(-1, 3, 3) - np.swapaxes(mean_p, 1, 2) * mean_d


def _fit(mean_p: np.ndarray, mean_d: np.ndarray, cross: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit points = R rays + o to their `_moments`: R (T, 3, 3), o (T, 3)."""
    u, _, vt = np.linalg.svd(cross)
    sign = np.ones((len(cross), 3))
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    rotation = (u * sign[:, None]) @ vt
    return rotation, (mean_p - mean_d @ np.swapaxes(rotation, 1, 2))[:, 0]


def _procrustes(points: np.ndarray, rays: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted fit of points (T, n, 3) = R rays (1, n, 3) + o: R (T, 3, 3), o (T, 3)."""
    w = (weights / weights.sum(1, keepdims=True))[:, None]                          # (T, 1, n)
    mean_p, mean_d = w @ points, w @ rays                                           # (T, 1, 3)
    return _fit(mean_p, mean_d, np.swapaxes(points - mean_p, 1, 2) @ (np.swapaxes(w, 1, 2) * rays))


def _check_determined(cross: np.ndarray) -> None:
    """Raise GeometryError if the points that count lie on a line (or a point): a turn about it changes nothing."""
    values = np.linalg.svd(cross, compute_uv=False)
    ratio = values[:, 1] / np.maximum(values[:, 0], 1e-30)
    if np.any(ratio < 1e-3):
        worst = int(ratio.argmin())
        raise GeometryError(f"raxels of frame {worst} lie on a line (second to first singular value "
                            f"{ratio[worst]:.2g}): they determine no rotation")


def _covariance(directions: np.ndarray, weights: np.ndarray, error: np.ndarray, grid: tuple[int, int, int, int]
                ) -> np.ndarray:
    """Covariance (T, 6, 6) of (o, rotation) from the residuals, each cell of the grid being one observation.

    A cell's error is its weighted mean error, with one 3x3 covariance for all cells of a frame, so what is wrong
    together is counted once and what is independent averages out.

    Args:
        directions, error: (T, n, 3) in the reference frame; weights: (T, n).
        grid: (rows of cells, pixels, columns of cells, pixels).
    """
    frames = len(weights)

    def cells(values: np.ndarray) -> np.ndarray:
        """(T, n, ...) to sums over the cells (T, cells, ...)."""
        split = values.reshape(frames, *grid, -1)
        return split.sum((2, 4)).reshape(frames, grid[0] * grid[2], *values.shape[2:])

    weight = cells(weights)                                                                     # (T, c)
    whole = np.maximum(weight, 1e-12)
    error = cells(weights[..., None] * error) / whole[..., None]                                # (T, c, 3)
    x, y, z = np.moveaxis(cells(weights[..., None] * directions) / whole[..., None], -1, 0)     # (T, c), mean rays
    zero = np.zeros_like(x)
    turn = np.stack([zero, z, -y, -z, zero, x, y, -x, zero], -1).reshape(*x.shape, 3, 3)        # -[d]x
    jacobian = np.concatenate([np.broadcast_to(np.eye(3), turn.shape), turn], axis=-1)          # (T, c, 3, 6)
    share = weight / weight.sum(1, keepdims=True)
    count = 1.0 / (share**2).sum(1)                                                             # cells that count
    freedom = np.maximum(count - 2, 1.0) * _KEPT            # 3 values a cell, 6 of them spent on the camera
    noise = np.einsum("tc,tci,tcj->tij", share, error, error) * (count / freedom)[:, None, None]
    noise = noise + 1e-12 * np.eye(3)
    flat = jacobian.reshape(frames, -1, 6)                                                      # (T, 3 c, 6)
    each = np.repeat(share, 3, axis=1)[..., None]                                               # (T, 3 c, 1)
    information = np.swapaxes(each * flat, 1, 2) @ flat
    scatter = np.swapaxes(each**2 * flat, 1, 2) @ (noise[:, None] @ jacobian).reshape(flat.shape)
    inverse = np.linalg.inv(information + 1e-9 * np.eye(6))
    return inverse @ scatter @ inverse + 1e-15 * np.eye(6)


def relative_covariance(T_any_camera: np.ndarray, covariance: np.ndarray, reference: int
                        ) -> tuple[np.ndarray, np.ndarray]:
    """Express cameras (T, 4, 4) and their independent covariances (T, 6, 6) in the frame of one of them.

    The reference's own error moves all others: w_rel = R^T (w - w_ref), t_rel = R^T (t - t_ref + [o - o_ref]x w_ref),
    with R the reference's rotation. It is itself the identity, with no error.
    """
    T_ref = T_any_camera[reference]
    x, y, z = np.moveaxis(T_any_camera[:, :3, 3] - T_ref[:3, 3], -1, 0)
    zero = np.zeros_like(x)
    lever = -np.tile(np.eye(6), (len(x), 1, 1))
    lever[:, :3, 3:] = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).reshape(-1, 3, 3)  # [o - o_ref]x
    turn = np.kron(np.eye(2), T_ref[:3, :3].T)
    out = turn @ (covariance + lever @ covariance[reference] @ np.swapaxes(lever, 1, 2)) @ turn.T
    out[reference] = 1e-12 * np.eye(6)
    return invert(T_ref) @ T_any_camera, out


def estimate_focal(raxels: np.ndarray, iterations: int = 40) -> Intrinsics:
    """Find the focal lengths that made raxel images, the principal point being the centre.

    The paper reads f_x as the median of u z / x over the pixels (u from the principal point) of the direction
    (x, y, z) in the camera's own frame. That frame is not known before the rotation is, and the rotation not before the
    rays are: so the two alternate from a 60 degree guess until the focal lengths stand still.

    Args:
        raxels: (T, h, w, 3); all frames share one camera.

    Returns:
        Intrinsics of the size of the raxel image.

    Raises:
        GeometryError: no focal length between 0.2 and 10 image widths explains the raxels.
    """
    _, height, width = raxels.shape[:3]
    points = raxels.reshape(len(raxels), -1, 3)
    u = np.broadcast_to(np.arange(width) + 0.5 - width / 2, (height, width)).ravel()
    v = np.broadcast_to((np.arange(height) + 0.5 - height / 2)[:, None], (height, width)).ravel()
    far_u, far_v = np.abs(u) > width / 8, np.abs(v) > height / 8
    camera = Intrinsics.from_fov(60.0, width, height)
    for _ in range(iterations):
        rays = pixel_rays(camera).reshape(1, -1, 3)
        weights = np.ones(points.shape[:2])
        for _ in range(3):
            rotation, origin = _procrustes(points, rays, weights)
            own = (points - origin[:, None]) @ rotation                              # (T, n, 3) camera frame
            weights = _weights(((own - rays) ** 2).sum(-1), redescend=False)
        # The Procrustes centre trades depth against focal length: put the directions back on the unit sphere first.
        own = own + _sphere_shift(own)
        with np.errstate(divide="ignore", invalid="ignore"):
            fx = np.nanmedian((u * own[..., 2] / own[..., 0])[:, far_u])
            fy = np.nanmedian((v * own[..., 2] / own[..., 1])[:, far_v])
        if not (0.2 * width < fx < 10 * width and 0.2 * width < fy < 10 * width):
            raise GeometryError(f"no focal length between 0.2 and 10 image widths explains the raxels "
                                f"(fx {fx / width:.3g}, fy {fy / width:.3g} widths)")
        moved = abs(fx / camera.fx - 1) + abs(fy / camera.fy - 1)
        camera = Intrinsics(float(fx), float(fy), width / 2, height / 2, width, height)
        if moved < 1e-6:
            break
    return camera


def _sphere_shift(own: np.ndarray) -> np.ndarray:
    """Shift (T, 1, 3) that puts points (T, n, 3) on a unit sphere around 0, robustly (Gauss-Newton, Cauchy weights)."""
    shift = np.zeros((len(own), 1, 3))
    for _ in range(5):
        moved = own + shift
        norm = np.linalg.norm(moved, axis=-1, keepdims=True)
        normal, error = moved / norm, (1 - norm)[..., 0]
        scale = np.maximum(1.4826 * np.median(np.abs(error), axis=1, keepdims=True), 1e-9)
        w = (1.0 / (1.0 + (error / (1.5 * scale)) ** 2))[..., None]
        information = np.swapaxes(w * normal, 1, 2) @ normal + 1e-9 * np.eye(3)
        shift = shift + np.linalg.solve(information, np.swapaxes(w * normal, 1, 2) @ error[..., None]).swapaxes(1, 2)
    return shift


def perturb(T_reference_camera: np.ndarray, rotation_vector: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Left-perturb poses (..., 4, 4) as `covariance` means it: R <- exp(w) R, o <- o + t."""
    return make_pose(so3_exp(rotation_vector) @ T_reference_camera[..., :3, :3],
                     T_reference_camera[..., :3, 3] + translation)
