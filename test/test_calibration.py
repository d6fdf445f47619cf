# SPDX-License-Identifier: Apache-2.0
"""How sure the model may be: draws to covariances, factors that are measured, and where they are kept."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from pixel_pipeline import PixelPipeline, picture

from rays_as_pixels_model.calibration import (
    SHAPE,
    Calibration,
    draws_covariance,
    motion_size,
    read_calibration,
    root,
    write_calibration,
)
from rays_as_pixels_model.checkpoint import CheckpointError, default_checkpoint
from rays_as_pixels_model.geometry import Intrinsics, make_pose, sample_covariance, so3_exp
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_ros.uncertainty import WindowCovariance
from rays_as_pixels_training.coverage import STRIDES, WindowErrors, calibrate, pose_error, table

CAMERA = Intrinsics.from_fov(70.0, 96, 64)


def made_errors(clips=120, factor=(1.5, 2.0), motion=(0.2, 0.1), length=5.0, seed=0):
    """Errors of a known size: of the draws' covariance and of the motion, correlated from window to window."""
    rng = np.random.default_rng(seed)
    shape = (clips, len(STRIDES), 2, 4)
    spread = rng.normal(0, 0.01, (*shape, 6, 6)) + 0.02 * np.eye(6)
    spread = spread @ np.swapaxes(spread, -1, -2)
    size = rng.uniform(0.1, 2.0, (*shape, 1))  # of the motions: neither term explains the errors alone
    T = make_pose(so3_exp(0.1 * size * rng.normal(size=(*shape, 3))), 0.1 * size * rng.normal(size=(*shape, 3)))
    known = Calibration(*factor, translation_motion=motion[0], rotation_motion=motion[1], correlation_frames=length)
    w = rng.normal(size=(*shape, 6, 1))
    correlation = known.correlation(4)
    for b in (slice(0, 3), slice(3, 6)):  # each window has its own axes
        before = np.swapaxes(T[:, :, 0, 3, :3, :3], -1, -2) @ w[:, :, 0, 3, b]
        w[:, :, 1, 3, b] = correlation * before + np.sqrt(1 - correlation**2) * w[:, :, 1, 3, b]
    covariance, errors = known.of_errors(spread, T), np.zeros((*shape, 6))
    for b in (slice(0, 3), slice(3, 6)):
        errors[..., b] = (root(covariance[..., b, b]) @ w[..., b, :])[..., 0]
    residual = np.linspace(0.001, 0.01, clips)[:, None, None] * np.ones(shape[:3])
    return WindowErrors(errors, spread, T, residual)


def test_weights_and_correlation_are_found_again_and_checked_on_other_clips():
    made = made_errors()
    found = calibrate(made, samples=8)
    assert found.translation == pytest.approx(1.5, rel=0.15) and found.rotation == pytest.approx(2.0, rel=0.15)
    assert found.translation_motion == pytest.approx(0.2, rel=0.15)
    assert found.rotation_motion == pytest.approx(0.1, rel=0.2)
    assert found.correlation_frames == pytest.approx(5.0, rel=0.25)
    for shares in found.coverage.values():
        np.testing.assert_allclose(shares, [0.5, 0.68, 0.9, 0.95, 0.99], atol=0.06)
    assert 0.0195 < found.max_residual < 0.0201 and found.windows == 480
    assert f"| rotation | {found.rotation:.2f} | {found.rotation_motion:.3f} |" in table(found)


def test_independent_errors_have_no_correlation_and_draws_may_be_too_close():
    made = made_errors(length=0.0)
    found = calibrate(replace(made, spread=made.spread / 4), samples=8)
    assert found.correlation_frames < 1.8  # 0.1 from end to end
    assert found.translation == pytest.approx(2 * 1.5, rel=0.15)
    assert found.translation_motion == pytest.approx(0.2, rel=0.15)


def test_what_a_motion_adds_grows_with_its_size():
    calibration = Calibration(2.0, 3.0, translation_motion=0.5, rotation_motion=0.1)
    T = make_pose(so3_exp(np.array([0.0, 0.3, 0.0])), [0.4, 0.0, 0.0])  # size 0.5
    np.testing.assert_allclose(np.diag(calibration.of_errors(np.eye(6), T)), [4.0625] * 3 + [9.0025] * 3)
    np.testing.assert_allclose(calibration.of_errors(np.zeros((6, 6)), np.eye(4)), 0, atol=1e-12)
    assert calibration.correlation(4) == 0.0, "a checkpoint that says nothing of it"
    known = Calibration(correlation_frames=4.0)
    assert known.correlation(0) == 1.0 and known.correlation(4) == pytest.approx(np.exp(-1))


