# SPDX-License-Identifier: Apache-2.0
"""Nerfstudio's layout, as DL3DV ships: `transforms.json` and the images it names, one sequence.

Its poses are camera to world with OpenGL camera axes (x right, y up, z back), converted here. Its pixels have the
centre of the top-left one at (0.5, 0.5). Frames are ordered by their file's name, numbers in it by value; the file
knows no times.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import Distortion, GeometryError
from rays_as_pixels_model.media import by_number, read_image

from . import checks
from .posed import DatasetError, PosedVideo
from .undistort import Undistorter, undistorter

_FILE = "transforms.json"
_OPENGL_TO_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
_SMALLER = (2, 4, 8, 16)  # images_4 holds the images at a quarter of their size
_CAMERA_KEYS = ("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "k2", "k3", "k4", "p1", "p2", "camera_angle_x")
_PINHOLES = ("PINHOLE", "SIMPLE_PINHOLE", "OPENCV", "SIMPLE_RADIAL", "RADIAL", "PERSPECTIVE")


def detect(path: Path) -> bool:
    return (path / _FILE).is_file()


def open_videos(path: Path, *, fps: float = 30.0, images: str = "") -> list[PosedVideo]:
    """Open a folder with transforms.json.

    Args:
        fps: frames per second, since the file states no times.
        images: folder that holds the images instead of the one that the file names, e.g. images_4; by default the
            named one, or the first of images_2, images_4, images_8, images_16 that exists.
    """
    source = path / _FILE
    data = checks.read_json(source)
    frames = data.get("frames")
    if not isinstance(frames, list) or not all(isinstance(frame, dict) for frame in frames) or len(frames) < 2:
        raise DatasetError(f"{source}: needs a list 'frames' of at least 2 objects")
    if not fps > 0:
        raise DatasetError(f"{source}: fps must be positive, got {fps}")
    places = {id(frame): f"{source}: frame {number}" for number, frame in enumerate(frames)}
    for frame in frames:
        if missing := {"file_path", "transform_matrix"} - set(frame):
            raise DatasetError(f"{places[id(frame)]}: lacks {sorted(missing)[0]!r}")
    frames = sorted(frames, key=lambda frame: by_number(str(frame["file_path"])))
    files, poses, lenses = [], [], []
    cache: dict[tuple, Undistorter] = {}
    for frame in frames:
        where = places[id(frame)]
        pose = checks.rigid(where, frame["transform_matrix"])
        poses.append(pose @ _OPENGL_TO_OPENCV)
        files.append(_image(where, path, str(frame["file_path"]), images))
        stated = {key: frame.get(key, data.get(key)) for key in _CAMERA_KEYS}
        camera = {k: None if v is None else float(checks.numbers(where, [v], k)[0]) for k, v in stated.items()}
        model = str(frame.get("camera_model", data.get("camera_model", "OPENCV")))
        size = checks.size_of(where, files[-1])
        key = (model, size, *camera.values())
        if key not in cache:
            cache[key] = _lens(where, camera, model, size)
        lenses.append(cache[key])
    return [
        PosedVideo(
            name=path.resolve().name,
            times=np.arange(len(frames)) / fps,
            T_world_camera=np.stack(poses),
            intrinsics=[lens.intrinsics for lens in lenses],
            load=lambda index: lenses[index](read_image(files[index])),
        )
    ]


def _image(where: str, folder: Path, name: str, images: str) -> Path:
    """Find the file of a frame."""
    file = folder / name
    if not file.suffix:  # Blender's files leave it out
        file = file.with_suffix(".png")
    if images:
        return checks.existing(where, folder / images / file.name)
    if not file.is_file():
        for smaller in (folder / f"{file.parent.name}_{factor}" / file.name for factor in _SMALLER):
            if smaller.is_file():
                return smaller
    return checks.existing(where, file)


def _lens(where: str, camera: dict, model: str, size: tuple[int, int]) -> Undistorter:
    """Make the lens of a frame at the size of its image."""
    if model not in _PINHOLES and model != "OPENCV_FISHEYE":
        raise DatasetError(
            f"{where}: camera_model {model!r} is not known, use OPENCV_FISHEYE or one of {', '.join(_PINHOLES)}"
        )
    width, height = camera["w"] or size[0], camera["h"] or size[1]
    fx = camera["fl_x"]
    if fx is None and camera["camera_angle_x"] is not None:
        if not 0 < camera["camera_angle_x"] < math.pi:
            raise DatasetError(f"{where}: camera_angle_x must be between 0 and pi, got {camera['camera_angle_x']}")
        fx = 0.5 * width / math.tan(0.5 * camera["camera_angle_x"])
    if fx is None:
        raise DatasetError(f"{where}: no focal length: neither fl_x nor camera_angle_x is given")
    fy = camera["fl_y"] if camera["fl_y"] is not None else fx
    cx = camera["cx"] if camera["cx"] is not None else width / 2
    cy = camera["cy"] if camera["cy"] is not None else height / 2
    intrinsics = checks.at_size(where, checks.pinhole(where, fx, fy, cx, cy, width, height), size)
    k1, k2, k3, k4, p1, p2 = (camera[key] or 0.0 for key in ("k1", "k2", "k3", "k4", "p1", "p2"))
    if k4 and model != "OPENCV_FISHEYE":
        raise DatasetError(f"{where}: k4 is {k4}, but only OPENCV_FISHEYE has one; others end at k3")
    try:
        if model == "OPENCV_FISHEYE":
            distortion = Distortion("equidistant", (k1, k2, k3, k4))
        else:
            distortion = Distortion("plumb_bob", (k1, k2, p1, p2, k3))
    except GeometryError as error:
        raise DatasetError(f"{where}: {error}") from error
    return undistorter(where, intrinsics, distortion)
