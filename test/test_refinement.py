# SPDX-License-Identifier: Apache-2.0
"""Points tracked through windows, and cameras adjusted to them: exact sightings, nothing to see, rendered windows."""

from functools import partial

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rays_as_pixels_model import refinement
from rays_as_pixels_model.geometry import (
    Intrinsics,
    direction_angle_deg,
    fit_frames,
    invert,
    make_pose,
    rotation_angle_deg,
    so3_exp,
    so3_log,
)
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.refinement import Refined, refine_cameras
from rays_as_pixels_model.tracks import grid_points, track_points
from rays_as_pixels_training.held_out import held_out_windows

CAMERA = Intrinsics.from_fov(70, 192, 128)
BLANK = np.full((5, 128, 192, 3), 90, np.uint8)
GRID = grid_points(CAMERA.width, CAMERA.height, refinement.COLUMNS)


def directions(rng, *shape: int) -> np.ndarray:
    """Unit vectors (*shape, 3)."""
    v = rng.normal(size=(*shape, 3))
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def random_window(rng, reference: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Cameras (5, 4, 4) on their way, up to 12 degrees and 0.3 units off the reference, and inverse depths (n,)."""
    share = ((np.arange(5) - reference) / 4)[:, None]
    shift = share * rng.uniform(0.15, 0.3) * directions(rng) + 0.01 * rng.normal(size=(5, 3)) * share
    return make_pose(so3_exp(share * rng.uniform(0, 0.2) * directions(rng)), shift), rng.uniform(0.4, 1.6, len(GRID))


def guessed(T: np.ndarray, rng, turn_deg: float, direction=None) -> np.ndarray:
    """Cameras whose rotations are off by an angle, but for the reference's, and which went another way, as far."""
    moved = np.linalg.norm(T[:, :3, 3], axis=1, keepdims=True)
    turn = np.radians(turn_deg) * directions(rng, len(T)) * (moved > 0)
    sign = np.sign(T[:, :3, 3] @ T[-1, :3, 3] + 1e-300)[:, None]
    shift = T[:, :3, 3] if direction is None else sign * moved * direction
    return make_pose(so3_exp(turn) @ T[:, :3, :3], shift)


def sightings(T, rotation, rho, noise, outliers, rng, frames, reference, points):
    """Stand in for `track_points`: points of inverse depth rho seen by cameras T in frames turned back by rotation."""
    focal, centre = np.array([CAMERA.fx, CAMERA.fy]), np.array([CAMERA.cx, CAMERA.cy])
    rays = np.concatenate([(points - centre) / focal, np.ones((len(points), 1))], axis=1)
    own = (rays - rho[:, None] * T[:, None, :3, 3]) @ (T[:, :3, :3] @ np.swapaxes(rotation, 1, 2))
    places = own[..., :2] / own[..., 2:] * focal + centre
    places[reference] = points
    others = np.arange(len(T)) != reference
    places[others] += noise * rng.normal(size=places[others].shape)
    wrong = (rng.random(places.shape[:2]) < outliers) & others[:, None]
    places[wrong] += rng.uniform(-30, 30, (wrong.sum(), 2))
    seen = ((places > 0) & (places < [CAMERA.width, CAMERA.height])).all(axis=-1)
    return places, seen


def refined_from(T, guess, rho, rng, reference=0, noise=0.0, outliers=0.0) -> Refined:
    """Adjust cameras that begin at a guess to points that the true ones, T, see."""
    with pytest.MonkeyPatch.context() as patch:
        fake = partial(sightings, T, guess[:, :3, :3], rho, noise, outliers, rng)
        patch.setattr(refinement, "track_points", fake)
        return refine_cameras(BLANK, guess, CAMERA, reference)


def turn_errors(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Degrees (T,)."""
    return rotation_angle_deg(np.swapaxes(found[:, :3, :3], 1, 2) @ truth[:, :3, :3])


def ends(T: np.ndarray, reference: int) -> np.ndarray:
    """Position of the camera farthest from the reference."""
    return T[0 if reference > 2 else -1, :3, 3]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 2, 4]), st.sampled_from([0.0, 0.3]))
def test_cameras_are_found_again_from_rotations_and_directions_that_are_wrong(seed, reference, outliers):
    rng = np.random.default_rng(seed)
    T, rho = random_window(rng, reference)
    guess = guessed(T, rng, 5.0, directions(rng))
    found = refined_from(T, guess, rho, rng, reference, outliers=outliers)
    assert turn_errors(found.T_reference_camera, T).max() < (0.2 if outliers else 0.1)
    assert direction_angle_deg(ends(found.T_reference_camera, reference), ends(T, reference)) < 1.0
    np.testing.assert_array_equal(found.T_reference_camera[reference], np.eye(4))
    assert abs(found.agreeing - (1 - outliers)) < 0.1 and found.points > 0.8 * len(GRID)


def prior_covariance(T: np.ndarray) -> np.ndarray:
    """Covariances (T, 6, 6) of the model's cameras, as sure as they are taken to be."""
    (still, turning), (stays, moving) = refinement._ROTATION_DEG, refinement._SHIFT
    turn = np.radians(still + turning * rotation_angle_deg(T[:, :3, :3]))
    shift = stays + moving * np.linalg.norm(T[:, :3, 3], axis=1)
    return np.repeat(np.stack([shift, turn], axis=1), 3, axis=1)[:, None] ** 2 * np.eye(6)


@pytest.mark.parametrize("reference", [0, 2])
def test_where_nothing_is_seen_the_cameras_stay_the_models_own(reference):
    T, _ = random_window(np.random.default_rng(1), reference)
    for guess in (T, np.tile(np.eye(4), (5, 1, 1))):
        found = refine_cameras(BLANK, guess, CAMERA, reference)
        np.testing.assert_allclose(found.T_reference_camera, guess, atol=1e-12)
        assert (found.points, found.agreeing) == (0, 0.0)
        others = np.arange(5) != reference
        np.testing.assert_allclose(found.covariance[others], prior_covariance(guess)[others], atol=1e-12)
        assert 0 < np.diag(found.covariance[reference]).max() < 1e-6, "exact, but filters divide by it"
        steps = found.step_covariance
        assert not steps[0].any() and np.linalg.eigvalsh(steps[1:]).min() > 1e-5 and np.isfinite(steps).all()


def test_frames_in_which_nothing_is_seen_leave_the_others_adjusted():
    rng = np.random.default_rng(2)
    T, rho = random_window(rng)
    guess = guessed(T, rng, 3.0)

    def half_blind(*args):
        places, seen = sightings(T, guess[:, :3, :3], rho, 0.0, 0.0, rng, *args)
        seen[3:] = False
        return places, seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refinement, "track_points", half_blind)
        found = refine_cameras(BLANK, guess, CAMERA)
    assert turn_errors(found.T_reference_camera, T)[:3].max() < 0.1
    np.testing.assert_allclose(found.T_reference_camera[3:], guess[3:], atol=1e-9)
    np.testing.assert_allclose(found.covariance[3:], prior_covariance(guess)[3:], rtol=1e-6, atol=1e-12)


def test_covariances_say_how_far_noise_puts_cameras_and_their_motions_off():
    """Squared errors in units of the covariance, three numbers at a time: 3 on average."""
    rng = np.random.default_rng(3)
    squared = []
    for _ in range(60):
        T, rho = random_window(rng)
        sure = np.sqrt(prior_covariance(T)[:, range(6), range(6)]) * (np.arange(5) > 0)[:, None]
        off = sure * rng.normal(size=(5, 6))
        guess = make_pose(so3_exp(off[:, 3:]) @ T[:, :3, :3], T[:, :3, 3] + off[:, :3])
        found = refined_from(T, guess, rho / rho.mean(), rng, noise=refinement._NOISE)
        got = found.T_reference_camera
        steps = [np.concatenate([np.eye(4)[None], invert(x[:-1]) @ x[1:]]) for x in (got, T)]
        for (a, b), covariance in (((got, T), found.covariance), (steps, found.step_covariance)):
            turn = so3_log(a[:, :3, :3] @ np.swapaxes(b[:, :3, :3], 1, 2))
            for error, block in ((a[:, :3, 3] - b[:, :3, 3], np.s_[:3]), (turn, np.s_[3:])):
                part = covariance[1:, block, block]
                squared.append(np.einsum("ti,tij,tj->t", error[1:], np.linalg.inv(part), error[1:]))
    squared = np.reshape(squared, (60, 4, 4)).mean(axis=(0, 2))  # of positions, turns, and both of the motions
    assert np.all((1.8 < squared) & (squared < 4.0)), squared


def test_covariances_of_motions_are_those_of_the_cameras_carried_over():
    """Against numerical derivatives of the motion between two cameras."""
    rng = np.random.default_rng(4)
    T, _ = random_window(rng, 2)
    root = rng.normal(size=(30, 30))
    whole = root @ root.T
    found = refinement._of_steps(T, whole.reshape(5, 6, 5, 6))
    assert not found[0].any()

    def motion(t, off):
        moved = make_pose(so3_exp(off[:, 3:]) @ T[t - 1 : t + 1, :3, :3], T[t - 1 : t + 1, :3, 3] + off[:, :3])
        return invert(moved[0]) @ moved[1]

    for t in range(1, 5):
        now = motion(t, np.zeros((2, 6)))
        jacobian = np.zeros((6, 12))
        for column, tiny in enumerate(1e-6 * np.eye(12)):
            then = motion(t, tiny.reshape(2, 6))
            jacobian[:3, column] = (then[:3, 3] - now[:3, 3]) / 1e-6
            jacobian[3:, column] = so3_log(then[:3, :3] @ now[:3, :3].T) / 1e-6
        part = whole.reshape(5, 6, 5, 6)[t - 1 : t + 1, :, t - 1 : t + 1].reshape(12, 12)
        np.testing.assert_allclose(found[t], jacobian @ part @ jacobian.T, rtol=1e-4, atol=1e-4)


# -- points tracked ---------------------------------------------------------------------------------------------------


def shifted(shifts, zooms=(1.0,) * 5) -> np.ndarray:
    """One texture drawn anew for every (x, y), pixels, that it is shifted by once it was zoomed about the corner:
    (T, 128, 192) uint8."""
    rng = np.random.default_rng(5)
    wave, phase = rng.uniform(-0.5, 0.5, (40, 2)), rng.uniform(0, 2 * np.pi, 40)
    y, x = np.mgrid[:128, :192] + 0.5
    out = []
    for (dx, dy), zoom in zip(shifts, zooms, strict=False):
        at = np.stack([x - dx, y - dy]) / zoom
        out.append(np.sin(np.tensordot(wave, at, 1) + phase[:, None, None]))
    return np.clip(128 + 18 * np.sum(out, axis=1), 0, 255).astype(np.uint8)


def inside(places: np.ndarray, margin: float) -> np.ndarray:
    return ((places > margin) & (places < [192 - margin, 128 - margin])).all(axis=-1)


@pytest.mark.parametrize("reference", [0, 2, 4])
def test_points_are_followed_to_a_fraction_of_a_pixel_both_ways(reference):
    shifts = np.array([[0.0, 0.0], [3.3, -1.6], [7.45, -2.2], [9.1, 0.7], [4.25, 3.8]])
    places, seen = track_points(list(shifted(shifts)), reference, GRID)
    true = GRID + (shifts - shifts[reference])[:, None]
    np.testing.assert_array_equal(places[reference], GRID)
    assert seen[reference].all() and seen[inside(true, 12)].mean() > 0.97
    off = np.abs(places - true).max(axis=-1)
    assert off[seen & inside(true, 12)].max() < 0.1 and np.percentile(off[seen], 95) < 0.1
    np.testing.assert_array_equal(places[~seen], np.tile(GRID, (5, 1, 1))[~seen])


def test_points_in_a_mirror_are_followed_alike():
    """Where a pixel's centre were taken for its corner, the mirrored ones were others: with this zoom a tenth off."""
    frames = shifted(np.zeros((5, 2)), 1.05 ** np.arange(5))[:, :121, :185]  # sizes that halve the same both ways
    points = grid_points(185, 121, 16)
    places, seen = track_points(list(frames), 0, points)
    mirrored, also = track_points([np.ascontiguousarray(f[::-1, ::-1]) for f in frames], 0, [185, 121] - points)
    assert (seen == also).mean() > 0.98 and (seen & also).mean() > 0.6
    off = np.abs([185, 121] - mirrored - places).max(axis=-1)[1:][(seen & also)[1:]]
    assert np.percentile(off, 90) < 0.01


def test_points_that_leave_the_picture_are_given_up_for_good():
    shifts = np.array([[0.0, 0.0], [12.5, 0.0], [24.0, 0.0], [11.0, 0.0], [0.5, 0.0]])
    places, seen = track_points(list(shifted(shifts)), 0, GRID)
    right = GRID[:, 0]
    for t, most in enumerate((192.0, 179.5, 168.0, 168.0, 168.0)):
        assert not seen[t, right > most].any()
        assert seen[t, inside(GRID, 12) & (right < most - 12)].mean() > 0.9
    assert (seen[:-1] | ~seen[1:]).all() and (places[seen] > 0).all() and (places[seen] < [192, 128]).all()


def test_points_just_over_the_edge_are_given_up():
    """Tracking still follows some of them there and back."""
    for dx, dy in 6.5 * np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]):
        places, seen = track_points(list(shifted([[0.0, 0.0], [dx, dy]])), 0, GRID)
        assert inside(places[1], 0)[seen[1]].all() and 0.8 < seen[1].mean() < 0.97


