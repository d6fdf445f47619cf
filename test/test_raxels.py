# SPDX-License-Identifier: Apache-2.0
"""Cameras to raxel images and back: exact without noise, robust with it, clear when nothing can be read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rays_as_pixels_model.geometry import GeometryError, Intrinsics, make_pose, pixel_rays, rotation_angle_deg, so3_exp
from rays_as_pixels_model.raxels import estimate_focal, make_raxels, make_raxels_batch, perturb, read_cameras

cameras = st.builds(
    lambda fov, dx, dy, stretch: Intrinsics(
        Intrinsics.from_fov(fov, 96, 64).fx, Intrinsics.from_fov(fov, 96, 64).fy * stretch, 48 + dx, 32 + dy, 96, 64
    ),
    st.floats(35, 95),
    st.floats(-4, 4),
    st.floats(-4, 4),
    st.floats(0.95, 1.05),
)


def random_poses(seed: int, count: int = 4, turn: float = 0.4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return make_pose(so3_exp(rng.normal(size=(count, 3)) * turn), rng.normal(size=(count, 3)))


def rotation_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return rotation_angle_deg(np.swapaxes(a[:, :3, :3], 1, 2) @ b[:, :3, :3])


@settings(max_examples=30, deadline=None)
@given(cameras, st.integers(0, 10_000))
def test_known_intrinsics_there_and_back(camera, seed):
    T = random_poses(seed)
    reading = read_cameras(make_raxels(T, camera, 32, 48), camera)
    assert rotation_errors(reading.T_reference_camera, T).max() < 1e-4
    np.testing.assert_allclose(reading.T_reference_camera[:, :3, 3], T[:, :3, 3], atol=1e-5)
    assert reading.residual.max() < 1e-5


@settings(max_examples=15, deadline=None)
@given(st.floats(35, 95), st.integers(0, 10_000))
def test_unknown_focal_there_and_back(fov, seed):
    camera, T = Intrinsics.from_fov(fov, 96, 64), random_poses(seed)
    reading = read_cameras(make_raxels(T, camera, 32, 48), None)
    assert reading.intrinsics.fx == pytest.approx(camera.fx, rel=1e-3)
    assert (reading.intrinsics.width, reading.intrinsics.height) == (96, 64)
    assert rotation_errors(reading.T_reference_camera, T).max() < 0.01


def test_a_raxel_is_direction_plus_centre():
    camera = Intrinsics.from_fov(60, 96, 64)
    T = random_poses(3, 1)
    raxels = make_raxels(T, camera, 64, 96)[0]
    np.testing.assert_allclose(np.linalg.norm(raxels - T[0, :3, 3], axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(raxels[5, 7], T[0, :3, :3] @ pixel_rays(camera)[5, 7] + T[0, :3, 3], atol=1e-6)


def test_the_batched_raxels_are_the_same():
    camera, T = Intrinsics(80, 85, 46, 33, 96, 64), random_poses(4)
    batch = make_raxels_batch(
        torch.from_numpy(T[None, :, :3, :3]),
        torch.from_numpy(T[None, :, :3, 3]),
        torch.tensor([[80.0, 85.0, 46.0, 33.0]]),
        (96, 64),
        32,
        48,
    )
    np.testing.assert_allclose(batch[0].numpy(), make_raxels(T, camera, 32, 48), atol=1e-6)


def test_noise_costs_little_and_outliers_no_more_than_twice():
    camera, rng = Intrinsics.from_fov(65, 128, 96), np.random.default_rng(0)
    T = random_poses(1, 40)
    noisy = make_raxels(T, camera, 48, 64) + 0.02 * rng.normal(size=(40, 48, 64, 3))
    plain = np.median(rotation_errors(read_cameras(noisy, camera).T_reference_camera, T))
    spoiled = noisy.copy()
    cells = rng.random((40, 48, 64)) < 0.2
    spoiled[cells] += rng.normal(size=(int(cells.sum()), 3))
    outliers = np.median(rotation_errors(read_cameras(spoiled, camera).T_reference_camera, T))
    assert plain < 0.1 and outliers < 2 * plain
    focal = estimate_focal(spoiled[:5])
    assert focal.fx == pytest.approx(camera.resized(64, 48).fx, rel=0.1)


def test_covariance_is_of_the_size_of_the_errors():
    camera, rng = Intrinsics.from_fov(65, 128, 96), np.random.default_rng(0)
    T = random_poses(2, 60)
    reading = read_cameras(make_raxels(T, camera, 48, 64) + 0.02 * rng.normal(size=(60, 48, 64, 3)), camera)
    variance = np.diagonal(reading.covariance, axis1=1, axis2=2)
    error = reading.T_reference_camera[:, :3, 3] - T[:, :3, 3]
    ratio = np.mean(error**2 / variance[:, :3])
    assert 0.2 < ratio < 5


def test_perturbation_is_on_the_left():
    T = random_poses(5, 1)[0]
    moved = perturb(T, np.array([0, 0, 0.1]), np.array([1.0, 0, 0]))
    np.testing.assert_allclose(moved[:3, 3] - T[:3, 3], [1, 0, 0])
    np.testing.assert_allclose(moved[:3, :3] @ T[:3, :3].T, so3_exp([0, 0, 0.1]), atol=1e-12)


@pytest.mark.parametrize(
    "raxels, words",
    [
        (np.full((1, 8, 12, 3), 0.5), "spread"),
        (np.full((1, 8, 12, 3), np.nan), "finite"),
        (np.zeros((8, 12, 3)), r"\(8, 12, 3\)"),
    ],
)
@pytest.mark.parametrize("camera", [Intrinsics.from_fov(60, 24, 16), None])
def test_what_no_camera_made_is_refused(raxels, words, camera):
    with pytest.raises(GeometryError, match=words):
        read_cameras(raxels, camera)
