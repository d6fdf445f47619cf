# SPDX-License-Identifier: Apache-2.0
"""The paper's loss: MSE + 0.5 (1 - cosine) between predicted and true velocity, the cosine per token."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def velocity_loss(
    predicted: Tensor,
    target: Tensor,
    moving: Tensor,
    patch: int,
    cosine_weight: float,
    weights: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean loss over the tokens of the frames that move.

    Args:
        predicted, target: velocities (B, F, h, w, C).
        moving: (B, F), the frames that are denoised, bool or how much each counts; clean ones have no loss.
        patch: cells to a token, per side.
        weights: (C,) each, of the squared error's mean over a frame's cells and of the deviations from it
            (`ray_weights`; `picture_weights` for both); None weighs all alike.

    Returns:
        Scalar; 0 when nothing moves.
    """
    error = predicted - target
    if weights is None:
        mse = error.square().mean((2, 3, 4))  # (B, F)
    else:
        mean = error.mean((2, 3), keepdim=True)
        mse = (weights[0] * mean.square() + weights[1] * (error - mean).square()).mean((2, 3, 4))
    tokens = (rearrange(v, "b f (h p) (w q) c -> b f h w (p q c)", p=patch, q=patch) for v in (predicted, target))
    cosine = F.cosine_similarity(*tokens, dim=-1).mean((2, 3))  # (B, F)
    weight = moving.to(mse.dtype)
    return ((mse + cosine_weight * (1 - cosine)) * weight).sum() / weight.sum().clamp(min=1)


def picture_weights(scale: Tensor) -> Tensor:
    """Weigh channels of image latents by what they are of a picture, so that the error is that of pixels.

    Normalised channels differ less in size than those of the codec, and what warped sources leave to find is mostly
    fine detail, which cannot be known: unweighted, the 3 of 48 channels that hold 43 % of a view's error have 6 % of
    the loss.

    Args:
        scale: (C,), pixels of a unit of each normalised channel (the codec's basis is orthonormal).

    Returns:
        (C,), 1 on average.
    """
    return scale.square() / scale.square().mean()


def relative_weights(data: Tensor, moving: Tensor, channels: Tensor) -> Tensor:
    """Weigh views by the inverse of their own size, so that each counts by what is left of its error, as in PSNR.

    Where views are differences their size is how far the warped sources are off: from two sources a quarter of what it
    is from one, and much less where the camera hardly moved. Unweighted, a few views that nothing could tell are the
    loss.

    Args:
        data: (B, F, h, w, C), clean latents of the views; moving: (B, F) bool; channels: (C,), see `picture_weights`.

    Returns:
        (B, F), 1 on average over the frames that move; a tenth of their mean size is added to each.
    """
    size = (channels * data.square()).mean((2, 3, 4))
    count = moving.sum().clamp(min=1)
    weights = 1 / (size + 0.1 * (size * moving).sum() / count).clamp(min=1e-9)
    return weights * count / (weights * moving).sum().clamp(min=1e-9)


def ray_weights(
    parts: Iterable[tuple[Tensor, Tensor]], deviation: float = 3.0, floor: float = 0.02
) -> tuple[Tensor, Tensor]:
    """Weigh ray channels by how much MOTION changes them, not by how much cameras differ.

    The scales of the latents count the spread of focal lengths, which a given reference camera explains at once; roll
    moves some channels by a tenth of that and would not be learnt. A channel that changes by the rms s against the
    reference frame's rays gets s / (s^2 + floor): 1 / s, but nothing where nothing changes. The deviations (rotation)
    get `deviation` times the weight of the mean (mostly translation, which is learnt first).

    Args:
        parts: of the windows: r (B, T, h, w, C), clean ray latents, and reference (B,), index of the reference frame.

    Returns:
        (C,) for the mean over the cells and (C,) for the deviations.
    """
    count, squares = 0, [0.0, 0.0]
    for r, reference in parts:
        change = r - r[torch.arange(len(r)), reference][:, None]
        mean = change.mean((2, 3), keepdim=True)
        count += len(r) * r.shape[1]
        for k, part in enumerate((mean, change - mean)):
            squares[k] = squares[k] + part.square().mean((2, 3), dtype=torch.float64).sum((0, 1))
    rms = [(square / count).sqrt().float() for square in squares]
    weights = [s / (s.square() + floor) for s in rms]
    return weights[0], deviation * weights[1]
