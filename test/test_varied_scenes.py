# SPDX-License-Identifier: Apache-2.0
"""Varied scenes: depth of turned shapes and hills, cameras against images, plain ones untouched, sensor and pools."""

import json
from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from rays_as_pixels_model.geometry import Intrinsics, invert
from rays_as_pixels_model.scenes import GROUPS, Profile, TextureBank, random_path, random_scene, random_shot, render
from rays_as_pixels_model.scenes.heights import random_field
from rays_as_pixels_model.scenes.places import PLACES, random_place
from rays_as_pixels_model.scenes.scene import BOX, CYLINDER, FIELD, SPHERE
from rays_as_pixels_model.scenes.sensor import expose, random_sensor
from rays_as_pixels_training.data import open_dataset
from rays_as_pixels_training.data.posed import DatasetError
from rays_as_pixels_training.data.procedural import ClipConfig, ClipPool, make_clip
from rays_as_pixels_training.held_out import split_scenes

CAMERA = Intrinsics.from_fov(65.0, 48, 32)
STILL = Profile(frozenset(GROUPS) - {"sensor"})


@pytest.fixture(scope="module")
def bank():
    names = [f"pattern:{seed}" for seed in range(4)] + [f"noise:{seed}" for seed in range(2)]
    return TextureBank(names, np.full(6, 1 / 6))


def _shots(bank, count, profile=STILL, frames=9):
    seed = 0
    while count:
        try:
            yield random_shot(seed, bank, frames, profile)
            count -= 1
        except ValueError:  # no free space for a camera
            pass
        seed += 1


def _points(depth, T, camera, distortion=0.0):
    """Points in the world of a frame's pixels, (H, W, 3)."""
    v, u = np.mgrid[0 : depth.shape[0], 0 : depth.shape[1]] + 0.5
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    stretch = 1 + distortion * (x * x + y * y)
    local = np.stack([x * stretch, y * stretch, np.ones_like(x)], -1) * depth[..., None]
    return local @ T[:3, :3].T + T[:3, 3]


def test_hits_lie_on_the_surfaces_and_nothing_stands_before_them(bank):
    """Every point that the depth gives is on a surface, and the way there is free: by `clearance`, without rays."""
    kinds = set()
    hills = next(seed for seed in range(60) if random_place(seed, bank, 1.0).field is not None)
    for shot in [*_shots(bank, 5), random_shot(hills, bank, 3, STILL)]:
        scene = shot.scene
        _, depth = render(scene, shot.T_world_camera[:1], CAMERA, distortion=shot.distortion)
        points = _points(depth[0].astype(np.float64), shot.T_world_camera[0], CAMERA, shot.distortion).reshape(-1, 3)
        far = depth[0].reshape(-1)
        off = np.abs(scene.clearance(points)) / np.maximum(far, 1)
        assert np.median(off) < 1e-5 and np.mean(off > 2e-3) < 0.004, (off.max(), np.mean(off > 2e-3))
        eye = shot.T_world_camera[0, :3, 3]
        for share in np.linspace(0.05, 0.97, 12):
            blocked = scene.clearance(eye + share * (points - eye)) < -0.01 * np.maximum(far, 1)
            assert blocked.mean() < 0.01, share
        kinds |= set(scene.kind.tolist())
    assert {BOX, CYLINDER, SPHERE, FIELD} <= kinds


def test_cameras_and_images_agree(bank):
    """Lift the pixels of one frame by their depth, project them into a later frame, compare depth and colour there."""
    depths, colours, unmoved = [], [], []
    for shot in _shots(bank, 6):
        T = shot.T_world_camera[[0, 4]]
        frames, depth = render(replace(shot.scene, roll=None), T, CAMERA)
        points = _points(depth[0], T[0], CAMERA) @ T[1, :3, :3] + invert(T[1])[:3, 3]
        z = np.maximum(points[..., 2], 1e-6)
        x, y = (points[..., k] / z * f + c - 0.5 for k, f, c in ((0, CAMERA.fx, CAMERA.cx), (1, CAMERA.fy, CAMERA.cy)))
        inside = (x > 0) & (x < 47) & (y > 0) & (y < 31) & (points[..., 2] > 0)
        x, y = x.astype(np.float32), y.astype(np.float32)
        error = np.abs(cv2.remap(depth[1], x, y, cv2.INTER_LINEAR) / z - 1)
        depths.append(np.median(error[inside]))
        same = inside & (error < 0.02)
        there = cv2.remap(frames[1].astype(np.float32), x, y, cv2.INTER_LINEAR)
        colours.append(np.abs(there - frames[0])[same].mean())
        unmoved.append(np.abs(frames[1].astype(np.float32) - frames[0])[same].mean())
    assert max(depths) < 0.02 and np.median(depths) < 0.003
    assert np.median(colours) < 0.6 * np.median(unmoved)


def test_a_lens_bends_rays_as_stated(bank):
    shot, k = next(_shots(bank, 1)), 0.05
    scene, T = shot.scene, shot.T_world_camera[:1]
    _, bent = render(scene, T, CAMERA, distortion=k)
    corner = Intrinsics(CAMERA.fx, CAMERA.fy, CAMERA.cx, CAMERA.cy, 48, 32)
    x, y = (0.5 - corner.cx) / corner.fx, (0.5 - corner.cy) / corner.fy
    stretch = 1 + k * (x * x + y * y)
    # a pinhole camera of one pixel that looks where the corner does
    cx, cy = 0.5 - x * stretch * CAMERA.fx, 0.5 - y * stretch * CAMERA.fy
    one = SimpleNamespace(fx=CAMERA.fx, fy=CAMERA.fy, cx=cx, cy=cy, width=1, height=1)
    _, straight = render(scene, T, one)
    assert bent[0, 0, 0] == pytest.approx(straight[0, 0, 0], rel=1e-4)
    with pytest.raises(ValueError, match="distortion is 0.1"):
        render(random_scene(0, bank), T, CAMERA, distortion=0.1)


