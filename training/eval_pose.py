# SPDX-License-Identifier: Apache-2.0
"""Pose errors of a model and of every baseline on the same windows.

Axes: N windows, T frames, H W pixels. Estimated cameras are in the first camera of their window, in model units; those
of OpenCV and COLMAP have no scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.geometry import GeometryError, Intrinsics, fit_frames, invert
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.raxels import make_raxels_batch, read_cameras
from rays_as_pixels_model.refinement import refine_cameras
from rays_as_pixels_model.turning import turn_back, turn_on

from . import baselines_colmap, baselines_opencv
from .baselines import constant_velocity_path, identity_path
from .eval_windows import EvalWindow, whole_clips
from .metrics import LEAST_MOTION, last_against_first, pose_errors
from .trajectory_metrics import chain, trajectory_errors, window_trajectory_errors

STEPS = (1, 2, 5, 20)
METHODS = ("rays_as_pixels", "identity", "constant_velocity", "opencv_vo", "colmap")
NO_SCALE = ("opencv_vo", "colmap")
BATCH = 50


@dataclass(frozen=True)
class Found:
    """What a method found: T_first_camera (n, T, 4, 4); failed (n,) bool, where it is the identity instead; rows (n,):
    which of the windows were tried."""

    T_first_camera: np.ndarray
    failed: np.ndarray
    rows: np.ndarray


def default_steps(task: Callable) -> int:
    """The steps that a method of `Pipeline` takes when nobody says how many."""
    return inspect.signature(task).parameters["steps"].default


def find_cameras(
    pipe: Pipeline,
    windows: Sequence[EvalWindow],
    methods: Iterable[str] = METHODS,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    colmap_windows: int | None = None,
    progress: Callable[[str], None] = lambda method: None,
) -> dict[str, Found]:
    """Run every method.

    `rays_as_pixels` is what the product does by default, with known intrinsics, and `_unknown_focal` without; beside it
    the model alone, not refined: as many steps as by default, each number of steps, and one pass where it takes more by
    default. `refined_from_rest` is the refinement without the model: begun from a camera that stands still.

    Args:
        colmap_windows: COLMAP gets at most this many windows, evenly spread (None: all).
        progress: called with the name of each method before it runs.
    """
    frames = pipe.config.frames
    every = np.arange(len(windows))
    sure = np.zeros(len(windows), bool)
    out = {}
    if "rays_as_pixels" in methods:
        video = torch.from_numpy(np.stack([w.frames for w in windows])).float() * (2 / 255) - 1
        cameras = [w.intrinsics for w in windows]
        usual = default_steps(Pipeline.estimate_trajectory)
        found = {}
        for count in sorted({usual, *steps}):
            progress(f"rays_as_pixels, {count} steps")
            found[count] = Found(*estimate_paths(pipe, video, cameras, count, seed), every)
        out["rays_as_pixels"] = _refined(pipe, windows, found[usual])
        out["rays_as_pixels_model_alone"] = found[usual]
        out.update({f"rays_as_pixels_{count}_steps": found[count] for count in sorted(set(steps))})
        if pipe.config.pose_passes > 1:
            progress("rays_as_pixels, one pass")
            out["rays_as_pixels_1_pass"] = Found(*estimate_paths(pipe, video, cameras, usual, seed, passes=1), every)
        progress("rays_as_pixels, unknown focal length")
        unknown = partial(_without_intrinsics, pipe, seed)
        out["rays_as_pixels_unknown_focal"] = _each(windows, every, frames, unknown)
        out["refined_from_rest"] = _refined(pipe, windows, Found(identity_path(len(windows), frames), sure, every))
    if "identity" in methods:
        out["identity"] = Found(identity_path(len(windows), frames), sure, every)
    if "constant_velocity" in methods:
        before = np.stack([w.T_before for w in windows])
        out["constant_velocity"] = Found(constant_velocity_path(before, frames), sure, every)
    if "opencv_vo" in methods:
        progress("opencv_vo")
        out["opencv_vo"] = _each(windows, every, frames, _opencv)
    if "colmap" in methods and find_spec("pycolmap") is not None:
        progress("colmap")
        count = min(len(windows), colmap_windows or len(windows))
        rows = np.linspace(0, len(windows) - 1, count).round().astype(int)
        out["colmap"] = _each(
            windows, rows, frames, lambda w: baselines_colmap.window_trajectory(w.full(), w.full_intrinsics, seed)
        )
    return out


def _without_intrinsics(pipe: Pipeline, seed: int, window: EvalWindow) -> np.ndarray | None:
    try:
        return pipe.estimate_trajectory(window.full(), None, seed=seed).T_reference_camera
    except GeometryError:  # no camera made these rays
        return None


def _refined(pipe: Pipeline, windows: Sequence[EvalWindow], found: Found) -> Found:
    """Adjust cameras to points tracked in the pictures, as `Pipeline.estimate_trajectory` does; failures stay such."""
    out = []
    for window, cameras, failed in zip(windows, found.T_first_camera, found.failed, strict=True):
        if failed:
            out.append(cameras)
            continue
        pictures, camera = fit_frames(window.full(), window.full_intrinsics, *pipe.config.picture_size)
        out.append(refine_cameras(pictures, cameras, camera).T_reference_camera)
    return Found(np.stack(out), found.failed, found.rows)


def _opencv(window: EvalWindow) -> np.ndarray | None:
    try:
        return baselines_opencv.window_trajectory(window.full(), window.full_intrinsics)
    except baselines_opencv.MotionNotFound:
        return None


def _each(windows, rows: np.ndarray, frames: int, method: Callable[[EvalWindow], np.ndarray | None]) -> Found:
    """Run a method window by window; where it finds nothing the camera stands still."""
    found = [method(windows[row]) for row in rows]
    failed = np.array([T is None for T in found])
    still = identity_path(1, frames)[0]
    return Found(np.stack([still if T is None else T for T in found]), failed, rows)


def estimate_paths(
    pipe: Pipeline,
    video: Tensor,
    cameras: Sequence,
    steps: int,
    seed: int = 0,
    known: bool = True,
    passes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate windows in batches, the first frame being the reference.

    Args:
        video: (N, T, H, W, 3) float32 in [-1, 1] at the model's size; cameras: N intrinsics of that size.
        known: whether the model is told the intrinsics.
        passes: as in `Pipeline.estimate_trajectory`.

    Returns:
        (N, T, 4, 4), camera to first, and (N,) bool: the raxels were no camera's, the identity stands for it.
    """
    out, lost = [], []
    generators = [torch.Generator().manual_seed(seed) for _ in range(passes or pipe.config.pose_passes)]
    for start in range(0, len(video), BATCH):
        part = slice(start, start + BATCH)
        given, T = cameras[part] if known else None, identity_path(len(video[part]), video.shape[1])
        found = given  # what the frames are turned back with; in the first pass they are not
        for generator in generators:
            turned_by = T[..., :3, :3]
            seen = turn_back_each(video[part], turned_by, found)
            T, found, failed = _estimate_once(pipe, seen, given, steps, generator)
            T = turn_on(T, turned_by)
        out.append(T)
        lost.append(failed)
    return np.concatenate(out), np.concatenate(lost)


