# SPDX-License-Identifier: Apache-2.0
"""An auxiliary task of training: read image motion and depth off the video features that the ray stream attends to.

The pose loss says what the camera did, but not where in the picture that can be seen: it reaches the video stream
through one attention layer, as one camera for a whole frame. Rendered clips know the depth of every cell, so the motion
of every cell is known as well and can be asked for locally. The head is thrown away after training.

Axes: B batch, T frames, L latent frames, h w cells, D width. Motion is in cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .data.windows import WindowBatch

_FARTHEST = 6.0  # cells; motion is clamped to it, a point behind the camera has none


def motion_targets(windows: WindowBatch, groups: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Where the point in each cell of each latent frame is seen in every frame of the window, and how near it is.

    The point is the one at the centre of the cell in the middle frame of the latent frame's group.

    Returns:
        targets (B, L, h, w, 2 T + 1): motion (x, y) to each frame in cells, and inverse depth in model units in the
        reference frame's unit; valid (B, L, h, w, T), false where the point is behind the camera.
    """
    depth = windows.inverse_depth
    h, w = depth.shape[2:]
    cell = windows.frames.shape[3] / w
    ends = torch.tensor(groups).cumsum(0)
    anchors = ends - torch.tensor(groups) + (torch.tensor(groups) - 1) // 2                      # (L,)
    fx, fy, cx, cy = (v[:, None, None] for v in windows.intrinsics.unbind(1))                    # (B, 1, 1) each
    u = (torch.arange(w, device=depth.device) + 0.5)[None, None, :] * cell                       # (1, 1, w)
    v = (torch.arange(h, device=depth.device) + 0.5)[None, :, None] * cell                       # (1, h, 1)
    x, y = ((u - cx) / fx).expand(-1, h, w), ((v - cy) / fy).expand(-1, h, w)                    # (B, h, w)
    ray = torch.stack([x, y, torch.ones_like(x)], dim=-1)                                        # (B, h, w, 3)
    T = windows.T_reference_camera.float()
    inverse = torch.linalg.inv(T)
    near = depth[:, anchors]                                                                     # (B, L, h, w)
    relative = inverse[:, None] @ T[:, anchors][:, :, None]                                      # (B, L, T, 4, 4)
    points = torch.einsum("bltij,bhwj->blthwi", relative[..., :3, :3], ray)
    points = points + relative[..., None, None, :3, 3] * near[:, :, None, ..., None]             # (B, L, T, h, w, 3)
    ahead = points[..., 2] > 0.1
    z = points[..., 2].clamp(min=0.1)
    fx, fy, cx, cy, u, v = (k[:, None, None] for k in (fx, fy, cx, cy, u, v))                    # (B, 1, 1, ...)
    moved = torch.stack([fx * points[..., 0] / z + cx - u, fy * points[..., 1] / z + cy - v], -1) / cell
    moved = rearrange(moved.clamp(-_FARTHEST, _FARTHEST), "b l t h w c -> b l h w (t c)")
    return torch.cat([moved, near[..., None]], dim=-1), rearrange(ahead, "b l t h w -> b l h w t")


class MotionHead(nn.Module):
    """Video features (B, L, n, D) to motion and inverse depth (B, L, h, w, 2 T + 1)."""

    def __init__(self, width: int, patch: int, frames: int) -> None:
        super().__init__()
        self.patch = patch
        self.layer = nn.Linear(width, patch**2 * (2 * frames + 1))

    def forward(self, features: Tensor, h: int) -> Tensor:
        x = self.layer(F.layer_norm(features, features.shape[-1:]))
        return rearrange(x, "b l (h w) (p q c) -> b l (h p) (w q) c", h=h // self.patch, p=self.patch, q=self.patch)


def motion_loss(predicted: Tensor, windows: WindowBatch, groups: tuple[int, ...]) -> Tensor:
    """Huber loss of `MotionHead`'s output; motion in cells, inverse depth in model units."""
    targets, ahead = motion_targets(windows, groups)
    error = F.smooth_l1_loss(predicted, targets, beta=0.25, reduction="none")
    valid = torch.cat([ahead.repeat_interleave(2, dim=-1), torch.ones_like(ahead[..., :1])], dim=-1)
    return (error * valid).sum() / valid.sum()
