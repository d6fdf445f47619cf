# SPDX-License-Identifier: Apache-2.0
"""Figures of the evaluation on known values, and by their properties."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from rays_as_pixels_model.geometry import align_sim3, invert, make_pose, so3_exp
from rays_as_pixels_training import perceptual
from rays_as_pixels_training.eval_report import markdown, to_json
from rays_as_pixels_training.metrics import area_under_accuracy, camera_errors, pose_errors, ssim


def random_path(seed, frames=5, step=0.1):
    rng = np.random.default_rng(seed)
    path = [np.eye(4)]
    for _ in range(frames - 1):
        path.append(path[-1] @ make_pose(so3_exp(rng.normal(0, 0.1, 3)), rng.normal(0, step, 3)))
    return np.stack(path)


def test_area_under_the_accuracy_curve():
    assert area_under_accuracy(np.zeros(3), 5) == 100
    assert area_under_accuracy(np.array([15.0]), 30) == pytest.approx(50)
    assert area_under_accuracy(np.array([30.0, 400.0]), 30) == 0
    thresholds = (np.arange(200_000) + 0.5) / 200_000 * 30
    errors = np.random.default_rng(0).exponential(10, 20)
    curve = (errors[:, None] < thresholds).mean()
    assert area_under_accuracy(errors, 30) == pytest.approx(100 * curve, abs=0.01)


def test_a_right_estimate_is_right_in_every_figure_and_the_worse_error_counts_for_auc():
    truth = np.stack([random_path(seed)[-1] for seed in range(6)])
    right = pose_errors(truth, truth)
    for limit in (5, 15, 30):
        assert [right[f"{name}@{limit}"] for name in ("RRA", "RTA", "AUC")] == pytest.approx([100, 100, 100])
    assert right["mRRA@30"] == pytest.approx(100) and right["moving"] == 6
    turned = truth.copy()
    turned[:, :3, :3] = truth[:, :3, :3] @ so3_exp(np.array([0, 0, np.radians(6.0)]))
    wrong = pose_errors(turned, truth)
    assert wrong["RRA@5"] == 0 and wrong["RRA@15"] == 100 and wrong["RTA@5"] == 100
    assert wrong["mRRA@30"] == pytest.approx(80) and wrong["AUC@30"] == pytest.approx(80) and wrong["AUC@5"] == 0


def test_a_camera_that_stands_still_has_no_direction_and_counts_by_rotation():
    truth = np.tile(np.eye(4), (2, 1, 1))
    truth[:, 0, 3] = 0.01
    errors = pose_errors(np.tile(np.eye(4), (2, 1, 1)), truth)
    assert errors["moving"] == 0 and errors["AUC@5"] == 100 and np.isnan(errors["RTA@5"])
    assert pose_errors(np.tile(np.eye(4), (2, 1, 1)), truth, least_motion=0.005)["AUC@5"] == 0
    assert json.loads(to_json({"RTA@5": errors["RTA@5"], "rows": [errors["AUC@5"]]})) == {"RTA@5": None, "rows": [100]}


def test_camera_errors_of_rendered_videos_are_in_radians_and_leave_out_the_given_frame():
    asked = np.stack([random_path(1), random_path(2)])
    found = asked.copy()
    found[:, 1:, :3, :3] = asked[:, 1:, :3, :3] @ so3_exp(np.array([0.3, 0, 0]))
    found[:, 1:, 0, 3] += 0.25
    errors = camera_errors(found, asked)
    assert errors["R_err"] == pytest.approx(0.3) and errors["T_err"] == pytest.approx(0.25)


def test_ssim_of_equal_and_of_unrelated_pictures():
    rng = np.random.default_rng(0)
    a, b = (rng.integers(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(2))
    assert ssim(a, a) == pytest.approx(1) and abs(ssim(a, b)) < 0.1
    reference = structural_similarity(
        a, b, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(a, b) == pytest.approx(reference, abs=1e-9)
    brighter = np.clip(a.astype(int) + 3, 0, 255).astype(np.uint8)
    assert 0.9 < ssim(a, brighter) < 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_ate_ignores_the_frame_and_sim3_the_unit(seed, scale):
    pytest.importorskip("evo", reason="needs evo: pip install evo")
    from rays_as_pixels_training.trajectory_metrics import trajectory_errors

    truth = random_path(seed, frames=8)
    rng = np.random.default_rng(seed + 1)
    placed = make_pose(so3_exp(rng.normal(0, 1, 3)), rng.normal(0, 1, 3)) @ truth
    same = trajectory_errors(placed, truth)
    assert max(same.values()) < 1e-6
    scaled = placed.copy()
    scaled[:, :3, 3] *= scale
    errors = trajectory_errors(scaled, truth)
    assert errors["ATE_sim3"] < 1e-6 and errors["RPE_translation"] < 1e-6
    if abs(scale - 1) > 0.01:
        assert errors["ATE_se3"] > 1e-3 * abs(scale - 1)


def test_ate_is_the_least_residual_also_where_evo_cannot_align():
    pytest.importorskip("evo", reason="needs evo: pip install evo")
    from rays_as_pixels_training.trajectory_metrics import trajectory_errors

    truth = random_path(3)
    spread = np.sqrt(((truth[:, :3, 3] - truth[:, :3, 3].mean(0)) ** 2).sum(1).mean())
    still = trajectory_errors(np.tile(np.eye(4), (5, 1, 1)), truth)
    assert still["ATE_sim3"] == pytest.approx(spread) and still["ATE_se3"] == pytest.approx(spread)
    straight = make_pose(np.eye(3), np.arange(5)[:, None] * np.array([0, 0, 0.1]))
    assert (
        trajectory_errors(np.linalg.inv(make_pose(so3_exp([0.4, 0, 0]), np.ones(3))) @ straight, straight)["ATE_se3"]
        < 1e-6
    )
    noisy = truth.copy()
    noisy[:, :3, 3] += np.random.default_rng(0).normal(0, 0.02, (5, 3))
    s, R, t = align_sim3(noisy[:, :3, 3], truth[:, :3, 3])
    ours = np.sqrt(((s * noisy[:, :3, 3] @ R.T + t - truth[:, :3, 3]) ** 2).sum(1).mean())
    assert trajectory_errors(noisy, truth)["ATE_sim3"] == pytest.approx(ours)


def test_windows_chain_to_the_path_they_were_cut_from():
    from rays_as_pixels_training.trajectory_metrics import chain

    path = random_path(5, frames=9)
    windows = np.stack([invert(path[s]) @ path[s : s + 5] for s in (0, 4)])
    np.testing.assert_allclose(chain(windows), path, atol=1e-12)


class _MeanColour(torch.nn.Module):
    def forward(self, pictures):
        return pictures.float().flatten(2).mean(2)


class _Difference(torch.nn.Module):
    def forward(self, a, b):
        return (a - b).abs().mean((1, 2, 3), keepdim=True)


def test_networks_of_the_user_judge_pictures_and_videos(tmp_path):
    colours, difference = tmp_path / "colours.pt", tmp_path / "difference.pt"
    torch.jit.script(_MeanColour()).save(str(colours))
    torch.jit.script(_Difference()).save(str(difference))
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 200, (20, 8, 8, 3), dtype=np.uint8)
    assert perceptual.frechet(colours, pictures, pictures) == pytest.approx(0, abs=1e-6)
    assert perceptual.frechet(colours, pictures, pictures + 10) == pytest.approx(300, rel=1e-3)
    videos = pictures.reshape(5, 4, 8, 8, 3)
    assert perceptual.frechet(colours, videos, videos + 51) == pytest.approx(3 * 51**2, rel=1e-3)
    assert perceptual.lpips(difference, pictures, pictures + 51) == pytest.approx(0.4, rel=1e-3)
    (tmp_path / "not.pt").write_text("no")
    with pytest.raises(ValueError, match="not.pt: not a TorchScript file"):
        perceptual.lpips(tmp_path / "not.pt", pictures, pictures)
    with pytest.raises(ValueError, match=r"colours.pt: does not take two"):
        perceptual.lpips(colours, pictures, pictures)


def test_the_tables_leave_blank_what_does_not_exist():
    row = pose_errors(np.tile(np.eye(4), (2, 1, 1)), np.tile(np.eye(4), (2, 1, 1)))
    report = {"pose": {"identity": {**row, "windows": 2, "failed": 0.0}}, "views": {}, "closed_loop": {}}
    text = markdown(report)
    assert "nan" not in text and "| identity | 0.00 (0.00) |  | 100 / 100 / 100 | - / - / - |" in text
    assert len({line.count("|") for line in text.splitlines()}) == 1
