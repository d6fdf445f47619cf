# SPDX-License-Identifier: Apache-2.0
"""Read videos, image folders, posed images and webcams as frames.

Frames are (H, W, 3) uint8 RGB. Poses are camera to world, optical axes.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from .geometry import GeometryError, Intrinsics, check_pose

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
DEFAULT_FPS = 30.0
_EXIF_ORIENTATION = 0x0112
_EXIF_TURNED = 5  # this orientation and above swap width and height
BAG_SUFFIXES = (".mcap", ".db3", ".bag")
_BAG_KEY = "rosbag2_bagfile_information"  # of the metadata.yaml of a bag; others write files of that name, too
_HEAD = 1 << 16  # characters of it that are looked at


class MediaError(ValueError):
    """Input or output that cannot be read or written; the message is one line and names the file."""


def by_number(name: str) -> list[str | int]:
    """Return a sorting key under which numbers in file names count by value: frame_2 comes before frame_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


class Video:
    """Frames with their size, rate and, where the source knows them, cameras. Iterating starts anew each time.

    Attributes:
        name: the path, or `webcam N`.
        width, height: of every frame, pixels.
        fps: frames per second.
        frame_count: number of frames, None if not known beforehand (webcam, some containers).
        times: (T,) seconds, or None: frame i is at i / fps.
        frame_intrinsics: T cameras, or None.
        T_world_camera: (T, 4, 4) true poses, or None.
    """

    def __init__(self, name, width, height, fps, frame_count, times=None, frame_intrinsics=None, T_world_camera=None):
        self.name, self.width, self.height, self.fps, self.frame_count = name, width, height, fps, frame_count
        self.times, self.frame_intrinsics, self.T_world_camera = times, frame_intrinsics, T_world_camera

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the frames."""
        return self.width, self.height

    @property
    def intrinsics(self) -> Intrinsics | None:
        """The first frame's camera, or None when the source does not know it."""
        return self.frame_intrinsics[0] if self.frame_intrinsics else None

    def time(self, index: int) -> float:
        """Seconds of frame `index`."""
        return float(self.times[index]) if self.times is not None else index / self.fps

    def __iter__(self) -> Iterator[np.ndarray]:
        raise NotImplementedError(f"{type(self).__name__} does not say how its frames are read")


class ImageSequence(Video):
    """Image files of one size, in order."""

    def __init__(self, name: str, files: Sequence[Path], fps: float = DEFAULT_FPS, **cameras):
        sizes = [image_size(file) for file in files]
        for file, size in zip(files, sizes, strict=True):
            if size != sizes[0]:
                raise MediaError(
                    f"{name}: images differ in size: {files[0].name} is {sizes[0][0]}x{sizes[0][1]}, "
                    f"{file.name} is {size[0]}x{size[1]}"
                )
        super().__init__(name, *sizes[0], fps, len(files), **cameras)
        self.files = list(files)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (read_image(file) for file in self.files)


class Capture(Video):
    """What OpenCV's VideoCapture opens: a video file, or a webcam by its number."""

    def __init__(self, name: str, source: str | int):
        self._source = source
        with self._opened(name) as capture:
            if not capture.isOpened():
                raise MediaError(f"{name}: cannot be opened as a video")
            good, first = capture.read()
            if not good:
                raise MediaError(f"{name}: no frame can be read from it")
            fps = capture.get(cv2.CAP_PROP_FPS)
            count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if isinstance(source, str) else 0
        height, width = first.shape[:2]
        known_fps = fps if np.isfinite(fps) and 0 < fps < 1000 else DEFAULT_FPS
        super().__init__(name, width, height, known_fps, count if count > 0 else None)

    @contextmanager
    def _opened(self, name: str) -> Iterator[cv2.VideoCapture]:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
        with _silent_opencv():
            capture = cv2.VideoCapture(self._source)
        try:
            yield capture
        finally:
            capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        with self._opened(self.name) as capture:
            while True:
                good, frame = capture.read()
                if not good:
                    return
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)


