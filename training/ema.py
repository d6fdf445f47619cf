# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights: what evaluation and checkpoints use."""

from __future__ import annotations

import copy

import torch
from torch import nn

from .distributed import local


class Ema:
    """A frozen copy of a model that follows its parameters."""

    def __init__(self, model: nn.Module, decay: float, average: nn.Module | None = None) -> None:
        """Start from a copy of `model`, or from `average` where that was made already."""
        self.model = (copy.deepcopy(model) if average is None else average).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model`; early steps use a shorter memory."""
        decay = min(self.decay, (step + 1) / (step + 10))
        pairs = (map(local, m.transformer.parameters()) for m in (self.model, model))  # all that learns
        torch._foreach_lerp_(*map(list, pairs), 1 - decay)
