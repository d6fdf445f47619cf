# SPDX-License-Identifier: Apache-2.0
"""The unit of the model for videos whose depth is not given: the harmonic mean depth of each frame.

Features are matched between frames of known cameras, those that agree with the cameras are triangulated, and each frame
takes the mean over its picture of the inverse depth of its points. Sparse points stand for the whole picture: on
rendered scenes the estimate is mostly within 20 % of the truth, and can be off by a factor of two where only a near
object has texture.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.ndimage import median_filter

from rays_as_pixels_model.geometry import invert

from .matching import Matcher, epipolar_errors, slopes
from .posed import DatasetError, PosedVideo

_GRID = (8, 6)  # cells across and down, so that a cluster of features counts once
_LEAST_POINTS = 12
_APART = (1, 2, 4, 8, 16, 32)  # frames between the two of a pair; the first with enough parallax is taken
_PARALLAX_DEG = (1.5, 0.5)  # the second only for videos in which no frame has the first
_EPIPOLAR_PX, _REPROJECTION_PX = 1.5, 2.0
_SECONDS = 0.5  # between two measured frames
_SMOOTH = 5  # estimated frames of the median filter over time


def harmonic_depth(pixels: np.ndarray, depth: np.ndarray, size: tuple[int, int]) -> float:
    """Return the harmonic mean depth of a picture from points of it.

    Args:
        pixels: (N, 2), depth: (N,) along the optical axis, above zero.
        size: (width, height) of the picture.

    Returns:
        One over the mean inverse depth, where each cell of a grid with points counts by the median of its own; NaN
        with fewer than 12 points.
    """
    if len(depth) < _LEAST_POINTS:
        return float("nan")
    cell = np.clip((pixels / size * _GRID).astype(int), 0, np.array(_GRID) - 1) @ [1, _GRID[0]]
    order = np.argsort(cell, kind="stable")
    parts = np.split(1.0 / depth[order], np.flatnonzero(np.diff(cell[order])) + 1)
    return float(1.0 / np.mean([np.median(part) for part in parts]))


def estimate_scene_scale(video: PosedVideo, every: int | None = None) -> np.ndarray:
    """Estimate (T,) harmonic mean depths, in the unit of the poses, by triangulation.

    Args:
        every: frames between two that are measured (default: half a second of them); others are interpolated (in the
            logarithm), and so are frames from which the camera did not move enough.

    Raises:
        DatasetError: no frame can be measured: the camera hardly moves, or the matches contradict the cameras.
    """
    matcher, count = Matcher(video, keep=48), len(video)
    every = every or max(1, round(_SECONDS / float(np.median(np.diff(video.times)))))
    frames = np.unique(np.r_[np.arange(0, count, every), count - 1])
    for parallax in _PARALLAX_DEG:
        measured, apart = np.full(len(frames), np.nan), 0
        for row, i in enumerate(frames):
            # Motion goes on much as before: begin a little below what the last frame needed.
            measured[row], apart = _frame_scale(video, matcher, int(i), parallax, max(apart - 1, 0))
        known = np.isfinite(measured)
        if known.any():
            break
    else:
        raise DatasetError(
            f"{video.name}: the scene's scale cannot be measured: no two frames up to {_APART[-1]} apart have "
            f"{_LEAST_POINTS} matches that agree with the cameras and see them {_PARALLAX_DEG[-1]} degrees apart"
        )
    logs = np.log(measured[known])
    logs = median_filter(logs, size=min(_SMOOTH, len(logs)), mode="nearest")
    return np.exp(np.interp(np.arange(count), frames[known], logs))


def with_scene_scale(video: PosedVideo, every: int | None = None) -> PosedVideo:
    """Return the video with its scene_scale, estimated where the dataset does not know it."""
    return video if video.scene_scale is not None else replace(video, scene_scale=estimate_scene_scale(video, every))


def _frame_scale(video: PosedVideo, matcher: Matcher, i: int, least_parallax: float, first: int) -> tuple[float, int]:
    """Measure one frame against the nearest other that is far enough.

    Args:
        first: number in _APART to begin with.

    Returns:
        The scale (NaN if no frame is far enough) and the number in _APART that was taken.
    """
    for number, apart in list(enumerate(_APART))[first:]:
        for j in (i + apart, i - apart):
            if not 0 <= j < len(video):
                continue
            a, b = matcher.match(i, j)
            if len(a) < _LEAST_POINTS:
                continue
            agree = epipolar_errors(video, i, j, a, b) < _EPIPOLAR_PX
            pixels, depth, parallax = triangulate(video, i, j, a[agree], b[agree])
            enough = parallax > least_parallax
            # Near points alone would pass the parallax test of a short baseline: most points must.
            if enough.sum() >= max(_LEAST_POINTS, 0.7 * len(depth)):
                k = video.intrinsics[i]
                return harmonic_depth(pixels, depth, (k.width, k.height)), number
    return float("nan"), 0


def triangulate(
    video: PosedVideo, i: int, j: int, a: np.ndarray, b: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Triangulate matches by the midpoint of their rays.

    Args:
        a, b: (N, 2) pixels of frames i and j.

    Returns:
        Pixels (M, 2) of frame i, depths (M,) and parallaxes (M,), degrees, of the points that lie before both cameras
        and come back to within 2 pixels.
    """
    T = invert(video.T_world_camera[i]) @ video.T_world_camera[j]  # T_i_j
    ray_i, ray_j = slopes(video.intrinsics[i], a), slopes(video.intrinsics[j], b) @ T[:3, :3].T
    t = T[:3, 3]
    ii, jj, ij = (ray_i**2).sum(1), (ray_j**2).sum(1), (ray_i * ray_j).sum(1)
    it, jt = ray_i @ t, ray_j @ t
    with np.errstate(divide="ignore", invalid="ignore"):
        determinant = ii * jj - ij**2
        z_i, z_j = (jj * it - ij * jt) / determinant, (ij * it - ii * jt) / determinant
        points = 0.5 * (ray_i * z_i[:, None] + ray_j * z_j[:, None] + t)
        parallax = np.degrees(np.arccos(np.clip(ij / np.sqrt(ii * jj), -1, 1)))
        back = np.stack(
            [
                np.linalg.norm(_project(video.intrinsics[i], points) - a, axis=1),
                np.linalg.norm(_project(video.intrinsics[j], (points - t) @ T[:3, :3]) - b, axis=1),
            ]
        )
        good = (z_i > 0) & (z_j > 0) & (points[:, 2] > 0) & (back.max(0) < _REPROJECTION_PX)
    return a[good], points[good, 2], parallax[good]


def _project(k, points: np.ndarray) -> np.ndarray:
    return points[:, :2] / points[:, 2:] * [k.fx, k.fy] + [k.cx, k.cy]