@contextmanager
def _silent_opencv() -> Iterator[None]:
    """Keep what OpenCV says of broken files from stderr: our one line says it."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        yield
    finally:
        cv2.utils.logging.setLogLevel(level)


def is_bag(path: Path) -> bool:
    """Say whether a path is a bag: a file named as one, or a folder with the metadata.yaml of one."""
    if path.is_file():
        return path.suffix in BAG_SUFFIXES
    try:
        with (path / "metadata.yaml").open(encoding="utf-8", errors="replace") as file:
            return _BAG_KEY in file.read(_HEAD)
    except OSError:
        return False


def open_video(path: str | os.PathLike, fps: float | None = None) -> Video:
    """Open a video file, an image, an image folder, a posed-images folder or a webcam (its number).

    Args:
        path: where; a number that names no file is a webcam.
        fps: rate of an image folder, or of posed images whose cameras.json states none.

    Raises:
        MediaError: nothing there, not readable, no images, images of different sizes, or an inconsistent cameras.json.
    """
    name, place = str(path), Path(path)
    if not place.exists():
        if name.isdecimal():
            return Capture(f"webcam {name}", int(name))
        raise MediaError(f"{name}: no such file or folder")
    if is_bag(place):
        raise MediaError(f"{name}: is a bag; `rays-as-pixels bag` reads those")
    if place.is_file():
        if place.suffix.lower() in IMAGE_SUFFIXES:
            return ImageSequence(name, [place], fps or DEFAULT_FPS)
        return Capture(name, name)
    if (place / "cameras.json").is_file():
        return _posed_images(place, fps)
    # Hidden files beside pictures are what file managers keep about them.
    files = [f for f in place.iterdir() if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")]
    files.sort(key=lambda file: by_number(file.name))
    if not files:
        raise MediaError(f"{name}: no images in this folder (looked for {' '.join(IMAGE_SUFFIXES)}, and cameras.json)")
    return ImageSequence(name, files, fps or DEFAULT_FPS)


def _posed_images(folder: Path, fps: float | None) -> ImageSequence:
    """Read a folder with cameras.json and the images it names."""
    path = folder / "cameras.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MediaError(f"{path}: not readable as JSON: {error}") from error
    frames = data.get("frames") if isinstance(data, dict) else None
    if not isinstance(frames, list) or not frames:
        raise MediaError(f"{path}: has no list of frames")
    if data.get("pose", "camera to world") != "camera to world" or "opencv" not in data.get("axes", "opencv"):
        raise MediaError(
            f"{path}: pose must be 'camera to world' and axes 'opencv', "
            f"got pose {data.get('pose')!r} and axes {data.get('axes')!r}"
        )
    centre = data.get("pixel_centre_of_top_left", [0, 0])
    if centre not in ([0, 0], [0.5, 0.5]):
        raise MediaError(f"{path}: pixel_centre_of_top_left must be [0, 0] or [0.5, 0.5], got {centre}")
    files, cameras, poses, times = [], [], [], []
    for index, frame in enumerate(frames):
        where = f"{path}: frame {index}"
        try:
            file = folder / frame["file"]
            numbers = [float(frame[key]) for key in ("fx", "fy", "cx", "cy")] + [data["width"], data["height"]]
            make = Intrinsics.from_opencv if centre == [0, 0] else Intrinsics
            cameras.append(make(*numbers))
            poses.append(check_pose(np.array(frame["T_world_camera"], dtype=np.float64), "T_world_camera"))
            times.append(float(frame["time"]) if "time" in frame else None)
        except KeyError as error:
            raise MediaError(f"{where} lacks {error}") from error
        except (GeometryError, TypeError, ValueError) as error:
            raise MediaError(f"{where}: {error}") from error
        if not file.resolve().is_relative_to(folder.resolve()):
            raise MediaError(f"{where} names {frame['file']!r}, which is outside the folder")
        if not file.is_file():
            raise MediaError(f"{where} names {frame['file']!r}, which does not exist")
        files.append(file)
    known_times = _checked_times(path, times)
    rate = data.get("fps") or fps
    if rate is None:
        rate = DEFAULT_FPS if known_times is None or len(frames) < 2 else float(1.0 / np.median(np.diff(known_times)))
    if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
        raise MediaError(f"{path}: fps must be a positive number, got {rate!r}")
    video = ImageSequence(
        str(folder), files, rate, times=known_times, frame_intrinsics=cameras, T_world_camera=np.stack(poses)
    )
    if video.size != (data["width"], data["height"]):
        raise MediaError(
            f"{path}: says {data['width']}x{data['height']}, but {files[0].name} is {video.width}x{video.height}"
        )
    return video


def _checked_times(path: Path, times: list[float | None]) -> np.ndarray | None:
    if all(time is None for time in times):
        return None
    if any(time is None for time in times):
        raise MediaError(f"{path}: frame {times.index(None)} lacks 'time', which others have")
    known = np.array(times)
    late = np.flatnonzero(np.diff(known) <= 0)
    if late.size or not np.isfinite(known).all():
        index = int(late[0]) + 1 if late.size else int(np.flatnonzero(~np.isfinite(known))[0])
        raise MediaError(f"{path}: frame {index}: time {times[index]} does not come after the frame before")
    return known


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return (width, height) as `read_image` gives them, without decoding the pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= _EXIF_TURNED
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file") from error
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS // 10**6
        raise MediaError(f"{path}: too large: images may have up to {most} million pixels") from error
    except (OSError, UnidentifiedImageError) as error:
        raise MediaError(f"{path}: not a readable image") from error
    return (height, width) if turned else (width, height)


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Read one image as (H, W, 3) uint8 RGB, turned as its EXIF data says."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise MediaError(f"{path}: no such file") from error
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}") from error
    if _is_cut_short(data):  # it would come out grey below
        raise MediaError(f"{path}: not a readable image: the file was cut short")
    try:
        with _silent_opencv():
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise MediaError(f"{path}: not a readable image")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _is_cut_short(data: bytes) -> bool:
    """Whether these are bytes of a JPEG that has no end of image behind its first scan.

    Segments are walked by their lengths: a preview in one has scans and an end of its own, and so may what phones put
    behind the picture (a second one, a film).
    """
    if data[:2] != b"\xff\xd8":
        return False
    at = 2
    while data[at : at + 1] == b"\xff":
        if data[at + 1 : at + 2] == b"\xda":
            return data.find(b"\xff\xd9", at) < 0
        filled = data[at + 1 : at + 2] == b"\xff"  # any number of these may stand before a marker
        at += 1 if filled else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at >= len(data)
