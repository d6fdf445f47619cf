# SPDX-License-Identifier: Apache-2.0
"""Feature matches between frames with known cameras, and how well they agree with those cameras.

Pixels: the centre of the top-left pixel is (0.5, 0.5), as in Intrinsics.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, invert

from .posed import PosedVideo

_WIDTH = 640  # larger frames are matched at this width
_FEATURES, _RATIO = 1500, 0.8
_HALF = 0.5  # OpenCV puts the first pixel's centre at 0


class Matcher:
    """SIFT features of the frames of one video, kept for the frames used last."""

    def __init__(self, video: PosedVideo, keep: int = 16) -> None:
        self._video, self._sift = video, cv2.SIFT_create(nfeatures=_FEATURES, contrastThreshold=0.02)
        self._features = lru_cache(keep)(self._detect)

    def _detect(self, index: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return pixels (N, 2) of the full-size frame and descriptors (N, 128)."""
        grey = cv2.cvtColor(self._video.load(index), cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        if width > _WIDTH:
            grey = cv2.resize(grey, (_WIDTH, round(height * _WIDTH / width)), interpolation=cv2.INTER_AREA)
        points, descriptors = self._sift.detectAndCompute(grey, None)
        pixels = np.array([p.pt for p in points]).reshape(-1, 2) + _HALF
        return pixels * [width / grey.shape[1], height / grey.shape[0]], descriptors

    def match(self, i: int, j: int) -> tuple[np.ndarray, np.ndarray]:
        """Return pixels (N, 2) in frame i and the same points in frame j, by mutual nearest descriptors."""
        (a, da), (b, db) = self._features(i), self._features(j)
        if len(a) < 2 or len(b) < 2:
            return np.zeros((0, 2)), np.zeros((0, 2))
        distance = np.maximum((da**2).sum(1)[:, None] + (db**2).sum(1) - 2 * da @ db.T, 0)
        nearest = np.argpartition(distance, 1, axis=1)[:, :2]
        two = np.take_along_axis(distance, nearest, 1)
        best = np.take_along_axis(nearest, two.argmin(1)[:, None], 1)[:, 0]
        good = two.min(1) < _RATIO**2 * two.max(1)
        good &= distance.argmin(0)[best] == np.arange(len(a))
        return a[good], b[best[good]]


def slopes(intrinsics: Intrinsics, pixels: np.ndarray) -> np.ndarray:
    """Rays (N, 3) with z = 1 through pixels (N, 2)."""
    xy = (pixels - [intrinsics.cx, intrinsics.cy]) / [intrinsics.fx, intrinsics.fy]
    return np.concatenate([xy, np.ones((len(xy), 1))], axis=1)


def epipolar_errors(video: PosedVideo, i: int, j: int, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance (N,) in pixels of matches a (N, 2), b (N, 2) from fitting the cameras of frames i and j (Sampson)."""
    T = invert(video.T_world_camera[j]) @ video.T_world_camera[i]  # T_j_i
    t, K_i, K_j = T[:3, 3], video.intrinsics[i].matrix(), video.intrinsics[j].matrix()
    if np.linalg.norm(t) < 1e-9:  # no translation: points move as a homography says
        moved = slopes(video.intrinsics[i], a) @ (K_j @ T[:3, :3]).T
        return np.linalg.norm(moved[:, :2] / moved[:, 2:] - b, axis=1)
    cross = np.array([[0, -t[2], t[1]], [t[2], 0, -t[0]], [-t[1], t[0], 0]])
    F = np.linalg.inv(K_j).T @ cross @ T[:3, :3] @ np.linalg.inv(K_i)
    one = np.ones((len(a), 1))
    line_j, line_i = np.hstack([a, one]) @ F.T, np.hstack([b, one]) @ F
    distance = np.abs((np.hstack([b, one]) * line_j).sum(1))
    return distance / np.sqrt((line_i[:, :2] ** 2).sum(1) + (line_j[:, :2] ** 2).sum(1) + 1e-300)


def agreement(video: PosedVideo, pairs: int = 6, apart: int = 3) -> dict[str, float]:
    """Judge a video's cameras by its pictures.

    Args:
        pairs: how many pairs of frames, spread over the video.
        apart: frames between the two of a pair.

    Returns:
        'epipolar_px': median over the matches of all pairs, NaN with fewer than 20; 'matches': their number. Right
        cameras give about half a pixel; several pixels mean wrong axes, extrinsics, times or intrinsics.
    """
    apart = min(apart, len(video) - 1)
    matcher, errors = Matcher(video), []
    starts = np.unique(np.linspace(0, len(video) - 1 - apart, pairs).astype(int)) if apart else []
    for i in starts:
        a, b = matcher.match(i, i + apart)
        errors.append(epipolar_errors(video, i, i + apart, a, b))
    errors = np.concatenate(errors) if errors else np.zeros(0)
    return {"epipolar_px": float(np.median(errors)) if len(errors) >= 20 else float("nan"), "matches": len(errors)}