def test_points_on_a_blank_patch_are_given_up():
    frames = shifted(np.array([[0.0, 0.0], [1.5, 0.5], [3.0, 1.0]]))
    frames[:, :, 96:] = 128
    _, seen = track_points(list(frames), 0, GRID)
    assert not seen[1:, GRID[:, 0] > 96 + 40].any()  # as far as the coarsest level looks
    assert seen[1:, GRID[:, 0] < 80].mean() > 0.8


# -- rendered windows -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_checkpoint(device="cpu")


@pytest.fixture(scope="module")
def windows(pipe):
    return held_out_windows(10, pipe.config.frames, pipe.config.picture_size)


@pytest.fixture(scope="module")
def estimates(pipe, windows):
    """Of each window: refined, and the model alone."""
    return [[pipe.estimate_trajectory(w.frames, w.intrinsics, refine=how) for how in (True, False)] for w in windows]


def test_rendered_cameras_are_found_to_a_fraction_of_a_degree(pipe, windows, estimates):
    small = (pipe.config.width, pipe.config.height)
    errors = {"refined": [], "alone": [], "small": []}
    for window, (refined, alone) in zip(windows, estimates, strict=True):
        truth = window.T_first_camera()
        tiny, camera = fit_frames(window.frames, window.intrinsics, *small)
        of_model_size = pipe.estimate_trajectory(tiny, camera)
        for name, found in zip(errors, (refined, alone, of_model_size), strict=True):
            errors[name].extend(turn_errors(found.T_reference_camera, truth)[1:])
        assert refined.refined.points > 40 and refined.refined.agreeing > 0.6
    refined, alone, small = (np.median(errors[name]) for name in errors)
    assert refined < 0.3 * alone and refined < 1.0
    assert refined < small < 0.8 * alone, "frames of the model's own size tell less"


