# SPDX-License-Identifier: Apache-2.0
"""TUM RGB-D: `rgb.txt`, `groundtruth.txt` and, where it is there, `depth.txt`, which gives the scene's scale.

Ground truth is camera to world, optical axes, `time tx ty tz qx qy qz qw`, interpolated to the images' times; images
without ground truth around them are left out, and a gap of it begins a new video. The folder does not state its camera:
those of freiburg1, 2 and 3 are known by the folder's name, others are given.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from rays_as_pixels_model.media import read_image

from . import checks
from .posed import DatasetError, PosedVideo
from .scale import harmonic_depth
from .stamped import interpolate_poses, runs
from .undistort import stated_lens

# The calibration that the benchmark publishes for its three Kinects: fx fy cx cy (OpenCV's pixels), k1 k2 p1 p2 k3.
_CAMERAS = {
    "1": ("517.3,516.5,318.6,255.3", "0.2624,-0.9531,-0.0054,0.0026,1.1633"),
    "2": ("520.9,521.0,325.1,249.7", "0.2312,-0.7849,-0.0033,-0.0001,0.9172"),
    "3": ("535.4,539.2,320.1,247.6", ""),
}
_DEPTH_APART = 0.03  # seconds between an image and its depth image, at most


def detect(path: Path) -> bool:
    return (path / "rgb.txt").is_file() and (path / "groundtruth.txt").is_file()


def open_videos(
    path: Path,
    *,
    intrinsics: str = "",
    distortion: str = "",
    max_gap: float = 0.1,
    depth: bool = True,
    depth_factor: float = 5000.0,
) -> list[PosedVideo]:
    """Open a sequence.

    Args:
        intrinsics: fx,fy,cx,cy in pixels, top-left pixel centre at (0, 0), for folders that are not freiburg1, 2 or 3.
        distortion: k1,k2,p1,p2,k3 that go with it; none means none.
        max_gap: seconds between two ground truth poses, at most, around an image.
        depth: read the depth images' scale (a picture a frame is decoded when the dataset is opened).
        depth_factor: value of a depth image at one metre.
    """
    if not depth_factor > 0:
        raise DatasetError(f"{path}: depth_factor must be positive, got {depth_factor}")
    stamps, files, places = _listed(path / "rgb.txt")
    times, poses = _ground_truth(path / "groundtruth.txt")
    T_world_camera, valid = interpolate_poses(times, poses, stamps, max_gap)
    parts = runs(valid)
    if not parts:
        raise DatasetError(
            f"{path}: no two images have ground truth within {max_gap} s: images are from {stamps[0]:.3f} to "
            f"{stamps[-1]:.3f}, ground truth from {times[0]:.3f} to {times[-1]:.3f}"
        )
    size = checks.size_of(places[0], files[0])
    for where, file in zip(places, files, strict=True):
        if checks.size_of(where, file) != size:
            raise DatasetError(f"{where}: {file} is not {size[0]}x{size[1]} like the first image")
    lens = _lens(path, intrinsics, distortion, size)
    scale = _depth_scale(path, stamps, depth_factor) if depth and (path / "depth.txt").is_file() else None
    name = path.resolve().name
    return [
        PosedVideo(
            name=name if len(parts) == 1 else f"{name}/{number}",
            times=stamps[part],
            T_world_camera=T_world_camera[part],
            intrinsics=[lens.intrinsics] * len(part),
            load=lambda index, part=part: lens(read_image(files[part[index]])),
            metric=True,
            scene_scale=None if scale is None else scale[part],
        )
        for number, part in enumerate(parts)
    ]


def _listed(path: Path) -> tuple[np.ndarray, list[Path], list[str]]:
    """Read `time file` lines: times, files that exist, and their places."""
    stamps, files, places = [], [], []
    for where, words in checks.read_lines(path):
        if len(words) != 2:
            raise DatasetError(f"{where}: expected 'time file', got {' '.join(words)!r}")
        stamps.append(checks.numbers(where, words[:1], "time")[0])
        files.append(checks.existing(where, path.parent / words[1]))
        places.append(where)
    if not files:
        raise DatasetError(f"{path}: lists no images")
    return checks.increasing(stamps, lambda index: places[index]), files, places


def _ground_truth(path: Path) -> tuple[np.ndarray, np.ndarray]:
    times, poses, places = [], [], []
    for where, words in checks.read_lines(path):
        values = checks.numbers(where, words, "time tx ty tz qx qy qz qw")
        times.append(values[0])
        poses.append(checks.quaternion_pose(where, values[1:4], values[4:]))
        places.append(where)
    if not poses:
        raise DatasetError(f"{path}: holds no poses")
    return checks.increasing(times, lambda index: places[index]), np.stack(poses)


def _lens(path: Path, intrinsics: str, distortion: str, size: tuple[int, int]):
    if not intrinsics:
        found = re.search(r"freiburg([123])", path.resolve().name)
        if found is None:
            raise DatasetError(
                f"{path}: its camera is not known (the name holds no freiburg1, freiburg2 or freiburg3): give the "
                "options intrinsics=fx,fy,cx,cy and distortion=k1,k2,p1,p2,k3"
            )
        intrinsics, distortion = _CAMERAS[found[1]]
    return stated_lens(str(path), intrinsics, distortion, size)


def _depth_scale(path: Path, stamps: np.ndarray, factor: float) -> np.ndarray | None:
    """Return the harmonic mean depth (T,) of each image, metres; from neighbours where an image has no depth."""
    times, files, places = _listed(path / "depth.txt")
    nearest = np.abs(times[None] - stamps[:, None]).argmin(1)
    scale = np.full(len(stamps), np.nan)
    for index in np.flatnonzero(np.abs(times[nearest] - stamps) <= _DEPTH_APART):
        image = cv2.imread(str(files[nearest[index]]), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 2:
            raise DatasetError(f"{places[nearest[index]]}: {files[nearest[index]]} is not a depth image of one channel")
        row, column = np.nonzero(image)
        pixels = np.stack([column, row], axis=1) + 0.5
        scale[index] = harmonic_depth(pixels, image[row, column] / factor, (image.shape[1], image.shape[0]))
    known = np.flatnonzero(np.isfinite(scale))
    if not len(known):
        return None
    return np.exp(np.interp(stamps, stamps[known], np.log(scale[known])))
