# SPDX-License-Identifier: Apache-2.0
"""What sources show of a view, by plane sweep (Collins 1996): they are warped onto planes that face the requested
camera, and each of its pixels takes the depth at which the sources agree.

One source agrees with itself everywhere: it is seen on the one plane at the scene's depth. Two and more tell depth
where they stand apart and show the same; elsewhere that plane stands.

Axes: S sources, D planes, H W pixels of the target. Poses take the target's coordinates to the source's, lengths are in
the model's unit, in which the mean inverse depth of the scene is about 1.
"""

from __future__ import annotations

import cv2
import numpy as np

from .geometry import Intrinsics, pixel_rays

_PLANES, _NEAREST = 16, 2.5  # planes from infinity to this many times the inverse depth of the scene
# Of colours in [-1, 1]: most that sources can disagree by at a pixel; what counts where fewer than two see it, and how
# much beside one that two see.
_MOST, _UNSEEN, _UNSEEN_WEIGHT = 0.5, 0.16, 0.05
_PRIOR = 0.012  # the same for each scene depth from the plane of the scene, in inverse depth
_SOFT = 0.008  # disagreements closer than this share a depth
_BLUR = 18  # disagreements are averaged over a Gaussian whose sigma is the width over this
_BEHIND = 1e-3  # z of what lies on a source's plane or behind it


def sweep_sources(
    frames: np.ndarray, T_source_target: np.ndarray, source_camera: Intrinsics, target_camera: Intrinsics
) -> tuple[np.ndarray, np.ndarray]:
    """Warp sources into the target's view.

    Args:
        frames: (S, H', W', 3) uint8, or float in [-1, 1]; T_source_target: (S, 4, 4), the nearest source first.

    Returns:
        (S, H, W, 3) of the type of the frames: first what all sources show together, each as much as it is near, then
        what each but the nearest shows, its border repeated where that is nothing; and the inverse depth (H, W) that
        they were warped by. With the blend, the others tell what the nearest shows.
    """
    forward = float(np.clip(1.0 - T_source_target[0, 2, 3], 0.3, 3.0))  # the scene is nearer by as much as one moved
    inverse_depth = np.full((target_camera.height, target_camera.width), 1.0 / forward)
    if len(frames) > 1:
        inverse_depth = _agreed_depth(frames, T_source_target, source_camera, target_camera, 1.0 / forward)
    warped, seen = warp_by_depth(frames, T_source_target, source_camera, target_camera, inverse_depth)
    if len(frames) == 1:
        return warped, inverse_depth
    near = 1.0 / (np.linalg.norm(T_source_target[:, :3, 3], axis=1) + 1e-3)
    weights = np.where(seen.any(axis=0), seen, True) * near[:, None, None]                  # (S, H, W)
    blend = ((weights / weights.sum(axis=0))[..., None] * warped).sum(axis=0)
    if np.issubdtype(frames.dtype, np.integer):
        blend = blend.round()
    return np.concatenate([blend[None].astype(frames.dtype), warped[1:]]), inverse_depth


def warp_by_depth(
    frames: np.ndarray, T_source_target: np.ndarray, source_camera: Intrinsics, target_camera: Intrinsics,
    inverse_depth: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Sample sources (S, H', W', 3) where the target's pixels of inverse depth (H, W), or (D, H, W), are seen.

    Returns:
        (S, H, W, 3), or (S, D, H, W, 3), the source's border repeated where it shows nothing; (S, H, W) bool, or
        (S, D, H, W), whether it shows something.
    """
    rays = pixel_rays(target_camera)
    rays = rays / rays[..., 2:]
    fx, fy, cx, cy = source_camera.to_opencv()
    size = np.array([source_camera.width, source_camera.height])
    far = 4.0 * size.max()
    shape, warped, seen = inverse_depth.shape, [], []
    for frame, T in zip(frames, T_source_target, strict=True):
        point = rays @ T[:3, :3].T + inverse_depth[..., None] * T[:3, 3]                    # (..., H, W, 3)
        place = point[..., :2] / np.maximum(point[..., 2:], _BEHIND) * (fx, fy) + (cx, cy)
        seen.append(((place > -0.5) & (place < size - 0.5)).all(axis=-1) & (point[..., 2] > _BEHIND))
        x, y = np.moveaxis(np.clip(place, -far, far).astype(np.float32), -1, 0).reshape(2, -1, shape[-1])
        sampled = cv2.remap(frame, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        warped.append(sampled.reshape(*shape, 3))
    return np.stack(warped), np.stack(seen)


def _agreed_depth(
    frames: np.ndarray, T_source_target: np.ndarray, source_camera: Intrinsics, target_camera: Intrinsics, scene: float
) -> np.ndarray:
    """Inverse depth (H, W) at which two or more sources agree; `scene` is that of the plane of the scene."""
    size = target_camera.width // 2, target_camera.height // 2  # half of it costs a quarter and tells nearly as much
    small = np.stack([_halved(frame) for frame in frames])
    camera = source_camera.resized(small.shape[2], small.shape[1])
    relative = np.linspace(0.0, _NEAREST, _PLANES)
    planes = np.broadcast_to((scene * relative)[:, None, None], (_PLANES, size[1], size[0]))
    warped, seen = warp_by_depth(small, T_source_target, camera, target_camera.resized(*size), planes)
    told = seen.sum(axis=0) > 1                                                             # (D, H/2, W/2)
    cost = np.where(told, np.minimum(_disagreement(warped, seen), _MOST), _UNSEEN)
    weight = np.where(told, 1.0, _UNSEEN_WEIGHT)
    mean = _blurred(weight * cost) / _blurred(weight) + (_PRIOR * np.abs(relative - 1))[:, None, None]
    share = np.exp((mean.min(axis=0) - mean) / _SOFT)
    inverse_depth = (share * planes).sum(axis=0) / share.sum(axis=0)
    return cv2.resize(inverse_depth, (target_camera.width, target_camera.height), interpolation=cv2.INTER_LINEAR)


def _blurred(planes: np.ndarray) -> np.ndarray:
    """Each of the planes (D, h, w) averaged over the neighbourhood of its pixels."""
    return np.stack([cv2.GaussianBlur(plane, (0, 0), planes.shape[2] / _BLUR) for plane in planes])


def _halved(frame: np.ndarray) -> np.ndarray:
    """Half the picture, float32 in [-1, 1]."""
    size = frame.shape[1] // 2, frame.shape[0] // 2
    half = cv2.resize(frame, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    return half * (2 / 255) - 1 if np.issubdtype(frame.dtype, np.integer) else half


def _disagreement(warped: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """How far sources (S, D, h, w, 3) are from their mean, where they are seen, twice the mean over them and colours:
    of two sources their difference."""
    if len(warped) == 2:
        return np.abs(warped[0] - warped[1]).mean(axis=-1)
    weight = seen[..., None] / np.maximum(seen.sum(axis=0), 1)[..., None]
    mean = (weight * warped).sum(axis=0)
    return 2 * (weight[..., 0] * np.abs(warped - mean).mean(axis=-1)).sum(axis=0)
