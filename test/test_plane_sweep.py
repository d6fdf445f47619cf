# SPDX-License-Identifier: Apache-2.0
"""Sources warped into a view: depth where they agree, the plane of the scene elsewhere, and what is not seen."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rays_as_pixels_model.comparison import psnr, rotation_warp
from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, pixel_rays, so3_exp
from rays_as_pixels_model.plane_sweep import sweep_sources, warp_by_depth

CAMERA, WIDE = Intrinsics(80.0, 82.0, 47.0, 33.0, 96, 64), Intrinsics.from_fov(75, 96, 64)


def wall(camera: Intrinsics, T: np.ndarray, depth: float) -> np.ndarray:
    """A picture (H, W, 3) uint8 of a smooth wall z = depth seen by a camera at T (camera to world)."""
    ray = pixel_rays(camera) @ T[:3, :3].T
    x, y = np.moveaxis(T[:3, 3] + ray * ((depth - T[2, 3]) / ray[..., 2])[..., None], -1, 0)[:2] / depth
    waves = np.stack([np.sin(9 * x + 2 * y), np.sin(21 * x - 4 * y + 1), np.sin(14 * y + 5 * x)], axis=-1)
    return ((waves + 1) * 127.5).round().astype(np.uint8)


def pose(turn=(0.0, 0, 0), centre=(0.0, 0, 0)) -> np.ndarray:
    return make_pose(so3_exp(np.array(turn)), np.array(centre))


def to_sources(sources: list[np.ndarray], target: np.ndarray) -> np.ndarray:
    return invert(np.stack(sources)) @ target


small = st.floats(-0.15, 0.15)


@settings(max_examples=30, deadline=None)
@given(st.tuples(small, small, small), st.tuples(small, small, small), st.sampled_from([CAMERA, WIDE]))
def test_one_source_shows_a_wall_at_the_depth_of_the_scene_as_the_view_sees_it(turn, centre, target):
    """Seen straight on: the plane of the scene stands upright before the requested camera."""
    T = pose((0, 0, turn[2]), centre)
    found, inverse_depth = sweep_sources(wall(CAMERA, np.eye(4), 1.0)[None], to_sources([np.eye(4)], T), CAMERA, target)
    np.testing.assert_allclose(inverse_depth, 1 / (1 - centre[2]))
    assert found.shape == (1, 64, 96, 3) and found.dtype == np.uint8
    _, seen = warp_by_depth(found, to_sources([np.eye(4)], T), CAMERA, target, inverse_depth)
    truth = wall(target, T, 1.0)
    assert seen.mean() > 0.3
    assert psnr(found[0][seen[0]][None], truth[seen[0]][None]) > 32


@pytest.mark.parametrize("depth", [0.5, 0.8, 1.0, 2.0])
def test_two_sources_tell_the_depth_of_a_wall(depth):
    cameras, T = [pose(), pose((0, -0.05, 0), (0.25, 0.02, 0))], pose((0, 0.02, 0.03), (0.1, -0.03, 0))
    frames = np.stack([wall(CAMERA, camera, depth) for camera in cameras])
    found, inverse_depth = sweep_sources(frames, to_sources(cameras, T), CAMERA, CAMERA)
    middle = slice(16, 48), slice(24, 72)
    assert np.median(inverse_depth[middle]) * depth == pytest.approx(1.0, abs=0.12)
    truth = wall(CAMERA, T, depth)
    plane = sweep_sources(frames[:1], to_sources(cameras[:1], T), CAMERA, CAMERA)[0][0]
    assert psnr(found[0][middle], truth[middle]) > 26
    if depth != 1.0:
        assert psnr(found[0][middle], truth[middle]) > psnr(plane[middle], truth[middle]) + 3


def test_sources_that_stand_in_one_place_tell_nothing_and_the_plane_of_the_scene_stays():
    frames = np.stack([wall(CAMERA, np.eye(4), 2.0)] * 2)
    T = to_sources([np.eye(4)] * 2, pose((0, 0.05, 0), (0.1, 0, 0)))
    found, inverse_depth = sweep_sources(frames, T, CAMERA, CAMERA)
    np.testing.assert_allclose(inverse_depth[:, 8:64], 1.0, atol=0.1)  # where all planes are seen
    assert found.shape == (2, 64, 96, 3)


def test_without_translation_a_sweep_is_the_turned_source():
    frame, R = wall(CAMERA, np.eye(4), 1.0), so3_exp(np.array([0.05, -0.1, 0.2]))
    T = make_pose(R, np.zeros(3))
    for frames in (frame[None], np.stack([frame, frame])):
        found, _ = sweep_sources(frames, np.tile(T, (len(frames), 1, 1)), CAMERA, WIDE)
        np.testing.assert_allclose(found[0].astype(int), rotation_warp(frame, CAMERA, R, WIDE).astype(int), atol=1)


def test_each_shows_what_the_other_does_not_and_the_near_one_counts_most():
    left, right = pose(centre=(-0.4, 0, 0)), pose(centre=(0.4, 0, 0))
    T = to_sources([left, right], pose(centre=(-0.05, 0, 0)))
    grey = np.stack([np.full((64, 96, 3), 100, np.uint8), np.full((64, 96, 3), 200, np.uint8)])
    found, _ = sweep_sources(grey, T, CAMERA, CAMERA)
    _, seen = warp_by_depth(grey, T, CAMERA, CAMERA, np.ones((64, 96)))
    assert (np.abs(found[0][seen[0] & ~seen[1]].astype(int) - 100) <= 2).mean() > 0.9
    assert (np.abs(found[0][seen[1] & ~seen[0]].astype(int) - 200) <= 2).mean() > 0.9
    both = found[0][seen[0] & seen[1]]
    assert 100 < np.median(both) < 150  # 0.35 against 0.45 away: 144
    assert (found[1] == 200).all()
    # A source at the view itself, turned: what only the other one sees is the other one's.
    cameras = [pose(), pose(centre=(0.5, 0, 0))]
    T = to_sources(cameras, pose((0, 0.6, 0)))
    found, _ = sweep_sources(grey, T, CAMERA, CAMERA)
    _, seen = warp_by_depth(grey, T, CAMERA, CAMERA, np.ones((64, 96)))
    alone = (seen[1] & ~seen[0])[:, 60:]
    assert alone.mean() > 0.2 and (found[0][:, 60:][alone] == 200).mean() > 0.8


def test_three_sources_agree_where_two_of_them_would_err():
    """A stripe pattern that repeats: two sources agree on several depths, the third on one of them."""

    def striped(T: np.ndarray) -> np.ndarray:
        ray = pixel_rays(CAMERA) @ T[:3, :3].T
        x = T[0, 3] + ray[..., 0] * ((1.25 - T[2, 3]) / ray[..., 2])
        return np.repeat(((np.sin(20 * x) + 1) * 127.5).round().astype(np.uint8)[..., None], 3, axis=-1)

    cameras, T = [pose(), pose(centre=(0.32, 0, 0)), pose(centre=(0.13, 0, 0))], pose(centre=(0.05, 0, 0))
    frames = np.stack([striped(camera) for camera in cameras])
    middle = slice(16, 48), slice(24, 72)
    off = [
        np.abs(sweep_sources(frames[:n], to_sources(cameras[:n], T), CAMERA, CAMERA)[1][middle] - 0.8).mean()
        for n in (2, 3)
    ]
    assert off[0] > 0.5 and off[1] < 0.1


def test_floats_and_bytes_give_the_same():
    cameras, T = [pose(), pose(centre=(0.2, 0, 0))], pose(centre=(0.1, 0, 0.1))
    frames = np.stack([wall(CAMERA, camera, 1.5) for camera in cameras])
    whole, depth = sweep_sources(frames, to_sources(cameras, T), CAMERA, WIDE)
    scaled = frames.astype(np.float32) * np.float32(2 / 255) - 1
    scaled, same = sweep_sources(scaled, to_sources(cameras, T), CAMERA, WIDE)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose((scaled + 1) * 127.5, whole, atol=1.2)
    np.testing.assert_allclose(same, depth, atol=0.05)


def test_what_lies_behind_a_source_is_not_seen():
    T = to_sources([np.eye(4)], pose((0, np.pi, 0)))
    found, _ = sweep_sources(wall(CAMERA, np.eye(4), 1.0)[None], T, CAMERA, CAMERA)
    _, seen = warp_by_depth(found, T, CAMERA, CAMERA, np.ones((64, 96)))
    assert not seen.any() and np.isfinite(found).all()
