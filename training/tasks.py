# SPDX-License-Identifier: Apache-2.0
"""The tasks as corners of one noising: which frames are clean, which have noise, at what times.

| task  | video                   | rays                                             |
|-------|-------------------------|--------------------------------------------------|
| pose  | clean                   | noise (the reference's own may be given)         |
| views | sources clean, targets noise | clean                                       |
| joint | first frame clean, rest noise | noise, or clean (camera-controlled video)  |
| mixed | source images clean, target images and video noise | clean                 |
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.layout import Layout
from rays_as_pixels_model.schedule import add_noise, draw_times
from rays_as_pixels_model.view_sources import reference_latents

from .config import TrainConfig
from .data.mixed import cut_mixed
from .data.turned import turn_windows
from .data.views import cut_views
from .data.windows import WindowBatch, cut_windows

TASKS = ("pose", "views", "joint")
"""The tasks that have a share in `TrainConfig.tasks`; "mixed" has one of its own, `TrainConfig.mixed`."""


@dataclass(frozen=True)
class TaskBatch:
    """One training batch: a window batch, its layout and the times (B, L), (B, T) of both modalities.

    What has time 1 has no loss: what is clean, and padding.
    """

    task: str
    windows: WindowBatch
    layout: Layout
    t_z: Tensor
    t_r: Tensor

    @property
    def groups(self) -> tuple[int, ...]:
        """Frames of each latent frame."""
        return self.layout.groups


def draw_step(
    source, config: TrainConfig, model_config, step: int, mine: Collection[int] | None = None
) -> dict[int, TaskBatch]:
    """Draw the parts of a step's batch (`mine`, by default all); one seed, step and source give the same parts.

    Every part has random numbers of its own, so how many processes share the parts changes nothing.
    """
    shares = [*(np.asarray(config.tasks) / sum(config.tasks) * (1 - config.mixed)), config.mixed]
    task = (*TASKS, "mixed")[np.random.default_rng([config.seed, step]).choice(4, p=shares)]
    parts = {}
    for part in range(max(config.parts, 1)):
        rng = np.random.default_rng([config.seed, step, part])
        count = config.batch // max(config.parts, 1)
        if mine is None or part in mine:
            parts[part] = _draw_part(task, *source.take(count, rng), rng, config, model_config)
        else:
            source.skip(count)
    return parts


def _draw_part(task: str, clips, slots: np.ndarray, rng: np.random.Generator, config: TrainConfig, model_config
               ) -> TaskBatch:  # fmt: skip
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 62)))
    b = len(slots)
    if task == "mixed":
        windows, layout, is_source, exists = cut_mixed(
            clips, slots, rng, config.mixed_images, model_config.frames, config.max_stride, model_config.codec.group
        )
        times = draw_times(b, generator)[:, None].expand(exists.shape)
        return TaskBatch(task, windows, layout, torch.where(is_source | ~exists, 1.0, times),
                         torch.ones(b, layout.frames))  # fmt: skip
    if task == "views":
        if model_config.views == "warped":  # one view, as it is rendered; as many sources in the whole part
            sources = int(rng.integers(1, config.view_frames))
            windows = cut_views(clips, slots, rng, model_config.views, sources)
            times = draw_times(b, generator)[:, None]
            ones = torch.ones(b, sources + 1)
            return TaskBatch(task, windows, Layout((1,) * (sources + 1)), torch.cat([ones[:, 1:], times], 1), ones)
        layout = Layout((1,) * config.view_frames)
        sources = rng.integers(1, config.view_frames, b)  # the first 1 .. T - 1 frames are sources
        windows = cut_windows(clips, slots, rng, config.view_frames, scattered=True, references=1)
        times = draw_times(b, generator)[:, None].expand(b, config.view_frames)
        is_source = torch.arange(config.view_frames)[None] < torch.from_numpy(sources)[:, None]
        return TaskBatch(task, windows, layout, torch.where(is_source, 1.0, times), torch.ones(b, config.view_frames))
    layout = Layout(model_config.groups)
    windows = cut_windows(
        clips, slots, rng, model_config.frames, max_stride=config.max_stride, references=None if task == "pose" else 1
    )
    if task == "pose" and model_config.pose_passes > 1 and not hasattr(windows, "encoded"):
        windows = turn_windows(windows, rng, config.turned)
    frames, latents = model_config.frames, len(layout.groups)
    t_r = draw_times(b, generator, config.pose_at_start if task == "pose" else 0.5)[:, None].repeat(1, frames)
    if task == "pose":
        known = torch.from_numpy(rng.random(b) < config.known_intrinsics)
        t_r[torch.arange(b)[known], windows.reference[known]] = 1.0
        return TaskBatch(task, windows, layout, torch.ones(b, latents), t_r)
    t_z = draw_times(b, generator)[:, None].repeat(1, latents)
    t_z[:, 0] = 1.0
    t_r[:, 0] = 1.0
    t_r[torch.from_numpy(rng.random(b) < 0.4)] = 1.0
    return TaskBatch(task, windows, layout, t_z, t_r)


def noised(
    model: RaysAsPixels, batch: TaskBatch, generator: torch.Generator
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return (z_t, r_t) and the target velocities (z, r) of a batch."""
    if hasattr(batch.windows, "encoded"):
        z1, r1 = batch.windows.encoded()
    else:
        z1, r1 = model.encode_frames(batch.windows.frames, batch.layout), model.encode_rays(batch.windows.raxels())
    if model.config.views == "warped" and batch.task in ("views", "mixed"):
        z1 = z1 - reference_latents(z1, batch.windows.reference, batch.layout, batch.t_z < 1)
    z0, r0 = (torch.randn(x.shape, generator=generator, device=x.device) for x in (z1, r1))
    return (add_noise(z1, z0, batch.t_z), add_noise(r1, r0, batch.t_r)), (z1 - z0, r1 - r0)


def to_device(batch: TaskBatch, device: torch.device) -> TaskBatch:
    """Move a batch."""
    if device.type == "cpu":
        return batch
    w = batch.windows
    moved = w.to(device) if hasattr(w, "to") else type(w)(
        w.frames.to(device, non_blocking=True),
        w.T_reference_camera.to(device, non_blocking=True),
        w.intrinsics.to(device, non_blocking=True),
        w.reference.to(device, non_blocking=True),
        None if w.inverse_depth is None else w.inverse_depth.to(device, non_blocking=True),
    )
    return TaskBatch(batch.task, moved, batch.layout.to(device), batch.t_z.to(device), batch.t_r.to(device))
