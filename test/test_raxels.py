# SPDX-License-Identifier: Apache-2.0
"""Cameras to raxel images and back: exact without noise, robust with it, clear when nothing can be read."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from rays_as_pixels_model.checkpoint import load_checkpoint
from rays_as_pixels_model.geometry import (
    GeometryError,
    Intrinsics,
    make_pose,
    pixel_rays,
    rotation_angle_deg,
    sample_covariance,
    so3_exp,
    so3_log,
)
from rays_as_pixels_model.raxels import (
    estimate_focal,
    make_raxels,
    make_raxels_batch,
    perturb,
    read_cameras,
)

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


def least_squares(raxels: np.ndarray, camera: Intrinsics) -> np.ndarray:
    """Rotations (T, 3, 3) by plain Procrustes: no reading of Gaussian noise can have smaller errors."""
    rays = pixel_rays(camera, raxels.shape[2], raxels.shape[1]).reshape(-1, 3)
    points = raxels.reshape(len(raxels), -1, 3)
    return np.stack([Rotation.align_vectors(p - p.mean(0), rays - rays.mean(0))[0].as_matrix() for p in points])


def spoil(raxels: np.ndarray, rng: np.random.Generator, kind: str, size: float) -> np.ndarray:
    """Shift a fifth of each image: single pixels, cells of 8x8 each by its own offset, or one corner all alike."""
    frames, h, w = raxels.shape[:3]
    if kind == "pixels":
        mask, offset = rng.random((frames, h, w)) < 0.2, rng.normal(size=raxels.shape)
    elif kind == "cells":
        chosen = rng.random((frames, h // 8 * w // 8)).argsort(1) < 0.2 * h * w / 64
        mask = chosen.reshape(frames, h // 8, w // 8).repeat(8, 1).repeat(8, 2)
        offset = rng.normal(size=(frames, h // 8, w // 8, 3)).repeat(8, 1).repeat(8, 2)
    else:
        mask = np.zeros((frames, h, w), bool)
        mask[:, : round(h * 0.2**0.5), : round(w * 0.2**0.5)] = True
        offset = np.broadcast_to(rng.normal(size=(frames, 1, 1, 3)), raxels.shape)
    return raxels + size * mask[..., None] * offset


@settings(max_examples=4, deadline=None)
@given(st.floats(40, 100), st.integers(0, 10_000))
def test_noise_costs_what_it_must(fov, seed):
    """Noise of 0.02 on 48x64: under 0.1 degrees where least squares can be (75 degrees of view), near it elsewhere."""
    camera, rng = Intrinsics.from_fov(fov, 128, 96), np.random.default_rng(seed)
    T = random_poses(seed, 60)
    noisy = make_raxels(T, camera, 48, 64) + 0.02 * rng.normal(size=(60, 48, 64, 3))
    found = np.median(rotation_errors(read_cameras(noisy, camera).T_reference_camera, T))
    bound = np.median(rotation_angle_deg(np.swapaxes(least_squares(noisy, camera), 1, 2) @ T[:, :3, :3]))
    assert found < 1.25 * bound
    if fov >= 78:
        assert found < 0.1


@pytest.mark.parametrize("kind", ["pixels", "cells", "corner"])
@settings(max_examples=3, deadline=None)
@given(st.floats(45, 100), st.sampled_from([0.2, 0.5, 2.0, 50.0]), st.integers(0, 10_000))
def test_outliers_cost_less_than_a_factor_of_two(kind, fov, size, seed):
    camera, rng = Intrinsics.from_fov(fov, 128, 96), np.random.default_rng(seed)
    T = random_poses(seed, 40)
    noisy = make_raxels(T, camera, 48, 64) + 0.02 * rng.normal(size=(40, 48, 64, 3))
    plain = np.median(rotation_errors(read_cameras(noisy, camera).T_reference_camera, T))
    spoiled = read_cameras(spoil(noisy, rng, kind, size), camera).T_reference_camera
    assert np.median(rotation_errors(spoiled, T)) < 2 * plain


def test_outliers_leave_the_focal_length():
    camera, rng = Intrinsics.from_fov(65, 128, 96), np.random.default_rng(0)
    noisy = make_raxels(random_poses(1, 5), camera, 48, 64) + 0.02 * rng.normal(size=(5, 48, 64, 3))
    focal = estimate_focal(spoil(noisy, rng, "pixels", 1.0))
    assert focal.fx == pytest.approx(camera.resized(64, 48).fx, rel=0.1)
    assert focal.fy == pytest.approx(camera.resized(64, 48).fy, rel=0.1)


def chi_square(found: np.ndarray, covariance: np.ndarray, T: np.ndarray, part: slice) -> float:
    """Mean squared Mahalanobis error a degree of freedom: 1 when the covariance is right."""
    turn = so3_log(found[:, :3, :3] @ np.swapaxes(T[:, :3, :3], 1, 2))
    error = np.concatenate([found[:, :3, 3] - T[:, :3, 3], turn], axis=1)[:, part]
    weighed = np.linalg.solve(covariance[:, part, part], error[..., None])[..., 0]
    return float((error * weighed).sum(1).mean() / error.shape[1])


@pytest.fixture(scope="module")
def shipped():
    return load_checkpoint()


@pytest.mark.parametrize(
    "where, cell, least, most",
    [("pixels", 1, 0.8, 1.3), ("pixels", 8, 0.8, 2), ("latents", 8, 0.8, 2), ("latents", 1, 3, 30), ("r", 8, 0.6, 4)],
)
def test_covariance_is_calibrated_where_the_noise_is_made(shipped, where, cell, least, most):
    """Noise of decoded latents is shared by 8x8 pixels: counted as pixels (cell 1) the covariance is far too small.

    White noise in the transformer's latents (r) has a part that all cells share, which no residual shows.
    """
    camera, rng = Intrinsics.from_fov(65, 96, 64), np.random.default_rng(0)
    T, generator = random_poses(2, 200, 0.2), torch.Generator().manual_seed(0)
    clean = make_raxels(T, camera, 32, 48)
    images = torch.from_numpy(clean)[:, None]
    if where == "pixels":
        noisy = clean + 0.02 * rng.normal(size=clean.shape)
    elif where == "latents":
        latents = shipped.codec.encode(images, (1,))
        noisy = shipped.codec.decode(latents + 0.05 * torch.randn(latents.shape, generator=generator), (1,))
    else:
        r = shipped.encode_rays(images)
        noisy = shipped.decode_rays(r + 0.1 * torch.randn(r.shape, generator=generator))
    reading = read_cameras(np.asarray(noisy).reshape(clean.shape), camera, cell=cell)
    for part in (slice(0, 3), slice(3, 6), slice(0, 6)):
        assert least < chi_square(reading.T_reference_camera, reading.covariance, T, part) < most


def test_covariance_of_draws():
    rng, T = np.random.default_rng(0), random_poses(2, 3)
    shift, turn = 0.1 * rng.normal(size=(4000, 3, 3)), 0.02 * rng.normal(size=(4000, 3, 3))
    covariance = sample_covariance(perturb(T, turn, shift), T)
    np.testing.assert_allclose(covariance[:, :3, :3], np.tile(0.01 * np.eye(3), (3, 1, 1)), atol=1e-3)
    np.testing.assert_allclose(covariance[:, 3:, 3:], np.tile(0.0004 * np.eye(3), (3, 1, 1)), atol=4e-5)


def test_perturbation_is_on_the_left():
    T = random_poses(5, 1)[0]
    moved = perturb(T, np.array([0, 0, 0.1]), np.array([1.0, 0, 0]))
    np.testing.assert_allclose(moved[:3, 3] - T[:3, 3], [1, 0, 0])
    np.testing.assert_allclose(moved[:3, :3] @ T[:3, :3].T, so3_exp([0, 0, 0.1]), atol=1e-12)


LINE = np.linspace(0, 1, 96).reshape(1, 8, 12, 1) * np.ones(3)


@pytest.mark.parametrize(
    "raxels, words",
    [
        (np.full((1, 8, 12, 3), 0.5), "spread"),
        (np.full((1, 8, 12, 3), np.nan), "finite"),
        (np.full((1, 8, 12, 3), 1e200) * np.arange(3), "above 1e"),
        (np.zeros((8, 12, 3)), r"\(8, 12, 3\)"),
        (np.zeros((0, 8, 12, 3)), "not empty"),
        (LINE, "line|focal"),
        (np.where(LINE > 0.5, 1.0, -1.0), "line|focal"),
    ],
)
@pytest.mark.parametrize("camera", [Intrinsics.from_fov(60, 24, 16), None])
def test_what_no_camera_made_is_refused(raxels, words, camera):
    with pytest.raises(GeometryError, match=words):
        read_cameras(raxels, camera)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, (2, 8, 12, 3), elements=st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-300, 1e5, -1e5, np.inf])),
    st.booleans(),
    st.sampled_from([1, 4]),
)
def test_any_input_gives_numbers_or_an_error(raxels, known, cell):
    try:
        reading = read_cameras(raxels, Intrinsics.from_fov(60, 24, 16) if known else None, cell=cell)
    except GeometryError:
        return
    assert np.isfinite(reading.T_reference_camera).all() and np.isfinite(reading.residual).all()
    assert np.linalg.eigvalsh(reading.covariance).min() > 0
    R = reading.T_reference_camera[:, :3, :3]
    np.testing.assert_allclose(np.swapaxes(R, 1, 2) @ R, np.tile(np.eye(3), (2, 1, 1)), atol=1e-9)


def test_cells_must_fit():
    with pytest.raises(GeometryError, match="8x8"):
        read_cameras(make_raxels(random_poses(0), Intrinsics.from_fov(60, 24, 20), 10, 12), None, cell=8)
