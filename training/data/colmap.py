# SPDX-License-Identifier: Apache-2.0
"""COLMAP: a sparse model (text or binary) and its images; lens distortion of every camera model is undone.

Needs pycolmap. One video for each folder of images, in the order of their names, numbers in them by value; the model
knows no times. Its pixels have the centre of the top-left one at (0.5, 0.5). The sparse points give the scene's scale.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, invert
from rays_as_pixels_model.media import by_number, read_image

from . import checks
from .posed import DatasetError, PosedVideo
from .scale import harmonic_depth
from .undistort import Undistorter

_MODELS = (".", "sparse/0", "sparse", "colmap/sparse/0")
_PARTS = ("cameras", "images", "points3D")
_UNDISTORTED = ("SIMPLE_PINHOLE", "PINHOLE")


def detect(path: Path) -> bool:
    return _model_folder(path) is not None


def _model_folder(path: Path) -> Path | None:
    for folder in (path / model for model in _MODELS):
        if any((folder / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder
    return None


def open_videos(path: Path, *, images: str = "", fps: float = 30.0) -> list[PosedVideo]:
    """Open a folder with a sparse model.

    Args:
        images: folder of the images; by default images/ in the model's folder or up to three folders above it.
        fps: frames per second, since the model states no times.
    """
    model = _model_folder(path)
    if model is None:
        raise DatasetError(f"{path}: no cameras.bin or cameras.txt in {', '.join(_MODELS)}")
    if not fps > 0:
        raise DatasetError(f"{path}: fps must be positive, got {fps}")
    reconstruction = _read(model)
    folder = _image_folder(model, images)
    sequences: dict[str, list] = {}
    for image in sorted(reconstruction.images.values(), key=lambda image: by_number(image.name)):
        if image.has_pose:
            sequences.setdefault(str(Path(image.name).parent), []).append(image)
    videos = [
        _video(path.resolve().name if name == "." else name, model, folder, reconstruction, part, fps)
        for name, part in sequences.items()
        if len(part) >= 2
    ]
    if not videos:
        raise DatasetError(f"{model}: holds no two images with poses in one folder")
    return videos


def _read(model: Path):
    """Read the model with pycolmap, after the checks that it does not make."""
    try:
        import pycolmap
    except ImportError as error:
        raise DatasetError(f"{model}: reading COLMAP needs pycolmap: pip install pycolmap ({error})") from error
    suffix = ".bin" if (model / "cameras.bin").is_file() else ".txt"
    for part in _PARTS:
        if not (model / f"{part}{suffix}").is_file():
            raise DatasetError(f"{model / part}{suffix}: no such file; a model is {', '.join(_PARTS)} of one format")
    if suffix == ".txt":
        _check_text(model)
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (ValueError, RuntimeError, IndexError, KeyError) as error:
        raise DatasetError(f"{model}: not a readable COLMAP model: {error}") from error
    for image in reconstruction.images.values():
        if image.has_pose:
            checks.rigid(f"{model}: image {image.name!r}", image.cam_from_world().matrix())
    return reconstruction


def _check_text(model: Path) -> None:
    """Find lines of cameras.txt and images.txt that pycolmap would stumble over or put right in silence."""
    cameras = set()
    for where, words in checks.read_lines(model / "cameras.txt"):
        if len(words) < 5:
            raise DatasetError(f"{where}: expected 'CAMERA_ID MODEL WIDTH HEIGHT PARAMS...', got {len(words)} words")
        checks.numbers(where, words[2:4], "WIDTH HEIGHT")
        checks.numbers(where, words[4:], " ".join(f"PARAM{i}" for i in range(len(words) - 4)))
        cameras.add(words[0])
    # Every other line holds the image's points and may be empty, so that empty lines count here.
    lines = (model / "images.txt").read_text(encoding="utf-8").splitlines()
    rows = [(number, line) for number, line in enumerate(lines, 1) if not line.startswith("#")]
    for number, line in rows[::2]:
        words, where = line.split(), f"{model / 'images.txt'}:{number}"
        if not words:
            continue
        if len(words) < 10:
            raise DatasetError(f"{where}: expected 'IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME'")
        qw, *values = checks.numbers(where, words[1:8], "QW QX QY QZ TX TY TZ")
        checks.quaternion_pose(where, values[3:], [*values[:3], qw])
        if words[8] not in cameras:
            raise DatasetError(f"{where}: camera {words[8]} is not in cameras.txt, which has {', '.join(cameras)}")


def _image_folder(model: Path, images: str) -> Path:
    if images:
        folders = [Path(images), model / images, model.parent / images, model.parent.parent / images]
    else:
        folders = [folder / "images" for folder in (model, *model.resolve().parents[:3])]
    for folder in folders:
        if folder.is_dir():
            return folder
    listed = ", ".join(map(str, folders))
    raise DatasetError(f"{model}: no images at {listed}: name their folder with the option images")


def _video(name: str, model: Path, folder: Path, reconstruction, images: list, fps: float) -> PosedVideo:
    files, lenses, poses, scale = [], [], [], np.full(len(images), np.nan)
    cache: dict[tuple, Undistorter] = {}
    for index, image in enumerate(images):
        where = f"{model}: image {image.name!r}"
        files.append(folder / image.name)
        size = checks.size_of(where, files[-1])
        if (image.camera_id, size) not in cache:
            cache[image.camera_id, size] = _lens(where, reconstruction.cameras[image.camera_id], size)
        lenses.append(cache[image.camera_id, size])
        T_camera_world = checks.rigid(where, image.cam_from_world().matrix())
        poses.append(invert(T_camera_world))
        scale[index] = _sparse_scale(reconstruction, image, T_camera_world)
    known = np.flatnonzero(np.isfinite(scale))
    scene_scale = np.exp(np.interp(np.arange(len(images)), known, np.log(scale[known]))) if len(known) else None
    return PosedVideo(
        name=name,
        times=np.arange(len(images)) / fps,
        T_world_camera=np.stack(poses),
        intrinsics=[lens.intrinsics for lens in lenses],
        load=lambda index: lenses[index](read_image(files[index])),
        scene_scale=scene_scale,
    )


def _sparse_scale(reconstruction, image, T_camera_world: np.ndarray) -> float:
    """Harmonic mean depth of the model's points that an image observes; NaN with too few."""
    seen = image.get_observation_points2D()
    if not seen:
        return float("nan")
    pixels = np.array([point.xy for point in seen])
    points = np.array([reconstruction.points3D[point.point3D_id].xyz for point in seen])
    depth = points @ T_camera_world[2, :3] + T_camera_world[2, 3]
    camera = reconstruction.cameras[image.camera_id]
    return harmonic_depth(pixels[depth > 0], depth[depth > 0], (camera.width, camera.height))


def _lens(where: str, camera, size: tuple[int, int]) -> Undistorter:
    """Make the lens of a COLMAP camera at the size of its images."""
    K = camera.calibration_matrix()
    stated = checks.pinhole(where, K[0, 0], K[1, 1], K[0, 2], K[1, 2], camera.width, camera.height)
    intrinsics: Intrinsics = checks.at_size(where, stated, size)
    resized = np.array(size) / [camera.width, camera.height]

    def lens(slopes: np.ndarray) -> np.ndarray:
        rays = np.concatenate([slopes, np.ones((len(slopes), 1))], axis=1)
        return np.asarray(camera.img_from_cam(rays)) * resized

    return Undistorter(where, intrinsics, lens, identity=camera.model_name in _UNDISTORTED)
