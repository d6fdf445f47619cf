# SPDX-License-Identifier: Apache-2.0
"""A quick evaluation during training, on held-out clips that stay the same: it chooses the best weights.

`rays-as-pixels eval` is the full one. Here: the last frame's camera against the first's with one denoising step in each
of the model's passes, and one view from one source with one. Each error is taken relative to a guess that costs nothing
(the camera stands still; the view is the source as the model is given it: warped, if its config says so), and
the score is their mean over the tasks that are trained: below 1 is better than guessing.

Axes: N windows, T frames.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.config import ModelConfig
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.turning import turn_on

from .config import LEAST_CLIPS
from .data.procedural import ClipConfig
from .data.source import ClipArrays
from .data.views import cut_views
from .data.windows import WindowBatch, cut_windows
from .eval_pose import estimate_paths, read_paths, turn_back_each
from .held_out import held_out_clips
from .metrics import last_against_first, pose_errors

_BATCH, _POSE_STEPS, _VIEW_STEPS, _STRIDE = 16, 1, 1, 2


def render_held_out(count: int, config: ClipConfig, textures: str | None = None) -> ClipArrays:
    """Render clips from seeds and textures that training never sees."""
    clips = held_out_clips(count, config, textures)
    return ClipArrays(
        np.stack([c.frames for c in clips]),
        np.stack([c.T_world_camera for c in clips]),
        np.array([[c.intrinsics.fx, c.intrinsics.fy, c.intrinsics.cx, c.intrinsics.cy] for c in clips], np.float32),
        np.stack([c.scene_scale for c in clips]).astype(np.float32),
    )


def read_held_out(
    folder: Path, count: int, shape: ModelConfig, say: Callable[[str], None] = lambda text: None
) -> ClipArrays:
    """Take clips from shards that are not trained on; the same shards give the same clips, each once.

    Args:
        say: told where there are fewer than `count`.

    Raises:
        ValueError: shards of latents, of another size than the model's, or with too few clips to judge by.
    """
    from .data.shards import ShardSource

    source = ShardSource(folder)
    if misfit := source.misfit(shape):
        raise ValueError(f"--eval-data {folder} {misfit}")
    if source.clips < LEAST_CLIPS:
        raise ValueError(f"--eval-data {folder} holds {source.clips} clips; an evaluation takes at least {LEAST_CLIPS}")
    if source.clips < count:
        say(f"--eval-data {folder} holds {source.clips} clips: evaluations are on these, not on {count} (--eval-clips)")
    return source.take(min(count, source.clips), np.random.default_rng(0))[0]


@dataclass(frozen=True)
class Estimates:
    """What the model made of held-out windows: of `pose` the raxels (N, T, H/2, W/2, 3) of a first pass and the cameras
    (N, T, 4, 4) of the last, targets (N, H, W, 3) of `views`, whose frames are source and target."""

    pose: WindowBatch
    raxels: Tensor
    T_first_camera: np.ndarray
    views: WindowBatch
    targets: Tensor


@torch.no_grad()
def estimate(model: RaysAsPixels, clips: ClipArrays, device: torch.device) -> Estimates:
    """Run both tasks on one window of each clip; the same clips give the same windows and noise."""
    pipe, rng, slots = Pipeline(model, device), np.random.default_rng(0), np.arange(len(clips.frames))
    length = model.config.frames
    longest = (clips.frames.shape[1] - 1) // (length - 1)
    pose = cut_windows(clips, slots, rng, length, augment=False, max_stride=min(_STRIDE, longest), references=1)
    views = cut_views(clips, slots, rng, model.config.views, 1, augment=False)
    generator, raxels, targets = torch.Generator().manual_seed(0), [], []
    known, rays = pose.raxels()[:, 0], views.raxels()
    for start in range(0, len(slots), _BATCH):
        part = slice(start, start + _BATCH)
        video, given = pose.frames[part].to(device), known[part].to(device)
        raxels.append(pipe.estimate_batch(video, given, 0, _POSE_STEPS, generator).float().cpu())
        sources = views.frames[part, :1].to(device)
        targets.append(pipe.render_batch(sources, rays[part].to(device), _VIEW_STEPS, generator)[:, 0].float().cpu())
    return Estimates(pose, torch.cat(raxels), _cameras(pipe, pose, torch.cat(raxels)), views, torch.cat(targets))


def _cameras(pipe: Pipeline, pose: WindowBatch, raxels: Tensor) -> np.ndarray:
    """Cameras (N, T, 4, 4) from the raxels of the first pass, and from the other passes that the model takes."""
    height, width = pose.frames.shape[2:4]
    cameras = [Intrinsics(*k, width, height) for k in pose.intrinsics.tolist()]
    T = read_paths(raxels, cameras, (width, height))[0]
    for _ in range(pipe.config.pose_passes - 1):
        turned_by = T[..., :3, :3]
        seen = turn_back_each(pose.frames, turned_by, cameras)
        T = turn_on(estimate_paths(pipe, seen, cameras, _POSE_STEPS, passes=1)[0], turned_by)
    return T


def way_of_scoring(clips: ClipArrays, passes: int, tasks: tuple[float, float, float], mixed: float = 0.0) -> dict:
    """Say how `score` comes about: only scores of the same way can be compared."""
    digest = hashlib.sha256(clips.frames.tobytes() + clips.poses.tobytes() + clips.scales.tobytes()).hexdigest()[:12]
    return {
        "clips": f"{len(clips.frames)} ({digest})",
        "pose_steps": _POSE_STEPS,
        "pose_passes": passes,
        "view_steps": _VIEW_STEPS,
        "stride": _STRIDE,
        "poses_count": tasks[0] > 0,
        "views_count": sum(tasks[1:]) + mixed > 0,
    }


def score(found: Estimates, tasks: tuple[float, float, float], mixed: float = 0.0) -> dict[str, float]:
    """Return errors, those of the guesses, and their mean ratio as `score`: lower is better."""
    truth = last_against_first(found.pose.T_reference_camera.numpy())
    estimated = pose_errors(last_against_first(found.T_first_camera), truth)
    still = pose_errors(np.broadcast_to(np.eye(4), truth.shape), truth)
    source, target = found.views.frames[:, 0], found.views.frames[:, 1]
    error, copied = (float((x - target).square().mean()) for x in (found.targets, source))
    out = {
        "rotation_error_deg": estimated["rotation_error_deg_median"],
        "rotation_error_deg_identity": still["rotation_error_deg_median"],
        "direction_error_deg": estimated["translation_direction_error_deg_median"],
        "view_psnr": float(10 * np.log10(4 / max(error, 1e-9))),
        "view_psnr_copy": float(10 * np.log10(4 / max(copied, 1e-9))),
    }
    ratios = []
    if tasks[0] > 0:
        ratios += [out["rotation_error_deg"] / max(out["rotation_error_deg_identity"], 1e-6)]
        ratios += [out["direction_error_deg"] / 90]
    if tasks[1] + tasks[2] + mixed > 0:
        ratios += [(error / max(copied, 1e-9)) ** 0.5]
    return {**{k: round(v, 4) for k, v in out.items()}, "score": round(float(np.nanmean(ratios)), 5)}
