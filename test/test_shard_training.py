# SPDX-License-Identifier: Apache-2.0
"""What training takes from shards: latents of the codec, batches of frames and of latents, the same losses again."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from shard_files import many, write

from rays_as_pixels_model.checkpoint import load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.geometry import invert
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_training import fit_codec
from rays_as_pixels_training.config import RunConfig, TrainConfig
from rays_as_pixels_training.data.clips import ClipCut, cut_clip
from rays_as_pixels_training.data.latents import LatentEncoder, LatentSource, open_shards
from rays_as_pixels_training.data.mixed import cut_mixed
from rays_as_pixels_training.data.posed import DatasetError
from rays_as_pixels_training.data.windows import cut_windows
from rays_as_pixels_training.data.write_shards import make_plan, write_shards
from rays_as_pixels_training.loop import Trainer
from rays_as_pixels_training.tasks import draw_step, noised


def latent_shards(folder, count=3):
    encoder = LatentEncoder()
    config = encoder.model.config
    cut = ClipCut(config.frames, config.width, config.height)
    videos = many(count)
    plan = make_plan(videos, cut, encoder.facts, 2)
    write_shards(videos, folder, plan, cut, encoder)
    return encoder.model, cut, videos


def test_latents_are_those_of_the_codec(tmp_path):
    model, cut, videos = latent_shards(tmp_path, 1)
    source, rng = open_shards(tmp_path), np.random.default_rng(0)
    clips, slots = source.take(1, rng)
    clip = cut_clip(videos[0], 0, cut)
    frames = torch.from_numpy(clip.frames)[None].float() * (2 / 255) - 1
    config = TrainConfig()
    for scattered, count, groups in ((False, model.config.frames, model.config.groups), (True, 3, (1, 1, 1))):
        windows = cut_windows(clips, slots, rng, count, scattered=scattered)
        z, r = windows.encoded()
        assert (windows.reference == 0).all()
        index = np.arange(count)
        if scattered:  # find them by their poses
            moved = invert(clip.T_world_camera[0]) @ clip.T_world_camera
            moved[:, :3, 3] /= clip.scene_scale[0]
            index = [int(np.abs(moved - pose.numpy()).sum((1, 2)).argmin()) for pose in windows.T_reference_camera[0]]
            assert index[0] == 0 and len(set(index)) == 3
        torch.testing.assert_close(z, model.encode_frames(frames[:, index], groups), rtol=2e-3, atol=2e-3)
        from rays_as_pixels_training.data.windows import WindowBatch

        direct = WindowBatch(frames[:, index], windows.T_reference_camera, windows.intrinsics, windows.reference)
        torch.testing.assert_close(r, model.encode_rays(direct.raxels()), rtol=2e-3, atol=5e-3)
    assert config.view_frames <= model.config.frames

    windows, layout, _, exists = cut_mixed(clips, np.zeros(6, int), rng, 3, model.config.frames)
    assert layout.groups == (1, 1, 1, 1, 4) and (windows.reference == 0).all() and 0 < exists[:, -1].sum() < 6
    first = invert(clip.T_world_camera[0]) @ clip.T_world_camera
    first[:, :3, 3] /= clip.scene_scale[0]
    for row in range(6):
        poses = windows.T_reference_camera[row].numpy()
        index = [int(np.abs(first - pose).sum((1, 2)).argmin()) for pose in poses]
        assert index[0] == 0 and len(set(index[:3])) == 3 and index[3:] in ([0, 1, 2, 3, 4], [0] * 5)
        here = exists[row]
        z = model.encode_frames(frames[:, index], layout)[0]
        torch.testing.assert_close(windows.z[row][here], z[here], rtol=2e-3, atol=2e-3)


def test_training_batches_come_from_frames_and_from_latents(tmp_path):
    model, cut, videos = latent_shards(tmp_path / "latents")
    write(tmp_path / "frames", videos, cut=replace(cut, frames=6))
    for folder in ("frames", "latents"):
        config = TrainConfig(batch=2, mixed=0.4, tasks=(0.6, 0.28 if folder == "frames" else 0, 0.12))
        source, tasks = open_shards(tmp_path / folder), set()
        for step in range(6):
            (batch,) = draw_step(source, config, model.config, step).values()
            tasks.add(batch.task)
            (z, r), (u_z, u_r) = noised(model, batch, torch.Generator().manual_seed(0))
            assert z.shape == u_z.shape == model.latent_shapes(2, batch.groups)[0]
            assert r.shape == u_r.shape and torch.isfinite(u_z).all() and torch.isfinite(u_r).all()
        assert {"pose", "mixed"} <= tasks


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frames", "latents"])
def test_a_stopped_run_on_shards_goes_on_with_the_same_losses(tmp_path, kind):
    from rays_as_pixels_model.checkpoint import default_checkpoint

    _, cut, videos = latent_shards(tmp_path / "latents")
    write(tmp_path / "frames", videos, cut=replace(cut, frames=6))

    def train(out, stop=lambda: False):
        run = RunConfig(tmp_path / out, log_every=1, eval_every=0, pictures_every=0, tensorboard=False,
                        init=default_checkpoint(), prefetch=2)  # fmt: skip
        tasks = (0.6, 0.28 if kind == "frames" else 0, 0.12)  # views of latents are refused
        config = TrainConfig(batch=2, steps=2, warmup=0, precision="float32", tasks=tasks)
        Trainer(config, run, open_shards(tmp_path / kind, seed=1)).run(stop=stop)
        lines = map(json.loads, (tmp_path / out / "log.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    whole = train("whole")
    asked = iter([False])
    assert list(train("parts", lambda: next(asked, True))) == [1]
    assert train("parts") == whole and list(whole) == [1, 2]


def test_latents_of_another_codec_are_refused(tmp_path):
    model, _, _ = latent_shards(tmp_path, 1)
    source = open_shards(tmp_path)
    assert isinstance(source, LatentSource)
    source.check_codec(load_checkpoint(None))
    model.codec.image_basis[0, 0] += 1
    with pytest.raises(DatasetError, match="the shards hold latents of codec .*, but the model has codec .*--init"):
        source.check_codec(model)


def test_fitting_a_codec_tells_what_is_wrong_before_the_work(tmp_path, monkeypatch, capsys):
    def work(*_, **__):
        raise AssertionError("bad input is told first")

    monkeypatch.setattr(fit_codec, "fit_codec", work)
    start = save_checkpoint(tmp_path / "start", RaysAsPixels(preset("micro")), "card")
    write(tmp_path / "frames", many(1), cut=ClipCut(5, 96, 64))
    arguments = [str(start), "--data", str(tmp_path / "frames"), "--out"]
    assert fit_codec.main([*arguments, str(tmp_path / "frames")]) == 1
    assert "frames holds other files (plan.json) and is not replaced" in capsys.readouterr().err
    (start / "README.md").unlink()
    assert fit_codec.main([*arguments, str(tmp_path / "out")]) == 1
    assert "README.md" in capsys.readouterr().err