def test_the_model_alone_is_what_refining_begins_with(pipe, windows, estimates):
    refined, alone = estimates[0]
    assert alone.refined is None
    for name in ("raxels", "residual", "turned_by"):
        np.testing.assert_array_equal(getattr(refined, name), getattr(alone, name))
    assert refined.intrinsics == alone.intrinsics
    np.testing.assert_array_equal(refined.T_reference_camera, refined.refined.T_reference_camera)
    np.testing.assert_array_equal(refined.covariance, refined.refined.covariance)
    assert np.abs(refined.T_reference_camera - alone.T_reference_camera).max() > 1e-3
    camera = windows[0].intrinsics
    again = refine_cameras(windows[0].frames, alone.T_reference_camera, camera)
    np.testing.assert_allclose(again.T_reference_camera, refined.T_reference_camera, atol=1e-6)


def test_neither_the_reference_nor_colours_make_much_of_a_difference(windows):
    for window in [w for w in windows if np.linalg.norm(w.T_first_camera()[-1, :3, 3]) > 0.08][:4]:
        truth = window.T_first_camera()  # a camera that hardly moved is another matter: its direction is open
        moves = []
        for reference in (0, 2, 4):
            T = invert(truth[reference]) @ truth
            found = refine_cameras(window.frames, T, window.intrinsics, reference).T_reference_camera
            np.testing.assert_allclose(found[reference], np.eye(4), atol=1e-12)
            moves.append(invert(found[0]) @ found)
        for other in moves[1:]:
            assert turn_errors(other, moves[0]).max() < 0.7  # of up to twenty
        grey = np.stack([np.repeat(cv2.cvtColor(f, cv2.COLOR_RGB2GRAY)[..., None], 3, -1) for f in window.frames])
        plain = refine_cameras(grey, truth, window.intrinsics).T_reference_camera
        np.testing.assert_allclose(plain, moves[0], atol=1e-6)
