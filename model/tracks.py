# SPDX-License-Identifier: Apache-2.0
"""Points tracked through a window of frames (KLT): a grid of the reference frame, followed away from it both ways.

Pyramidal Lucas-Kanade (Bouguet 2001, in OpenCV) from frame to frame. A point is given up for good where it cannot be
followed, where following it back does not lead back, and where it leaves the picture.

Axes: T frames, H W pixels, n points.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_WINDOW, _LEVELS = 9, 3  # pixels; levels of the pyramid above the picture
_BACK = 0.6  # pixels: how far from where it came from a point may be led back
_STOP = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03)


def grid_points(width: int, height: int, columns: int) -> np.ndarray:
    """Centres (n, 2) of the cells of a grid over a picture, pixels; its rows follow from the picture's aspect."""
    rows = max(round(columns * height / width), 1)
    x, y = np.meshgrid((np.arange(columns) + 0.5) * width / columns, (np.arange(rows) + 0.5) * height / rows)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def track_points(frames: Sequence[np.ndarray], reference: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow points of the reference frame through a window.

    Args:
        frames: T grey pictures (H, W) uint8; reference: index of the frame that the points lie in; points: (n, 2), x
            and y in pixels, where the centre of the first pixel is (0.5, 0.5).

    Returns:
        (T, n, 2), where each point is seen; (T, n) bool, whether it is: where not, its place is that in the reference.
    """
    places = np.repeat(points[None].astype(np.float64), len(frames), axis=0)
    seen = np.zeros(places.shape[:2], bool)
    seen[reference] = True
    for order in (range(reference, len(frames)), range(reference, -1, -1)):
        kept, now = np.arange(len(points)), (points - 0.5).astype(np.float32)  # OpenCV: centres are whole numbers
        for before, after in zip(order, order[1:], strict=False):
            if len(kept) == 0:
                break
            now, found = _follow(frames[before], frames[after], now)
            kept, now = kept[found], now[found]
            places[after, kept], seen[after, kept] = now + 0.5, True
    return places, seen


def _follow(before: np.ndarray, after: np.ndarray, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follow points (n, 2) from one grey picture into another: where they are there; (n,) bool, which were found."""
    how = {"winSize": (_WINDOW, _WINDOW), "maxLevel": _LEVELS, "criteria": _STOP}
    moved, there, _ = cv2.calcOpticalFlowPyrLK(before, after, points[:, None], None, **how)
    back, here, _ = cv2.calcOpticalFlowPyrLK(after, before, moved, None, **how)
    height, width = after.shape
    found = (there[:, 0] == 1) & (here[:, 0] == 1) & (np.abs(back[:, 0] - points).max(axis=1) < _BACK)
    inside = ((moved[:, 0] > -0.5) & (moved[:, 0] < np.array([width - 0.5, height - 0.5]))).all(axis=1)
    return moved[:, 0], found & inside