def test_errors_are_counted_as_covariances_are():
    T = make_pose(so3_exp(np.array([0.3, -0.2, 0.5])), [1.0, 2.0, 3.0])
    turn, shift = np.array([0.01, 0.02, -0.03]), np.array([0.1, 0.0, -0.2])
    moved = make_pose(so3_exp(turn) @ T[:3, :3], T[:3, 3] + shift)
    np.testing.assert_allclose(pose_error(moved, T), np.concatenate([shift, turn]), atol=1e-9)


def test_few_draws_are_believed_by_half():
    rng = np.random.default_rng(1)
    draws = make_pose(so3_exp(rng.normal(0, 0.02, (4, 2, 3))), rng.normal(0, 0.05, (4, 2, 3)))
    mean, reading = np.tile(np.eye(4), (2, 1, 1)), np.tile(1e-6 * np.eye(6), (2, 1, 1))
    plain, found = sample_covariance(draws, mean) + reading, draws_covariance(draws, mean, reading)
    for block in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(np.trace(found[:, block, block], axis1=1, axis2=2),
                                   np.trace(plain[:, block, block], axis1=1, axis2=2))  # fmt: skip
    np.testing.assert_allclose(found[:, 0, 1], SHAPE * plain[:, 0, 1])
    assert np.linalg.eigvalsh(found).min() > 0.05 * np.linalg.eigvalsh(found)[:, 3:].min()


def test_what_was_measured_is_kept_in_the_checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    about = json.loads((default_checkpoint() / "config.json").read_text())
    about.pop("calibration", None)
    (folder / "config.json").write_text(json.dumps(about))
    assert read_calibration(folder) == Calibration() and not read_calibration(folder).measured
    found = Calibration(3.0, 2.0, 0.02, samples=8, windows=40, coverage={"translation": [0.5], "rotation": [0.5]},
                        translation_motion=0.2, rotation_motion=0.0, correlation_frames=5.0)  # fmt: skip
    write_calibration(folder, found)
    assert read_calibration(folder) == found
    assert {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "calibration"} == about
    both = replace(found, refined=replace(found, rotation=1.5, correlation_frames=2.0))
    write_calibration(folder, both)
    assert read_calibration(folder) == both
    older = {k: v for k, v in vars(found).items() if "motion" not in k and k != "correlation_frames"}
    (folder / "config.json").write_text(json.dumps({**about, "calibration": older}))
    assert read_calibration(folder) == replace(found, translation_motion=0.0, correlation_frames=0.0)
    for spoilt in ({"translation": -1.0}, {"factor": 2}, 3, {**vars(found), "rotation": float("nan")},
                   {**vars(found), "rotation_motion": -0.1}, {**vars(found), "correlation_frames": "5"}):  # fmt: skip
        (folder / "config.json").write_text(json.dumps({**about, "calibration": spoilt}))
        with pytest.raises(CheckpointError, match="rays-as-pixels calibrate"):
            read_calibration(folder)


def test_the_shipped_checkpoint_was_measured():
    found = read_calibration(None)
    assert found.measured and found.samples == 8
    assert found.of(True).measured, "the default: without it trajectory_node warns at each start"
    assert all(shares[3] > 0.85 for shares in found.coverage.values()), "95 % ellipsoid, on windows of the check"


def test_draws_scatter_about_the_estimate_and_repeat_with_the_seed():
    pipe = Pipeline.from_checkpoint(None, device="cpu")
    frames = np.random.default_rng(0).integers(0, 256, (5, 64, 96, 3), dtype=np.uint8)
    draws = pipe.draw_cameras(frames, CAMERA, samples=3, seed=4)
    assert draws.shape == (3, 5, 4, 4)
    np.testing.assert_allclose(draws[:, 0], np.tile(np.eye(4), (3, 1, 1)), atol=1e-9)
    np.testing.assert_array_equal(draws, pipe.draw_cameras(frames, CAMERA, samples=3, seed=4))
    assert np.abs(draws[0] - draws[1]).max() > 1e-4
    with pytest.raises(ValueError, match="steps >= 2, got 3 and 1"):
        pipe.draw_cameras(frames, CAMERA, samples=3, steps=1)


def test_every_nth_window_is_sampled_after_its_poses():
    pipe, calls = PixelPipeline(), []
    draw = pipe.draw_cameras
    pipe.draw_cameras = lambda *args, **options: calls.append(options["samples"]) or draw(*args, **options)
    frames = np.stack([picture(number) for number in range(5)])
    estimate = pipe.estimate_trajectory(frames, CAMERA, refine=False)
    for every, expected in ((3, [1, 1, 1, 2, 2, 2, 3]), (1, [1, 2, 3, 4, 5, 6, 7])):
        calls.clear()
        source, counts = WindowCovariance(pipe.calibration, samples=6, every=every), []
        for _ in range(7):
            covariance, step = source.of(pipe, frames, CAMERA, estimate)
            counts.append(len(calls))
            source.refresh(pipe, frames, CAMERA, estimate)
        assert counts == expected and set(calls) == {6}
    assert covariance.shape == step.shape == (5, 6, 6)
    # Six draws of 1 cm along each axis either way, times 3; half of the rotation's, times 2; and what the motion adds.
    variance = 2 * 0.01**2 / 5 + 1e-4
    size = motion_size(estimate.T_reference_camera[2])
    np.testing.assert_allclose(np.diag(covariance[2])[:3], 9 * variance + (0.2 * size) ** 2, rtol=1e-6)
    np.testing.assert_allclose(np.diag(covariance[2])[3:], 4 * variance + (0.1 * size) ** 2, rtol=1e-6)
    moved = motion_size(np.linalg.inv(estimate.T_reference_camera[1]) @ estimate.T_reference_camera[2])
    assert step[2, 0, 0] >= (0.2 * moved) ** 2 > 0 and not step[0].any()


