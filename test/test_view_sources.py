# SPDX-License-Identifier: Apache-2.0
"""Views as differences from warped sources: geometry of the cameras, what is added back, what training draws."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rays_as_pixels_model.comparison import psnr, rotation_warp
from rays_as_pixels_model.config import ConfigError, ModelConfig, preset
from rays_as_pixels_model.geometry import Intrinsics, make_pose, pixel_rays, so3_exp
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.layout import Layout
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.plane_sweep import sweep_sources
from rays_as_pixels_model.raxels import make_raxels
from rays_as_pixels_model.view_sources import choose_sources, reference_latents, view_sources, warp_sources
from rays_as_pixels_training.config import TrainConfig
from rays_as_pixels_training.data.posed import DatasetError
from rays_as_pixels_training.data.source import ClipArrays
from rays_as_pixels_training.data.views import cut_views
from rays_as_pixels_training.tasks import draw_step, noised

CAMERA, WIDE = Intrinsics(80.0, 82.0, 47.0, 33.0, 96, 64), Intrinsics.from_fov(75, 96, 64)
CONFIG = preset("micro")


def sky(camera: Intrinsics, R: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) uint8 of a smooth world at infinity, seen with orientation R."""
    d = pixel_rays(camera) @ R.T
    waves = np.stack([np.sin(d @ [9.0, 2, 1]), np.sin(d @ [1.0, 8, 3]), np.sin(d @ [4.0, 4, 7])], axis=-1)
    return ((waves + 1) * 127.5).round().astype(np.uint8)


def pose(turn=(0.0, 0, 0), centre=(0.0, 0, 0)) -> np.ndarray:
    return make_pose(so3_exp(np.array(turn)), np.array(centre))


def test_a_turned_picture_is_what_the_turned_camera_sees():
    rng = np.random.default_rng(0)
    for target in (CAMERA, WIDE):
        turns = rng.normal(0, 0.06, (3, 3))
        R = [so3_exp(w) for w in turns]
        seen = rotation_warp(sky(CAMERA, R[0]), CAMERA, R[0].T @ R[1], target)
        truth = sky(target, R[1])
        inside = pixel_rays(target) @ (R[0].T @ R[1]).T
        x, y = (
            f * inside[..., i] / inside[..., 2] + c
            for i, f, c in ((0, CAMERA.fx, CAMERA.cx), (1, CAMERA.fy, CAMERA.cy))
        )
        known = (x > 1) & (x < 95) & (y > 1) & (y < 63)
        assert known.mean() > 0.5
        assert psnr(seen[known][None], truth[known][None]) > 40


def test_what_the_source_does_not_show_is_its_border_also_behind_it():
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :3], picture[:, -3:] = 50, 200  # left and right borders
    right = rotation_warp(picture, CAMERA, so3_exp(np.array([0, np.radians(80), 0])))
    assert (right == 200).mean() > 0.9
    behind = rotation_warp(picture, CAMERA, so3_exp(np.array([0, np.radians(130), 0])))
    assert (behind[:, :40] == 200).all()  # to the right of everything seen, though behind the camera
    assert np.isfinite(rotation_warp(picture.astype(np.float32), CAMERA, so3_exp(np.array([0, np.pi, 0])))).all()


def test_cameras_of_warped_sources_differ_in_translation_only_and_keep_their_centres():
    T = np.stack(
        [pose((0.1, -0.2, 0.05), (0.3, 0, 0.1)), pose((0, 0.3, 0), (-0.2, 0.1, 0)), pose((0.2, 0.1, 0), (0, 0, 0.5))]
    )
    frames = np.stack([sky(CAMERA, t[:3, :3]) for t in T[:2]])
    warped, moved = warp_sources(frames, T, CAMERA, CAMERA)
    np.testing.assert_allclose(moved[:, :3, :3], np.tile(np.eye(3), (3, 1, 1)), atol=1e-12)
    np.testing.assert_allclose(moved[0], np.eye(4), atol=1e-12)
    for i in range(3):  # the way from the first camera, told in the target's axes
        np.testing.assert_allclose(T[2, :3, :3] @ moved[i, :3, 3], T[i, :3, 3] - T[0, :3, 3], atol=1e-12)
    assert warped.shape == frames.shape and warped.dtype == np.uint8


