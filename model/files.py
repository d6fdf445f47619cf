# SPDX-License-Identifier: Apache-2.0
"""Write texts, pictures, videos and trajectories; read trajectories back.

Frames are (H, W, 3) uint8 RGB. Poses are camera to world, optical axes. Every file is written under a temporary name
beside its place and renamed, so that a reader never meets half of one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np

from .geometry import pose_from_quaternion, quaternion_from_matrix
from .media import MediaError


def check_writable(path: str | os.PathLike) -> None:
    """Check before long work that a file or folder can be made at a path.

    Raises:
        MediaError: what lies above it is no folder, or may not be written to.
    """
    above = next(parent for parent in Path(path).absolute().parents if parent.exists())
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        reason = "may not be written to" if above.is_dir() else "is no folder"
        raise MediaError(f"{path}: cannot be written: {above} {reason}")


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path beside `path` to write to; it becomes `path` when the block ends well, else it is removed.

    Raises:
        MediaError: the folder cannot be made or written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_png(path: str | os.PathLike, image: np.ndarray) -> None:
    """Write (H, W, 3) uint8 RGB as PNG."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise MediaError(f"{path}: a picture must be (H, W, 3) uint8, got {image.shape} {image.dtype}")
    good, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not good:
        raise MediaError(f"{path}: cannot be encoded as PNG")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> int:
    """Write frames (H, W, 3) uint8 RGB of one size as MP4 and return their number.

    H.264 through imageio-ffmpeg, which every player and browser shows; MPEG-4 through OpenCV where that is missing.
    Odd sizes get one more row or column, a copy of the last: H.264 stores colour at half resolution.
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise MediaError(f"{path}: a video needs at least one frame")
    height, width = first.shape[:2]
    size = (width + width % 2, height + height % 2)
    count = 0
    with replacing(path) as temporary:
        with _video_sink(temporary, size, fps) as sink:
            frame = first
            while frame is not None:
                if frame.shape != first.shape:
                    raise MediaError(f"{path}: frame {count} is {frame.shape}, the first is {first.shape}")
                sink(np.pad(frame, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
                count += 1
                frame = next(iterator, None)
    return count


@contextmanager
def _video_sink(path: Path, size: tuple[int, int], fps: float):
    """Open an encoder and give the function that takes its frames."""
    try:
        import imageio_ffmpeg

        imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), fps, size)
        if not writer.isOpened():
            raise MediaError(f"{path}: OpenCV cannot write MP4 here; install imageio-ffmpeg") from None
        try:
            yield lambda frame: writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        finally:
            writer.release()
        return
    writer = imageio_ffmpeg.write_frames(
        str(path), size, fps=fps, codec="libx264", pix_fmt_out="yuv420p", macro_block_size=2, ffmpeg_log_level="error",
        output_params=["-crf", "18", "-movflags", "+faststart"],
    )
    writer.send(None)
    try:
        yield lambda frame: writer.send(np.ascontiguousarray(frame))
    finally:
        writer.close()


def write_trajectory(
    path: str | os.PathLike, times: Sequence[float], T_world_camera: np.ndarray, comment: str = ""
) -> None:
    """Write poses (T, 4, 4) as TUM text: `time tx ty tz qx qy qz qw` a line, times in seconds."""
    lines = [f"# {comment}"] if comment else []
    lines.append("# time tx ty tz qx qy qz qw")
    quaternions = quaternion_from_matrix(T_world_camera[:, :3, :3])
    for time, translation, quaternion in zip(times, T_world_camera[:, :3, 3], quaternions, strict=True):
        lines.append(f"{time:.9f} " + " ".join(f"{value:.9f}" for value in (*translation, *quaternion)))
    write_text(path, "\n".join(lines) + "\n")


def read_trajectory(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read TUM text: times (T,) seconds and poses (T, 4, 4).

    Raises:
        MediaError: names the line that does not hold eight finite numbers with a unit quaternion.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MediaError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise MediaError(f"{path}: not a text file") from error
    times, poses = [], []
    for number, line in enumerate(lines, 1):
        fields = line.split("#", 1)[0].replace(",", " ").split()
        if not fields:
            continue
        try:
            values = np.array([float(field) for field in fields])
            if len(values) != 8 or not np.isfinite(values).all():
                raise ValueError("expected 8 finite numbers 'time tx ty tz qx qy qz qw'")
            poses.append(pose_from_quaternion(values[1:4], values[4:]))
        except ValueError as error:
            raise MediaError(f"{path}:{number}: {error}") from error
        times.append(values[0])
    if not poses:
        raise MediaError(f"{path}: holds no poses")
    return np.array(times), np.stack(poses)
