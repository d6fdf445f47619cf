# SPDX-License-Identifier: Apache-2.0
"""Noise times: 0 is noise, 1 is data, on the linear path x_t = (1 - t) x_0 + t x_1 with velocity x_1 - x_0."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def time_grid(steps: int, shift: float = 1.0) -> np.ndarray:
    """Return the times (steps + 1,) of a sampler from 0 to 1.

    `shift` > 1 spends more steps near the noise: t -> t / (t + shift (1 - t)).
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    t = np.linspace(0, 1, steps + 1)
    return t / (t + shift * (1 - t))


def draw_times(count: int, generator: torch.Generator, at_start: float = 0.5, end: float = 0.9) -> Tensor:
    """Draw training times (count,): a share `at_start` within 0.05 of noise, the rest up to `end`, denser near noise.

    One and two step sampling start from pure noise, so that is where a small model must be best.
    """
    import torch  # only training draws times: sampling runs without torch

    uniform = torch.rand(count, generator=generator)
    start = torch.rand(count, generator=generator) < at_start
    return torch.where(start, 0.05 * uniform, end * uniform**1.5)


def add_noise(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """Return x_t: data and noise (B, F, ...), t (B, F)."""
    t = t.reshape(*t.shape, *[1] * (data.ndim - t.ndim))
    return (1 - t) * noise + t * data
