# SPDX-License-Identifier: Apache-2.0
"""Sequence layouts: padding changes nothing, windows of different layouts batch, any frame is source or reference."""

import pytest
import torch
from test_transformer import SMALL, stirred

from rays_as_pixels_model.checkpoint import load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import ConfigError
from rays_as_pixels_model.layout import Layout, batch_layouts, pad_frames

MIXED = [Layout.window(1, 5, image_times=[3.0]), Layout.window(3, 0), Layout.window(0, 9), Layout.window(2, 1)]


def draw(model, layout, seed, dtype=torch.float32):
    """One window (no batch axis): z, r, t_z, t_r."""
    generator = torch.Generator().manual_seed(seed)
    shape_z, shape_r = model.latent_shapes(1, layout)
    z, r = (torch.randn(s[1:], generator=generator, dtype=dtype) for s in (shape_z, shape_r))
    t_z, t_r = (torch.rand(s[1], generator=generator, dtype=dtype) for s in (shape_z, shape_r))
    return z, r, t_z, t_r


def model_of(dtype=torch.float32, **switches):
    return stirred(SMALL.switched(**switches)).to(dtype)


def test_a_window_lists_images_then_the_video():
    layout = Layout.window(2, 5, image_times=[4.0, 2.0])
    assert layout.groups == (1, 1, 1, 4) and layout.frames == 7 and layout.images == 2
    assert layout.frame_times().tolist() == [4, 2, 0, 1, 2, 3, 4]
    assert layout.latent_mean(layout.frame_times()).tolist() == [4, 2, 0, 2.5]
    assert Layout.window(3, 0).groups == (1, 1, 1) and Layout.window(2, 0).frame_times().tolist() == [-2, -1]
    assert Layout.of((1, 4)).frame_times().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    "bad, words",
    [
        (lambda: Layout((4, 1)), "single images first"),
        (lambda: Layout(()), "single images first"),
        (lambda: Layout((4,)), "behind the first frame"),
        (lambda: Layout((4, 4)), "behind the first frame"),
        (lambda: Layout((1, 2, 4)), "equal size"),
        (lambda: Layout((1.0, 4)), "groups must"),
        (lambda: Layout((1, 4), times=torch.zeros(4)), "5 frames"),
        (lambda: Layout((1, 4), exists=torch.ones(5, dtype=torch.bool)), r"\(B, T\) bool"),
        (lambda: Layout((1, 4), exists=torch.ones(1, 5)), "torch.float32"),
        (lambda: Layout((1, 4), exists=torch.ones(2, 6, dtype=torch.bool)), "5 frames"),
        (lambda: Layout.window(1, 6), "6 frames"),
        (lambda: Layout.window(2, 5, image_times=[0.0]), "2 times"),
        (lambda: batch_layouts([Layout((1,), exists=torch.ones(1, 1, dtype=torch.bool))]), "without padding"),
    ],
)
def test_bad_layouts_are_named(bad, words):
    with pytest.raises(ValueError, match=words):
        bad()


