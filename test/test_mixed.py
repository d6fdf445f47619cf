# SPDX-License-Identifier: Apache-2.0
"""Training on the paper's whole sequence: what a mixed batch holds, and that nothing of padding reaches the loss."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_transformer import SMALL, stirred

from rays_as_pixels_model.config import preset
from rays_as_pixels_model.layout import Layout
from rays_as_pixels_training.config import TrainConfig
from rays_as_pixels_training.data import windows as windows_module
from rays_as_pixels_training.data.mixed import cut_mixed
from rays_as_pixels_training.data.source import ClipArrays
from rays_as_pixels_training.learner import Learner
from rays_as_pixels_training.loss import velocity_loss
from rays_as_pixels_training.tasks import draw_step, noised, to_device

CLIP = 9


def clips_of(count, height=32, width=32, frames=CLIP):
    """Clips whose frame k is grey k, seen from k cm to the right of frame 0."""
    grey = np.arange(frames, dtype=np.uint8)[None, :, None, None, None]
    poses = np.tile(np.eye(4), (count, frames, 1, 1))
    poses[..., 0, 3] = 0.01 * np.arange(frames)
    camera = np.tile(np.float32([width, width, width / 2, height / 2]), (count, 1))
    return ClipArrays(
        np.broadcast_to(grey, (count, frames, height, width, 3)), poses, camera, np.full((count, frames), 2.0)
    )


class Source:
    """Random clips."""

    def __init__(self, clips):
        self.clips = clips

    def take(self, count, rng):
        return self.clips, rng.integers(0, len(self.clips.frames), count)

    def skip(self, count):
        pass


def frame_numbers(windows):
    """Which frame of its clip each frame is, by its grey; colours are left as they are."""
    return ((windows.frames[:, :, 0, 0, 0] + 1) * 127.5).round().int()


def test_a_mixed_batch_holds_images_and_videos_of_one_clip_each(monkeypatch):
    augmented = windows_module._augmented

    def colours_as_they_are(rng, cuts):
        cuts = augmented(rng, cuts)
        return replace(cuts, mix=np.tile(np.eye(3, dtype=np.float32), (len(cuts), 1, 1)), offset=0 * cuts.offset)

    monkeypatch.setattr(windows_module, "_augmented", colours_as_they_are)
    clips, b = clips_of(1), 200
    windows, layout, is_source, exists = cut_mixed(clips, np.zeros(b, int), np.random.default_rng(0), 3, 5)
    assert layout.groups == (1, 1, 1, 1, 4) and layout.images == 3
    video = exists[:, 3]
    assert 60 < video.sum() < 140 and torch.equal(exists[:, 4], video) and exists[:, :3].all()
    assert torch.equal(layout.latent_exists(), exists)
    count = is_source.sum(1)
    assert set(count[video].tolist()) == {1, 2, 3} and set(count[~video].tolist()) == {1, 2}
    assert (is_source == (torch.arange(5) < count[:, None])).all()

    numbers, rows = frame_numbers(windows), torch.arange(b)
    assert all(len(set(row.tolist())) == 3 for row in numbers[:, :3])
    steps = numbers[video][:, 3:].diff(dim=1)
    assert (steps == steps[:, :1]).all() and set(steps[:, 0].tolist()) == {-2, -1, 1, 2}
    inside = (numbers[video][:, :3, None] == numbers[video][:, None, 3:]).any(2)
    assert 0.3 < inside.float().mean() < 0.8  # an image may be a frame of the video, or none

    assert (windows.reference < count).all() and set(windows.reference.tolist()) == {0, 1, 2}
    moved = 0.005 * (numbers - numbers[rows, windows.reference][:, None])  # cm to scene depths of 2
    found, there = windows.T_reference_camera[..., 0, 3].abs(), layout.exists
    torch.testing.assert_close(found[there], moved.abs().double()[there], atol=1e-7, rtol=0)

    times = layout.times
    told = video & (times[:, :3] != torch.tensor([-3.0, -2, -1])).any(1)
    assert 0.3 < told.sum() / video.sum() < 0.7 and (times[~told, :3] == torch.tensor([-3.0, -2, -1])).all()
    expected = (numbers[:, :3] - numbers[:, 3:4]) / (numbers[:, 4:5] - numbers[:, 3:4])
    torch.testing.assert_close(times[told, :3], expected[told])
    assert (times[video, 3:] == torch.arange(5.0)).all()


def test_the_loss_is_over_what_exists_and_is_noisy():
    """The loss of a padded batch is that of its windows alone, each weighed by its noisy latent frames."""
    model = stirred(SMALL)
    config = TrainConfig(batch=6, mixed=1.0, mixed_images=3)
    height, width = SMALL.height, SMALL.width
    batch = draw_step(Source(clips_of(4, height, width)), config, SMALL, 0)[0]
    assert batch.task == "mixed" and (batch.t_r == 1).all()
    exists = batch.layout.latent_exists()
    assert 0 < exists[:, -1].sum() < 6
    batch.windows.frames[~batch.layout.exists] = 1e3  # padding
    (z, r), (u_z, _) = (tuple(x.double() for x in pair) for pair in noised(model, batch, torch.Generator()))
    model = model.double()
    times = batch.t_z.double(), batch.t_r.double()
    reference = batch.windows.reference

    def loss(v, u, t):
        return velocity_loss(v, u, t < 1, SMALL.transformer.patch, 0.5)

    whole = loss(model(z, r, *times, reference, batch.layout)[0], u_z, times[0])
    parts, weights = [], []
    for i in range(6):
        latents, frames = exists[i], batch.layout.exists[i]
        groups = tuple(g for g, here in zip(batch.groups, latents, strict=True) if here)
        own = Layout(groups, batch.layout.times[i][frames])
        args = z[i][latents], r[i][frames], times[0][i][latents], times[1][i][frames]
        v = model(*(x[None] for x in args), reference[i : i + 1], own)[0]
        parts.append(loss(v, u_z[i][latents][None], times[0][i][latents][None]))
        weights.append((times[0][i] < 1).sum())
    weights = torch.stack(weights)
    assert (weights > 0).all() and len(set(weights.tolist())) > 1
    torch.testing.assert_close(whole, (torch.stack(parts) * weights).sum() / weights.sum(), atol=1e-6, rtol=1e-6)


def test_a_learner_learns_from_mixed_batches():
    from rays_as_pixels_model.joint import RaysAsPixels

    torch.manual_seed(0)
    shape = SMALL
    config = TrainConfig(batch=4, parts=2, mixed=1.0, lr=1e-3, warmup=0, optimizer="adamw", precision="float32")
    learner = Learner(config, RaysAsPixels(shape), shape)
    source = Source(clips_of(3, shape.height, shape.width, 13))
    losses = []
    for step in range(4):
        parts = draw_step(source, config, shape, 0)
        assert len(parts) == 2
        moved = {k: to_device(part, torch.device("cpu")) for k, part in parts.items()}
        update = learner.update(moved, step)
        losses.append(update.loss)
    assert update.task == "mixed" and update.parts["r"] == 0 and losses[-1] < losses[0]
    assert list(learner.usual_loss) == ["mixed"]


def test_shares_of_the_tasks():
    source, shape = Source(clips_of(2, 64, 96, 13)), preset("micro")
    drawn = [draw_step(source, TrainConfig(batch=1, mixed=0.5), shape, step, mine=[]) for step in range(3)]
    assert drawn == [{}, {}, {}]
    tasks = [draw_step(source, TrainConfig(batch=1, mixed=0.5), shape, step)[0].task for step in range(24)]
    plain = [draw_step(source, TrainConfig(batch=1), shape, step)[0].task for step in range(24)]
    assert 6 <= tasks.count("mixed") <= 18 and "pose" in tasks and "mixed" not in plain


@pytest.mark.parametrize(
    "arguments, words", [(["--mixed", "1.5"], "mixed must be in"), (["--mixed-images", "1"], "mixed_images")]
)
def test_bad_shares_are_named(tmp_path, capsys, arguments, words):
    from rays_as_pixels_training.train import main

    assert main(["--out", os.fspath(tmp_path), *arguments]) == 2
    err = capsys.readouterr().err
    assert words in err and len(err.strip().splitlines()) == 1
