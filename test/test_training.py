# SPDX-License-Identifier: Apache-2.0
"""Training: the data is what it says, the loss is the paper's, a killed run continues as if it had not been."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from rays_as_pixels_model.checkpoint import default_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.raxels import read_cameras
from rays_as_pixels_training.baselines import constant_velocity, rotation_warp
from rays_as_pixels_training.config import RunConfig, TrainConfig
from rays_as_pixels_training.data.source import ClipArrays, PoolSource
from rays_as_pixels_training.data.windows import cut_windows
from rays_as_pixels_training.learner import Learner
from rays_as_pixels_training.loop import Trainer
from rays_as_pixels_training.loss import picture_weights, ray_weights, relative_weights, velocity_loss
from rays_as_pixels_training.metrics import pose_errors, psnr
from rays_as_pixels_training.optimizer import Muon, orthogonalise
from rays_as_pixels_training.state import read_facts, states
from rays_as_pixels_training.tasks import draw_step


def test_the_loss_is_mse_plus_half_of_one_minus_cosine():
    v, u = torch.zeros(1, 2, 2, 2, 3), torch.zeros(1, 2, 2, 2, 3)
    v[..., 0], u[..., 1] = 1.0, 1.0  # at right angles: MSE 2/3, cosine 0
    moving = torch.tensor([[True, False]])
    assert velocity_loss(v, u, moving, 2, 0.5).item() == pytest.approx(2 / 3 + 0.5)
    assert velocity_loss(v, u, moving, 2, 0.0).item() == pytest.approx(2 / 3)
    assert velocity_loss(u, u, moving, 2, 0.5).item() == pytest.approx(0, abs=1e-6)
    v[:, 1] = 100.0  # a clean frame has no say
    assert velocity_loss(v, u, moving, 2, 0.0).item() == pytest.approx(2 / 3)
    assert velocity_loss(v, u, torch.zeros(1, 2, dtype=torch.bool), 2, 0.5).item() == 0


def test_ray_weights_follow_motion_and_leave_dead_channels_alone():
    r = torch.zeros(64, 3, 2, 3, 4)
    generator = torch.Generator().manual_seed(0)
    r += torch.randn(64, 1, 2, 3, 4, generator=generator) * 10  # cameras differ, which must not count
    r[:, 1:, :, :, 0] += torch.randn(64, 2, 1, 1, generator=generator)  # the mean moves
    r[:, 1:, :, :, 1] += torch.randn(64, 2, 2, 3, generator=generator)  # the deviations move
    reference = torch.zeros(64, dtype=torch.int64)
    mean, deviation = ray_weights([(r[:20], reference[:20]), (r[20:], reference[20:])], deviation=1.0)
    assert mean[0] == pytest.approx(1.2, abs=0.2) and deviation[1] == pytest.approx(1.3, abs=0.2)
    assert mean[2:].max() < 1e-3 and deviation[2:].max() < 1e-3 and deviation[0] < 1e-3
    error = torch.zeros(1, 1, 2, 3, 4)
    error[0, 0, 0, 0, 1] = 6.0  # mean 1, deviations 5 and -1
    moving = torch.ones(1, 1, dtype=torch.bool)
    weighed = velocity_loss(error, torch.zeros_like(error), moving, 1, 0.0, (torch.zeros(4), torch.ones(4)))
    assert weighed.item() == pytest.approx((25 + 5) / 24)


def test_the_loss_of_warped_views_is_the_error_in_pixels():
    torch.manual_seed(0)
    model = RaysAsPixels(preset("micro"))
    model.normaliser.image_scale.copy_(torch.rand(model.config.codec.channels) + 0.2)
    model.codec.image_basis.copy_(torch.linalg.qr(torch.randn(192, 48))[0].T)
    z, error = torch.randn(2, 1, 8, 12, 48) * 0.01, torch.randn(2, 1, 8, 12, 48) * 0.01
    moving, scale = torch.ones(2, 1, dtype=torch.bool), 1 / model.normaliser.image_scale
    found = velocity_loss(z + error, z, moving, 2, 0.0, (picture_weights(scale),) * 2)
    pixels = (model.decode_frames(z + error, (1,)) - model.decode_frames(z, (1,))).square().mean()
    per_channel = scale.square().mean() * 48 / 192  # a mean over 192 numbers of a cell, not over 48 channels
    assert found.item() == pytest.approx((pixels / per_channel).item(), rel=1e-4)

    class Source:
        height, width, clip_frames = 64, 96, 13

        def take(self, count, rng):
            clip = np.random.default_rng(0).integers(0, 256, (1, 13, 64, 96, 3), dtype=np.uint8)
            poses, k = np.tile(np.eye(4), (1, 13, 1, 1)), np.float32([[80, 80, 48, 32]])
            return ClipArrays(clip, poses, k, np.ones((1, 13), np.float32)), np.zeros(count, int)

    # Heads that give 0 are off by the data over 1 - t, whatever the noise.
    config = TrainConfig(tasks=(0, 1, 0), batch=2, cosine_weight=0.0, precision="float32")
    batch = draw_step(Source(), config, model.config, 0)[0]
    z = model.encode_frames(batch.windows.frames, batch.layout)
    off = (z - z[:, :1]) / (1 - batch.t_z).clamp(min=1e-3)[..., None, None, None]
    moving = batch.t_z < 1
    rows = relative_weights((z - z[:, :1]), moving, picture_weights(scale))
    assert rows[moving].mean().item() == pytest.approx(1.0, rel=1e-4)
    sizes = (scale * (z - z[:, :1])).square().mean((2, 3, 4))[moving]
    by_size = rows[moving] * (sizes + 0.1 * sizes.mean())
    torch.testing.assert_close(by_size, by_size[:1].expand(2))  # half as far off counts twice
    wanted = velocity_loss(off, torch.zeros_like(off), moving * rows, 2, 0.0, (picture_weights(scale),) * 2)
    assert Learner(config, model, model.config).losses(batch, 0).z.item() == pytest.approx(wanted.item(), rel=1e-3)


def test_windows_have_their_reference_at_the_identity_and_raxels_that_say_so(pool):
    rng = np.random.default_rng(0)
    batch = cut_windows(pool, np.arange(6), rng, 5)
    rows = torch.arange(6)
    np.testing.assert_allclose(
        batch.T_reference_camera[rows, batch.reference], np.tile(np.eye(4), (6, 1, 1)), atol=1e-9
    )
    raxels = batch.raxels()
    assert raxels.shape == (6, 5, 32, 48, 3)
    camera = Intrinsics(*(float(x) for x in batch.intrinsics[0]), 96, 64)
    found = read_cameras(raxels[0].numpy(), camera).T_reference_camera
    np.testing.assert_allclose(found, batch.T_reference_camera[0], atol=1e-4)
    assert batch.frames.min() >= -1 and batch.frames.max() <= 1


def test_a_mirrored_window_has_the_mirrored_camera(pool):
    """Poses become S T S with S = diag(-1, 1, 1, 1), the picture and the principal point are turned over with them."""
    plain = cut_windows(pool, np.arange(6), np.random.default_rng(3), 5, augment=False)
    mirrored = cut_windows(pool, np.arange(6), np.random.default_rng(3), 5, augment=True)
    a, b = plain.T_reference_camera.numpy(), mirrored.T_reference_camera.numpy()
    flipped = [i for i in range(6) if not np.allclose(a[i], b[i])]
    assert 0 < len(flipped) < 6
    mirror = np.diag([-1.0, 1, 1, 1])
    for i in range(6):
        turned = i in flipped
        np.testing.assert_allclose(b[i], mirror @ a[i] @ mirror if turned else a[i], atol=1e-9)
        cx = plain.intrinsics[i, 2].item()
        assert mirrored.intrinsics[i, 2].item() == pytest.approx(96 - cx if turned else cx, abs=1e-4)
        # The colours are changed, so compare where things are: brightness against the picture and its mirror image.
        grey, straight = mirrored.frames[i, 0].mean(-1).flatten(), plain.frames[i, 0].mean(-1)
        match = [abs(np.corrcoef(grey, picture.flatten())[0, 1]) for picture in (straight, straight.flip(1))]
        assert (match[1] > match[0]) == turned, match


@pytest.mark.parametrize("step", range(6))
def test_every_task_leaves_something_to_denoise_and_something_given(pool, step):
    batch, again = (draw_step(PoolSource(pool), TrainConfig(batch=8), preset("micro"), step)[0] for _ in range(2))
    assert torch.equal(batch.windows.frames, again.windows.frames) and torch.equal(batch.t_r, again.t_r)
    assert len(batch.t_z[0]) == len(batch.groups) and sum(batch.groups) == len(batch.t_r[0])
    moving, clean = (batch.t_z < 1).any(1) | (batch.t_r < 1).any(1), (batch.t_z == 1).any(1)
    assert moving.all() and clean.all()
    if batch.task == "pose":
        assert (batch.t_z == 1).all()
    if batch.task == "views":
        assert (batch.t_r == 1).all() and (batch.windows.reference == 0).all()


def test_orthogonalised_updates_have_equal_singular_values():
    x = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(orthogonalise(x))
    assert singular.min() > 0.5 and singular.max() < 1.3
    torch.testing.assert_close(orthogonalise(x.transpose(1, 2)), orthogonalise(x).transpose(1, 2), atol=1e-4, rtol=1e-3)


def test_muon_solves_a_least_squares_problem():
    generator = torch.Generator().manual_seed(0)
    target, weight = torch.randn(8, 8, generator=generator), torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = Muon([weight], lr=0.05)
    first = None
    for _ in range(200):
        loss = (weight - target).square().mean()
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.02 * first


def test_metrics_and_baselines_on_known_values():
    truth = np.tile(np.eye(4), (2, 1, 1))
    truth[:, 0, 3] = 1.0
    estimate = truth.copy()
    estimate[1, :2, :2] = [[0.0, -1], [1, 0]]
    estimate[0, :3, 3] = [0, 2.0, 0]
    errors = pose_errors(estimate, truth)
    assert errors["rotation_error_deg_median"] == pytest.approx(45) and errors["RRA@5"] == 50
    assert errors["translation_direction_error_deg_median"] == pytest.approx(45) and errors["RTA@30"] == 50
    assert pose_errors(np.tile(np.eye(4), (2, 1, 1)), truth)["translation_direction_error_deg_median"] == 90
    assert psnr(np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)) == pytest.approx(0)
    np.testing.assert_allclose(constant_velocity(truth, 3)[0, :3, 3], [3, 0, 0])
    camera = Intrinsics.from_fov(60, 96, 64)
    picture = np.random.default_rng(0).integers(0, 255, (64, 96, 3), dtype=np.uint8)
    np.testing.assert_array_equal(rotation_warp(picture, camera, np.eye(3)), picture)


def _run(out, pool, *more, **kwargs):
    command = [sys.executable, "-m", "rays_as_pixels_training.train", "--out", str(out), "--pool", str(pool)]
    command += ["--workers", "0", "--min-clips", "6", "--batch", "2", "--steps", "10", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs)


def test_wrong_shards_to_evaluate_on_are_told_before_the_first_step(tmp_path, pool):
    with pytest.raises(ValueError, match="holds no shards.json"):
        Trainer(
            TrainConfig(batch=2, steps=1), RunConfig(tmp_path, init=default_checkpoint(), eval_data=tmp_path / "none"),
            PoolSource(pool),
        )  # fmt: skip


def test_a_run_can_start_from_a_checkpoint(tmp_path, pool):
    """The weights and the codec are those of the checkpoint, not fitted or drawn anew."""
    config, source = TrainConfig(batch=2), PoolSource(pool)
    folder = tmp_path / "ck"
    first = Trainer(replace(config, seed=3), RunConfig(tmp_path / "a"), source)
    first.export(folder, "# card\n")
    second = Trainer(config, RunConfig(tmp_path / "b", init=folder), source)
    a, b = first.learner.model.state_dict(), second.learner.model.state_dict()
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    other = save_checkpoint(tmp_path / "other", RaysAsPixels(preset("tiny")), "# card\n")
    for changed, init in ((config, other), (replace(config, attention="joint"), folder)):
        with pytest.raises(ValueError, match="tiny|joint"):
            Trainer(changed, RunConfig(tmp_path / "c", init=init), source)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_term_signal_saves_and_says_how_to_continue(tmp_path, pool):
    folder = os.path.dirname(pool.frames.filename)
    run = _run(tmp_path / "c", folder, "--steps", "100000", "--log-every", "1", "--save-every", "100000")
    log = tmp_path / "c" / "log.jsonl"
    deadline = time.monotonic() + 240
    while not log.exists():
        assert time.monotonic() < deadline and run.poll() is None, run.communicate()[0]
        time.sleep(0.05)
    run.terminate()
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 130 and "continues" in output and "Traceback" not in output
    # The state is that of a whole step: the log's last line says which.
    steps = json.loads(log.read_text().splitlines()[-1])["step"]
    assert read_facts(states(tmp_path / "c")[-1])["step"] == steps


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--steps", "0"], "steps"),
        (["--preset", "huge"], "huge"),
        (["--tasks", "1,2"], "three"),
        (["--tasks", "a,b,c"], "a,b,c"),
        (["--lr", "nan"], "nan"),
        (["--view-frames", "1"], "view_frames"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(tmp_path, pool, arguments, words, capsys):
    from rays_as_pixels_training.train import main

    assert main(["--out", str(tmp_path / "x"), "--pool", os.path.dirname(pool.frames.filename), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1
