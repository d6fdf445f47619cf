# SPDX-License-Identifier: Apache-2.0
"""Frames turned back for a second pass: what a camera turned that way renders, and what training draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rays_as_pixels_model.comparison import psnr
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.geometry import Intrinsics, make_pose, rotation_angle_deg, so3_exp
from rays_as_pixels_model.scenes.paths import random_path
from rays_as_pixels_model.scenes.render import render
from rays_as_pixels_model.scenes.scene import random_scene
from rays_as_pixels_model.scenes.textures import TextureBank
from rays_as_pixels_model.turning import turn_back, turn_on
from rays_as_pixels_training.config import TrainConfig
from rays_as_pixels_training.data.turned import draw_errors, turn_windows
from rays_as_pixels_training.data.windows import WindowBatch, relative_poses
from rays_as_pixels_training.tasks import draw_step

CAMERA = Intrinsics.from_fov(70, 96, 64)


@pytest.fixture(scope="module")
def scene():
    return random_scene(5, TextureBank.default())


def cells(depth: np.ndarray) -> np.ndarray:
    """Inverse depth of each 8x8 cell."""
    return (1 / depth).reshape(5, 8, 8, 12, 8).mean((2, 4))


def scene_scale(scene) -> float:
    """Harmonic mean depth of the first frame, metres."""
    return 1 / cells(render(scene, random_path(5, scene, 13)[::3], CAMERA)[1])[0].mean()


@pytest.fixture(scope="module")
def windows(scene) -> WindowBatch:
    """One rendered window of 5 frames in 4 rows, whose references differ."""
    T = random_path(5, scene, 13)[::3]
    frames, depth = render(scene, T, CAMERA)
    inverse = cells(depth)
    scales, reference = np.tile(1.0 / inverse.mean((1, 2)), (4, 1)), np.array([0, 2, 4, 0])
    unit = scales[np.arange(4), reference][:, None, None, None]
    return WindowBatch(
        torch.from_numpy(frames).float()[None].repeat(4, 1, 1, 1, 1) * (2 / 255) - 1,
        torch.from_numpy(relative_poses(np.tile(T, (4, 1, 1, 1)), scales, reference)),
        torch.tensor([[CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]]).repeat(4, 1),
        torch.from_numpy(reference),
        torch.from_numpy((inverse * unit).astype(np.float32)),
    )


def test_turned_windows_are_what_cameras_turned_that_way_see(scene, windows):
    """Picture and depth against the renderer, which is asked for the turned cameras."""
    turned = turn_windows(windows, np.random.default_rng(0), 1.0)
    T_world = random_path(5, scene, 13)[::3]
    before, after = windows.T_reference_camera.numpy(), turned.T_reference_camera.numpy()
    np.testing.assert_array_equal(after[..., :3, 3], before[..., :3, 3])
    for row, reference in enumerate(windows.reference.tolist()):
        T = T_world.copy()
        T[:, :3, :3] = T_world[reference, :3, :3] @ after[row, :, :3, :3]
        truth, depth = render(scene, T, CAMERA)
        ours = ((turned.frames[row].numpy() + 1) * 127.5).round().clip(0, 255).astype(np.uint8)
        unit = windows.inverse_depth[row, 0].mean().item() * scene_scale(scene)
        inverse = unit * cells(depth)
        for t in range(5):
            inner = np.s_[16:-16, 24:-24]
            assert psnr(ours[t][inner], truth[t][inner]) > (98 if t == reference else 24)
            ratio = turned.inverse_depth[row, t, 2:-2, 3:-3].numpy() / inverse[t, 2:-2, 3:-3]
            assert np.median(np.abs(ratio - 1)) < 0.05


def test_the_guess_of_a_first_pass_is_right_at_the_reference_and_worse_further_away():
    rng = np.random.default_rng(1)
    R = so3_exp(np.linspace(0, 1, 5)[:, None] * np.radians([0.0, 10.0, 0.0]))
    wrong = rotation_angle_deg(np.stack([draw_errors(R, 1, rng) for _ in range(500)]))
    median = np.median(wrong, axis=0)
    assert median[1] == 0 and median[4] > median[2] > 0 and median[3] > median[0]
    assert 2 < median[4] < 5  # as the shipped weights' first pass is wrong
    still = rotation_angle_deg(np.stack([draw_errors(np.tile(np.eye(3), (5, 1, 1)), 0, rng) for _ in range(500)]))
    assert np.median(still[:, 4]) < median[4]


def test_cameras_found_of_turned_frames_are_turned_on_to_the_frames_own():
    rng = np.random.default_rng(2)
    R, guess = so3_exp(rng.normal(0, 0.1, (2, 5, 3)))
    centre = rng.normal(size=(5, 3))
    found = make_pose(R @ np.swapaxes(guess, 1, 2), centre)  # of frames turned back by the guess
    np.testing.assert_allclose(turn_on(found, guess), make_pose(R, centre), atol=1e-12)


def test_frames_that_need_no_turning_stay_as_they_are():
    frames = np.random.default_rng(3).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    turned = turn_back(frames, np.stack([np.eye(3), so3_exp(np.array([0, 0.1, 0]))]), CAMERA)
    np.testing.assert_array_equal(turned[0], frames[0])
    assert turned.dtype == np.uint8 and (turned[1] != frames[1]).mean() > 0.5


def test_pose_steps_turn_the_share_of_windows_that_the_config_says(windows):
    class Clips:
        frames = ((windows.frames.numpy() + 1) * 127.5).round().astype(np.uint8)
        poses, intrinsics = windows.T_reference_camera.numpy(), windows.intrinsics.numpy()
        scales, inverse_depth = np.ones((4, 5)), windows.inverse_depth.numpy()

    class Source:
        def take(self, count, rng):
            return Clips, np.zeros(count, int)

    config = TrainConfig(batch=40, tasks=(1, 0, 0), max_stride=1, turned=0.5)
    for passes, share, least, most in ((1, 0.5, 0, 0), (2, 0.0, 0, 0), (2, 0.5, 8, 32), (2, 1.0, 40, 40)):
        model = replace(preset("micro"), pose_passes=passes)
        batch = draw_step(Source(), replace(config, turned=share), model, 0)[0].windows
        usual = draw_step(Source(), replace(config, turned=0.0), model, 0)[0].windows
        changed = (batch.frames != usual.frames).flatten(1).any(1).sum().item()
        assert least <= changed <= most