def test_a_layout_of_plain_groups_is_the_groups():
    model = model_of()
    z, r, t_z, t_r = (x[None] for x in draw(model, Layout((1, 4)), 1))
    reference = torch.zeros(1, dtype=torch.int64)
    whole = torch.ones(1, 5, dtype=torch.bool)
    plain = model(z, r, t_z, t_r, reference, (1, 4))
    for layout in (Layout((1, 4)), Layout((1, 4), times=torch.arange(5.0))):
        assert all(torch.equal(a, b) for a, b in zip(plain, model(z, r, t_z, t_r, reference, layout), strict=True))
    masked = model(z, r, t_z, t_r, reference, Layout((1, 4), exists=whole))
    torch.testing.assert_close(masked, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("attention", ["dsca", "joint"])
def test_what_padding_holds_changes_nothing_at_all(attention):
    model = model_of(attention=attention)
    layout, frames, latents = batch_layouts(MIXED)
    windows = [draw(model, x, i) for i, x in enumerate(MIXED)]
    z, r, t_z, t_r = (
        pad_frames(x, i) for x, i in zip(zip(*windows, strict=True), (latents, frames) * 2, strict=True)
    )
    reference = (frames == 0).int().argmax(1)
    clean = model(z, r, t_z, t_r, reference, layout)
    for x, index in ((z, latents), (t_z, latents), (r, frames), (t_r, frames)):
        x[index < 0] = float("nan")
    for v, other, index in zip(clean, model(z, r, t_z, t_r, reference, layout), (latents, frames), strict=True):
        assert torch.equal(v, other) and not v[index < 0].any() and v[index >= 0].any()


@pytest.mark.parametrize("switches", [{}, {"attention": "joint"}, {"projections": "shared"}], ids=str)
def test_windows_of_different_layouts_batch_as_if_alone(switches):
    """In float64: a mask changes the order of sums, nothing else."""
    model = model_of(torch.float64, **switches)
    layout, frames, latents = batch_layouts(MIXED)
    assert layout.groups == (1, 1, 1, 1, 4, 4) and layout.exists.sum(1).tolist() == [6, 3, 9, 3]
    windows = [draw(model, x, i, torch.float64) for i, x in enumerate(MIXED)]
    z, r, t_z, t_r = (
        pad_frames(x, i) for x, i in zip(zip(*windows, strict=True), (latents, frames) * 2, strict=True)
    )
    reference = (frames == 1).int().argmax(1)  # the second of each window's own frames
    reference[3] = (frames[3] == 2).int().argmax()
    v_z, v_r = model(z, r, t_z, t_r, reference, layout)
    for i, (own, window) in enumerate(zip(MIXED, windows, strict=True)):
        alone = model(*(x[None] for x in window), torch.tensor([2 if i == 3 else 1]), own)
        torch.testing.assert_close(v_z[i][latents[i] >= 0], alone[0][0], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(v_r[i][frames[i] >= 0], alone[1][0], atol=1e-6, rtol=1e-6)


def test_images_are_told_apart_by_their_time_not_their_slot():
    """Swapping two images with their times, rays and the reference swaps the answers: no frame is special."""
    model = model_of()
    layout = Layout.window(2, 5, image_times=[1.0, 4.0])
    z, r, t_z, t_r = (x[None] for x in draw(model, layout, 3))
    v_z, v_r = model(z, r, t_z, t_r, torch.tensor([0]), layout)
    swap_z, swap_r = [1, 0, 2, 3], [1, 0, 2, 3, 4, 5, 6]
    swapped = Layout(layout.groups, layout.times[swap_r])
    args = z[:, swap_z], r[:, swap_r], t_z[:, swap_z], t_r[:, swap_r]
    w_z, w_r = model(*args, torch.tensor([1]), swapped)
    torch.testing.assert_close(w_z[:, swap_z], v_z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(w_r[:, swap_r], v_r, atol=1e-5, rtol=1e-5)
    moved = model(*args, torch.tensor([1]), layout)[0][:, swap_z]
    assert (moved - v_z).abs().max() > 1e-4


def test_only_differences_of_time_count_and_they_may_differ_within_a_batch():
    model = model_of()
    times = torch.tensor([[0.0, 5.0, 9.0], [2.0, -1.0, 3.5]])
    z, r, t_z, t_r = (torch.stack([x, x]) for x in draw(model, Layout((1, 1, 1)), 4))
    reference = torch.tensor([0, 0])
    base = model(z, r, t_z, t_r, reference, Layout((1, 1, 1), times))
    later = model(z, r, t_z, t_r, reference, Layout((1, 1, 1), times + 7))
    assert (base[0][0] - base[0][1]).abs().max() > 1e-4  # the two windows differ only in their times
    torch.testing.assert_close(base, later, atol=1e-4, rtol=1e-4)


def test_a_model_takes_other_frame_counts_and_sizes(tmp_path):
    model = model_of()
    shift = model.normaliser.ray_shift.normal_().clone()
    other = model.at(frames=9, height=64, width=96)
    assert other.config.groups == (1, 4, 4) and model.config.height == SMALL.height
    assert other.transformer is model.transformer
    z, r, t_z, t_r = (x[None] for x in draw(other, Layout(other.config.groups), 5))
    assert z.shape[1:4] == (3, 8, 12) and r.shape[1:4] == (9, 4, 6)
    v_z, v_r = other(z, r, t_z, t_r, torch.tensor([8]), other.config.groups)
    assert v_z.shape == z.shape and v_r.shape == r.shape
    raxels = torch.rand(1, 9, 32, 48, 3)
    expected = model.normaliser.rays_in(model.ray_latents(raxels))  # stretched on the way
    torch.testing.assert_close(other.encode_rays(raxels), expected)
    save_checkpoint(tmp_path / "at", other, "card")
    again = load_checkpoint(tmp_path / "at")
    assert again.config == other.config
    torch.testing.assert_close(again.encode_rays(raxels), expected)
    assert torch.equal(model.normaliser.ray_shift, shift) and model.at(frames=9).normaliser is model.normaliser
    torch.testing.assert_close(other.normaliser.rays_in(other.normaliser.rays_out(r)), r, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConfigError, match="70"):
        model.at(height=70)
    assert model.config == SMALL
