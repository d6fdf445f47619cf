# SPDX-License-Identifier: Apache-2.0
"""Undo lens distortion: from the image of any lens to a pinhole image without empty borders.

Pixels: the centre of the top-left pixel is (0.5, 0.5); only the maps for cv2.remap put it at (0, 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Distortion, GeometryError, Intrinsics

from .checks import numbers
from .posed import DatasetError

_BORDER = 0.5  # pixels beyond the outermost pixel centres that may be read: their copies
_LARGEST_ZOOM = 2.0


class Undistorter:
    """Turns images of a lens into those of `self.intrinsics`, a pinhole camera of the same size and centre.

    The focal length grows by as little as is needed to leave no pixel without content (not at all for barrel lenses).
    """

    def __init__(
        self, where: str, intrinsics: Intrinsics, lens: Callable[[np.ndarray], np.ndarray], identity: bool = False
    ) -> None:
        """Args:
        where: the place for errors.
        intrinsics: of the lens, without its distortion.
        lens: (N, 2) slopes x/z, y/z to (N, 2) pixels of the distorted image.
        identity: the lens does not distort: images pass unchanged.
        """
        self.intrinsics, self._lens, self._identity = intrinsics, lens, identity
        self._maps: tuple[np.ndarray, np.ndarray] | None = None
        if not identity:
            zoom = _smallest_zoom(where, intrinsics, lens)
            self.intrinsics = replace(intrinsics, fx=intrinsics.fx * zoom, fy=intrinsics.fy * zoom)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Undistort (H, W, 3) uint8."""
        if self._identity:
            return image
        if self._maps is None:
            k = self.intrinsics
            column, row = np.meshgrid(np.arange(k.width) + 0.5, np.arange(k.height) + 0.5)
            pixels = self._lens(_slopes(k, np.stack([column, row], axis=-1).reshape(-1, 2))) - 0.5
            pixels = pixels.reshape(k.height, k.width, 2).astype(np.float32)
            self._maps = pixels[..., 0], pixels[..., 1]
        return cv2.remap(image, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def undistorter(where: str, intrinsics: Intrinsics, distortion: Distortion) -> Undistorter:
    """Make the Undistorter of a lens as ROS states it."""
    d = np.asarray(distortion.coefficients or (0.0,) * 4, dtype=np.float64)

    def lens(slopes: np.ndarray) -> np.ndarray:
        if distortion.model == "equidistant":
            bent = cv2.fisheye.distortPoints(slopes[:, None], np.eye(3), d)[:, 0]
        else:
            rays = np.concatenate([slopes, np.ones((len(slopes), 1))], axis=1)
            bent = cv2.projectPoints(rays, np.zeros(3), np.zeros(3), np.eye(3), d)[0][:, 0]
        return bent * [intrinsics.fx, intrinsics.fy] + [intrinsics.cx, intrinsics.cy]

    return Undistorter(where, intrinsics, lens, distortion.is_none)


def stated_lens(where: str, intrinsics: str, distortion: str, size: tuple[int, int]) -> Undistorter:
    """Make the lens that a user states as texts.

    Args:
        intrinsics: 'fx,fy,cx,cy', pixels of images of this (width, height), top-left pixel centre at (0, 0).
        distortion: 'k1,k2,p1,p2,k3', or '' for none.
    """
    k = numbers(f"{where}: intrinsics", intrinsics.split(","), "fx fy cx cy")
    d = numbers(f"{where}: distortion", distortion.split(","), "k1 k2 p1 p2 k3") if distortion else ()
    try:
        camera = Intrinsics.from_opencv(*k, *size)
    except GeometryError as error:
        raise DatasetError(f"{where}: intrinsics: {error}") from error
    return undistorter(where, camera, Distortion("plumb_bob" if len(d) else "", tuple(map(float, d))))


def _slopes(k: Intrinsics, pixels: np.ndarray) -> np.ndarray:
    return (pixels - [k.cx, k.cy]) / [k.fx, k.fy]


def _smallest_zoom(where: str, k: Intrinsics, lens: Callable[[np.ndarray], np.ndarray]) -> float:
    """Find the least factor of the focal length, at least 1, at which the whole border lies in the distorted image."""
    x, y = np.linspace(0.5, k.width - 0.5, 65), np.linspace(0.5, k.height - 0.5, 65)
    edge = [np.stack(np.broadcast_arrays(x, v), -1) for v in (0.5, k.height - 0.5)]
    edge += [np.stack(np.broadcast_arrays(v, y), -1) for v in (0.5, k.width - 0.5)]
    slopes = _slopes(k, np.concatenate(edge))

    def fits(zoom: float) -> bool:
        pixels = lens(slopes / zoom)
        return bool(np.all((pixels >= 0.5 - _BORDER) & (pixels <= np.array([k.width, k.height]) - 0.5 + _BORDER)))

    low, high = 1.0, 1.0
    while not fits(high):
        low, high = high, high * 1.1
        if high > _LARGEST_ZOOM:
            raise DatasetError(f"{where}: these distortion coefficients leave no pinhole image; check their order")
    for _ in range(12):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
