# SPDX-License-Identifier: Apache-2.0
"""Procedural scenes: geometry against analytic depth, cameras against images, splits, determinism, motion."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from rays_as_pixels_model.geometry import Intrinsics, invert, rotation_angle_deg
from rays_as_pixels_model.scenes import TextureBank, random_path, random_scene, render

CAMERA = Intrinsics.from_fov(65.0, 96, 64)


@pytest.fixture(scope="module")
def bank():
    return TextureBank.default("train")


def _indoor(bank, skip=0):
    scenes = (random_scene(seed, bank) for seed in range(skip, skip + 100))
    return next(scene for scene in scenes if not scene.outdoor)


def _only(scene, kind, centre, half, yaw):
    """The room of a scene with one object of our choice in it."""

    def join(first, second):
        return torch.cat([first[:1], torch.tensor([second], dtype=first.dtype)])

    return replace(
        scene,
        kind=join(scene.kind, kind), centre=join(scene.centre, centre), half=join(scene.half, half),
        yaw=join(scene.yaw, yaw),
    )  # fmt: skip


def _looking_along_x(position):
    """Level camera at `position` looking along world +x."""
    T = np.eye(4)
    T[:3, :3] = np.array([[0, -1, 0], [0, 0, -1], [1, 0, 0]]).T
    T[:3, 3] = position
    return T[None]


@pytest.mark.parametrize("width, aside", [(96, 0.25), (97, 0.25), (97, 0.0)])  # 97: one column looks along the axis
def test_depth_of_an_empty_room_is_exact(bank, width, aside):
    scene = _only(_indoor(bank), 3, (0, 0, 500.0), (0.1, 0.1, 0.1), 0.0)  # the object is far outside
    half, centre = scene.half[0].double().numpy(), scene.centre[0].double().numpy()
    position = centre + [0.0, aside, 0.0]
    camera = Intrinsics.from_fov(80.0, width, 64)
    _, depth = render(scene, _looking_along_x(position), camera)
    x = (np.arange(width) + 0.5 - camera.cx) / camera.fx
    y = (np.arange(64) + 0.5 - camera.cy) / camera.fy
    with np.errstate(divide="ignore"):
        side = np.where(x > 0, half[1] + aside, half[1] - aside) / np.abs(x)  # right of the image is world -y
        expected = np.minimum(np.minimum(half[0], side)[None, :], (half[2] / np.abs(y))[:, None])
    np.testing.assert_allclose(depth[0], expected, rtol=1e-5)


@pytest.mark.parametrize("kind, half, yaw, expected", [
    (1, (0.3, 0.3, 0.4), 0.0, 1.2 - 0.3),
    (1, (0.3, 0.3, 0.4), np.pi / 4, 1.2 - 0.3 * np.sqrt(2)),
    (2, (0.3, 0.3, 0.4), 0.0, 1.2 - 0.3),
    (3, (0.25, 0.25, 0.25), 0.0, 1.2 - 0.25),
])  # fmt: skip
def test_depth_of_one_object_is_exact_in_the_middle(bank, kind, half, yaw, expected):
    scene = _indoor(bank)
    scene = _only(scene, kind, (1.2, 0.0, 1.2), half, yaw)
    scene.half[0] = torch.tensor([2.0, 2.0, 1.2])
    frames, depth = render(scene, _looking_along_x((0.0, 0.0, 1.2)), Intrinsics.from_fov(60.0, 97, 65))
    assert depth[0, 32, 48] == pytest.approx(expected, abs=1e-5)
    assert depth[0, 32, 0] > 1.9  # beside it: the wall
    assert frames.dtype == np.uint8 and depth.dtype == np.float32


def test_same_seed_same_frames_other_seed_other_frames(bank):
    def clip(seed, source):
        scene = random_scene(seed, source)
        T = random_path(seed, scene, 3)
        return T, *render(scene, T, CAMERA)

    first, again, other = clip(4, bank), clip(4, TextureBank.default("train")), clip(5, bank)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(first[1], other[1])


def test_splits_share_nothing(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"a/{i:02d}.png" for i in range(21)] + ["b/x_data_coffee.png", "b/x_data_rocket.jpg"]
    names += [f"c/Bark_{material}_{variant}.png" for material in (0, 1) for variant in range(5)]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), rng.integers(0, 255, (20, 30, 3), dtype=np.uint8))
    train, held_out = (TextureBank.default(split, tmp_path) for split in ("train", "held_out"))
    assert not set(train.names) & set(held_out.names)
    below = [n.removeprefix(f"file:{tmp_path}/") for n in held_out.names if str(tmp_path) in n]
    assert below == ["a/09.png", "a/19.png", "b/x_data_coffee.png", "c/Bark_1_1.png"]  # shipped photos keep theirs
    assert not any("Bark_1_" in n for n in train.names)  # other variants of a held-out material
    assert sum("Bark_0_" in n for n in train.names) == 5
    without = [len(TextureBank.default(split)) for split in ("train", "held_out")]
    assert len(train) + len(held_out) == len(names) - 4 + sum(without)
    assert any("astronaut" in n for n in train.names) and any("coffee.png" in n for n in held_out.names)
    assert train.load(f"file:{tmp_path}/a/00.png").log2_size == 4
    with pytest.raises(ValueError, match="no jpg or png"):
        TextureBank.default("train", tmp_path / "nothing")
    with pytest.raises(ValueError, match="held_out"):
        TextureBank.default("test")


def test_textures_have_contrast(bank):
    for name in bank.sample(np.random.default_rng(0), 25):
        texture = bank.load(name)
        level = texture.log2_size - 5  # 32 x 32
        start = (4 ** (texture.log2_size + 1) - 4**6) // 3
        grey = texture.texels[start : start + 1024].view(np.uint8).reshape(-1, 4)[:, :3].mean(axis=1)
        assert level >= 0 and grey.std() > 15, name


@pytest.mark.parametrize("style", ["handheld", "forward", "orbit", "yaw", None])
def test_camera_stays_free_and_upright(bank, style):
    for seed in range(6):
        scene = random_scene(seed, bank)
        T = random_path(seed, scene, 60, style)
        assert T.shape == (60, 4, 4) and T.dtype == np.float64
        R = T[:, :3, :3]
        np.testing.assert_allclose(R @ R.transpose(0, 2, 1), np.tile(np.eye(3), (60, 1, 1)), atol=1e-12)
        assert np.linalg.det(R) == pytest.approx(1.0)
        assert scene.clearance(T[:, :3, 3]).min() >= 0.4
        assert (T[:, 2, 1] < -0.6).all()  # y of the camera points down
        steps = np.linalg.norm(np.diff(T[:, :3, 3], axis=0), axis=1)
        assert np.abs(np.diff(steps)).max() < 0.35 * steps.max() + 1e-9  # smooth
        _, depth = render(scene, T[::20], Intrinsics.from_fov(65.0, 24, 16))
        assert depth.min() > 0.2 and np.isfinite(depth).all()


def test_cameras_and_images_agree(bank):
    """Lift the pixels of one frame by their depth, project them into a later frame, compare depth and colour there."""
    depth_errors, colours, unmoved = [], [], []
    for seed in range(12):
        scene = random_scene(seed, bank)
        T = random_path(seed, scene, 9)[[0, 8]]
        frames, depth = render(scene, T, CAMERA)
        K = CAMERA.matrix()
        v, u = np.mgrid[0:64, 0:96] + 0.5
        rays = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
        T_b_a = invert(T[1]) @ T[0]
        points = (rays * depth[0][..., None]) @ T_b_a[:3, :3].T + T_b_a[:3, 3]
        z = np.maximum(points[..., 2], 1e-6)
        pixel = points @ K.T / z[..., None]
        x, y = (pixel[..., k].astype(np.float32) - 0.5 for k in (0, 1))
        inside = (x > 0) & (x < 95) & (y > 0) & (y < 63) & (points[..., 2] > 0)
        error = np.abs(cv2.remap(depth[1], x, y, cv2.INTER_LINEAR) / z - 1)[inside]
        depth_errors.append(np.median(error))
        there = cv2.remap(frames[1].astype(np.float32), x, y, cv2.INTER_LINEAR)
        same = np.zeros_like(inside)
        same[inside] = error < 0.02
        colours.append(np.abs(there - frames[0])[same].mean())
        unmoved.append(np.abs(frames[1].astype(np.float32) - frames[0])[same].mean())
    assert max(depth_errors) < 0.01
    assert np.median(depth_errors) < 0.002
    assert np.median(colours) < 12.0
    assert np.median(colours) < 0.5 * np.median(unmoved)


def test_motion_is_calibrated(bank):
    """Over five frames: rotation near 4 (median) and 10 degrees (90 %), translation near 0.06 and 0.15 of the depth."""
    turns, moves, directions = [], [], []
    for seed in range(160):
        scene = random_scene(seed, bank)
        T = random_path(seed, scene, 13)[4:9]
        _, depth = render(scene, T[:1], Intrinsics.from_fov(65.0, 24, 16))
        T_first_last = invert(T[0]) @ T[-1]
        turns.append(float(rotation_angle_deg(T_first_last[:3, :3])))
        moves.append(np.linalg.norm(T_first_last[:3, 3]) * (1 / depth).mean())
        directions.append(T_first_last[:3, 3] / np.linalg.norm(T_first_last[:3, 3]))
    assert 3.0 < np.median(turns) < 5.0 and 8.0 < np.percentile(turns, 90) < 13.0
    assert 0.045 < np.median(moves) < 0.078 and 0.11 < np.percentile(moves, 90) < 0.19
    assert np.abs(np.mean(directions, axis=0)).max() < 0.2  # no preferred direction


def test_large_frames_match_small_ones(bank):
    """480 x 640 is rendered in pieces; its depth agrees with that of a small frame at the pixels they share."""
    scene = _indoor(bank, 3)
    T = random_path(3, scene, 1)
    small = Intrinsics.from_fov(65.0, 128, 96)
    large = small.resized(640, 480)
    frames, depth = render(scene, T, large)
    assert frames.shape == (1, 480, 640, 3)
    _, coarse = render(scene, T, small)
    np.testing.assert_allclose(depth[0, 2::5, 2::5], coarse[0], rtol=1e-4)


@pytest.mark.parametrize("call, message", [
    (lambda scene: random_path(0, scene, 5, "sideways"), "handheld"),
    (lambda scene: random_path(0, scene, 0), "at least 1"),
    (lambda scene: render(scene, np.eye(4), CAMERA), r"\(frames, 4, 4\)"),
])  # fmt: skip
def test_bad_input_is_refused(bank, call, message):
    with pytest.raises(ValueError, match=message):
        call(_indoor(bank))
