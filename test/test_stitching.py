# SPDX-License-Identifier: Apache-2.0
"""A trajectory cut into windows, each moved by its own Sim(3), comes back whole."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rays_as_pixels_model.geometry import invert
from rays_as_pixels_ros.stitching import OdometryChain, Similarity, Stitcher, align_poses, blend_poses

SEED = st.integers(0, 2**31)


def random_trajectory(rng, frames):
    """Make a smooth path that starts at the identity: (frames, 4, 4)."""
    poses = [np.eye(4)]
    for _ in range(frames - 1):
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.1, 3)).as_matrix()
        step[:3, 3] = rng.normal(0, 0.2, 3) + [0.0, 0.0, 0.1]
        poses.append(poses[-1] @ step)
    return np.stack(poses)


def random_similarity(rng, scale=None):
    return Similarity(
        scale or np.exp(rng.uniform(-1.5, 1.5)), Rotation.random(random_state=rng).as_matrix(), rng.normal(0, 3, 3)
    )


def windows_of(frames, length, hop):
    return [list(range(start, start + length)) for start in range(0, frames - length + 1, hop)]


def in_first_window_units(truth, scale):
    """The map has the unit of the first window."""
    expected = truth.copy()
    expected[:, :3, 3] *= scale
    return expected


@settings(max_examples=60, deadline=None)
@given(seed=SEED, length=st.integers(3, 8), data=st.data())
def test_windows_with_any_sim3_each_give_the_trajectory_back(seed, length, data):
    hop = data.draw(st.integers(1, length - 2))  # two common frames or more: scale is measurable
    rng = np.random.default_rng(seed)
    truth = random_trajectory(rng, 24)
    stitcher, found, first_scale = Stitcher(min_spread=1e-6), {}, None
    for ids in windows_of(24, length, hop):
        similarity = random_similarity(rng)
        first_scale = first_scale or similarity.scale
        for frame in stitcher.add(ids, similarity.apply(truth[ids])):
            found[frame.frame] = frame.T_map_camera
    expected = in_first_window_units(truth, first_scale)
    assert sorted(found) == list(range(max(found) + 1))
    for frame, pose in found.items():
        np.testing.assert_allclose(pose, expected[frame], atol=1e-6 * max(1.0, first_scale))


@settings(max_examples=30, deadline=None)
@given(seed=SEED, length=st.integers(2, 8))
def test_one_common_frame_is_enough_for_rigid_windows(seed, length):
    rng = np.random.default_rng(seed)
    truth = random_trajectory(rng, 25)
    stitcher = Stitcher()
    for ids in windows_of(25, length, length - 1):
        for frame in stitcher.add(ids, random_similarity(rng, scale=1.0).apply(truth[ids])):
            np.testing.assert_allclose(frame.T_map_camera, truth[frame.frame], atol=1e-8)
    assert stitcher.scale == pytest.approx(1.0)


@settings(max_examples=30, deadline=None)
@given(seed=SEED)
def test_odom_is_the_chain_of_motions_and_map_odom_takes_the_correction(seed):
    rng = np.random.default_rng(seed)
    truth = random_trajectory(rng, 12)
    start = np.eye(4)
    start[:3, :3] = [[0, 0, 1], [-1, 0, 0], [0, -1, 0]]
    stitcher, chain, before = Stitcher(), OdometryChain(start), start
    for ids in windows_of(12, 5, 2):
        noisy = truth[ids].copy()
        noisy[:, :3, 3] += rng.normal(0, 0.01, (5, 3))
        for frame in stitcher.add(ids, noisy):
            chain.add(frame)
            np.testing.assert_allclose(chain.T_map_odom @ chain.T_odom_camera, start @ frame.T_map_camera, atol=1e-9)
            np.testing.assert_allclose(invert(before) @ chain.T_odom_camera, frame.T_previous_camera, atol=1e-9)
            before = chain.T_odom_camera
    assert not np.allclose(chain.T_map_odom, np.eye(4))


def test_carrying_scale_beats_not_carrying_it():
    rng = np.random.default_rng(3)
    truth = random_trajectory(rng, 41)
    errors = {}
    for carry in (True, False):
        rng = np.random.default_rng(4)
        stitcher, last, first_scale = Stitcher(carry_scale=carry), None, None
        for ids in windows_of(41, 5, 2):
            scale = np.exp(rng.normal(0, 0.2))
            first_scale = first_scale or scale
            last = stitcher.add(ids, random_similarity(rng, scale).apply(truth[ids]))[-1]
        expected = in_first_window_units(truth, first_scale)[-1]
        errors[carry] = np.linalg.norm(last.T_map_camera[:3, 3] - expected[:3, 3])
    assert errors[True] < 1e-6 < errors[False]


def test_noise_on_every_window_is_averaged_over_the_common_frames():
    rng = np.random.default_rng(7)
    truth = random_trajectory(rng, 30)
    stitcher, seen = Stitcher(), []
    for ids in windows_of(30, 6, 1):
        noisy = truth[ids].copy()
        noisy[:, :3, 3] += rng.normal(0, 0.002, (6, 3))
        seen += stitcher.add(ids, noisy)
    error = np.linalg.norm(stitcher.pose(29)[:3, 3] - truth[29, :3, 3])
    assert len(seen) == 30 and error < 0.1


def test_a_lost_stretch_starts_a_segment_at_the_last_pose_and_keeps_scale():
    rng = np.random.default_rng(0)
    truth = random_trajectory(rng, 30)
    stitcher = Stitcher()
    stitcher.add([0, 1, 2, 3], truth[:4])
    doubled = truth.copy()
    doubled[:, :3, 3] *= 0.5
    stitcher.add([2, 3, 4, 5], doubled[2:6])  # this window's unit is twice as long
    assert stitcher.scale == pytest.approx(2.0)
    end = stitcher.pose(5)
    added = stitcher.add([20, 21, 22], doubled[20:23])
    assert stitcher.segments == 1 and added[0].segment == 1
    np.testing.assert_allclose(added[0].T_map_camera, end, atol=1e-9)
    np.testing.assert_allclose(added[0].T_previous_camera, np.eye(4), atol=1e-9)
    np.testing.assert_allclose(
        invert(added[1].T_map_camera) @ added[2].T_map_camera, invert(truth[21]) @ truth[22], atol=1e-9
    )


def test_a_camera_at_rest_keeps_the_scale():
    rng = np.random.default_rng(1)
    truth = random_trajectory(rng, 4)
    stitcher = Stitcher(min_spread=1e-3)
    stitcher.add([0, 1, 2, 3], truth)
    halved = truth.copy()
    halved[:, :3, 3] *= 0.25
    stitcher.add([1, 2, 3, 4], halved[[1, 2, 3, 3]])
    assert stitcher.scale == pytest.approx(4.0)
    resting = np.tile(np.eye(4), (4, 1, 1))
    resting[:, :3, 3] = rng.normal(0, 1e-5, (4, 3))
    stitcher.add([3, 4, 5, 6], resting)
    assert stitcher.scale == pytest.approx(4.0) and not stitcher.scale_measured


def test_scale_steps_are_bounded():
    truth = random_trajectory(np.random.default_rng(2), 6)
    stitcher = Stitcher(max_scale_step=1.5)
    stitcher.add([0, 1, 2, 3], truth[:4])
    shrunk = truth.copy()
    shrunk[:, :3, 3] *= 0.1
    stitcher.add([2, 3, 4, 5], shrunk[2:])
    assert stitcher.scale == pytest.approx(1.5)


def test_memory_is_bounded():
    stitcher = Stitcher(memory=16)
    truth = random_trajectory(np.random.default_rng(5), 200)
    for ids in windows_of(200, 5, 2):
        stitcher.add(ids, truth[ids])
    assert len(stitcher._poses) == 16


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_windows_are_refused_and_change_nothing(bad):
    truth = random_trajectory(np.random.default_rng(6), 8)
    stitcher = Stitcher()
    stitcher.add([0, 1, 2], truth[:3])
    broken = truth[1:4].copy()
    broken[1, 0, 3] = bad
    with pytest.raises(ValueError):
        stitcher.add([1, 2, 3], broken)
    with pytest.raises(ValueError):
        stitcher.add([1, 2], truth[1:4])
    np.testing.assert_allclose(stitcher.add([1, 2, 3], truth[1:4])[0].T_map_camera, truth[3], atol=1e-9)


def test_blending_ends_and_middle():
    a, b = random_trajectory(np.random.default_rng(8), 2)
    np.testing.assert_allclose(blend_poses(a, b, 0.0), a, atol=1e-12)
    np.testing.assert_allclose(blend_poses(a, b, 1.0), b, atol=1e-12)
    np.testing.assert_allclose(blend_poses(a, b, 0.5), blend_poses(b, a, 0.5), atol=1e-9)


def test_alignment_says_when_scale_was_not_measured():
    poses = np.tile(np.eye(4), (3, 1, 1))
    similarity, measured = align_poses(poses, poses, min_spread=1e-3, fallback=2.5)
    assert similarity.scale == 2.5 and not measured
