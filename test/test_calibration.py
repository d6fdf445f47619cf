# SPDX-License-Identifier: Apache-2.0
"""How sure the model may be: draws to covariances, factors that are measured, and where they are kept."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from pixel_pipeline import PixelPipeline, picture

from rays_as_pixels_model.calibration import (
    SHAPE,
    Calibration,
    draws_covariance,
    read_calibration,
    write_calibration,
)
from rays_as_pixels_model.checkpoint import CheckpointError, default_checkpoint
from rays_as_pixels_model.geometry import Intrinsics, make_pose, sample_covariance, so3_exp
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_ros.uncertainty import WindowCovariance
from rays_as_pixels_training.coverage import calibrate, pose_error, table

CAMERA = Intrinsics.from_fov(70.0, 96, 64)


def test_factors_are_found_again_and_checked_on_other_windows():
    rng = np.random.default_rng(0)
    roots = rng.normal(0, 0.01, (400, 4, 6, 6)) + 0.02 * np.eye(6)
    covariances = roots @ np.swapaxes(roots, -1, -2)
    errors = np.einsum("nfij,nfj->nfi", roots, rng.normal(size=(400, 4, 6))) * np.repeat([3.0, 2.0], 3)
    found = calibrate(errors, covariances, np.linspace(0.001, 0.01, 400), samples=8)
    assert found.translation == pytest.approx(3.0, rel=0.06) and found.rotation == pytest.approx(2.0, rel=0.06)
    for shares in found.coverage.values():
        np.testing.assert_allclose(shares, [0.5, 0.68, 0.9, 0.95, 0.99], atol=0.05)
    assert 0.0195 < found.max_residual < 0.0201 and found.windows == 400
    assert "| rotation | " + f"{found.rotation:.2f}" in table(found)
    confident = calibrate(errors, covariances / 4, np.ones(400), samples=8)
    assert confident.translation == pytest.approx(2 * found.translation)


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
    found = Calibration(3.0, 2.0, 0.02, samples=8, windows=40, coverage={"translation": [0.5], "rotation": [0.5]})
    write_calibration(folder, found)
    assert read_calibration(folder) == found
    assert {k: v for k, v in json.loads((folder / "config.json").read_text()).items() if k != "calibration"} == about
    for spoilt in ({"translation": -1.0}, {"factor": 2}, 3, {**vars(found), "rotation": float("nan")}):
        (folder / "config.json").write_text(json.dumps({**about, "calibration": spoilt}))
        with pytest.raises(CheckpointError, match="rays-as-pixels calibrate"):
            read_calibration(folder)


def test_the_shipped_checkpoint_was_measured():
    found = read_calibration(None)
    assert found.measured and found.samples == 8
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
    estimate = pipe.estimate_trajectory(frames, CAMERA)
    for every, expected in ((3, [1, 1, 1, 2, 2, 2, 3]), (1, [1, 2, 3, 4, 5, 6, 7])):
        calls.clear()
        source, counts = WindowCovariance(pipe.calibration, samples=6, every=every), []
        for _ in range(7):
            covariance, step = source.of(pipe, frames, CAMERA, estimate)
            counts.append(len(calls))
            source.refresh(pipe, frames, CAMERA, estimate)
        assert counts == expected and set(calls) == {6}
    assert covariance.shape == step.shape == (5, 6, 6)
    # Six draws of 1 cm along each axis either way, times 3; half of the rotation's, times 2.
    variance = 2 * 0.01**2 / 5 + 1e-4
    np.testing.assert_allclose(np.diag(covariance[2])[:3], 9 * variance, rtol=1e-6)
    np.testing.assert_allclose(np.diag(covariance[2])[3:], 4 * variance, rtol=1e-6)


@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path, monkeypatch, capsys):
    from rays_as_pixels_training import calibrate as command
    from rays_as_pixels_training import coverage, held_out

    folder = shutil.copytree(default_checkpoint(), tmp_path / "checkpoint")
    rng = np.random.default_rng(2)
    windows = [
        SimpleNamespace(
            frames=rng.integers(0, 256, (5, 64, 96, 3), dtype=np.uint8), intrinsics=CAMERA,
            T_first_camera=lambda: np.tile(np.eye(4), (5, 1, 1)),
        ) for _ in range(2)
    ]  # fmt: skip
    monkeypatch.setattr(held_out, "held_out_windows", lambda *given: windows * 10)
    assert command.main(["--checkpoint", str(folder), "--windows", "20", "--samples", "2", "--device", "cpu"]) == 0
    found = read_calibration(folder)
    assert (found.windows, found.samples) == (20, 2) and found.translation > 0
    assert coverage.table(found) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["--windows", "3"])