def test_spread_of_older_samples_goes_with_the_motion_of_the_newest_window():
    pipe = PixelPipeline()
    source = WindowCovariance(pipe.calibration, samples=6, every=9)
    frames = np.stack([picture(number) for number in range(5)])
    estimate = pipe.estimate_trajectory(frames, CAMERA, refine=False)
    first, _ = source.of(pipe, frames, CAMERA, estimate)
    T = estimate.T_reference_camera.copy()
    T[:, :3, 3] *= 3.0
    faster, _ = source.of(pipe, frames, CAMERA, SimpleNamespace(T_reference_camera=T, turned_by=None, refined=None))
    more = motion_size(T) ** 2 - motion_size(estimate.T_reference_camera) ** 2
    np.testing.assert_allclose((faster - first)[:, 0, 0], 0.2**2 * more, atol=1e-12)
    assert more[-1] > 0.1


def test_a_refined_window_has_covariances_of_its_own_and_draws_nothing():
    pipe = PixelPipeline()
    pipe.draw_cameras = None
    frames = np.stack([picture(number) for number in range(5)])
    estimate = pipe.estimate_trajectory(frames, CAMERA)
    estimate.covariance = np.arange(1.0, 6.0)[:, None, None] * 1e-4 * np.eye(6)
    estimate.refined.step_covariance *= np.arange(5.0)[:, None, None]
    measured = pipe.calibration.of(True)
    for every in (1, 2):
        source = WindowCovariance(measured, samples=6, every=every)
        for paused in (False, True, False, False):
            covariance, step = source.of(pipe, frames, CAMERA, estimate, paused)
            source.refresh(pipe, frames, CAMERA, estimate, paused)
    T = estimate.T_reference_camera
    np.testing.assert_allclose(covariance, measured.of_errors(estimate.covariance, T))
    np.testing.assert_allclose(covariance[4, 0, 0], 16 * 5e-4 + (0.02 * motion_size(T[4])) ** 2)
    motion = np.linalg.inv(T[:-1]) @ T[1:]
    np.testing.assert_allclose(step[1:], measured.of_errors(estimate.refined.step_covariance[1:], motion))
    assert not step[0].any()


def test_a_checkpoint_says_what_was_measured_of_refined_windows_apart():
    alone = Calibration(3.0, 2.0, max_residual=0.02, samples=8, windows=40)
    assert alone.of(False) is alone and not alone.of(True).measured
    assert alone.of(True) == Calibration(max_residual=0.02), "what makes a window lost is the model's"
    both = replace(alone, refined=Calibration(1.5, 1.2, windows=40))
    assert both.of(True) is both.refined and both.of(False) is both


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path, monkeypatch, capsys):
    from rays_as_pixels_training import calibrate as command
    from rays_as_pixels_training import coverage, held_out

    folder = shutil.copytree(default_checkpoint(), tmp_path / "checkpoint")
    rng = np.random.default_rng(2)
    moving = make_pose(np.eye(3), np.linspace(0, 1, 17)[:, None] * [1.0, 0, 0])
    frames = rng.integers(0, 256, (17, 64, 96, 3), dtype=np.uint8)
    clip = SimpleNamespace(frames=frames, intrinsics=CAMERA, T_world_camera=moving, scene_scale=np.ones(17))
    asked = []
    monkeypatch.setattr(held_out, "held_out_clips", lambda *given: asked.append(given) or [clip] * given[0])
    assert command.main(["--checkpoint", str(folder), "--clips", "10", "--samples", "2", "--device", "cpu"]) == 0
    assert [(count, config.scenes) for count, config, _ in asked] == [(5, "plain"), (5, "varied")]
    assert (asked[0][1].frames, asked[0][1].width, asked[0][1].height) == (17, 192, 128)
    found = read_calibration(folder)
    said = capsys.readouterr().out
    for measured in (found, found.refined):
        assert (measured.windows, measured.samples) == (40, 2) and measured.translation > 0
        assert coverage.table(measured) in said
    assert found.translation != found.refined.translation
    with pytest.raises(SystemExit):
        command.main(["--clips", "3"])
