# SPDX-License-Identifier: Apache-2.0
"""The windows that an evaluation judges every method on: the same frames, cameras and unit for all.

Axes: N windows, T frames, S sources, H W pixels. Poses are camera to world. The unit of a window is the harmonic mean
depth of its first frame, in the world's unit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, fit_frames, invert

from .data.clips import frames_of_camera, shared_camera
from .data.posed import DatasetError, PosedVideo
from .data.scale import with_scene_scale

# Views in steps from a window's first frame: the sources and the target.
VIEW_CASES = {"one_source": ((0,), 3), "two_sources": ((0, 4), 2)}


@dataclass(frozen=True)
class ViewCase:
    """sources (S, H, W, 3) uint8 and target (H, W, 3) at the model's size; T_world_source (S, 4, 4), T_world_target
    (4, 4); units (S,): scene scale of each source, world units."""

    sources: np.ndarray
    T_world_source: np.ndarray
    target: np.ndarray
    T_world_target: np.ndarray
    units: np.ndarray


@dataclass(frozen=True)
class EvalWindow:
    """One judged window.

    Attributes:
        clip: name of what it was cut from; start: its first frame there.
        frames: (T, H, W, 3) uint8 at the model's size; intrinsics: their camera.
        T_world_camera: (T, 4, 4).
        unit: world units in one model unit.
        T_before: (4, 4), motion over the step before the window, camera to the camera before, model units.
        full: gives (T, H', W', 3) uint8 at full resolution; full_intrinsics: their camera (all frames have that of the
            narrowest one).
        views: the view cases that fit.
    """

    clip: str
    start: int
    frames: np.ndarray
    intrinsics: Intrinsics
    T_world_camera: np.ndarray
    unit: float
    T_before: np.ndarray
    full: Callable[[], np.ndarray]
    full_intrinsics: Intrinsics
    views: dict[str, ViewCase]

    def T_first_camera(self) -> np.ndarray:
        """Return (T, 4, 4), cameras in the first one, model units."""
        return in_first_camera(self.T_world_camera, self.unit)


def in_first_camera(T_world_camera: np.ndarray, unit: float) -> np.ndarray:
    """Return (T, 4, 4), cameras in the first one, lengths divided by `unit`."""
    T = invert(T_world_camera[0]) @ T_world_camera
    T[:, :3, 3] /= unit
    return T


def video_windows(
    videos: Sequence[PosedVideo],
    count: int,
    frames: int,
    size: tuple[int, int],
    stride: int = 1,
    say: Callable[[str], None] = lambda text: None,
) -> list[EvalWindow]:
    """Cut windows that meet at their end frames from every video, so that they chain to a trajectory.

    Where that gives more than `count`, each video keeps its share, evenly spread.

    Args:
        count: at most this many windows in all.
        frames: T; size: (width, height) of the model.
        stride: frames from one frame of a window to the next.
        say: told which videos are left out, and why.

    Raises:
        DatasetError: no video is long enough for one window and the step before it, or of none could the scene's scale
            be measured; a frame cannot be read.
    """
    span = stride * (frames - 1)
    least = stride + span + 1
    if short := [video.name for video in videos if len(video) < least]:
        why = f"a window of {frames} frames at stride {stride} and the step before it need {least} frames"
        if len(short) == len(videos):
            raise DatasetError(f"none of the {len(videos)} videos is long enough: {why}; take a smaller stride")
        say(f"left out {', '.join(short)}: {why}")
        videos = [video for video in videos if len(video) >= least]
    if len(videos) > count:
        videos = [videos[i] for i in np.linspace(0, len(videos) - 1, count).round().astype(int)]
    starts = [np.arange(stride, len(video) - span, span) for video in videos]
    total = sum(map(len, starts))
    if total > count:
        shares = [max(1, len(s) * count // total) for s in starts]
        starts = [
            s[np.linspace(0, len(s) - 1, share).round().astype(int)] for s, share in zip(starts, shares, strict=True)
        ]
    windows = []
    for video, own in zip(videos, starts, strict=True):
        try:
            known = with_scene_scale(video)
        except DatasetError as error:
            say(f"left out {error}")
            continue
        windows += [_video_window(known, int(start), frames, size, stride) for start in own]
    if not windows:
        raise DatasetError(f"none of {len(videos)} videos could be used: of none could the scene's scale be measured")
    return windows


def _video_window(video: PosedVideo, start: int, frames: int, size: tuple[int, int], stride: int) -> EvalWindow:
    index = start + stride * np.arange(frames)
    camera = shared_camera(video, index)
    poses = video.T_world_camera[index]

    def full() -> np.ndarray:
        return np.stack(list(frames_of_camera(video, index, camera)))

    pictures = full()
    units = np.asarray(video.scene_scale[index], dtype=np.float64)
    fitted, fitted_camera = fit_frames(pictures, camera, *size)
    before = invert(video.T_world_camera[start - stride]) @ poses[0]
    before[:3, 3] /= units[0]
    views = {}
    for name, (sources, target) in VIEW_CASES.items():
        if max(*sources, target) < frames:
            rows = list(sources)
            views[name] = ViewCase(fitted[rows], poses[rows], fitted[target], poses[target], units[rows])
    return EvalWindow(video.name, start, fitted, fitted_camera, poses, float(units[0]), before, full, camera, views)


def whole_clips(windows: Sequence[EvalWindow]) -> dict[str, list[int]]:
    """Return, for each clip whose windows meet end to end, the indices of its windows in order."""
    out: dict[str, list[int]] = {}
    for index, window in enumerate(windows):
        out.setdefault(window.clip, []).append(index)
    return {
        clip: rows
        for clip, rows in out.items()
        if len(rows) > 1
        and all(
            np.array_equal(windows[a].T_world_camera[-1], windows[b].T_world_camera[0])
            for a, b in zip(rows, rows[1:], strict=False)
        )
    }
