# SPDX-License-Identifier: Apache-2.0
"""Joint generation: pictures of a scene to a video of it, the path of its camera, and where the pictures were taken.

The sequence is that of the paper: S - 1 single images, then the video, which starts at the first source. All sources
are clean images; of the rays only the first source's are given.

Axes: B batch, S sources, T frames of the video, H W pixels, k posterior draws.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .engine import Array, to_numpy, to_uint8
from .geometry import GeometryError, Intrinsics, fit_frames, invert
from .raxels import make_raxels, read_cameras
from .results import Imagined
from .sampler import Schedule, sample

if TYPE_CHECKING:
    from .pipeline import OnStep, Pipeline


def imagine(
    pipe: Pipeline,
    source_frames: np.ndarray,
    intrinsics: Intrinsics,
    steps: int = 20,
    seed: int = 0,
    on_step: OnStep | None = None,
    *,
    ray_steps: int | None = None,
    samples: int = 1,
    solver: str = "euler",
    shift: float = 1.0,
    guidance: float = 1.0,
) -> Imagined:
    """Draw a video and its camera path that start at a picture: see `Pipeline.imagine`."""
    if intrinsics is None:
        raise GeometryError("imagine needs the intrinsics of the sources, got None")
    schedule = Schedule(steps, steps if ray_steps is None else ray_steps, solver, shift)
    if min(schedule.z_steps, schedule.r_steps, samples) < 1:
        raise ValueError(f"need steps, ray_steps and samples >= 1, got {steps}, {ray_steps} and {samples}")
    model, config, video = pipe.model, pipe.config, pipe.config.groups
    sources = np.asarray(source_frames)
    sources = sources[None] if sources.ndim == 3 else sources
    sources, camera = fit_frames(sources, intrinsics, config.width, config.height)
    count, generator = len(sources), model.generator(seed)
    start = count - 1  # of the video, in frames and in latent frames: the other sources come before it
    groups, order = (1,) * start + video, np.roll(np.arange(count), -1)
    shape_z, shape_r = model.latent_shapes(samples, groups)
    z, r = (model.noise(shape, generator) for shape in (shape_z, shape_r))
    z[:, :count] = model.encode_frames(pipe._to_array(sources[order])[None], (1,) * count)
    known = make_raxels(np.eye(4)[None], camera, config.height // 2, config.width // 2)
    r[:, start] = model.encode_rays(model.array(known[None]))[:, 0]
    clean_z, clean_r = pipe._mask(samples, len(groups), range(count)), pipe._mask(samples, shape_r[1], [start])

    def preview(step: int, total: int, z: Array, r: Array) -> bool:
        return on_step(step, total, to_uint8(model.decode_frames(z[:1, start:], video)[0, -1]))

    velocity = pipe._velocity(samples, start, groups, clean_z, z, guidance, generator)
    z, r = sample(velocity, z, r, schedule, clean_z, clean_r, on_step=None if on_step is None else preview)
    frames = to_uint8(model.decode_frames(z[:, start:], video))  # (k, T, H, W, 3)
    T = [read_cameras(raxels, camera).T_reference_camera for raxels in to_numpy(model.decode_rays(r))]
    T = np.stack([invert(one[start]) @ one for one in T])  # (k, S - 1 + T, 4, 4)
    draws = (frames, T[:, start:]) if samples > 1 else None
    return Imagined(frames[0], T[0, start:], T[0, np.argsort(order)], camera, draws)