def turn_back_each(video: Tensor, rotation: np.ndarray, cameras: Sequence[Intrinsics] | None) -> Tensor:
    """`turning.turn_back` of windows (n, T, H, W, 3) by (n, T, 3, 3); with no cameras none may be turned."""
    if cameras is None:
        return video
    windows = zip(video.numpy(), rotation, cameras, strict=True)
    return torch.from_numpy(np.stack([turn_back(*window) for window in windows]))


def _estimate_once(
    pipe: Pipeline, video: Tensor, cameras: Sequence[Intrinsics] | None, steps: int, generator: torch.Generator
) -> tuple[np.ndarray, list[Intrinsics], np.ndarray]:
    """One pass over windows: T (n, T, 4, 4), camera to first; their cameras, given or found; (n,) bool, those lost."""
    first = torch.eye(4, dtype=torch.float32).expand(len(video), 1, 4, 4)
    rays = None if cameras is None else window_raxels(pipe, first, cameras)[:, 0]
    decoded = pipe.estimate_batch(video.to(pipe.device), rays, 0, steps, generator)
    return read_paths(decoded, cameras, (pipe.config.width, pipe.config.height))


def read_paths(
    raxels: Tensor, cameras: Sequence[Intrinsics] | None, size: tuple[int, int]
) -> tuple[np.ndarray, list[Intrinsics], np.ndarray]:
    """Read decoded raxels (n, T, h, w, 3) of windows whose images have `size` (width, height).

    Returns:
        T (n, T, 4, 4), camera to first; the cameras, given or found; (n,) bool: those that no camera made, where T
            stands still.
    """
    still, T, found, failed = identity_path(1, raxels.shape[1])[0], [], [], []
    for row, images in enumerate(raxels.double().cpu().numpy()):
        try:
            reading = read_cameras(images, None if cameras is None else cameras[row], image_size=size)
        except GeometryError:  # no camera made these: the estimate failed
            reading = None
        failed.append(reading is None)
        T.append(still if reading is None else invert(reading.T_reference_camera[0]) @ reading.T_reference_camera)
        found.append(Intrinsics.from_fov(60.0, *size) if reading is None else reading.intrinsics)
    return np.stack(T), found, np.array(failed)


