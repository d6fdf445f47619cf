# SPDX-License-Identifier: Apache-2.0
"""Pose and views beside what a user would take instead, on the same windows in one run.

Windows are of held-out rendered scenes, or of posed clips (real video). Peers get the pictures at full resolution:
rendered ones are four times as large as the model's, as a real camera's picture is larger than what the model sees.
Ours resizes that picture itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy as np

from rays_as_pixels_model.comparison import psnr, rotation_warp
from rays_as_pixels_training import baselines_colmap, baselines_opencv
from rays_as_pixels_training.data import open_dataset
from rays_as_pixels_training.eval_windows import EvalWindow, video_windows
from rays_as_pixels_training.held_out import held_out_windows
from rays_as_pixels_training.metrics import last_against_first, pose_errors

LEAST_MOTION = 0.005  # model units; the hand-held clips move less than the rendered cameras (docs/real_clips.md)


def compare(pipe, count: int, steps: int, passes: int, refine: bool, clock: Callable[[], float],
            clips: Sequence[str] = ()) -> dict:  # fmt: skip
    """Measure on `count` held-out windows, and on as many of each posed clip; {method: ..., views: ..., clips: {...}}.

    Raises:
        DatasetError: a path of `clips` holds no posed video, or one that is shorter than a window.
    """
    config = pipe.config
    size = config.width, config.height
    how = steps, passes, refine, clock
    report = compare_windows(pipe, held_out_windows(count, config.frames, size), *how)
    videos = [video for path in clips for video in open_dataset(path)]
    if videos:
        report["clips"] = {
            video.name: compare_windows(pipe, video_windows([video], count, config.frames, size), *how)
            for video in videos
        }
    return report


def compare_windows(pipe, windows: list[EvalWindow], steps: int, passes: int, refine: bool,
                    clock: Callable[[], float]) -> dict:  # fmt: skip
    """Measure; {method: seconds_per_window, time_over_ours, errors}, and views beside copying and turning the source.

    Errors of windows that a method could not solve are those of standing still.
    """
    config = pipe.config
    truth = np.stack([w.T_first_camera() for w in windows])

    def ours(w: EvalWindow, **how) -> np.ndarray:
        return pipe.estimate_trajectory(w.full(), w.full_intrinsics, steps, **how).T_reference_camera

    methods = {
        "rays_as_pixels": lambda w: ours(w, passes=passes, refine=refine),
        "rays_as_pixels_model_alone": lambda w: ours(w, passes=passes, refine=False),
        "opencv_vo": lambda w: baselines_opencv.window_trajectory(w.full(), w.full_intrinsics),
    }
    if find_spec("pycolmap"):
        methods["colmap"] = lambda w: baselines_colmap.window_trajectory(w.full(), w.full_intrinsics)
    methods["rays_as_pixels"](windows[0])  # the first run of a model is no measure of it
    out = {name: {"seconds": [], "found": []} for name in methods}
    for window in windows:
        pictures = window.full()
        cached = _With(pictures, window.full_intrinsics)
        for name, method in methods.items():
            start = clock()
            try:
                found = method(cached)
            except baselines_opencv.MotionNotFound:
                found = None
            out[name]["seconds"].append(clock() - start)
            out[name]["found"].append(found)
    usual = float(np.median(out["rays_as_pixels"]["seconds"]))
    still = np.tile(np.eye(4), (config.frames, 1, 1))
    report = {}
    for name, result in out.items():
        T = np.stack([still if x is None else x for x in result["found"]])
        seconds = float(np.median(result["seconds"]))
        errors = pose_errors(last_against_first(T), last_against_first(truth), LEAST_MOTION)
        report[name] = {
            "seconds_per_window": seconds, "time_over_ours": seconds / usual,
            "failed": sum(x is None for x in result["found"]), "windows": len(windows),
            "rotation_error_deg": errors["rotation_error_deg_median"],
            "direction_error_deg": errors["translation_direction_error_deg_median"],
        }  # fmt: skip
    report["views"] = _views(pipe, windows, steps, clock)
    return report


class _With:
    """A window with its pictures at hand, so that no method pays for rendering them."""

    def __init__(self, pictures: np.ndarray, intrinsics) -> None:
        self._pictures, self.full_intrinsics = pictures, intrinsics

    def full(self) -> np.ndarray:
        return self._pictures


def _views(pipe, windows: list, steps: int, clock: Callable[[], float]) -> dict:
    """One source to one target: ours, the source as it is, and the source turned into the target's view."""
    seconds: dict[str, list] = {"rays_as_pixels": [], "copy_nearest": [], "rotation_warp": []}
    quality: dict[str, list] = {name: [] for name in seconds}
    for window in windows:
        case = window.views["one_source"]
        turn = case.T_world_source[0, :3, :3].T @ case.T_world_target[:3, :3]
        methods = {
            "rays_as_pixels": lambda case=case, w=window: pipe.render_views(
                case.sources, case.T_world_source, w.intrinsics, case.T_world_target[None],
                metres_per_unit=float(case.units[0]), steps=steps,
            ).frames[0],  # fmt: skip
            "copy_nearest": lambda case=case: case.sources[0].copy(),
            "rotation_warp": lambda case=case, w=window, R=turn: rotation_warp(case.sources[0], w.intrinsics, R),
        }
        for name, method in methods.items():
            start = clock()
            view = method()
            seconds[name].append(clock() - start)
            quality[name].append(psnr(view, case.target))
    return {
        name: {"seconds_per_view": float(np.median(seconds[name])), "psnr": float(np.mean(quality[name]))}
        for name in seconds
    }
