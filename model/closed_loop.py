# SPDX-License-Identifier: Apache-2.0
"""The closed loop: video to trajectory, trajectory to video, and back (paper: closed loop on DL3DV-140).

Small figures mean that the model agrees with itself; they need no truth, so a node can report them of what it sees.
Axes: K windows, T frames of a window, H W pixels. Units of translation are the model's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .comparison import psnr, ssim
from .engine import to_numpy
from .geometry import GeometryError, Intrinsics, fit_frames, rotation_angle_deg
from .results import LoopReport, TrajectoryEstimate
from .view_sources import view_sources

if TYPE_CHECKING:
    from .pipeline import Pipeline


def close_the_loop(pipe: Pipeline, frames: np.ndarray, intrinsics: Intrinsics, pose_steps: int = 1, view_steps: int = 1,
                   seed: int = 0, *, estimate: TrajectoryEstimate | None = None,
                   image_features: str | Path | None = None, video_features: str | Path | None = None) -> LoopReport:
    """Estimate each window's trajectory, render it from its first frame, and estimate it again from the rendering.

    The cheap path, for a node's health: one window and its `estimate` at hand. It costs one batch of
    T - 1 small view layouts and one estimate more.

    Args:
        frames: (T, H, W, 3) or (K, T, H, W, 3) uint8, T == config.frames; intrinsics: their camera.
        pose_steps, view_steps: of the sampler.
        estimate: of the window (reference 0), if it is known already; only for a single window.
        image_features, video_features: TorchScript files for FID and FVD, see `features`. FVD needs two windows or
            more; both mean something only over hundreds.

    Raises:
        ValueError: frames that are no windows, or an estimate for several windows.
        FeatureError: feature weights that cannot be used, or too few windows for them.
        GeometryError: frames and intrinsics that do not fit, or rays that no camera made.

    Note: R_err is the mean geodesic angle in radians, T_err the mean distance, of the second trajectory from the first,
        over all frames but the reference. Both trajectories have the reference frame and the unit (the scene's depth)
        in common, so nothing is aligned; the paper's own alignment and unit are not stated.
    """
    if intrinsics is None:
        raise GeometryError("close_the_loop needs the intrinsics of the frames, got None")
    frames = np.asarray(frames)
    windows = frames[None] if frames.ndim == 4 else frames
    if windows.ndim != 5 or len(windows) == 0 or windows.shape[1] != pipe.config.frames:
        raise ValueError(f"frames must be ([K,] {pipe.config.frames}, H, W, 3), got {frames.shape}")
    if estimate is not None and not np.allclose(estimate.T_reference_camera[0], np.eye(4), atol=1e-6):
        raise ValueError("close_the_loop needs an estimate whose reference is frame 0, got one of another frame")
    if estimate is not None and len(windows) != 1:
        raise ValueError(f"an estimate belongs to one window, got {len(windows)} windows")
    if image_features is not None or video_features is not None:
        from .features import FeatureError, Features, frechet_distance  # needs torch, which an ONNX engine does not

    if video_features is not None and len(windows) < 2:
        raise FeatureError(f"FVD needs at least 2 windows, got {len(windows)}")
    images = None if image_features is None else Features(image_features, pipe.device)
    videos = None if video_features is None else Features(video_features, pipe.device)
    parts = [_one(pipe, window, intrinsics, pose_steps, view_steps, seed, estimate) for window in windows]
    given, rendered, first, again = (np.stack(part) for part in zip(*parts, strict=True))
    turn = rotation_angle_deg(np.swapaxes(first[:, 1:, :3, :3], -1, -2) @ again[:, 1:, :3, :3])
    shift = np.linalg.norm(first[:, 1:, :3, 3] - again[:, 1:, :3, 3], axis=-1)
    made, wanted = rendered.reshape(-1, *rendered.shape[2:]), given[:, 1:].reshape(-1, *rendered.shape[2:])
    whole = np.concatenate([given[:, :1], rendered], axis=1)
    fid = None if images is None else frechet_distance(images(made), images(wanted))
    fvd = None if videos is None else frechet_distance(videos(whole), videos(given))
    if frames.ndim == 4:
        rendered, first, again = rendered[0], first[0], again[0]
    return LoopReport(
        R_err=float(np.radians(turn).mean()),
        T_err=float(shift.mean()),
        psnr=float(np.mean([psnr(a, b) for a, b in zip(made, wanted, strict=True)])),
        ssim=float(np.mean([ssim(a, b) for a, b in zip(made, wanted, strict=True)])),
        fid=fid, fvd=fvd, frames=rendered, T_first=first, T_again=again,
    )  # fmt: skip


def _one(pipe: Pipeline, window: np.ndarray, intrinsics: Intrinsics, pose_steps: int, view_steps: int, seed: int,
         estimate: TrajectoryEstimate | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return given (T, H, W, 3), rendered (T - 1, H, W, 3), and both trajectories (T, 4, 4) of one window."""
    given, camera = fit_frames(window, intrinsics, pipe.config.width, pipe.config.height)
    refine = estimate is not None and estimate.refined is not None  # by default it is the model that is judged
    if estimate is None:
        estimate = pipe.estimate_trajectory(given, camera, pose_steps, seed=seed, refine=refine)
    T = estimate.T_reference_camera
    views = [view_sources(pipe.config, given[:1], T[:1], camera, target) for target in T[1:]]
    sources, raxels = (np.stack(part) for part in zip(*views, strict=True))          # (V, 1, H, W, 3), (V, 2, h, w, 3)
    model, sources = pipe.model, sources.astype(np.float32) * np.float32(2 / 255) - 1
    made = pipe.render_batch(model.array(sources), model.array(raxels), view_steps, model.generator(seed))[:, 0]
    rendered = ((to_numpy(made) + 1) * 127.5).round().astype(np.uint8)
    video = np.concatenate([given[:1], rendered])
    again = pipe.estimate_trajectory(video, camera, pose_steps, seed=seed, refine=refine)
    return given, rendered, T, again.T_reference_camera
