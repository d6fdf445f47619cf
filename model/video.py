# SPDX-License-Identifier: Apache-2.0
"""Camera-controlled video on the paper's whole sequence: N_s source images, N_t target images and a video, each with
its rays, denoised together.

Axes: B batch, T frames of the sequence (images first, then the video), L its latent frames, S sources, V targets, N
frames of the video, H W pixels, k posterior draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from .engine import to_uint8
from .geometry import GeometryError, Intrinsics, check_pose, fit_frames, fit_intrinsics, invert
from .layers import keep_existing
from .layout import Layout
from .raxels import make_raxels
from .results import RenderedVideo
from .sampler import Schedule, sample
from .view_sources import reference_latents

if TYPE_CHECKING:
    from .pipeline import OnStep, Pipeline


@torch.no_grad()
def denoise_sequence(
    pipe: Pipeline,
    layout: Layout,
    frames: Tensor,
    is_source: Tensor,
    raxels: Tensor,
    reference: Sequence[int],
    schedule: Schedule,
    generator: torch.Generator,
    *,
    samples: int = 1,
    guidance: float = 1.0,
    on_step: Callable[[int, int, Tensor, Tensor], bool] | None = None,
) -> Tensor:
    """Denoise what is no source in a batch of sequences whose cameras are all known.

    Args:
        layout: of the batch; windows of different layouts are joined by `layout.batch_layouts`.
        frames: (B, T, H, W, 3) in [-1, 1]; only sources are looked at.
        is_source: (B, L) bool, any latent frames: images, or groups of the video.
        raxels: (B, T, H/2, W/2, 3).
        reference: (B,), the frame whose camera is the identity; where views are differences, a source image.
        schedule: with 0 ray steps.
        samples: posterior draws of each, k rows of the batch that follow each other.
        guidance: weight on the sources, see `sampler.guided`.

    Returns:
        (B k, T, H, W, 3) in [-1, 1]; sources as the codec gives them back, padding 0.
    """
    batch, count = len(frames) * samples, layout.images
    if is_source[:, count:].any():
        count = len(layout.groups)
    known = layout.groups[:count]
    z = pipe.model.noise(pipe.model.latent_shapes(batch, layout)[0], generator)
    layout = Layout(
        layout.groups,
        *(
            x if x is None or x.ndim == 1 else x.repeat_interleave(samples, 0).to(pipe.device)
            for x in (layout.times, layout.exists)
        ),
    )
    is_source = is_source.repeat_interleave(samples, 0).to(pipe.device)
    if known:  # a video without sources is not encoded, which a VAE takes long for
        sources = pipe.model.encode_frames(frames[:, : sum(known)].to(pipe.device), known)
        mask = is_source[:, :count, None, None, None]
        z[:, :count] = torch.where(mask, sources.repeat_interleave(samples, 0), z[:, :count])
    r = pipe.model.encode_rays(raxels.to(pipe.device)).repeat_interleave(samples, 0)
    there = layout.latent_exists()
    clean = is_source if there is None else is_source | ~there
    velocity = pipe._velocity(batch, np.repeat(reference, samples), layout, is_source, z, guidance, generator)

    def pictures(z: Tensor) -> Tensor:
        if pipe.config.views == "picture":
            return z
        return z + reference_latents(z, np.repeat(reference, samples), layout, ~clean)

    told = None if on_step is None else lambda step, total, z, r: on_step(step, total, pictures(z), r)
    z, _ = sample(velocity, z, r, schedule, clean, on_step=told)
    z = pictures(z)
    return keep_existing(layout.exists, pipe.model.decode_frames(z, layout))


def render_video(
    pipe: Pipeline,
    source_frames: np.ndarray,
    T_world_source: np.ndarray,
    source_intrinsics: Intrinsics,
    T_world_video: np.ndarray | None = None,
    T_world_target: np.ndarray | None = None,
    target_intrinsics: Intrinsics | None = None,
    *,
    reference: int = 0,
    source_times: Sequence[float] | None = None,
    target_times: Sequence[float] | None = None,
    metres_per_unit: float = 1.0,
    steps: int = 20,
    seed: int = 0,
    on_step: OnStep | None = None,
    samples: int = 1,
    solver: str = "euler",
    shift: float = 1.0,
    guidance: float = 1.0,
) -> RenderedVideo:
    """Render a video, sparse views, or both, of given cameras in one joint denoising: see `Pipeline.render_video`."""
    if not isinstance(pipe.model, torch.nn.Module):
        raise ValueError("render_video runs on a checkpoint by torch, not on an exported model")
    if source_intrinsics is None:
        raise GeometryError("render_video needs the intrinsics of the sources, got None")
    names = ("source", "target", "video")
    poses = [
        np.zeros((0, 4, 4)) if T is None or len(T) == 0 else check_pose(T, f"{name} pose").reshape(-1, 4, 4)
        for name, T in zip(names, (T_world_source, T_world_target, T_world_video), strict=True)
    ]
    count, targets, length = map(len, poses)
    if count == 0 or count != len(source_frames):
        raise ValueError(f"need one pose per source and at least one, got {len(source_frames)} frames, {count} poses")
    group = pipe.config.codec.group
    if targets + length == 0 or (length and (length - 1) % group):
        raise ValueError(f"need target poses, or 1 + {group} k video poses, got {targets} and {length}")
    if not 0 <= reference < count:
        raise ValueError(f"reference must be one of the {count} sources (0 to {count - 1}), got {reference}")
    if not (np.isfinite(metres_per_unit) and metres_per_unit > 0) or samples < 1:
        raise ValueError(f"need metres_per_unit > 0 and samples >= 1, got {metres_per_unit} and {samples}")
    schedule = Schedule(steps, 0, solver, shift)
    times = _image_times(source_times, target_times, count, targets)
    layout = Layout.window(count + targets, length, times, group)

    width, height = pipe.config.width, pipe.config.height
    fitted, camera = fit_frames(np.asarray(source_frames), source_intrinsics, width, height)
    other = camera if target_intrinsics is None else fit_intrinsics(target_intrinsics, width, height)
    T = invert(poses[0][reference]) @ np.concatenate(poses)
    T[:, :3, 3] /= metres_per_unit
    parts = ((T[:count], camera), (T[count:], other))
    raxels = np.concatenate([make_raxels(T, k, height // 2, width // 2) for T, k in parts])
    frames = torch.zeros(1, layout.frames, height, width, 3)
    frames[0, :count] = torch.from_numpy(fitted).float() * (2 / 255) - 1
    is_source = (torch.arange(len(layout.groups)) < count)[None]

    def preview(step: int, total: int, z: Tensor, r: Tensor) -> bool:
        return on_step(step, total, to_uint8(pipe.model.decode_frames(z[:1], layout)[0, -1]))

    out = denoise_sequence(
        pipe, layout, frames, is_source, torch.from_numpy(raxels)[None], [reference], schedule,
        torch.Generator().manual_seed(seed), samples=samples, guidance=guidance,
        on_step=None if on_step is None else preview,
    )  # fmt: skip
    made = to_uint8(out[:, count:])  # (k, V + N, H, W, 3)
    views, video = made[:, :targets], made[:, targets:]
    return RenderedVideo(video[0], views[0], other, (video, views) if samples > 1 else None)


def _image_times(
    source_times: Sequence[float] | None, target_times: Sequence[float] | None, sources: int, targets: int
) -> np.ndarray | None:
    """Places of the images in time, (S + V,), or None."""
    if source_times is None and target_times is None:
        return None
    given = [np.asarray([] if x is None else x, dtype=np.float32) for x in (source_times, target_times)]
    shapes = [x.shape for x in given]
    if shapes != [(sources,), (targets,)] or not np.isfinite(np.concatenate(given)).all():
        raise ValueError(
            f"times must be finite, one for each of {sources} sources and {targets} targets, or none at all; got "
            f"{source_times} and {target_times}"
        )
    return np.concatenate(given)
