# SPDX-License-Identifier: Apache-2.0
"""Solvers of the flow: from noise to data along a callable velocity.

The three tasks are corners of one schedule: which frames are clean from the start (time 1; they never move).
Axes: B batch, L latent frames, T frames.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .schedule import time_grid

Velocity = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(z, r, t_z (B, L), t_r (B, T)) to the velocities of z and r."""


class Cancelled(Exception):
    """The caller's `on_step` asked to stop."""


@torch.no_grad()
def euler(velocity: Velocity, z: Tensor, r: Tensor, clean_z: Tensor, clean_r: Tensor, steps: int, shift: float = 1.0,
          on_step: Callable[[int, int, Tensor, Tensor], bool] | None = None) -> tuple[Tensor, Tensor]:
    """Integrate from t = 0 to 1 with Euler steps.

    Args:
        velocity: see `Velocity`.
        z: (B, L, ...) and r: (B, T, ...): clean data where `clean_*` is true, noise elsewhere.
        clean_z: (B, L) bool; clean_r: (B, T) bool.
        steps, shift: see `schedule.time_grid`.
        on_step: called after each step with (step, steps, z, r), where z and r are the data as far as it can be told
            from here (x_t + (1 - t) v); False stops.

    Raises:
        Cancelled: on_step returned False.
    """
    times = time_grid(steps, shift).to(z.device)
    move_z = (~clean_z).reshape(*clean_z.shape, *[1] * (z.ndim - 2)).to(z.dtype)
    move_r = (~clean_r).reshape(*clean_r.shape, *[1] * (r.ndim - 2)).to(r.dtype)
    for step in range(steps):
        now, after = times[step], times[step + 1]
        one = torch.ones((), device=z.device)
        v_z, v_r = velocity(z, r, torch.where(clean_z, one, now), torch.where(clean_r, one, now))
        if on_step is not None:
            data = z + (1 - now) * move_z * v_z, r + (1 - now) * move_r * v_r
        z, r = z + (after - now) * move_z * v_z, r + (after - now) * move_r * v_r
        if on_step is not None and not on_step(step + 1, steps, *data):
            raise Cancelled(f"cancelled at step {step + 1} of {steps}")
    return z, r
