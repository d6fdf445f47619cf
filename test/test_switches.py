# SPDX-License-Identifier: Apache-2.0
"""The paper's ablation switches: attention, camera encoding, projections; and Pluecker rays there and back."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rays_as_pixels_model.config import ATTENTIONS, CAMERA_ENCODINGS, PROJECTIONS, ConfigError, ModelConfig, preset
from rays_as_pixels_model.geometry import Intrinsics, make_pose, so3_exp
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.pluecker import pluecker_of_raxels, raxels_of_pluecker
from rays_as_pixels_model.raxels import make_raxels, read_cameras
from rays_as_pixels_training.config import TrainConfig
from rays_as_pixels_training.fit_codec import fit_codec
from rays_as_pixels_training.loss import ray_weights, velocity_loss
from rays_as_pixels_training.tasks import draw_step, noised

SMALL = dataclasses.replace(
    preset("micro"),
    preset="test",
    height=64,
    width=64,
    transformer=dataclasses.replace(preset("micro").transformer, width=24, depth=2, heads=2, ffn_width=32),
)
SWITCHES = [
    dict(zip(("attention", "projections", "camera_encoding"), values, strict=True))
    for values in itertools.product(ATTENTIONS, PROJECTIONS, CAMERA_ENCODINGS)
]


def cameras(angles, centres):
    return make_pose(so3_exp(np.asarray(angles)), np.asarray(centres))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1.5, 1.5), min_size=6, max_size=6), st.floats(30, 110))
def test_pluecker_images_hold_directions_and_moments_and_come_back(values, fov):
    T = cameras([values[:3]], [values[3:]])
    camera = Intrinsics.from_fov(fov, 48, 32)
    raxels = torch.from_numpy(make_raxels(T, camera, 16, 24))
    images = pluecker_of_raxels(raxels)
    d, m = images[..., :3], images[..., 3:]
    o = torch.tensor(values[3:], dtype=torch.float32)
    torch.testing.assert_close(d, raxels - o, atol=2e-4, rtol=0)
    torch.testing.assert_close(m, torch.linalg.cross(o.expand_as(d), raxels - o), atol=5e-4, rtol=0)
    torch.testing.assert_close(raxels_of_pluecker(images), raxels, atol=5e-4, rtol=0)


def test_noisy_pluecker_images_still_give_the_camera():
    T = cameras([[0.2, -0.1, 0.05]], [[0.3, -0.2, 0.4]])
    camera = Intrinsics.from_fov(60, 96, 64)
    images = pluecker_of_raxels(torch.from_numpy(make_raxels(T, camera, 32, 48)))
    noisy = images + 0.02 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    read = read_cameras(raxels_of_pluecker(noisy).numpy(), camera)
    assert np.abs(read.T_reference_camera - T).max() < 0.01


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: "-".join(s.values()))
def test_every_switch_works_end_to_end(switches):
    config = SMALL.switched(**switches)
    assert ModelConfig.from_dict(config.to_dict()) == config
    torch.manual_seed(0)
    model = RaysAsPixels(config)
    T = cameras([[0, 0.02 * i, 0] for i in range(5)], [[0.1 * i, 0, 0] for i in range(5)])
    raxels = torch.from_numpy(make_raxels(T, Intrinsics.from_fov(60, 64, 64), 32, 32))[None]
    z = torch.randn(model.latent_shapes(1, (1, 4))[0])
    r = model.encode_rays(raxels)
    assert r.shape == model.latent_shapes(1, (1, 4))[1]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    args = torch.ones(1, 2), torch.rand(1, 5), torch.zeros(1, dtype=torch.int64), (1, 4)
    v_z, v_r = model(z, r, *args)
    (v_z.square().mean() + v_r.square().mean()).backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not unused
    changed_z, _ = model(z, r + 1, *args)
    _, changed_r = model(z + 1, r, *args)
    assert (changed_z - v_z).abs().max() > 1e-5 and (changed_r - v_r).abs().max() > 1e-5
    rays = raxels[:, 0]
    frames = torch.rand(1, 5, 64, 64, 3)
    decoded = Pipeline(model).estimate_batch(frames, rays, 0, 1, torch.Generator().manual_seed(0))
    assert decoded.shape == raxels.shape and torch.isfinite(decoded).all()


def test_pluecker_rays_pass_through_the_codec_as_two_images():
    """With a basis that keeps everything, cameras come back whole."""
    config = SMALL.switched(camera_encoding="pluecker")
    model = RaysAsPixels(dataclasses.replace(config, codec=dataclasses.replace(config.codec, channels=192)))
    T = cameras([[0.1, 0.2, 0]], [[0.3, 0.1, -0.2]])
    raxels = torch.from_numpy(make_raxels(T, Intrinsics.from_fov(60, 64, 64), 32, 32))[None]
    torch.testing.assert_close(model.decode_rays(model.encode_rays(raxels)), raxels, atol=1e-4, rtol=0)


class Clips:
    """Noise for pictures and turning, moving cameras: what `cut_windows` and `fit_codec` read of a pool."""

    def __init__(self, count=12, frames=9):
        rng = np.random.default_rng(0)
        self.height, self.width = 64, 96
        self.frames = rng.integers(0, 256, (count, frames, 64, 96, 3), dtype=np.uint8)
        turn, way = rng.normal(size=(2, count, 1, 3)) * 0.05
        step = np.arange(frames)[:, None]
        self.poses = make_pose(so3_exp(step * turn), step * way)
        self.intrinsics = np.tile(np.float32([80, 80, 48, 32]), (count, 1))
        self.scales = np.ones((count, frames))

    def ready(self):
        return np.arange(len(self.frames))

    def take(self, count, rng):
        return self, rng.choice(self.ready(), count)

    def take_parts(self, count, part, rng):
        yield self.take(count, rng)


@pytest.mark.parametrize("encoding", CAMERA_ENCODINGS)
def test_a_fitted_model_trains_and_reads_cameras_back(encoding):
    torch.manual_seed(0)
    model = RaysAsPixels(dataclasses.replace(SMALL, width=96).switched(camera_encoding=encoding))
    pool = Clips()
    fit_codec(model, pool, windows=48)
    task = TrainConfig(batch=64, tasks=(1, 0, 0), slots=12)
    batch = draw_step(pool, task, model.config, 0)[0]
    raxels = batch.windows.raxels()
    r = model.encode_rays(raxels)
    mean = r.mean((2, 3), keepdim=True)
    for part in (mean, r - mean):  # each channel has a spread of 1, or less below the floor
        assert 0.5 < part.flatten(0, 3).std(0).max() < 1.5
    assert (model.decode_rays(r) - raxels).abs().max() < 0.02
    (z_t, r_t), (_, u) = noised(model, batch, torch.Generator().manual_seed(0))
    weights = ray_weights([(r, batch.windows.reference)])
    _, v = model(z_t, r_t, batch.t_z, batch.t_r, batch.windows.reference, batch.groups)
    loss = velocity_loss(v, u, batch.t_r < 1, 2, 0.5, weights)
    loss.backward()
    assert torch.isfinite(loss) and model.transformer.head_rays.weight.grad.abs().max() > 0


def test_shared_projections_and_joint_attention_have_fewer_parameters():
    def count(**switches):
        return sum(p.numel() for p in RaysAsPixels(SMALL.switched(**switches)).transformer.blocks.parameters())

    d, depth = SMALL.transformer.width, SMALL.transformer.depth
    one = 4 * d * d + 4 * d + 2 * (d // SMALL.transformer.heads)
    assert count() - count(projections="shared") == depth * 3 * one
    assert count() - count(attention="joint") == depth * (2 * one + 2 * 3 * d)


def test_wrong_switches_are_named():
    with pytest.raises(ConfigError, match="'full'"):
        SMALL.switched(attention="full")
    with pytest.raises(ConfigError, match="'rays'"):
        SMALL.switched(camera_encoding="rays")
    with pytest.raises(ConfigError, match="colour"):
        SMALL.switched(colour="red")
