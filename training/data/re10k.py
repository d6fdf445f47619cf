# SPDX-License-Identifier: Apache-2.0
"""RealEstate10K: camera text files, one a clip, and the frames that the user extracted from the videos.

A file's first line is the video's URL; each line after it is `timestamp fx fy cx cy k1 k2` and a world-to-camera
matrix (3, 4) row by row. Timestamps are microseconds; focal lengths and centre are shares of the image's width and
height, with (0, 0) at the corner of the image; OpenCV axes. The frame of a line is CLIP/TIMESTAMP.png (or .jpg), where
CLIP is the text file's name without suffix, beside the file or below `frames`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import Distortion, invert
from rays_as_pixels_model.media import IMAGE_SUFFIXES, read_image

from . import checks
from .posed import DatasetError, PosedVideo
from .undistort import Undistorter, undistorter

_COLUMNS = "timestamp fx fy cx cy k1 k2 " + " ".join(f"P{row}{column}" for row in range(3) for column in range(4))


def detect(path: Path) -> bool:
    return path.is_dir() and any(_is_camera_file(file) for file in path.glob("*.txt"))


def _is_camera_file(file: Path) -> bool:
    try:
        with file.open(encoding="utf-8") as text:
            return text.read(8).startswith(("http://", "https:/"))
    except (OSError, UnicodeDecodeError):
        return False


def open_videos(path: Path, *, frames: str = "", skip_missing: bool = False) -> list[PosedVideo]:
    """Open a folder of camera files.

    Args:
        frames: folder that holds a folder of frames for each clip; by default beside the text files, in frames/ or in
            ../frames/NAME-OF-THIS-FOLDER/.
        skip_missing: leave out clips without a folder of frames (videos vanish from the web), instead of failing.
    """
    folders = [Path(frames)] if frames else [path, path / "frames", path.parent / "frames" / path.name]
    videos = []
    for file in sorted(file for file in path.glob("*.txt") if _is_camera_file(file)):
        found = [folder / file.stem for folder in folders if (folder / file.stem).is_dir()]
        if found:
            videos.append(_video(file, found[0]))
        elif not skip_missing:
            raise DatasetError(
                f"{file}: no folder {file.stem} with its frames in {', '.join(map(str, folders))}; name the folder "
                "with the option frames, or leave such clips out with skip_missing=true"
            )
    if not videos:
        raise DatasetError(f"{path}: none of its clips has frames in {', '.join(map(str, folders))}")
    return videos


def _video(file: Path, folder: Path) -> PosedVideo:
    """Read one clip."""
    images = {image.stem: image for image in folder.iterdir() if image.suffix.lower() in IMAGE_SUFFIXES}
    places, times, poses, lenses, files = [], [], [], [], []
    cache: dict[tuple, Undistorter] = {}
    for where, words in checks.read_lines(file):
        if words[0].startswith("http"):
            continue
        values = checks.numbers(where, words, _COLUMNS)
        image = images.get(words[0])
        if image is None:
            raise DatasetError(f"{where}: frame {words[0]} does not exist as {folder / words[0]}.png or .jpg")
        width, height = size = checks.size_of(where, image)
        key = (size, *values[1:7])
        if key not in cache:
            fx, fy, cx, cy = values[1:5] * [width, height, width, height]
            camera = checks.pinhole(where, fx, fy, cx, cy, width, height)
            cache[key] = undistorter(where, camera, Distortion("plumb_bob", (*values[5:7], 0.0, 0.0)))
        places.append(where)
        times.append(values[0] * 1e-6)
        poses.append(invert(checks.rigid(where, values[7:].reshape(3, 4))))
        lenses.append(cache[key])
        files.append(image)
    if len(poses) < 2:
        raise DatasetError(f"{file}: holds {len(poses)} frames; at least 2 are needed")
    return PosedVideo(
        name=file.stem,
        times=checks.increasing(times, lambda index: places[index]),
        T_world_camera=np.stack(poses),
        intrinsics=[lens.intrinsics for lens in lenses],
        load=lambda index: lenses[index](read_image(files[index])),
    )
