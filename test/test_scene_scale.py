# SPDX-License-Identifier: Apache-2.0
"""The scene's scale from known cameras and pictures: exact points, rendered pictures, and cameras that do not move."""

from dataclasses import replace

import numpy as np
import pytest
from rendered_video import INTRINSICS, rendered

from rays_as_pixels_training.data.matching import epipolar_errors
from rays_as_pixels_training.data.posed import DatasetError, PosedVideo
from rays_as_pixels_training.data.scale import estimate_scene_scale, harmonic_depth, triangulate, with_scene_scale
from rays_as_pixels_training.data.stamped import interpolate_poses, runs


def video(unit=1.0):
    clip = rendered()
    poses = clip.T_world_camera.copy()
    poses[:, :3, 3] *= unit
    count = len(poses)
    return PosedVideo("clip", np.arange(count) / 10, poses, [INTRINSICS] * count, lambda i: clip.frames[i])


def test_estimate_is_near_the_rendered_depth_and_in_the_unit_of_the_poses():
    ratio = estimate_scene_scale(video(), every=2) / rendered().scene_scale
    assert np.all((ratio > 0.75) & (ratio < 1.33)), ratio
    ratio = with_scene_scale(video(unit=7.0), every=2).scene_scale / rendered().scene_scale
    assert np.all((ratio > 7 * 0.75) & (ratio < 7 * 1.33)), ratio


def test_a_known_scale_is_kept():
    known = replace(video(), scene_scale=np.full(6, 3.0))
    assert with_scene_scale(known) is known


def test_a_camera_that_does_not_move_has_no_scale():
    still = replace(video(), T_world_camera=np.repeat(video().T_world_camera[:1], 6, axis=0))
    with pytest.raises(DatasetError, match="clip: the scene's scale cannot be measured: no two frames"):
        estimate_scene_scale(still)


def project(points, pose):
    k, camera = INTRINSICS, (points - pose[:3, 3]) @ pose[:3, :3]
    return camera[:, :2] / camera[:, 2:] * [k.fx, k.fy] + [k.cx, k.cy], camera[:, 2]


def test_exact_points_are_triangulated_exactly_and_wrong_ones_left_out():
    one = video()
    rng, poses = np.random.default_rng(0), one.T_world_camera
    z = rng.uniform(1, 9, 50)
    pixels = rng.uniform([0, 0], [240, 160], (50, 2))
    k = INTRINSICS
    rays = np.concatenate([(pixels - [k.cx, k.cy]) / [k.fx, k.fy], np.ones((50, 1))], 1) * z[:, None]
    points = rays @ poses[0][:3, :3].T + poses[0][:3, 3]
    there, _ = project(points, poses[4])
    assert epipolar_errors(one, 0, 4, pixels, there).max() < 1e-9
    found, depth, parallax = triangulate(one, 0, 4, pixels, there)
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_allclose(depth, z, rtol=1e-6)
    true = [np.degrees(np.arccos(np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)))
            for a, b in zip(points - poses[0][:3, 3], points - poses[4][:3, 3], strict=True)]  # fmt: skip
    np.testing.assert_allclose(parallax, true, atol=1e-5)
    there[:10, :] += 25.0  # no point of the scene
    assert len(triangulate(one, 0, 4, pixels, there)[1]) <= 42


def test_epipolar_error_is_the_distance_in_pixels():
    one = replace(video(), T_world_camera=np.stack([np.eye(4)] * 6))
    one.T_world_camera[1, 0, 3] = 0.5  # to the right: epipolar lines are rows
    a = np.array([[50.0, 60.0], [90.0, 20.0]])
    # A vertical error of 3 px is shared by the two pictures (Sampson): 3 / sqrt(2).
    np.testing.assert_allclose(epipolar_errors(one, 0, 1, a, a - [9.0, 3.0]), 3 / np.sqrt(2))
    np.testing.assert_allclose(epipolar_errors(one, 2, 3, a, a - [3.0, 4.0]), 5.0)  # no translation: no line, a point


def test_harmonic_depth_weighs_the_picture_and_not_the_features():
    near = np.random.default_rng(0).uniform([0, 0], [120, 160], (500, 2))
    far = np.random.default_rng(1).uniform([120, 0], [240, 160], (200, 2))
    pixels, depth = np.concatenate([near, far]), np.r_[np.full(500, 2.0), np.full(200, 8.0)]
    assert harmonic_depth(pixels, depth, (240, 160)) == pytest.approx(1 / (0.5 * (1 / 2 + 1 / 8)))
    assert np.isnan(harmonic_depth(pixels[:5], depth[:5], (240, 160)))


def test_poses_between_two_stamps_and_none_across_a_gap():
    poses = np.stack([np.eye(4)] * 3)
    poses[1, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # 90 degrees about z
    poses[1, 0, 3] = 2.0
    poses[2] = poses[1]
    at = np.array([-0.1, 0.0, 0.25, 1.0, 2.0, 3.0, 3.1])
    found, valid = interpolate_poses(np.array([0.0, 1.0, 3.0]), poses, at, max_gap=1.5)
    assert valid.tolist() == [False, True, True, True, False, True, False]
    assert found[2, 0, 3] == pytest.approx(0.5)
    angle = np.radians(22.5)
    np.testing.assert_allclose(found[2, :2, :2], [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    assert [part.tolist() for part in runs(valid)] == [[1, 2, 3]]
    assert [part.tolist() for part in runs(valid, least=1)] == [[1, 2, 3], [5]]
    assert interpolate_poses(np.array([2.0]), poses[:1], np.array([2.0, 2.1]), 1.0)[1].tolist() == [True, False]
