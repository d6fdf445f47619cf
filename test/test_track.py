# SPDX-License-Identifier: Apache-2.0
"""The published trajectory: base and camera, map and odom, covariances, frusta, and files that evo reads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from scipy.stats import chi2

from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, so3_exp, so3_log
from rays_as_pixels_ros.stitching import StitchedFrame
from rays_as_pixels_ros.track import T_REP103_OPTICAL, Track, frusta_lines
from rays_as_pixels_ros.uncertainty import UNKNOWN, CovarianceChain, move_covariance, rotate_covariance, step_covariance

SEED = st.integers(0, 2**32 - 1)
SMALL = np.diag([1e-4] * 6)


def random_poses(rng, count, reach=1.0):
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[1:, :3, :3] = Rotation.random(count - 1, random_state=rng).as_matrix()
    poses[1:, :3, 3] = rng.normal(0, reach, (count - 1, 3))
    return poses


def fill(track, poses, corrected=None, mount=None, metres=1.0, seconds=0.1):
    """Add frames whose motions are those of `poses` and whose map poses are `corrected`."""
    found = []
    for number, pose in enumerate(poses):
        moved = invert(poses[number - 1]) @ pose if number else np.eye(4)
        frame = StitchedFrame(number, (poses if corrected is None else corrected)[number], moved, 1.0, 0)
        found.append(track.add(frame, int(number * seconds * 1e9), mount, metres, SMALL, SMALL))
    return found


@settings(max_examples=20, deadline=None)
@given(seed=SEED, metres=st.floats(0.1, 10))
def test_the_base_moves_as_its_camera_does(seed, metres):
    rng = np.random.default_rng(seed)
    poses, mount = random_poses(rng, 5), random_poses(rng, 2)[1]
    for pose, found in zip(poses, fill(Track(10), poses, mount=mount, metres=metres), strict=True):
        camera = pose.copy()
        camera[:3, 3] *= metres
        np.testing.assert_allclose(found.T_map_base, mount @ camera @ invert(mount), atol=1e-9 * metres)
        np.testing.assert_allclose(found.T_map_base @ mount, found.T_map_optical, atol=1e-9 * metres)


def test_without_a_base_the_world_is_upright():
    first = fill(Track(10), random_poses(np.random.default_rng(0), 2))[0]
    np.testing.assert_allclose(first.T_map_base, T_REP103_OPTICAL, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=SEED)
def test_a_correction_moves_map_to_odom_and_never_odom_to_base(seed):
    rng = np.random.default_rng(seed)
    poses, mount = random_poses(rng, 6), random_poses(rng, 2)[1]
    corrected = make_pose(poses[:, :3, :3], poses[:, :3, 3] + np.linspace(0, 1, 6)[:, None] * rng.normal(size=3))
    plain, moved = fill(Track(10), poses, mount=mount), fill(Track(10), poses, corrected, mount)
    for a, b in zip(plain, moved, strict=True):
        np.testing.assert_allclose(a.T_odom_base, b.T_odom_base, atol=1e-9)
        np.testing.assert_allclose(b.T_map_odom @ b.T_odom_base, b.T_map_base, atol=1e-9)
    assert np.abs(moved[-1].T_map_odom - np.eye(4)).max() > 1e-3


def test_twist_is_the_motion_in_base_axes():
    turn = Rotation.from_rotvec([0, 0, 0.2]).as_matrix()
    poses = np.stack([make_pose(np.eye(3), np.zeros(3)), make_pose(turn, [0.3, 0.1, 0.0])])
    first, second = fill(Track(4), poses, mount=np.eye(4))
    np.testing.assert_array_equal(first.twist_covariance, UNKNOWN)
    np.testing.assert_allclose(second.twist, np.concatenate([turn.T @ [3.0, 1.0, 0.0], [0, 0, 2.0]]), atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=SEED, metres=st.floats(0.1, 10))
def test_frames_without_a_pose_count_in_what_follows(seed, metres):
    """Where the base's transform is missing for two frames, the next pose has the motion of all three."""
    rng = np.random.default_rng(seed)
    poses, mount = random_poses(rng, 6), random_poses(rng, 2)[1]
    whole, track = fill(Track(10), poses, mount=mount, metres=metres), Track(10)
    for number, pose in enumerate(poses):
        moved = invert(poses[number - 1]) @ pose if number else np.eye(4)
        frame = StitchedFrame(number, pose, moved, 1.0, 0)
        if number in (3, 4):
            track.skip(frame, metres, SMALL)
        else:
            found = track.add(frame, int(number * 0.1 * 1e9), mount, metres, SMALL, SMALL)
    np.testing.assert_allclose(found.T_odom_base, whole[5].T_odom_base, atol=1e-9 * metres)
    np.testing.assert_allclose(found.T_map_odom, np.eye(4), atol=1e-9 * metres)
    moved = invert(whole[2].T_odom_base) @ whole[5].T_odom_base
    twist = np.concatenate([moved[:3, :3].T @ moved[:3, 3], so3_log(moved[:3, :3])]) / 0.3
    np.testing.assert_allclose(found.twist, twist, atol=1e-8 * metres)
    # Three equal steps' turns, over three times as long.
    np.testing.assert_allclose(found.twist_covariance[3:, 3:], whole[5].twist_covariance[3:, 3:] / 3, atol=1e-12)