def test_sources_are_chosen_near_and_apart_from_each_other():
    poses = np.stack([pose(centre=(x, 0, 0)) for x in (0.0, 0.02, 0.3, -0.6, 2.0)])
    target = pose(centre=(0.1, 0, 0))
    assert choose_sources(poses, target, 1.0).tolist() == [1, 2]  # the next nearest, 0, stands beside the first
    assert choose_sources(poses, target, 1.0, 3).tolist() == [1, 2, 3]
    assert choose_sources(poses[:2], target, 1.0, 3).tolist() == [1, 0]  # none is far enough: what there is
    assert choose_sources(poses[:1], target, 1.0).tolist() == [0]
    turned = np.stack([pose((0, 0.5, 0)), pose(centre=(0.1, 0, 0)), pose((0, 0.1, 0))])
    assert choose_sources(turned, np.eye(4), 1.0, 1).tolist() == [1]
    assert choose_sources(turned, np.eye(4), 0.5, 1).tolist() == [2]  # in a smaller scene a step counts more
    back = (0, np.pi, 0)
    away = np.stack([pose(), pose(centre=(0.4, 0, 0)), pose(back, (0.5, 0, 0)), pose(back, (-2, 0, 0))])
    assert choose_sources(away, pose(centre=(-1.0, 0, 0)), 1.0, 3).tolist()[:2] == [0, 1]  # the others look back
    assert sorted(choose_sources(away[[0, 2]], pose(centre=(-1.0, 0, 0)), 1.0).tolist()) == [0, 1]  # there is no other
    # A view from where a source stands: the rest only adds what that one does not show.
    assert choose_sources(poses, poses[2], 1.0).tolist() == [2, 1]


def test_pictures_are_left_alone_where_a_model_denoises_pictures():
    config = replace(CONFIG, views="picture")
    T = np.stack([pose((0, 0.1, 0), (1.0, 0, 0)), pose((0, 0.2, 0), (1.2, 0, 0)), pose((0, 0.3, 0), (1.5, 0.1, 0))])
    frames = np.stack([sky(CAMERA, t[:3, :3]) for t in T[:2]])
    same, raxels = view_sources(config, frames, T[:2], CAMERA, T[2], WIDE)
    np.testing.assert_array_equal(same, frames)
    relative = np.linalg.inv(T[0]) @ T
    np.testing.assert_allclose(raxels[:2], make_raxels(relative[:2], CAMERA, 32, 48), atol=1e-6)
    np.testing.assert_allclose(raxels[2], make_raxels(relative[2], WIDE, 32, 48), atol=1e-6)


