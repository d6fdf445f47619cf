# SPDX-License-Identifier: Apache-2.0
"""Axioms, there and back, and known values of the geometry."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rays_as_pixels_model import geometry as g
from rays_as_pixels_model.geometry import Distortion, GeometryError, Intrinsics

finite = st.floats(-3, 3, allow_nan=False)
vectors = hnp.arrays(np.float64, (3,), elements=finite)
poses = st.builds(lambda w, t: g.make_pose(g.so3_exp(w), t), vectors, vectors)


@given(poses, poses)
def test_inverse_of_a_product_is_the_product_of_inverses_turned_round(a, b):
    np.testing.assert_allclose(g.invert(a @ b), g.invert(b) @ g.invert(a), atol=1e-9)
    np.testing.assert_allclose(g.invert(a) @ a, np.eye(4), atol=1e-9)


@given(vectors)
def test_rotation_vectors_there_and_back(w):
    if np.linalg.norm(w) < np.pi - 1e-3:
        np.testing.assert_allclose(g.so3_log(g.so3_exp(w)), w, atol=1e-8)
    assert 0 <= g.rotation_angle_deg(g.so3_exp(w)) <= 180 + 1e-9


@given(poses)
def test_quaternions_there_and_back(pose):
    back = g.pose_from_quaternion(pose[:3, 3], g.quaternion_from_matrix(pose[:3, :3]))
    np.testing.assert_allclose(back, pose, atol=1e-9)


def test_tiny_rotations_keep_their_angle():
    assert g.rotation_angle_deg(g.so3_exp([1e-7, 0, 0])) == pytest.approx(np.degrees(1e-7), rel=1e-6)


@settings(max_examples=50)
@given(poses, st.floats(0.1, 10), st.integers(0, 1000), st.booleans())
def test_alignment_recovers_the_similarity(pose, scale, seed, with_scale):
    source = np.random.default_rng(seed).normal(size=(8, 3))
    scale = scale if with_scale else 1.0
    target = scale * source @ pose[:3, :3].T + pose[:3, 3]
    s, rotation, t = g.align_sim3(source, target, with_scale)
    assert s == pytest.approx(scale, rel=1e-9)
    np.testing.assert_allclose(rotation, pose[:3, :3], atol=1e-8)
    np.testing.assert_allclose(t, pose[:3, 3], atol=1e-8)


def test_alignment_of_one_point_is_a_shift():
    s, rotation, t = g.align_sim3(np.ones((1, 3)), np.zeros((1, 3)))
    assert s == 1 and np.allclose(rotation @ np.ones(3) + t, 0)


def test_the_half_pixel_is_added_once():
    camera = Intrinsics.from_opencv(100, 100, 319.5, 239.5, 640, 480)
    assert (camera.cx, camera.cy) == (320, 240)
    assert camera.to_opencv() == (100, 100, 319.5, 239.5)


@given(st.integers(0, 20), st.integers(0, 20), st.floats(0.3, 3))
def test_a_point_keeps_its_place_through_crop_and_resize(left, top, factor):
    camera = Intrinsics(90, 95, 50, 31, 100, 60)
    point = np.array([0.1, -0.2, 1.0])
    u, v = (camera.matrix() @ point)[:2]
    cropped = camera.cropped(left, top, 70, 40)
    resized = cropped.resized(round(70 * factor), round(40 * factor))
    u2, v2 = (resized.matrix() @ point)[:2]
    assert u2 == pytest.approx((u - left) * resized.width / 70)
    assert v2 == pytest.approx((v - top) * resized.height / 40)


def test_rays_go_through_their_pixels():
    camera = Intrinsics(90, 95, 50, 31, 100, 60)
    rays = g.pixel_rays(camera)
    uv = rays @ camera.matrix().T
    np.testing.assert_allclose((uv[..., :2] / uv[..., 2:])[7, 13], (13.5, 7.5))
    np.testing.assert_allclose(np.linalg.norm(rays, axis=-1), 1)


def test_frames_are_cropped_about_the_centre_and_the_camera_follows():
    camera = Intrinsics.from_fov(60, 640, 480)
    frames = np.zeros((2, 480, 640, 3), np.uint8)
    frames[:, 200:280, 280:360] = 255
    fitted, small = g.fit_frames(frames, camera, 96, 64)
    assert fitted.shape == (2, 64, 96, 3)
    assert (small.cx, small.cy) == pytest.approx((48, 32), abs=0.1)  # the crop starts at a whole pixel
    assert small.horizontal_fov_deg() == pytest.approx(camera.horizontal_fov_deg())
    assert fitted[0, 32, 48].tolist() == [255] * 3


@pytest.mark.parametrize(
    "bad, words",
    [
        (lambda: Intrinsics(0, 1, 1, 1, 2, 2), "fx=0"),
        (lambda: Intrinsics(1, 1, 1, 1, 0, 2), "0x2"),
        (lambda: Intrinsics.from_fov(200, 10, 10), "200"),
        (lambda: g.pose_from_quaternion([0, 0, 0], [0, 0, 0, 2.0]), "norm 1"),
        (lambda: g.pose_from_quaternion([np.nan, 0, 0], [0, 0, 0, 1.0]), "finite"),
        (lambda: g.check_pose(2 * np.eye(4)), "rotation"),
        (lambda: g.check_pose(np.eye(3)), r"\(3, 3\)"),
        (lambda: g.fit_frames(np.zeros((1, 0, 0, 3), np.uint8), None, 8, 8), "not empty"),
        (lambda: g.fit_frames(np.zeros((1, 8, 8, 3), np.uint8), Intrinsics.from_fov(60, 9, 8), 8, 8), "9x8"),
        (lambda: Distortion("brown", (1.0,)), "brown"),
        (lambda: Distortion("plumb_bob", (1.0, 2.0)), "got 2"),
    ],
)
def test_bad_values_are_named(bad, words):
    with pytest.raises(GeometryError, match=words):
        bad()


@pytest.mark.parametrize(
    "model, coefficients", [("plumb_bob", (-0.2, 0.05, 0.001, -0.001, 0.0)), ("equidistant", (0.02, -0.01, 0.0, 0.0))]
)
def test_undistortion_puts_points_where_the_pinhole_sees_them(model, coefficients):
    camera = Intrinsics.from_opencv(300, 300, 320, 240, 641, 481)
    k = np.array([[300, 0, 320], [0, 300, 240], [0, 0, 1.0]])
    point = np.array([[0.25, -0.15, 1.0]])
    d = np.array(coefficients)
    if model == "equidistant":
        seen = cv2.fisheye.projectPoints(point[None], np.zeros(3), np.zeros(3), k, d)[0].reshape(2)
    else:
        seen = cv2.projectPoints(point[None], np.zeros(3), np.zeros(3), k, d)[0].reshape(2)
    image = np.zeros((481, 641), np.uint8)
    cv2.circle(image, tuple(np.round(seen).astype(int).tolist()), 3, 255, -1)
    flat = cv2.remap(image, *Distortion(model, coefficients).undistort_maps(camera), cv2.INTER_LINEAR)
    v, u = np.argwhere(flat > 128).mean(0)
    np.testing.assert_allclose((u, v), (k @ point[0])[:2], atol=1.0)


def test_an_equidistant_lens_with_zeros_is_not_a_pinhole():
    """Without coefficients r = f theta still holds: a ray 45 degrees off the axis is seen at f pi / 4."""
    lens, camera = Distortion("equidistant", (0.0,) * 4), Intrinsics.from_opencv(200, 200, 320, 240, 641, 481)
    assert not lens.is_none and Distortion("plumb_bob", (0.0,) * 5).is_none
    image = np.zeros((481, 641), np.uint8)
    cv2.circle(image, (round(320 + 200 * np.pi / 4), 240), 3, 255, -1)
    _, u = np.argwhere(cv2.remap(image, *lens.undistort_maps(camera), cv2.INTER_LINEAR) > 128).mean(0)
    assert u == pytest.approx(520, abs=1.5)
