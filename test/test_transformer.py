# SPDX-License-Identifier: Apache-2.0
"""The joint transformer: shapes, positions, what may depend on what, and the solver."""

import numpy as np
import pytest
import torch

from rays_as_pixels_model.config import PRESETS, CodecConfig, ConfigError, ModelConfig, TransformerConfig, preset
from rays_as_pixels_model.joint import RaysAsPixels, build_transformer
from rays_as_pixels_model.layers import rotary_tables, rotate
from rays_as_pixels_model.sampler import Cancelled, Schedule, sample
from rays_as_pixels_model.schedule import add_noise, draw_times, time_grid
from rays_as_pixels_model.transformer import token_positions

SMALL = ModelConfig(
    "test",
    frames=5,
    height=32,
    width=64,
    codec=CodecConfig(channels=20),
    transformer=TransformerConfig(width=24, depth=2, heads=2, ffn_width=32),
)


def stirred(config=SMALL, seed=0):
    """A model whose zero-initialised layers are not zero, so that everything can reach the output."""
    torch.manual_seed(seed)
    model = RaysAsPixels(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def inputs(model, groups, batch=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shape_z, shape_r = model.latent_shapes(batch, groups)
    z, r = torch.randn(shape_z, generator=generator), torch.randn(shape_r, generator=generator)
    t_z, t_r = torch.rand(shape_z[:2], generator=generator), torch.rand(shape_r[:2], generator=generator)
    return z, r, t_z, t_r, torch.zeros(batch, dtype=torch.int64), groups


@pytest.mark.parametrize("groups", [(1, 4), (1, 1, 1), (1,), (1, 4, 4)])
def test_velocities_have_the_shapes_of_their_latents(groups):
    model = stirred()
    args = inputs(model, groups)
    v_z, v_r = model(*args)
    assert v_z.shape == args[0].shape and v_r.shape == args[1].shape
    assert torch.isfinite(v_z).all() and torch.isfinite(v_r).all()


def test_both_modalities_see_each_other_and_the_reference_counts():
    model = stirred()
    z, r, t_z, t_r, reference, groups = inputs(model, (1, 4))
    base_z, base_r = model(z, r, t_z, t_r, reference, groups)
    changed_z, _ = model(z, r + 1, t_z, t_r, reference, groups)
    _, changed_r = model(z + 1, r, t_z, t_r, reference, groups)
    _, moved = model(z, r, t_z, t_r, reference + 2, groups)
    for a, b in ((base_z, changed_z), (base_r, changed_r), (base_r, moved)):
        assert (a - b).abs().max() > 1e-4


def test_windows_of_a_batch_do_not_meet():
    model = stirred()
    z, r, t_z, t_r, reference, groups = inputs(model, (1, 4))
    both = model(z, r, t_z, t_r, reference, groups)
    alone = model(z[:1], r[:1], t_z[:1], t_r[:1], reference[:1], groups)
    for a, b in zip(both, alone, strict=True):
        torch.testing.assert_close(a[:1], b, atol=1e-5, rtol=1e-5)


def test_data_prediction_gives_the_velocity_to_the_data():
    """With heads that say 0 the data is 0, so the velocity is -x / (1 - t)."""
    torch.manual_seed(0)
    model = RaysAsPixels(SMALL).eval()
    z, r, t_z, t_r, reference, groups = inputs(model, (1, 4))
    t_z, t_r = t_z * 0.99, t_r * 0.99
    v_z, v_r = model(z, r, t_z, t_r, reference, groups)
    torch.testing.assert_close(v_z, -z / (1 - t_z)[..., None, None, None])
    torch.testing.assert_close(v_r, -r / (1 - t_r)[..., None, None, None])


def test_rotary_products_depend_on_differences_of_positions():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(1, 1, 1, 32, generator=generator), torch.randn(1, 1, 1, 32, generator=generator)

    def product(a, b):
        return (rotate(q, rotary_tables(torch.tensor([a]), 32)) * rotate(k, rotary_tables(torch.tensor([b]), 32))).sum()

    torch.testing.assert_close(product([1.0, 2, 3], [2.0, 0, 5]), product([4.0, 3, 1], [5.0, 1, 3]))
    assert (product([1.0, 2, 3], [2.0, 0, 5]) - product([1.0, 2, 3], [2.0, 1, 5])).abs() > 1e-3


def test_ray_tokens_sit_in_the_middle_of_the_video_tokens_they_cover():
    z, r = token_positions((1, 4), 4, 6)
    assert z.shape == (2 * 24, 3) and r.shape == (5 * 6, 3)
    assert z[24:, 0].unique().tolist() == [2.5]  # a latent frame of four sits at their mean
    covered = z[:24][(z[:24, 1] < 2) & (z[:24, 2] < 2)]
    torch.testing.assert_close(covered[:, 1:].mean(0), r[0, 1:])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_the_meta_device(name):
    with torch.device("meta"):
        count = sum(p.numel() for p in build_transformer(preset(name)).parameters())
    low, high = {
        "micro": (1e6, 4e6),
        "tiny": (15e6, 25e6),
        "small": (100e6, 150e6),
        "wan-1.3b": (1.9e9, 2.4e9),
        "wan-14b": (19e9, 21e9),
    }[name]
    assert low < count < high, count


@pytest.mark.parametrize(
    "bad, words",
    [
        (lambda: preset("huge"), "micro"),
        (lambda: TransformerConfig(width=30, heads=4), "30"),
        (lambda: TransformerConfig(prediction="noise"), "noise"),
        (lambda: ModelConfig("x", 6, 64, 96, CodecConfig(), TransformerConfig()), "got 6"),
        (lambda: ModelConfig("x", 5, 60, 96, CodecConfig(), TransformerConfig()), "60x96"),
        (lambda: TransformerConfig(heads=0), "heads"),
        (lambda: CodecConfig(channels=200), "200"),
        (lambda: TransformerConfig(depth="4"), "'4'"),
        (lambda: ModelConfig.from_dict({"preset": "x", "speed": 3}), "speed"),
    ],
)
def test_bad_configurations_are_named(bad, words):
    with pytest.raises(ConfigError, match=words):
        bad()


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_euler_is_exact_on_straight_lines_and_keeps_what_is_clean(steps):
    z1, r1 = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    z0, r0 = torch.randn(2, 3, 4), torch.randn(2, 5, 4)
    clean_z = torch.tensor([[True, False, False]] * 2)
    clean_r = torch.zeros(2, 5, dtype=torch.bool)
    start = torch.where(clean_z[..., None], z1, z0)
    seen = []

    def velocity(z, r, t_z, t_r):
        seen.append((t_z[0].tolist(), t_r[0].tolist()))
        return z1 - z0, r1 - r0

    z, r = sample(velocity, start, r0, Schedule(steps, steps), clean_z, clean_r)
    torch.testing.assert_close(z, z1)
    torch.testing.assert_close(r, r1)
    assert all(t_z[0] == 1 for t_z, _ in seen) and seen[0][1] == [0.0] * 5 and len(seen) == steps


def test_a_refused_step_stops_at_once():
    calls = []

    def velocity(z, r, t_z, t_r):
        calls.append(1)
        return z, r

    x = torch.randn(1, 2, 3)
    clean = torch.zeros(1, 2, dtype=torch.bool)
    with pytest.raises(Cancelled, match="step 2 of 10"):
        sample(velocity, x, x, Schedule(10, 10), clean, clean, on_step=lambda step, total, z, r: step < 2)
    assert len(calls) == 2


def test_times():
    grid = time_grid(4, shift=3.0)
    assert grid[0] == 0 and grid[-1] == 1 and (np.diff(grid) > 0).all() and grid[1] < 0.25
    with pytest.raises(ValueError, match="0"):
        time_grid(0)
    drawn = draw_times(4000, torch.Generator().manual_seed(0))
    assert 0 <= drawn.min() and drawn.max() <= 0.9 and 0.5 < (drawn <= 0.05).float().mean() < 0.7
    data, noise = torch.ones(1, 2, 3), torch.zeros(1, 2, 3)
    torch.testing.assert_close(add_noise(data, noise, torch.tensor([[0.25, 1.0]]))[0, :, 0], torch.tensor([0.25, 1.0]))


@torch.no_grad()
@pytest.mark.parametrize("groups", [(1, 4), (1, 1, 1)])
def test_weights_of_bfloat16_take_and_give_float32_and_bfloat16(groups):
    model, half = stirred(), stirred().bfloat16()
    args = inputs(model, groups)
    for a, b in zip(model(*args), half(*args), strict=True):
        assert b.dtype == torch.float32 and 0 < (a - b).std() < 0.03 * a.std()
    narrow = (x.bfloat16() if x.is_floating_point() else x for x in args[:5])
    assert all(v.dtype == torch.bfloat16 and torch.isfinite(v).all() for v in half(*narrow, groups))
    frames = torch.rand(1, 5, SMALL.height, SMALL.width, 3)
    z = half.encode_frames(frames, (1, 4))
    torch.testing.assert_close(z, model.encode_frames(frames, (1, 4)), atol=0.02, rtol=0.02)
    assert half.decode_rays(half.encode_rays(frames[:, :, ::2, ::2])).shape == (1, 5, 16, 32, 3)