def test_nothing_is_skipped_before_the_first_pose():
    track = Track(10)
    track.skip(StitchedFrame(0, np.eye(4), np.eye(4), 1.0, 0), None, SMALL)
    first = track.add(StitchedFrame(1, np.eye(4), np.eye(4), 1.0, 0), 10**8, None, 1.0, SMALL, SMALL)
    np.testing.assert_array_equal(first.twist_covariance, UNKNOWN)


@settings(max_examples=5, deadline=None)
@given(seed=SEED)
def test_the_twist_is_known_as_well_as_the_motions_since_the_last_pose(seed):
    """Two steps with their own errors, the first one without a pose; the derivatives of the base are numerical."""
    rng = np.random.default_rng(seed)
    poses, mount = random_poses(rng, 3), random_poses(rng, 2, reach=2.0)[1]
    steps = invert(poses[:-1]) @ poses[1:]
    roots = rng.normal(0, 0.1, (2, 6, 6))
    covariances = roots @ roots.transpose(0, 2, 1)

    def arrive(errors):
        track = Track(10)
        track.add(StitchedFrame(0, np.eye(4), np.eye(4), 1.0, 0), 0, mount, 2.0, SMALL, SMALL)
        moved = [make_pose(so3_exp(e[3:]) @ T[:3, :3], T[:3, 3] + e[:3]) for e, T in zip(errors, steps, strict=True)]
        track.skip(StitchedFrame(1, poses[1], moved[0], 1.0, 0), 2.0, covariances[0])
        return track.add(StitchedFrame(2, poses[2], moved[1], 1.0, 0), 10**9, mount, 2.0, SMALL, covariances[1])

    exact, columns = arrive(np.zeros((2, 6))), []
    for nudge in 1e-6 * np.eye(12).reshape(12, 2, 6):
        T = arrive(nudge).T_odom_base
        turn = so3_log(T[:3, :3] @ exact.T_odom_base[:3, :3].T)
        columns.append(np.concatenate([T[:3, 3] - exact.T_odom_base[:3, 3], turn]) / 1e-6)
    jacobian = np.stack(columns, axis=1).reshape(6, 2, 6)
    in_odom = sum(jacobian[:, k] @ covariances[k] @ jacobian[:, k].T for k in range(2))
    wanted = rotate_covariance(in_odom, exact.T_odom_base[:3, :3].T)
    np.testing.assert_allclose(exact.twist_covariance, wanted, atol=1e-4 * np.abs(wanted).max())


