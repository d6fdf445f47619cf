# SPDX-License-Identifier: Apache-2.0
"""Checks that datasets share; each raises DatasetError with the place (`file:line`, `file: frame N`) and what is right.

`where` is that place as text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import GeometryError, Intrinsics, check_pose, pose_from_quaternion
from rays_as_pixels_model.media import MediaError, image_size

from .posed import DatasetError

_ASPECT = 0.01  # a resized image may differ by this share in aspect: sizes are whole pixels


def read_json(path: Path) -> dict:
    """Read a JSON object."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DatasetError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(data, dict):
        raise DatasetError(f"{path}: must hold a JSON object, got {type(data).__name__}")
    return data


def read_lines(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (`file:line`, words) of the lines of a text file that are neither empty nor a # comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: not readable as text: {error}") from error
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield f"{path}:{number}", line.split()


def numbers(where: str, words: Sequence, expected: str) -> np.ndarray:
    """Read finite numbers; `expected` names them, one word each."""
    names = expected.split()
    try:
        values = np.array([float(word) for word in words])
    except (TypeError, ValueError) as error:
        raise DatasetError(f"{where}: expected the numbers {expected!r}: {error}") from error
    if len(values) != len(names):
        raise DatasetError(f"{where}: expected {len(names)} numbers {expected!r}, got {len(values)}")
    if not np.isfinite(values).all():
        raise DatasetError(f"{where}: {names[int(np.argmin(np.isfinite(values)))]} is not finite")
    return values


def rigid(where: str, matrix) -> np.ndarray:
    """Return a (4, 4) pose from (3, 4) or (4, 4) numbers whose left part must be a rotation."""
    try:
        pose = np.array(matrix, dtype=np.float64)
        if pose.shape == (3, 4):
            pose = np.vstack([pose, [0, 0, 0, 1]])
        return check_pose(pose, "the matrix")
    except (GeometryError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: {error}; R^T R must be I and det R +1") from error


def quaternion_pose(where: str, translation, xyzw) -> np.ndarray:
    """Return a (4, 4) pose from a translation and a unit quaternion."""
    try:
        return pose_from_quaternion(np.asarray(translation, float), np.asarray(xyzw, float))
    except GeometryError as error:
        raise DatasetError(f"{where}: {error}") from error


def pinhole(where: str, fx, fy, cx, cy, width, height) -> Intrinsics:
    """Return a camera whose numbers are in the package's convention (top-left pixel centre at (0.5, 0.5))."""
    try:
        return Intrinsics(float(fx), float(fy), float(cx), float(cy), int(width), int(height))
    except (GeometryError, TypeError, ValueError) as error:
        raise DatasetError(f"{where}: {error}") from error


def existing(where: str, path: Path) -> Path:
    """Return the path of a file that must be there."""
    if not path.is_file():
        raise DatasetError(f"{where}: names {path}, which does not exist")
    return path


def size_of(where: str, path: Path) -> tuple[int, int]:
    """Return (width, height) of an image file."""
    existing(where, path)
    try:
        return image_size(path)
    except MediaError as error:
        raise DatasetError(f"{where}: {error}") from error


def at_size(where: str, intrinsics: Intrinsics, size: tuple[int, int]) -> Intrinsics:
    """Return the camera for images of another size, which must have the same aspect."""
    width, height = size
    if abs(width * intrinsics.height / (height * intrinsics.width) - 1) > _ASPECT:
        raise DatasetError(
            f"{where}: the camera is for {intrinsics.width}x{intrinsics.height} images, but this one is "
            f"{width}x{height}; the same size, or the same aspect, is needed"
        )
    return intrinsics.resized(width, height)


def increasing(times: Sequence[float], where: Callable[[int], str]) -> np.ndarray:
    """Return times (T,) as float64, which must be finite and strictly increasing; `where(i)` is the place of time i."""
    known = np.asarray(times, dtype=np.float64)
    for index in np.flatnonzero(~np.isfinite(known)):
        raise DatasetError(f"{where(index)}: time {known[index]} is not finite")
    for index in np.flatnonzero(np.diff(known) <= 0) + 1:
        raise DatasetError(
            f"{where(index)}: time {known[index]:.6f} does not come after {known[index - 1]:.6f}, the one before it"
        )
    return known
