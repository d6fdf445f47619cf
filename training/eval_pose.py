# SPDX-License-Identifier: Apache-2.0
"""Pose errors of a model and of every baseline on the same windows.

Axes: N windows, T frames, H W pixels. Estimated cameras are in the first camera of their window, in model units; those
of OpenCV and COLMAP have no scale.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
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
        progress("rays_as_pixels, refined")
        refined = _refined(pipe, windows, found[usual], seed)
        out["rays_as_pixels"] = refined.pop("rays_as_pixels")
        out["rays_as_pixels_model_alone"] = found[usual]
        out.update({f"rays_as_pixels_{count}_steps": found[count] for count in sorted(set(steps))})
        if pipe.config.pose_passes > 1:
            progress("rays_as_pixels, one pass")
            out["rays_as_pixels_1_pass"] = Found(*estimate_paths(pipe, video, cameras, usual, seed, passes=1), every)
        out.update(refined)
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


def _refined(pipe: Pipeline, windows: Sequence[EvalWindow], alone: Found, seed: int) -> dict[str, Found]:
    """What comes of the windows' pictures, each rendered or read once: the rows that are refined.

    Args:
        alone: what the model says by itself; where it failed, so has the refined row.
    """
    still, rows = identity_path(1, pipe.config.frames)[0], []
    for window, cameras, failed in zip(windows, alone.T_first_camera, alone.failed, strict=True):
        whole = window.full()
        pictures, camera = fit_frames(whole, window.full_intrinsics, *pipe.config.picture_size)
        try:
            unknown = pipe.estimate_trajectory(whole, None, seed=seed).T_reference_camera
        except GeometryError:  # no camera made these rays
            unknown = None
        refined = None if failed else refine_cameras(pictures, cameras, camera).T_reference_camera
        rows.append((refined, unknown, refine_cameras(pictures, still, camera).T_reference_camera))
    names = "rays_as_pixels", "rays_as_pixels_unknown_focal", "refined_from_rest"
    columns = zip(*rows, strict=True)
    return {name: _found(column, alone.rows, still) for name, column in zip(names, columns, strict=True)}


def _opencv(window: EvalWindow) -> np.ndarray | None:
    try:
        return baselines_opencv.window_trajectory(window.full(), window.full_intrinsics)
    except baselines_opencv.MotionNotFound:
        return None


def _each(windows, rows: np.ndarray, frames: int, method: Callable[[EvalWindow], np.ndarray | None]) -> Found:
    """Run a method window by window; where it finds nothing the camera stands still."""
    return _found([method(windows[row]) for row in rows], rows, identity_path(1, frames)[0])


def _found(found: Sequence[np.ndarray | None], rows: np.ndarray, still: np.ndarray) -> Found:
    """Put what was found of each window (None: nothing) together."""
    failed = np.array([T is None for T in found])
    return Found(np.stack([still if T is None else T for T in found]), failed, rows)


def estimate_paths(
    pipe: Pipeline,
    video: Tensor,
    cameras: Sequence,
    steps: int,
    seed: int = 0,
    passes: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate windows in batches, the first frame being the reference.

    Args:
        video: (N, T, H, W, 3) float32 in [-1, 1] at the model's size; cameras: N intrinsics of that size.
        passes: as in `Pipeline.estimate_trajectory`.

    Returns:
        (N, T, 4, 4), camera to first, and (N,) bool: the raxels were no camera's, the identity stands for it.
    """
    out, lost = [], []
    generators = [torch.Generator().manual_seed(seed) for _ in range(passes or pipe.config.pose_passes)]
    for start in range(0, len(video), BATCH):
        part = slice(start, start + BATCH)
        T = identity_path(len(video[part]), video.shape[1])
        for generator in generators:
            turned_by = T[..., :3, :3]
            seen = turn_back_each(video[part], turned_by, cameras[part])
            T, failed = _estimate_once(pipe, seen, cameras[part], steps, generator)
            T = turn_on(T, turned_by)
        out.append(T)
        lost.append(failed)
    return np.concatenate(out), np.concatenate(lost)


def turn_back_each(video: Tensor, rotation: np.ndarray, cameras: Sequence[Intrinsics]) -> Tensor:
    """`turning.turn_back` of windows (n, T, H, W, 3) by (n, T, 3, 3)."""
    windows = zip(video.numpy(), rotation, cameras, strict=True)
    return torch.from_numpy(np.stack([turn_back(*window) for window in windows]))


def _estimate_once(
    pipe: Pipeline, video: Tensor, cameras: Sequence[Intrinsics], steps: int, generator: torch.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """One pass over windows: T (n, T, 4, 4), camera to first; (n,) bool, those lost."""
    first = torch.eye(4, dtype=torch.float32).expand(len(video), 1, 4, 4)
    rays = window_raxels(pipe, first, cameras)[:, 0]
    decoded = pipe.estimate_batch(video.to(pipe.device), rays, 0, steps, generator)
    return read_paths(decoded, cameras, (pipe.config.width, pipe.config.height))


def read_paths(
    raxels: Tensor, cameras: Sequence[Intrinsics], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Read decoded raxels (n, T, h, w, 3) of windows whose images have `size` (width, height).

    Returns:
        T (n, T, 4, 4), camera to first; (n,) bool: those that no camera made, where T stands still.
    """
    still, T, failed = identity_path(1, raxels.shape[1])[0], [], []
    for row, images in enumerate(raxels.double().cpu().numpy()):
        try:
            reading = read_cameras(images, cameras[row], image_size=size)
        except GeometryError:  # no camera made these: the estimate failed
            reading = None
        failed.append(reading is None)
        T.append(still if reading is None else invert(reading.T_reference_camera[0]) @ reading.T_reference_camera)
    return np.stack(T), np.array(failed)


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