@settings(max_examples=5, deadline=None)
@given(seed=SEED)
def test_covariance_of_the_base_is_that_of_many_noisy_cameras(seed):
    """The covariance that comes out is the scatter of bases whose cameras scatter as what went in."""
    rng = np.random.default_rng(seed)
    pose, mount = random_poses(rng, 2)[1], random_poses(rng, 2, reach=2.0)[1]
    root = rng.normal(0, 0.01, (6, 6))
    frame = StitchedFrame(0, pose, np.eye(4), 1.0, 0)
    found = Track(2).add(frame, 0, mount, 2.0, root @ root.T, SMALL)
    drawn = rng.normal(size=(20_000, 6)) @ root.T
    cameras = make_pose(so3_exp(drawn[:, 3:]) @ pose[:3, :3], 2.0 * (pose[:3, 3] + drawn[:, :3]))
    bases = mount @ cameras @ invert(mount)
    off = np.concatenate(
        [bases[:, :3, 3] - found.T_map_base[:3, 3], so3_log(bases[:, :3, :3] @ found.T_map_base[:3, :3].T)], axis=1
    )
    scatter = off.T @ off / len(off)
    spread = np.sqrt(np.diag(scatter))
    np.testing.assert_allclose(
        found.covariance / np.outer(spread, spread), scatter / np.outer(spread, spread), atol=0.1
    )


def test_an_unsure_scale_shows_in_the_direction_of_travel():
    frame = StitchedFrame(0, make_pose(np.eye(3), [0, 0, 5.0]), np.eye(4), 1.0, 0)
    found = Track(2).add(frame, 0, None, 2.0, np.zeros((6, 6)), SMALL, scale_spread=0.1)
    np.testing.assert_allclose(np.diag(found.covariance)[:3], [1.0, 0, 0], atol=1e-9)  # 10 % of 10 m ahead


def test_errors_of_windows_add_up_and_a_wrong_start_turns_what_follows():
    chain = CovarianceChain()
    straight = make_pose(np.tile(np.eye(3), (3, 1, 1)), [[0, 0, 0], [1, 0, 0], [2, 0, 0]])
    each = np.stack([np.zeros((6, 6)), SMALL, 4 * SMALL])
    first = chain.add([0, 1, 2], straight, each)
    np.testing.assert_allclose(first, each)
    later = straight.copy()
    later[:, 0, 3] += 2
    second = chain.add([2, 3, 4], later, each)
    np.testing.assert_allclose(second[0], first[2])
    lever = np.diag([0, 4 * 4e-4, 4 * 4e-4, 0, 0, 0])  # 2 m ahead of a camera whose direction is off
    np.testing.assert_allclose(np.diag(second[2]), np.diag(4 * SMALL + 4 * SMALL + lever))
    assert np.all(np.diag(chain.add([9, 10, 11], later, each)[2]) >= np.diag(UNKNOWN)), "nothing was seen in the gap"
    for number in range(20, 400, 2):
        chain.add([number, number + 1, number + 2], later, each)
    assert len(chain._known) == chain.memory


@pytest.mark.parametrize("correlation", [0.0, 0.6, 0.9])
def test_ellipsoids_hold_along_a_path_whose_errors_are_correlated(correlation):
    """Windows that meet end to end, each off by an error that resembles the last one's: what share lies within 95 %?

    Errors add up as the chain says, levers and all, over 1 to 25 windows; taken as independent they would not.
    """
    rng = np.random.default_rng(7)
    paths, count = 1500, 25
    turns = so3_exp(np.cumsum(rng.normal(0, 0.1, (count + 1, 3)), axis=0))
    true = make_pose(turns, np.cumsum(rng.normal(0.1, 0.2, (count + 1, 3)), axis=0))
    sizes = rng.uniform(0.003, 0.006, (count, 6))
    chains = CovarianceChain(lambda frames: correlation ** (frames / 4)), CovarianceChain()
    found, w, shares = np.tile(true[0], (paths, 1, 1)), rng.normal(size=(paths, 6)), []
    for k in range(count):
        w = correlation * w + np.sqrt(1 - correlation**2) * rng.normal(size=w.shape) if k else w
        error = sizes[k] * w
        placed = found @ invert(true[k]) @ true[k + 1]
        found = make_pose(so3_exp(error[:, 3:]) @ placed[:, :3, :3], placed[:, :3, 3] + error[:, :3])
        turned = so3_log(found[:, :3, :3] @ true[k + 1, :3, :3].T)
        off = np.concatenate([found[:, :3, 3] - true[k + 1, :3, 3], turned], axis=1)
        own = np.stack([np.zeros((6, 6))] * 4 + [np.diag(sizes[k] ** 2)])
        known = [chain.add(range(4 * k, 4 * k + 5), true[[k, k, k, k, k + 1]], own)[-1] for chain in chains]
        squared = [np.einsum("ni,ni->n", off @ np.linalg.inv(covariance), off) for covariance in known]
        shares.append(np.mean(np.array(squared) <= chi2.ppf(0.95, 6), axis=1))
    within, if_independent = np.transpose(shares)
    assert 0.93 < within.min() and within.max() < 0.97
    if correlation:
        assert if_independent[-1] < 0.80


