# SPDX-License-Identifier: Apache-2.0
"""The paper's loss: MSE + 0.5 (1 - cosine) between predicted and true velocity, the cosine per token."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def velocity_loss(predicted: Tensor, target: Tensor, moving: Tensor, patch: int, cosine_weight: float) -> Tensor:
    """Mean loss over the tokens of the frames that move.

    Args:
        predicted, target: velocities (B, F, h, w, C).
        moving: (B, F) bool, the frames that are denoised; clean ones have no loss.
        patch: cells to a token, per side.

    Returns:
        Scalar; 0 when nothing moves.
    """
    mse = (predicted - target).square().mean((2, 3, 4))  # (B, F)
    tokens = (rearrange(v, "b f (h p) (w q) c -> b f h w (p q c)", p=patch, q=patch) for v in (predicted, target))
    cosine = F.cosine_similarity(*tokens, dim=-1).mean((2, 3))  # (B, F)
    weight = moving.to(mse.dtype)
    return ((mse + cosine_weight * (1 - cosine)) * weight).sum() / weight.sum().clamp(min=1)
