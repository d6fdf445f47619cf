# SPDX-License-Identifier: Apache-2.0
"""Cut posed videos into clips of one length, size and camera: what shards hold and the trainer cuts windows from.

Axes: T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, fit_frames

from .posed import DatasetError, PosedVideo

_SAME = 1e-4  # cameras whose numbers differ by this share of the width are one


@dataclass(frozen=True)
class CutClip:
    """frames (T, H, W, 3) uint8; T_world_camera (T, 4, 4); intrinsics of all frames; scene_scale (T,), the harmonic
    mean depth of each frame, in the unit of the poses."""

    frames: np.ndarray
    T_world_camera: np.ndarray
    intrinsics: Intrinsics
    scene_scale: np.ndarray


@dataclass(frozen=True)
class ClipCut:
    """How clips are cut: `frames` frames of width x height, `stride` frames of the video apart; a clip begins every
    `step` frames of the video."""

    frames: int
    width: int
    height: int
    stride: int = 1
    step: int = 0

    def __post_init__(self) -> None:
        if min(self.frames, self.width, self.height, self.stride) < 1 or self.step < 0:
            raise ValueError(
                f"frames, width, height and stride must be at least 1 and step at least 0, got {self.frames}, "
                f"{self.width}, {self.height}, {self.stride} and {self.step}"
            )

    def starts(self, length: int) -> range:
        """First frames of the clips of a video; without a step, clips follow each other."""
        span = (self.frames - 1) * self.stride + 1
        return range(0, max(length - span + 1, 0), self.step or span)


def cut_clip(video: PosedVideo, start: int, cut: ClipCut) -> CutClip:
    """Read one clip of a video whose scene_scale is known.

    All frames get the camera of the narrowest one, by scaling and shifting the others, then a centred crop and a
    resize by area.

    Raises:
        DatasetError: the video's frames differ in size.
    """
    index = start + cut.stride * np.arange(cut.frames)
    shared = shared_camera(video, index)
    frames, fitted = [], None
    for frame in frames_of_camera(video, index, shared):
        small, fitted = fit_frames(frame[None], shared, cut.width, cut.height)
        frames.append(small[0])
    return CutClip(np.stack(frames), video.T_world_camera[index], fitted, np.asarray(video.scene_scale)[index])


def shared_camera(video: PosedVideo, index: np.ndarray) -> Intrinsics:
    """Return the camera of the narrowest of some frames of a video, which all of them can be shown with.

    Raises:
        DatasetError: the frames differ in size.
    """
    shared = max((video.intrinsics[i] for i in index), key=lambda k: k.fx)
    for i in index:
        camera = video.intrinsics[i]
        if (camera.width, camera.height) != (shared.width, shared.height):
            raise DatasetError(
                f"{video.name}: frame {i} is {camera.width}x{camera.height}, others of its clip are "
                f"{shared.width}x{shared.height}; frames of a video must be of one size"
            )
    return shared


def frames_of_camera(video: PosedVideo, index: np.ndarray, camera: Intrinsics) -> Iterator[np.ndarray]:
    """Read frames (H, W, 3) uint8 of a video, each as `camera` (of `shared_camera`) sees it."""
    for i in index:
        yield _to_camera(video.load(int(i)), video.intrinsics[i], camera)


def _to_camera(image: np.ndarray, camera: Intrinsics, wanted: Intrinsics) -> np.ndarray:
    """Show the image of one pinhole camera as another of the same size and place sees it."""
    difference = np.subtract((camera.fx, camera.fy, camera.cx, camera.cy), (wanted.fx, wanted.fy, wanted.cx, wanted.cy))
    if np.abs(difference).max() < _SAME * camera.width:
        return image
    x, y = wanted.fx / camera.fx, wanted.fy / camera.fy
    # OpenCV's pixels have the first centre at 0; ours at 0.5.
    move = [[x, 0, wanted.cx - 0.5 - x * (camera.cx - 0.5)], [0, y, wanted.cy - 0.5 - y * (camera.cy - 0.5)]]
    size = (wanted.width, wanted.height)
    return cv2.warpAffine(image, np.array(move), size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
