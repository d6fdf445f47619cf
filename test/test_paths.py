# SPDX-License-Identifier: Apache-2.0
"""Camera paths: what they look at and where they end."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from rays_as_pixels_ros.paths import dolly, kitti_text, orbit, spline


def random_poses(seed, count):
    rng = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = Rotation.random(count, random_state=rng).as_matrix()
    poses[:, :3, 3] = rng.normal(0, 2, (count, 3))
    return poses


@given(views=st.integers(1, 20), degrees=st.floats(-180, 180), distance=st.floats(0.1, 50))
def test_every_orbit_view_looks_at_the_centre_from_the_same_distance(views, degrees, distance):
    centre = np.array([0, 0, distance, 1.0])
    for pose in orbit(views, degrees, distance):
        np.testing.assert_allclose(np.linalg.inv(pose) @ centre, centre, atol=1e-9 * distance)
        assert pose[1, 3] == pytest.approx(0.0)


def test_orbit_starts_at_the_camera_and_goes_to_its_right():
    poses = orbit(4, 90.0, 2.0)
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-12)
    np.testing.assert_allclose(poses[-1][:3, 3], [2.0, 0.0, 2.0], atol=1e-12)
    np.testing.assert_allclose(poses[-1][:3, 2], [-1.0, 0.0, 0.0], atol=1e-12)


def test_dolly_is_a_straight_even_line():
    poses = dolly(5, [0.0, 0.0, 1.0])
    np.testing.assert_allclose(poses[:, 2, 3], [0, 0.25, 0.5, 0.75, 1.0])
    np.testing.assert_allclose(poses[:, :3, :3], np.tile(np.eye(3), (5, 1, 1)))


@given(seed=st.integers(0, 1000), count=st.integers(2, 6), each=st.integers(1, 4))
def test_spline_goes_through_its_waypoints_with_proper_rotations(seed, count, each):
    waypoints = random_poses(seed, count)
    path = spline(waypoints, (count - 1) * each + 1)
    np.testing.assert_allclose(path[::each], waypoints, atol=1e-7)
    np.testing.assert_allclose(
        path[:, :3, :3] @ path[:, :3, :3].transpose(0, 2, 1), np.tile(np.eye(3), (len(path), 1, 1)), atol=1e-9
    )


def test_kitti_rows_are_the_upper_three_rows():
    poses = random_poses(0, 3)
    rows = np.array([[float(word) for word in line.split()] for line in kitti_text(poses).splitlines()])
    np.testing.assert_allclose(rows.reshape(3, 3, 4), poses[:, :3], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: orbit(0, 10, 1),
        lambda: orbit(3, 10, -1),
        lambda: dolly(0, [0, 0, 1]),
        lambda: spline(random_poses(0, 1), 3),
    ],
)
def test_impossible_paths_are_refused(make):
    with pytest.raises(ValueError):
        make()
