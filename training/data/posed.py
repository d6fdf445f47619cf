# SPDX-License-Identifier: Apache-2.0
"""What every dataset gives: videos whose cameras are known.

Axes: T frames, H W pixels. Poses are camera to world, OpenCV optical axes (x right, y down, z forward).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the file (and line or frame) and what would be right."""


@dataclass(frozen=True)
class PosedVideo:
    """One sequence of a dataset; pictures are read when asked for.

    Attributes:
        name: unique within its dataset.
        times: (T,) float64, seconds, strictly increasing.
        T_world_camera: (T, 4, 4) float64, camera to world, metres if `metric`.
        intrinsics: T pinhole cameras at the size of the frames that `load` gives (distortion is already undone).
        load: index to frame (H, W, 3) uint8 RGB, undistorted.
        metric: whether lengths are metres.
        scene_scale: (T,) float64 harmonic mean depth of each frame in the unit of the poses, the model's unit of length
            when that frame is the reference; None where the dataset does not know it (`scale.py` estimates it).
    """

    name: str
    times: np.ndarray
    T_world_camera: np.ndarray
    intrinsics: list[Intrinsics]
    load: Callable[[int], np.ndarray]
    metric: bool = False
    scene_scale: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.T_world_camera)