def window_raxels(pipe: Pipeline, T: Tensor, cameras: Sequence) -> Tensor:
    """Raxels (N, T, H/2, W/2, 3) on the model's device of cameras T (N, T, 4, 4) float32 with N intrinsics."""
    k = torch.tensor([[c.fx, c.fy, c.cx, c.cy] for c in cameras], dtype=torch.float32)
    width, height = pipe.config.width, pipe.config.height
    return make_raxels_batch(T[..., :3, :3], T[..., :3, 3], k, (width, height), height // 2, width // 2).to(pipe.device)


def pose_report(
    found: dict[str, Found],
    windows: Sequence[EvalWindow],
    rows: Sequence[int] | None = None,
    least_motion: float = LEAST_MOTION,
) -> dict:
    """Summarise the cameras found, of all windows or of some (`rows`).

    Returns:
        method to: the errors of the last frame against the first (`pose_errors`), medians of ATE and RPE over the
        windows (`trajectory_errors`, model units), `windows` and `failed` (percent).
    """
    chosen = np.arange(len(windows)) if rows is None else np.asarray(rows)
    truth = np.stack([w.T_first_camera() for w in windows])
    out = {}
    for method, own in found.items():
        keep = np.isin(own.rows, chosen)
        if not keep.any():
            continue
        T, true = own.T_first_camera[keep], truth[own.rows[keep]]
        errors = pose_errors(last_against_first(T), last_against_first(true), least_motion)
        if find_spec("evo") is not None:
            errors.update(window_trajectory_errors(T, true))
            if method in NO_SCALE:
                errors["ATE_se3"] = float("nan")  # without a scale of its own it says nothing
        out[method] = {**errors, "windows": int(keep.sum()), "failed": float(own.failed[keep].mean() * 100)}
    return out


def clip_trajectories(
    found: dict[str, Found], windows: Sequence[EvalWindow]
) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Chain the windows of each clip that meet end to end: clip to method to (estimate, truth), (n, 4, 4) each."""
    out = {}
    for clip, rows in whole_clips(windows).items():
        truth = chain(np.stack([invert(windows[r].T_world_camera[0]) @ windows[r].T_world_camera for r in rows]))
        out[clip] = {
            method: (chain(own.T_first_camera[np.searchsorted(own.rows, rows)]), truth)
            for method, own in found.items()
            if np.isin(rows, own.rows).all()
        }
    return out


def trajectory_report(trajectories: dict) -> dict:
    """ATE and RPE of chained clips in the unit of their poses, and the length of the true path."""
    out = {}
    for clip, methods in trajectories.items():
        out[clip] = {}
        for method, (estimate, truth) in methods.items():
            errors = trajectory_errors(estimate, truth)
            del errors["ATE_se3"]  # a chain of windows in model units has no scale
            steps = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1)
            out[clip][method] = {**errors, "path_length": float(steps.sum())}
    return out