def test_a_model_that_knows_nothing_gives_the_warped_source():
    """Its heads start at 0: no difference. So views begin at the plane sweep and training can only add to it."""
    torch.manual_seed(0)
    model = RaysAsPixels(CONFIG)
    pipe, source = Pipeline(model), sky(CAMERA, np.eye(3))
    target, seen = pose((0.02, 0.12, 0), (0.1, 0, 0)), []
    views = pipe.render_views(
        source[None], np.eye(4)[None], CAMERA, target[None], WIDE, steps=2, on_step=lambda *s: seen.append(s[2]) or True
    )
    warped = sweep_sources(source[None], target[None], CAMERA, WIDE)[0]
    np.testing.assert_allclose(views.frames[0].astype(int), warped[0], atol=1)  # also what the codec would leave out
    np.testing.assert_allclose(seen[-1].astype(int), warped[0], atol=1)  # previews too
    stripes = np.where(np.arange(96) // 3 % 2, 255, 0).astype(np.uint8)
    harsh = np.broadcast_to(stripes[:, None], (1, 64, 96, 3)).astype(np.float32) * (2 / 255) - 1
    made = pipe.render_batch(torch.from_numpy(harsh)[:, None], torch.zeros(1, 2, 32, 48, 3), 1, torch.Generator())
    assert made.abs().max() <= 1.0  # also where the codec swings beyond
    loop = pipe.render_batch(torch.zeros(2, 1, 64, 96, 3), torch.zeros(2, 2, 32, 48, 3), 1, torch.Generator())
    assert loop.shape == (2, 1, 64, 96, 3)


def test_only_noisy_images_have_a_base():
    z = torch.arange(2 * 4, dtype=torch.float32).reshape(2, 4, 1, 1, 1) + 1
    layout, noisy = Layout((1, 1, 1, 4)), torch.tensor([[0, 1, 0, 1], [0, 0, 1, 1]]).bool()
    base = reference_latents(z, torch.tensor([0, 1]), layout, noisy).flatten(1)
    assert base.tolist() == [[0, 1, 0, 0], [0, 0, 6, 0]]  # the last is a group of four: its own picture


def clips(count: int = 3, frames: int = 9) -> ClipArrays:
    """Cameras that turn and move before a world at infinity: in its unit they hardly move."""
    rng, T = np.random.default_rng(4), np.zeros((count, frames, 4, 4))
    for row in T:
        way, turn = rng.normal(0, 0.1, 3), rng.normal(0, 0.03, 3)
        row[:] = [pose(turn * i, way * i) for i in range(frames)]
    pictures = np.stack([[sky(CAMERA, t[:3, :3]) for t in row] for row in T])
    k = np.tile(np.float32([CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy]), (count, 1))
    return ClipArrays(pictures, T, k, np.full((count, frames), 200.0, np.float32))


def test_training_draws_views_as_they_are_rendered():
    source = clips()
    for number in range(1, 4):
        rng = np.random.default_rng(number)
        windows = cut_views(source, np.arange(3), rng, "warped", number, augment=False)
        T = windows.T_reference_camera.numpy()
        assert windows.frames.shape == (3, number + 1, 64, 96, 3) and windows.reference.tolist() == [0, 0, 0]
        np.testing.assert_allclose(T[..., :3, :3], np.broadcast_to(np.eye(3), T[..., :3, :3].shape), atol=1e-9)
        steps = np.linalg.norm(T[:, :-1, :3, 3] - T[:, -1:, :3, 3], axis=-1)
        assert (np.diff(steps, axis=1) >= -1e-9).all()  # on these paths the angle grows with the way: nearest first
        middle = windows.frames[:, :, 24:40, 36:60]  # all at infinity: warped, all show the same
        assert (middle[:, :-1] - middle[:, -1:]).abs().mean() < 0.03


def test_augmentation_leaves_sources_and_target_in_one_world():
    windows = cut_views(clips(), np.arange(3), np.random.default_rng(0), "warped", 2)
    middle = windows.frames[:, :, 24:40, 36:60]
    assert (middle[:, :-1] - middle[:, -1:]).abs().mean() < 0.03


def test_the_noise_of_a_view_is_about_its_difference():
    class Source:
        height, width, clip_frames = 64, 96, 9

        def take(self, count, rng):
            return clips(), rng.integers(0, 3, count)

    model = RaysAsPixels(CONFIG)
    config = TrainConfig(tasks=(0, 1, 0), batch=4)
    batch = draw_step(Source(), config, CONFIG, 0)[0]
    (z, _), (u_z, _) = noised(model, batch, torch.Generator().manual_seed(0))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    z1 = model.encode_frames(batch.windows.frames, batch.layout)
    torch.testing.assert_close(u_z[:, -1] + noise[:, -1], z1[:, -1] - z1[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(z[:, 0], z1[:, 0])  # sources are clean
    assert (batch.t_z[:, :-1] == 1).all() and (batch.t_z[:, -1] < 1).all()


def test_latents_cannot_be_warped():
    class Latents:
        def cut(self, *_):
            raise AssertionError

    with pytest.raises(DatasetError, match="--store frames"):
        cut_views(Latents(), np.arange(2), np.random.default_rng(0), "warped", 1)


def test_old_checkpoints_denoise_pictures():
    stored = CONFIG.to_dict()
    del stored["views"]
    assert ModelConfig.from_dict(stored).views == "picture"
    with pytest.raises(ConfigError, match="views must be 'picture' or 'warped', got 'warp'"):
        replace(CONFIG, views="warp")
    with pytest.raises(ConfigError, match="earlier version: write 'warped'"):
        replace(CONFIG, views="difference")
    with pytest.raises(ConfigError, match="linear codec"):
        replace(preset("wan-1.3b"), views="warped")
