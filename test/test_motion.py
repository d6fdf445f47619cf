# SPDX-License-Identifier: Apache-2.0
"""The auxiliary motion targets against points projected one by one, and against what a turn alone must do."""

import numpy as np
import pytest
import torch

from rays_as_pixels_model.geometry import invert, make_pose, so3_exp
from rays_as_pixels_training.data.windows import WindowBatch
from rays_as_pixels_training.motion import MotionHead, motion_loss, motion_targets

GROUPS = (1, 4)
ANCHORS = (0, 2)  # the middle frame of each latent frame, the earlier one of an even group
H, W, CELL = 4, 6, 8


def _windows(translation, rotation, depth):
    """Two windows of 5 frames whose camera moves and turns evenly; inverse depth (2, 5, H, W)."""
    steps = np.arange(5)[:, None]
    T = make_pose(so3_exp(steps * np.asarray(rotation)), steps * np.asarray(translation, float))
    camera = torch.tensor([[60.0, 58.0, 24.5, 15.5], [40.0, 40.0, 24.0, 16.0]])
    frames = torch.zeros(2, 5, H * CELL, W * CELL, 3)
    return WindowBatch(frames, torch.from_numpy(np.stack([T, T])), camera, torch.zeros(2, dtype=torch.int64), depth)


def _depth(seed=0):
    return torch.rand(2, 5, H, W, generator=torch.Generator().manual_seed(seed)) + 0.3


def test_targets_are_the_projections_of_each_cells_point():
    windows = _windows([0.05, -0.03, 0.04], [0.01, 0.03, -0.02], _depth())
    targets, ahead = motion_targets(windows, GROUPS)
    assert targets.shape == (2, 2, H, W, 11) and ahead.all()
    T = windows.T_reference_camera.numpy()
    rng = np.random.default_rng(1)
    for b, latent, y, x, j in zip(*(rng.integers(n, size=60) for n in (2, 2, H, W, 5)), strict=True):
        fx, fy, cx, cy = windows.intrinsics[b].numpy()
        u, v = (x + 0.5) * CELL, (y + 0.5) * CELL
        near = float(windows.inverse_depth[b, ANCHORS[latent], y, x])
        point = np.array([(u - cx) / fx / near, (v - cy) / fy / near, 1 / near, 1.0])
        seen = (invert(T[b, j]) @ T[b, ANCHORS[latent]] @ point)[:3]
        expected = [(fx * seen[0] / seen[2] + cx - u) / CELL, (fy * seen[1] / seen[2] + cy - v) / CELL]
        np.testing.assert_allclose(targets[b, latent, y, x, 2 * j : 2 * j + 2], expected, atol=1e-4)
        assert targets[b, latent, y, x, 10] == pytest.approx(near)


def test_a_turn_moves_the_picture_alike_at_any_depth_and_a_still_camera_not_at_all():
    turn = [_windows([0, 0, 0], [0.02, -0.04, 0.01], _depth(seed)) for seed in (0, 1)]
    near, far = (motion_targets(w, GROUPS)[0][..., :10] for w in turn)
    torch.testing.assert_close(near, far)
    assert near.abs().max() > 0.1
    still, _ = motion_targets(_windows([0, 0, 0], [0, 0, 0], _depth()), GROUPS)
    assert still[..., :10].abs().max() < 1e-5


def test_points_behind_the_camera_have_no_say():
    windows = _windows([0, 0, 0.5], [0, 0, 0], torch.full((2, 5, H, W), 1.0))  # frame 2 and later are past the points
    targets, ahead = motion_targets(windows, GROUPS)
    assert not ahead[:, 0, ..., 2:].any() and ahead[:, 0, ..., :2].all()
    wrong = targets.clone()
    wrong[:, 0, ..., 4:10] += 5.0
    wrong[:, 1, ..., 8:10] += 5.0
    assert motion_loss(wrong, windows, GROUPS) == 0
    wrong[:, 0, 0, 0, 0] += 1.0
    assert motion_loss(wrong, windows, GROUPS) > 0


def test_the_head_puts_each_tokens_cells_in_their_place():
    head = MotionHead(width=2, patch=2, frames=5)
    features = torch.randn(1, 2, (H // 2) * (W // 2), 2)
    out = head(features, H)
    assert out.shape == (1, 2, H, W, 11)
    moved = features.clone()
    moved[:, :, 1] += torch.tensor([3.0, -1.0])  # the second token of the first row: rows 0 and 1, columns 2 and 3
    changed = (head(moved, H) != out).any(-1)[0, 0]
    assert changed[:2, 2:4].all() and changed.sum() == 4