@given(seed=SEED)
def test_moved_there_and_back_is_the_same_covariance(seed):
    rng = np.random.default_rng(seed)
    root, shift = rng.normal(size=(6, 6)), rng.normal(size=3)
    there = move_covariance(root @ root.T, shift)
    np.testing.assert_allclose(move_covariance(there, -shift), root @ root.T, atol=1e-9)
    assert np.trace(there[3:, 3:]) == pytest.approx(np.trace((root @ root.T)[3:, 3:]))


def test_covariance_turns_with_the_axes():
    turned = rotate_covariance(np.diag([1.0, 2, 3, 4, 5, 6]), T_REP103_OPTICAL[:3, :3], scale=2.0)
    np.testing.assert_allclose(np.diag(turned), [12, 4, 8, 6, 4, 5])


def test_draws_that_differ_by_their_start_only_agree_on_the_step():
    rng = np.random.default_rng(2)
    path = random_poses(rng, 3)
    shifted = np.stack([make_pose(so3_exp(rng.normal(0, 0.1, 3)), rng.normal(size=3)) @ path for _ in range(6)])
    np.testing.assert_allclose(step_covariance(shifted, 2), 0, atol=1e-12)
    scattered = np.stack([np.concatenate([path[:2], path[2:] @ make_pose(np.eye(3), [0, 0, z])]) for z in (-1, 0, 1)])
    assert np.trace(step_covariance(scattered, 2)[:3, :3]) == pytest.approx(1.0)


def test_frusta_are_seen_from_the_camera_and_few():
    camera = Intrinsics.from_fov(90.0, 200, 100)
    lines = frusta_lines(np.eye(4)[None], 1.0, 0.5, 2.0)
    assert lines.shape == (1, 16, 3)
    corners = {tuple(p) for p in lines[0].tolist()}
    assert corners == {(0, 0, 0), (-2, -1, 2), (2, -1, 2), (2, 1, 2), (-2, 1, 2)}
    track = Track(30)
    poses = random_poses(np.random.default_rng(1), 40)
    fill(track, poses)
    assert [pose.stamp for pose in track.path] == [int(n * 1e8) for n in range(10, 40)], "path_max_size newest poses"
    drawn = track.frusta(7, camera, 0.2)
    assert len(drawn) == 7
    own = invert(T_REP103_OPTICAL @ poses[39]) @ np.c_[drawn[-1], np.ones(16)].T
    np.testing.assert_allclose(own[:3].T, lines[0] * 0.1, atol=1e-9)


def test_saved_files_are_read_by_evo(tmp_path):
    evo = pytest.importorskip("evo.tools.file_interface", reason="needs evo")
    track, poses = Track(3), random_poses(np.random.default_rng(4), 8)
    found = np.stack([pose.T_map_base for pose in fill(track, poses)])
    assert track.save(tmp_path / "t.txt", "tum") == track.save(tmp_path / "k.txt", "kitti") == 8, "more than the path"
    tum, kitti = evo.read_tum_trajectory_file(tmp_path / "t.txt"), evo.read_kitti_poses_file(tmp_path / "k.txt")
    np.testing.assert_allclose(tum.timestamps, np.arange(8) * 0.1)
    np.testing.assert_allclose(np.stack(tum.poses_se3), found, atol=1e-6)
    np.testing.assert_allclose(np.stack(kitti.poses_se3), found, atol=1e-6)


@pytest.mark.parametrize("name, kind, reason", [
    ("t.txt", "bag", "format is 'bag'; it must be tum or kitti"),
    ("", "tum", "path is empty"),
    ("t.txt", "tum", "there is no pose yet"),
])  # fmt: skip
def test_what_cannot_be_saved_is_said(tmp_path, name, kind, reason):
    with pytest.raises(ValueError, match=reason):
        Track(3).save(name and str(tmp_path / name), kind)
