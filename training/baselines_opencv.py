# SPDX-License-Identifier: Apache-2.0
"""Classical geometry with OpenCV: SIFT features, the essential matrix, PnP on triangulated points.

Axes: T frames, H W pixels, n matches. `T_a_b` maps camera b into camera a. Lengths have no scale of their own: the
last camera is at distance 1 from the first.
"""

from __future__ import annotations

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose

_LEAST_MATCHES = 12
_SURE = 60  # matches that agree on a motion over the whole window
_RATIO = 0.8  # of the best to the second best descriptor distance
_PIXELS = 1.0  # of the epipolar line or the reprojection
_FAR = 1e5  # baselines


class MotionNotFound(ValueError):
    """Too few matched features, or none that agree on a motion."""


def window_trajectory(frames: np.ndarray, intrinsics: Intrinsics) -> np.ndarray:
    """Find the cameras of a window.

    The last camera against the first comes from the essential matrix of their matches, and the cameras between from PnP
    on the points that the two triangulate (else from their own essential matrix, at an even share of the way). Where
    fewer than `_SURE` matches agree, all come from the chain of neighbours, each step of length 1.

    Args:
        frames: (T, H, W, 3) uint8 RGB, full resolution; intrinsics: their camera.

    Returns:
        (T, 4, 4), camera to first.

    Raises:
        MotionNotFound: the features do not tell the motion.
    """
    features = [_features(frame) for frame in frames]
    last = len(frames) - 1
    try:
        T_last, first_index, points = _two_views(features[0], features[last], intrinsics, _SURE)
    except MotionNotFound:
        steps = [_two_views(a, b, intrinsics)[0] for a, b in zip(features, features[1:], strict=False)]
        out = [np.eye(4)]
        for step in steps:
            out.append(out[-1] @ step)
        return np.stack(out)
    known = dict(zip(first_index.tolist(), points, strict=True))
    out = [np.eye(4)]
    for number in range(1, last):
        try:
            out.append(_resection(features[0], features[number], known, intrinsics))
        except MotionNotFound:
            T = _two_views(features[0], features[number], intrinsics)[0]
            T[:3, 3] *= number / last
            out.append(T)
    return np.stack([*out, T_last])


def _features(frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SIFT: positions (n, 2) float64 in OpenCV's pixels, root-normalised descriptors (n, 128)."""
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
    points, descriptors = cv2.SIFT_create(nfeatures=3000, contrastThreshold=0.005).detectAndCompute(grey, None)
    if descriptors is None:
        return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
    descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
    return np.array([p.pt for p in points]), descriptors.astype(np.float32)


def _matches(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Indices (n,) of mutual best matches that pass the ratio test."""
    if len(a[1]) < 2 or len(b[1]) < 2:
        return np.zeros(0, int), np.zeros(0, int)
    similarity = a[1] @ b[1].T
    best = similarity.argmax(1)
    top = np.partition(similarity, -2, axis=1)[:, -2:]
    distance = np.sqrt(np.maximum(2 - 2 * top, 0))
    rows = np.arange(len(best))
    good = (similarity.argmax(0)[best] == rows) & (distance[:, 1] < _RATIO * distance[:, 0])
    return rows[good], best[good]


def _two_views(a, b, intrinsics: Intrinsics, least: int = _LEAST_MATCHES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Motion of two views: T_a_b with a translation of length 1, indices into `a` and points (n, 3) in camera a."""
    left, right = _matches(a, b)
    if len(left) < _LEAST_MATCHES:
        raise MotionNotFound(f"{len(left)} matches")
    k = _matrix(intrinsics)
    x, y = a[0][left], b[0][right]
    cv2.setRNGSeed(0)
    essential, inliers = cv2.findEssentialMat(x, y, k, cv2.USAC_MAGSAC, 0.999, _PIXELS)
    if essential is None or essential.shape != (3, 3) or inliers.sum() < least:
        raise MotionNotFound("no essential matrix")
    # The default throws points beyond 50 baselines away, which is where all of them are when the camera hardly moves.
    count, R, t, inliers, _ = cv2.recoverPose(essential, x, y, k, distanceThresh=_FAR, mask=inliers)
    if count < _LEAST_MATCHES // 2:
        raise MotionNotFound("points are not in front of both cameras")
    T_a_b = invert(make_pose(R, t[:, 0]))
    keep = inliers.ravel() > 0
    points = _triangulate(np.eye(4), T_a_b, x[keep], y[keep], k)
    near = _in_front(points, T_a_b)
    return T_a_b, left[keep][near], points[near]


def _resection(a, b, known: dict, intrinsics: Intrinsics) -> np.ndarray:
    """Camera b in camera a from points known in camera a by the index of their feature there."""
    left, right = _matches(a, b)
    rows = [i for i, index in enumerate(left.tolist()) if index in known]
    if len(rows) < _LEAST_MATCHES:
        raise MotionNotFound(f"{len(rows)} known points seen")
    points = np.array([known[int(left[i])] for i in rows])
    cv2.setRNGSeed(0)
    found, turn, shift, inliers = cv2.solvePnPRansac(
        points, b[0][right[rows]], _matrix(intrinsics), None, reprojectionError=2 * _PIXELS, confidence=0.999
    )
    if not found or inliers is None or len(inliers) < _LEAST_MATCHES // 2:
        raise MotionNotFound("no camera explains the points")
    return invert(make_pose(cv2.Rodrigues(turn)[0], shift[:, 0]))


def _matrix(intrinsics: Intrinsics) -> np.ndarray:
    fx, fy, cx, cy = intrinsics.to_opencv()
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])


def _triangulate(T_a: np.ndarray, T_b: np.ndarray, x: np.ndarray, y: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Points (n, 3) from pixels (n, 2) of two cameras with poses (4, 4)."""
    homogeneous = cv2.triangulatePoints(k @ invert(T_a)[:3], k @ invert(T_b)[:3], x.T.copy(), y.T.copy())
    weight = np.where(np.abs(homogeneous[3]) < 1e-12, 1e-12, homogeneous[3])
    return (homogeneous[:3] / weight).T


def _in_front(points: np.ndarray, T_b: np.ndarray) -> np.ndarray:
    inverse = invert(T_b)
    return (points[:, 2] > 1e-6) & ((points @ inverse[:3, :3].T + inverse[:3, 3])[:, 2] > 1e-6)
