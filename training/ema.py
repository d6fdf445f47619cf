# SPDX-License-Identifier: Apache-2.0
"""Exponential moving average of the weights: what evaluation and checkpoints use."""

from __future__ import annotations

import copy

import torch
from torch import nn


class Ema:
    """A frozen copy of a model that follows its parameters."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards `model`; early steps use a shorter memory."""
        decay = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
