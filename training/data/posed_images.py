# SPDX-License-Identifier: Apache-2.0
"""Posed images: a folder with `cameras.json` and the images it names, one sequence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rays_as_pixels_model.media import MediaError, open_video, read_image

from .posed import DatasetError, PosedVideo


def detect(path: Path) -> bool:
    return (path / "cameras.json").is_file()


def open_videos(path: Path, *, metric: bool = False) -> list[PosedVideo]:
    """Open a posed-images folder.

    Args:
        metric: whether its lengths are metres; the file does not say.
    """
    try:
        video = open_video(path)
    except MediaError as error:
        raise DatasetError(str(error)) from error
    times = video.times if video.times is not None else np.arange(video.frame_count) / video.fps
    return [
        PosedVideo(
            name=path.resolve().name,
            times=times,
            T_world_camera=video.T_world_camera,
            intrinsics=video.frame_intrinsics,
            load=lambda index: read_image(video.files[index]),
            metric=metric,
        )
    ]
