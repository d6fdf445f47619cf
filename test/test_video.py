# SPDX-License-Identifier: Apache-2.0
"""Camera-controlled video on mixed sequences: shapes, padding that changes nothing, sources anywhere, bad input."""

import numpy as np
import pytest
import torch
from test_transformer import SMALL, stirred

from rays_as_pixels_model.geometry import GeometryError, Intrinsics
from rays_as_pixels_model.layout import Layout, batch_layouts, pad_frames
from rays_as_pixels_model.pipeline import Cancelled, Pipeline
from rays_as_pixels_model.raxels import make_raxels
from rays_as_pixels_model.sampler import Schedule
from rays_as_pixels_model.video import denoise_sequence

H, W = SMALL.height, SMALL.width
CAMERA = Intrinsics.from_fov(65, 60, 40)
STEPS = Schedule(2, 0)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(stirred(SMALL))


@pytest.fixture(scope="module")
def sources():
    return np.random.default_rng(0).integers(0, 255, (2, 40, 60, 3), dtype=np.uint8)


def path(count, step=0.1):
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 0, 3] = step * np.arange(count)
    return poses


def window(layout, seed):
    """Frames (T, H, W, 3) and raxels (T, H/2, W/2, 3) of one window."""
    generator = torch.Generator().manual_seed(seed)
    raxels = make_raxels(path(layout.frames, 0.05 + 0.01 * seed), Intrinsics.from_fov(65, W, H), H // 2, W // 2)
    return torch.rand((layout.frames, H, W, 3), generator=generator) * 2 - 1, torch.from_numpy(raxels)


@pytest.mark.parametrize("frames, targets", [(5, 0), (0, 2), (5, 2), (9, 1), (1, 0)])
def test_a_call_renders_a_video_and_sparse_views_together(pipe, sources, frames, targets):
    seen = []
    out = pipe.render_video(sources, path(2), CAMERA, path(frames), path(targets, -0.1), steps=2, samples=2,
                            on_step=lambda *a: seen.append((a[0], a[1], a[2].shape)) or True)  # fmt: skip
    assert out.frames.shape == (frames, H, W, 3) and out.targets.shape == (targets, H, W, 3)
    assert out.frames.dtype == np.uint8 and (out.intrinsics.width, out.intrinsics.height) == (W, H)
    assert [x.shape for x in out.draws] == [(2, frames, H, W, 3), (2, targets, H, W, 3)]
    drawn = np.concatenate(out.draws, axis=1)
    np.testing.assert_array_equal(drawn[0], np.concatenate([out.frames, out.targets]))
    assert not np.array_equal(drawn[0], drawn[1])
    assert seen == [(1, 2, (H, W, 3)), (2, 2, (H, W, 3))]


def test_cameras_times_sources_and_guidance_have_a_say(pipe, sources):
    def render(sources=sources, T=None, video=None, **options):
        T, video = path(2) if T is None else T, path(5) if video is None else video
        return pipe.render_video(sources, T, CAMERA, video, steps=2, **options).frames

    plain = render()
    np.testing.assert_array_equal(render(), plain)
    scaled = path(2, 0.3), path(5, 0.3)
    np.testing.assert_array_equal(render(T=scaled[0], video=scaled[1], metres_per_unit=3.0), plain)
    others = (
        render(sources[::-1]), render(video=path(5, 0.2)), render(source_times=[0, 4]), render(reference=1),
        render(seed=1), render(guidance=2.0), render(solver="midpoint"),
        render(target_intrinsics=Intrinsics.from_fov(40, 60, 40)),
    )  # fmt: skip
    assert not any(np.array_equal(plain, other) for other in others)
    with pytest.raises(Cancelled):
        render(on_step=lambda step, total, frame: False)


def test_the_order_of_the_sources_does_not_matter(pipe, sources):
    """Swapped with their poses, times and the reference they give the same video: no slot is special."""
    T = path(2)
    one = pipe.render_video(sources, T, CAMERA, path(5), steps=2, source_times=[3, -2], reference=0)
    two = pipe.render_video(sources[::-1], T[::-1], CAMERA, path(5), steps=2, source_times=[-2, 3], reference=1)
    assert np.abs(one.frames.astype(int) - two.frames).max() <= 1
    moved = pipe.render_video(sources[::-1], T[::-1], CAMERA, path(5), steps=2, source_times=[3, -2], reference=1)
    assert np.abs(one.frames.astype(int) - moved.frames).max() > 1


def test_what_padding_holds_changes_nothing(pipe):
    layouts = [Layout.window(1, 5, [3.0]), Layout.window(3, 0), Layout.window(2, 9)]
    layout, frame_index, latent_index = batch_layouts(layouts)
    frames, raxels = (
        pad_frames(x, frame_index) for x in zip(*(window(own, i) for i, own in enumerate(layouts)), strict=True)
    )
    is_source = latent_index == 0
    reference = (frame_index == 0).int().argmax(1).tolist()

    def run(frames, raxels):
        generator = torch.Generator().manual_seed(0)
        return denoise_sequence(pipe, layout, frames, is_source, raxels, reference, STEPS, generator, samples=2)

    clean = run(frames, raxels)
    there = (frame_index >= 0).repeat_interleave(2, 0)
    assert clean.shape == (6, layout.frames, H, W, 3) and not clean[~there].any() and clean[there].any()
    for x in (frames, raxels):
        x[frame_index < 0] = float("nan")
    assert torch.equal(run(frames, raxels), clean)

    own, padded = Layout.window(1, 5, [3.0]), Layout.window(1, 9, [3.0])
    padded = Layout(padded.groups, padded.times, torch.arange(10)[None] < 6)
    frames, raxels = window(padded, 5)
    alone, batched = (
        denoise_sequence(
            pipe, x, frames[None, : x.frames], (torch.arange(len(x.groups)) == 0)[None], raxels[None, : x.frames],
            [0], STEPS, torch.Generator().manual_seed(0),
        )
        for x in (own, padded)
    )  # fmt: skip
    torch.testing.assert_close(batched[:, :6], alone, atol=1e-4, rtol=0)


def test_any_latent_frame_can_be_a_source(pipe):
    layout = Layout.window(1, 9)
    frames, raxels = window(layout, 1)
    for source in range(4):  # the image, the video's first frame, its groups of four
        is_source = (torch.arange(4) == source)[None]
        out = denoise_sequence(pipe, layout, frames[None], is_source, raxels[None], [source], STEPS,
                               torch.Generator().manual_seed(0))  # fmt: skip
        z, given = (pipe.model.encode_frames(x, layout)[0] for x in (out, frames[None]))
        assert ((z - given).abs().amax((1, 2, 3)) < 1e-5).tolist() == is_source[0].tolist()


def test_bad_input_is_named(pipe, sources):
    good = {"source_frames": sources, "T_world_source": path(2), "source_intrinsics": CAMERA, "T_world_video": path(5)}
    for change, error, words in (
        ({"T_world_video": path(4)}, ValueError, r"1 \+ 4 k video poses, got 0 and 4"),
        ({"T_world_video": None}, ValueError, "need target poses"),
        ({"T_world_source": path(3)}, ValueError, "2 frames, 3 poses"),
        ({"source_frames": sources[:0], "T_world_source": path(0)}, ValueError, "at least one"),
        ({"source_intrinsics": None}, GeometryError, "intrinsics of the sources"),
        ({"T_world_video": np.full((5, 4, 4), np.nan)}, GeometryError, "video pose has a value"),
        ({"T_world_target": 2 * path(1)}, GeometryError, "target pose has no rotation"),
        ({"reference": 2}, ValueError, "one of the 2 sources"),
        ({"source_times": [0.0]}, ValueError, "one for each of 2 sources"),
        ({"source_times": [0.0, np.nan]}, ValueError, "finite"),
        ({"source_times": [0, 1], "T_world_target": path(1)}, ValueError, "1 targets"),
        ({"metres_per_unit": 0.0}, ValueError, "metres_per_unit"),
        ({"samples": 0}, ValueError, "samples"),
        ({"steps": 0}, ValueError, "steps"),
        ({"solver": "rk4"}, ValueError, "'rk4'"),
        ({"guidance": float("nan")}, ValueError, "guidance"),
        ({"source_frames": sources[:, :20]}, GeometryError, "40"),
    ):
        with pytest.raises(error, match=words):
            pipe.render_video(**{**good, **change})