def test_rays_meet_hills_where_the_hills_are():
    rng = np.random.default_rng(0)
    field = random_field(rng, 30.0, 3.0)
    xy = torch.as_tensor(rng.uniform(-20, 20, (2, 200)), dtype=torch.float32)
    down = [torch.zeros(200), torch.zeros(200), -torch.ones(200)]
    t = field.hit([xy[0], xy[1], torch.full((200,), 9.0)], down)
    np.testing.assert_allclose(9.0 - t, field.at(*xy), atol=1e-3)
    nx, ny, nz = field.normal(*xy)
    np.testing.assert_allclose(nx**2 + ny**2 + nz**2, 1, atol=1e-5)
    assert (nz > 0).all() and field.heights.max() > 1.5
    up = field.hit([xy[0], xy[1], torch.full((200,), 9.0)], [-d for d in down])
    assert torch.isinf(up).all()


def test_plain_is_what_it_was_and_difficulty_zero_is_plain(bank):
    scene = random_scene(3, bank)
    T = random_path(3, scene, 4)
    expected = render(scene, T, CAMERA)
    for profile in (None, Profile.parse("plain"), Profile.parse("varied", 0.0)):
        shot = random_shot(3, bank, 4, profile)
        np.testing.assert_array_equal(shot.T_world_camera, T)
        for a, b in zip(shot.render(CAMERA), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_group_changes_only_its_own_part(bank):
    plain, depth = (random_shot(5, bank, 4), random_shot(5, bank, 4).render(CAMERA)[1])
    for group, same_depth in (("lights", True), ("sensor", True), ("motion", False), ("geometry", False)):
        shot = random_shot(5, bank, 4, Profile.parse(group))
        frames, own = shot.render(CAMERA)
        assert (np.median(np.abs(own / depth - 1)) < 1e-4) == same_depth, group
        assert not np.array_equal(frames, plain.render(CAMERA)[0]), group
        again = random_shot(5, bank, 4, Profile.parse(group)).render(CAMERA)
        np.testing.assert_array_equal(again[0], frames)
        part, _ = shot.render(CAMERA, np.array([1, 3]))  # some frames alone are the same frames
        assert np.abs(part.astype(int) - frames[[1, 3]]).max() <= 1


def test_the_sensor_drifts_smoothly_and_moves_nothing():
    grey = torch.full((12, 32, 48, 3), 128, dtype=torch.uint8)
    edge = torch.zeros(12, 32, 48, 3, dtype=torch.uint8)
    edge[:, :, 24:] = 255
    for seed in range(6):
        sensor = random_sensor(seed, 12, 1.0)
        level = np.log(sensor.gain).mean(axis=1)
        assert np.abs(np.diff(level)).max() < 0.5
        out = expose(replace(sensor, noise=(0.0, 0.0)), grey, None, np.arange(12)).float()
        assert out.shape == grey.shape and out.std(dim=(1, 2)).max() < 70
        plain = replace(sensor, noise=(0.0, 0.0), quality=0.0, vignette=0.0, gain=np.ones((12, 3)), defocus=np.ones(12))
        profile = expose(plain, edge, None, np.arange(12)).float().mean(dim=(0, 1, 3))
        assert (profile[:24].flip(0) < 255).all() and profile[22] < profile[23] < profile[24] < profile[25]


@pytest.mark.parametrize("text", ["fancy", "lights+fancy", ""])
def test_unknown_scenes_are_refused(text, bank):
    with pytest.raises(ValueError, match="scenes must be plain, varied"):
        ClipConfig(scenes=text)
    with pytest.raises(DatasetError, match="scenes must be plain"):
        open_dataset("procedural", clips=1, scenes=text)
    with pytest.raises(ValueError, match="difficulty must be in"):
        ClipConfig(scenes="varied", difficulty=1.5)
    with pytest.raises(ValueError, match="difficulty from 0 to 1"):
        split_scenes("varied@much")


def test_pools_know_their_scenes_and_old_pools_are_plain(tmp_path, bank):
    config = ClipConfig(frames=3, height=16, width=24, scenes="varied", difficulty=0.8, ramp=4)
    pool = ClipPool(tmp_path, config, 2)
    assert [config.at(n).difficulty for n in (0, 2, 9)] == pytest.approx([0.0, 0.4, 0.8])
    clip = make_clip(1, bank, config.at(3))
    pool.write(0, clip)
    assert ClipPool(tmp_path).config == config
    with pytest.raises(ValueError, match="name another folder"):
        ClipPool(tmp_path, replace(config, scenes="plain"))
    about = json.loads((tmp_path / "pool.json").read_text())
    for name in ("scenes", "difficulty", "ramp"):
        del about["clip"][name]
    (tmp_path / "pool.json").write_text(json.dumps(about))
    assert ClipPool(tmp_path).config.scenes == "plain"


def test_every_place_has_room_for_a_camera(bank):
    found = {}
    for seed in range(12):
        scene = random_place(seed, bank, 1.0)
        try:
            T = random_shot(seed, bank, 5, Profile.parse("geometry+motion")).T_world_camera
        except ValueError:
            continue
        assert scene.clearance(T[:, :3, 3]).min() >= 0.4
        found[(scene.outdoor, scene.field is not None)] = True
    assert len(found) >= 2 and len(PLACES) == 6
