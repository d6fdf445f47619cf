# SPDX-License-Identifier: Apache-2.0
"""The closed loop's figures, and Frechet distances by a small TorchScript network that the test writes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rays_as_pixels_model.comparison import ssim
from rays_as_pixels_model.features import FeatureError, Features, frechet_distance
from rays_as_pixels_model.geometry import GeometryError, Intrinsics, make_pose, so3_exp
from rays_as_pixels_model.pipeline import Pipeline

CAMERA = Intrinsics.from_fov(65, 96, 64)


class ImageNet(torch.nn.Module):
    """Mean and spread of each colour: 6 features of (N, 3, H, W) in [0, 255]."""

    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        flat = x.flatten(2)
        features = torch.cat([flat.mean(2), flat.std(2)], dim=1)
        return features if return_features else features[:, :1]


class VideoNet(torch.nn.Module):
    """Mean of each colour and of its change in time: 6 features of (N, 3, T, H, W)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.dim() == 5
        change = (x[:, :, 1:] - x[:, :, :-1]).abs()
        return torch.cat([x.flatten(2).mean(2), change.flatten(2).mean(2)], dim=1)


class BrokenNet(torch.nn.Module):
    """Features that are no numbers."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).mean(1, keepdim=True) / 0.0 * 0.0


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    for name, module in (("image", ImageNet()), ("video", VideoNet()), ("broken", BrokenNet())):
        torch.jit.script(module).save(str(folder / f"{name}.pt"))
    return folder


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_checkpoint(device="cpu")


@pytest.fixture(scope="module")
def windows():
    """Three windows of a smooth random picture that slides sideways: (3, 5, 64, 96, 3)."""
    rng, out = np.random.default_rng(0), []
    for _ in range(3):
        coarse = torch.from_numpy(rng.random((1, 3, 9, 15)))
        wide = torch.nn.functional.interpolate(coarse, (64, 120), mode="bicubic")[0].clamp(0, 1)
        picture = (wide.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        out.append(np.stack([picture[:, 3 * t : 3 * t + 96] for t in range(5)]))
    return np.stack(out)


def test_the_report_of_several_windows(pipe, windows, weights):
    paths = {"image_features": weights / "image.pt", "video_features": weights / "video.pt"}
    report = pipe.close_the_loop(windows, CAMERA, **paths)
    assert report.frames.shape == (3, 4, 64, 96, 3) and report.T_first.shape == report.T_again.shape == (3, 5, 4, 4)
    R = np.swapaxes(report.T_first[:, 1:, :3, :3], -1, -2) @ report.T_again[:, 1:, :3, :3]
    angles = np.arccos(np.clip((np.trace(R, axis1=-2, axis2=-1) - 1) / 2, -1, 1))
    assert report.R_err == pytest.approx(angles.mean(), rel=1e-3) and report.R_err > 0
    shift = report.T_first[:, 1:, :3, 3] - report.T_again[:, 1:, :3, 3]
    assert report.T_err == pytest.approx(np.sqrt((shift**2).sum(-1)).mean())
    assert 10 < report.psnr < 60 and 0 < report.ssim < 1
    images = Features(weights / "image.pt")
    made, given = report.frames.reshape(-1, 64, 96, 3), windows[:, 1:].reshape(-1, 64, 96, 3)
    assert report.fid == pytest.approx(frechet_distance(images(made), images(given))) and report.fid > 0
    assert report.fvd > 0


def test_one_window_is_the_first_of_several(pipe, windows):
    several, one = pipe.close_the_loop(windows[:2], CAMERA), pipe.close_the_loop(windows[0], CAMERA)
    np.testing.assert_array_equal(one.frames, several.frames[0])
    assert one.fid is None and one.fvd is None and one.T_first.shape == (5, 4, 4)


def test_the_cheap_path_takes_the_estimate_at_hand(pipe, windows, monkeypatch):
    estimate = pipe.estimate_trajectory(windows[0], CAMERA, refine=False)
    whole = pipe.close_the_loop(windows[0], CAMERA, view_steps=1)
    calls, velocity = [], pipe.model.forward
    monkeypatch.setattr(pipe.model, "forward", lambda *a: calls.append(1) or velocity(*a))
    cheap = pipe.close_the_loop(windows[0], CAMERA, view_steps=1, estimate=estimate)
    assert len(calls) == 1 + pipe.config.pose_passes  # all views in one batch, and one estimate
    assert (cheap.R_err, cheap.T_err, cheap.psnr) == (whole.R_err, whole.T_err, whole.psnr)


def test_the_second_estimate_is_refined_where_the_first_was(pipe, windows):
    for refine in (True, False):
        estimate = pipe.estimate_trajectory(windows[0], CAMERA, refine=refine)
        report = pipe.close_the_loop(windows[0], CAMERA, estimate=estimate)
        video = np.concatenate([windows[0][:1], report.frames])
        again = [pipe.estimate_trajectory(video, CAMERA, refine=how).T_reference_camera for how in (refine, not refine)]
        np.testing.assert_allclose(report.T_again, again[0], atol=1e-5)
        assert np.abs(report.T_again - again[1]).max() > 1e-3


def test_views_are_rendered_as_render_views_does(pipe, windows):
    report = pipe.close_the_loop(windows[0], CAMERA, view_steps=2)
    T = report.T_first
    views = pipe.render_views(windows[0][:1], T[:1], CAMERA, T[1:], steps=2, seed=0).frames
    assert np.abs(views[0].astype(int) - report.frames[0]).mean() < 1  # the same noise for the first view


def test_a_wrong_trajectory_shows(pipe, windows):
    """Turn each estimate by 20 degrees a frame: what is rendered fits the video, and the estimate, far worse."""
    turned = make_pose(so3_exp(np.radians(20) * np.arange(5)[:, None] * [0, 1.0, 0]), np.zeros((5, 3)))
    for window in windows:
        estimate = pipe.estimate_trajectory(window, CAMERA, refine=False)
        good = pipe.close_the_loop(window, CAMERA, estimate=estimate)
        bad = pipe.close_the_loop(window, CAMERA, estimate=replace(estimate, T_reference_camera=turned))
        assert bad.psnr < good.psnr - 0.5 and bad.R_err > max(3 * good.R_err, good.R_err + 0.05)


def test_ssim_of_known_pictures():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)
    assert ssim(picture, picture) == pytest.approx(1)
    a, b = np.full((16, 16, 3), 50, np.uint8), np.full((16, 16, 3), 100, np.uint8)
    c1 = (0.01 * 255) ** 2
    assert ssim(a, b) == pytest.approx((2 * 50 * 100 + c1) / (50**2 + 100**2 + c1), rel=1e-6)
    assert ssim(picture, 255 - picture) < 0 < ssim(picture, (picture // 2 + 60).astype(np.uint8)) < 1
    with pytest.raises(ValueError, match="11x11"):
        ssim(a[:8], b[:8])


@pytest.mark.parametrize("count, features", [(2000, 3), (20, 60)])
def test_frechet_distance_of_gaussians(count, features):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(count, features)), rng.normal(size=(count, features)) * 2 + 1
    from scipy.linalg import sqrtm

    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(cov_a @ cov_b + 1e-12 * np.eye(features)).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
    assert all(0 <= frechet_distance(x, x) < 1e-9 for x in (a, b, 10 * b, a[::2], 1000 + a))
    if count == 2000:
        assert frechet_distance(a, b) == pytest.approx(3 * (1 + 1), rel=0.1)  # |1|^2 + (2 - 1)^2 each


def test_bad_feature_weights_are_named(pipe, windows, weights, tmp_path):
    (tmp_path / "text.pt").write_text("no network")
    for call, error, words in (
        (lambda: Features(tmp_path / "none.pt"), FeatureError, "none.pt"),
        (lambda: Features(tmp_path / "text.pt"), FeatureError, "TorchScript"),
        (lambda: Features(weights / "video.pt")(windows[0]), FeatureError, "fails on"),
        (lambda: Features(weights / "broken.pt")(windows[0]), FeatureError, "broken.pt gives .* not finite"),
        (lambda: frechet_distance(np.full((3, 3), np.nan), np.zeros((5, 3))), FeatureError, "finite"),
        (lambda: frechet_distance(np.zeros((1, 3)), np.zeros((5, 3))), FeatureError, "2 or more"),
        (lambda: pipe.close_the_loop(windows[0], CAMERA, video_features=weights / "video.pt"), FeatureError, "got 1"),
        (lambda: pipe.close_the_loop(windows[:, :3], CAMERA), ValueError, "5"),
        (lambda: pipe.close_the_loop(windows[0], None), GeometryError, "None"),
    ):
        with pytest.raises(error, match=words):
            call()
