# SPDX-License-Identifier: Apache-2.0
"""The public entry: what it returns, that it is deterministic, and what it says to bad input; golden figures."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from make_golden import golden_outputs

from rays_as_pixels_model.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.geometry import GeometryError, Intrinsics, fit_frames, rotation_angle_deg
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.pipeline import Cancelled, Pipeline
from rays_as_pixels_model.raxels import make_raxels, read_cameras
from rays_as_pixels_model.sampler import Schedule, sample
from rays_as_pixels_model.turning import turn_back, turn_on

CAMERA = Intrinsics.from_fov(65, 160, 120)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_checkpoint(device="cpu")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 255, (5, 120, 160, 3), dtype=np.uint8)


@pytest.mark.parametrize("reference", [0, 2, 4])
@pytest.mark.parametrize("camera", [CAMERA, None])
def test_a_trajectory_starts_at_its_reference(pipe, frames, reference, camera):
    estimate = pipe.estimate_trajectory(frames, camera, steps=1, samples=3, reference=reference)
    np.testing.assert_allclose(estimate.T_reference_camera[reference], np.eye(4), atol=1e-9)
    assert estimate.T_reference_camera.shape == (5, 4, 4) and estimate.raxels.shape == (5, 32, 48, 3)
    assert np.all(np.linalg.eigvalsh(estimate.covariance) > 0)
    assert (estimate.intrinsics.width, estimate.intrinsics.height) == (96, 64)


@pytest.mark.parametrize("reference", [0, 3])
def test_a_second_pass_estimates_frames_turned_back_by_the_first(pipe, frames, reference):
    options = {"seed": 2, "reference": reference}
    first = pipe.estimate_trajectory(frames, CAMERA, passes=1, refine=False, **options)
    fitted, camera = fit_frames(frames, CAMERA, 96, 64)
    rotation = first.T_reference_camera[:, :3, :3]
    seen = turn_back(fitted, rotation, camera)
    second = pipe.estimate_trajectory(seen, camera, passes=1, refine=False, **options)
    both = pipe.estimate_trajectory(frames, CAMERA, passes=2, samples=2, refine=False, **options)
    np.testing.assert_allclose(both.turned_by, rotation, atol=1e-9)
    expected = turn_on(second.T_reference_camera, rotation)
    assert np.abs(expected - first.T_reference_camera).max() > 1e-3
    alone = pipe.estimate_trajectory(frames, CAMERA, passes=2, refine=False, **options)
    np.testing.assert_allclose(alone.T_reference_camera, expected, atol=1e-6)
    # the raxels are those of the frames' own cameras, and draws lie about the estimate
    read = read_cameras(alone.raxels, camera).T_reference_camera
    np.testing.assert_allclose(np.linalg.inv(read[reference]) @ read, expected, atol=0.03)
    away = rotation_angle_deg(np.swapaxes(both.draws[..., :3, :3], -1, -2) @ expected[:, :3, :3])
    assert away.max() < 3.0
    drawn = pipe.draw_cameras(frames, CAMERA, samples=2, steps=2, turned_by=rotation, **options)
    assert rotation_angle_deg(np.swapaxes(drawn[..., :3, :3], -1, -2) @ expected[:, :3, :3]).max() < 10.0


def test_the_model_says_how_many_passes_are_taken(pipe, frames):
    twice = Pipeline(pipe.model)
    twice.config = replace(pipe.config, pose_passes=2)
    found = [twice.estimate_trajectory(frames, CAMERA, passes=n) for n in (None, 2, 1)]
    np.testing.assert_array_equal(found[0].T_reference_camera, found[1].T_reference_camera)
    assert np.abs(found[1].turned_by - np.eye(3)).max() > 0
    np.testing.assert_array_equal(found[2].turned_by, np.tile(np.eye(3), (5, 1, 1)))


def test_the_same_seed_gives_the_same_cameras_and_another_seed_others(pipe, frames):
    a, b, c = (pipe.estimate_trajectory(frames, CAMERA, seed=s).T_reference_camera for s in (1, 1, 2))
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 1e-6


def test_views_come_in_the_order_of_the_poses_with_progress(pipe, frames):
    T = np.tile(np.eye(4), (3, 1, 1))
    T[1, 0, 3], T[2, 0, 3] = 0.2, -0.2
    seen = []

    def on_step(step, total, preview):
        seen.append((step, total, preview.shape))
        return True

    out = pipe.render_views(frames[:1], T[:1], CAMERA, T, steps=2, seed=3, on_step=on_step)
    assert out.frames.shape == (3, 64, 96, 3) and out.frames.dtype == np.uint8
    assert [s[:2] for s in seen] == [(i + 1, 6) for i in range(6)] and seen[0][2] == (64, 96, 3)
    first = pipe.render_views(frames[:1], T[:1], CAMERA, T[:1], steps=2, seed=3)
    np.testing.assert_array_equal(out.frames[0], first.frames[0])
    assert not np.array_equal(out.frames[1], out.frames[2])


def test_cancelling_takes_effect_at_the_next_step(pipe, frames):
    steps = []
    with pytest.raises(Cancelled):
        pipe.render_views(
            frames[:1],
            np.eye(4)[None],
            CAMERA,
            np.eye(4)[None],
            steps=20,
            on_step=lambda step, total, _: steps.append(step) or step < 3,
        )
    assert steps == [1, 2, 3]


def test_joint_generation(pipe, frames):
    out = pipe.imagine(frames[0], CAMERA, steps=2)
    assert out.frames.shape == (5, 64, 96, 3) and out.T_reference_camera.shape == (5, 4, 4)
    fewer = pipe.imagine(frames[0], CAMERA, steps=2, ray_steps=1)
    assert not np.array_equal(out.T_reference_camera, fewer.T_reference_camera)


def test_joint_generation_from_several_pictures(pipe, frames):
    """The sequence holds the further pictures before the video, clean, and their rays are drawn with the video's."""
    model, groups = pipe.model, (1, 1, *pipe.config.groups)
    steps = []
    out = pipe.imagine(frames[[0, 3, 1]], CAMERA, steps=2, seed=4, on_step=lambda *step: steps.append(step) or True)
    assert out.frames.shape == (5, 64, 96, 3) and out.T_reference_camera.shape == (5, 4, 4)
    assert [step[:2] for step in steps] == [(1, 2), (2, 2)]
    np.testing.assert_array_equal(steps[-1][2], out.frames[-1])

    generator = torch.Generator().manual_seed(4)
    z, r = (torch.randn(shape, generator=generator) for shape in model.latent_shapes(1, groups))
    fitted, camera = fit_frames(frames[[3, 1, 0]], CAMERA, 96, 64)
    z[:, :3] = model.encode_frames(torch.from_numpy(fitted)[None].float() * (2 / 255) - 1, (1, 1, 1))
    r[:, 2] = model.encode_rays(torch.from_numpy(make_raxels(np.eye(4)[None], camera, 32, 48))[None])[:, 0]
    clean_z, clean_r = torch.tensor([[True] * 3 + [False]]), torch.arange(7)[None] == 2
    reference = torch.tensor([2])
    z, r = sample(lambda *a: model.velocity(*a, reference, groups), z, r, Schedule(2, 2), clean_z, clean_r)
    T = read_cameras(model.decode_rays(r)[0].numpy(), camera).T_reference_camera
    T = np.linalg.inv(T[2]) @ T
    np.testing.assert_allclose(out.T_reference_source, T[[2, 0, 1]], atol=1e-6)
    np.testing.assert_allclose(out.T_reference_camera, T[2:], atol=1e-6)
    assert np.linalg.norm(out.T_reference_source[1, :3, 3] - out.T_reference_source[2, :3, 3]) > 1e-3

    one = pipe.imagine(frames[0], CAMERA, steps=2, seed=4)
    np.testing.assert_array_equal(pipe.imagine(frames[:1], CAMERA, steps=2, seed=4).frames, one.frames)
    assert pipe.predict_memory(1, video=True) == pipe.predict_memory() < pipe.predict_memory(3, video=True)


def test_the_tasks_are_corners_of_one_schedule(pipe):
    """The batch functions give what the sampler gives on the model itself at (0, n) and (n, 0)."""
    model, generator = pipe.model, torch.Generator().manual_seed(5)
    video = torch.rand((2, 5, 64, 96, 3), generator=generator) * 2 - 1
    groups, index = model.config.groups, torch.zeros(2, dtype=torch.int64)
    r = torch.randn(model.latent_shapes(2, groups)[1], generator=torch.Generator().manual_seed(7))
    z = model.encode_frames(video, groups)
    for steps, solver in ((1, "euler"), (2, "euler"), (2, "midpoint")):
        _, end = sample(lambda *a: model.velocity(*a, index, groups), z, r, Schedule(0, steps, solver))
        found = pipe.estimate_batch(video, None, 0, steps, torch.Generator().manual_seed(7), solver=solver)
        torch.testing.assert_close(found, model.decode_rays(end))
    raxels, groups = torch.rand((2, 3, 32, 48, 3), generator=generator), (1, 1, 1)
    target = torch.randn(model.latent_shapes(2, (1,))[0], generator=torch.Generator().manual_seed(7))
    z = torch.cat([model.encode_frames(video[:, :2], (1, 1)), target], dim=1)
    is_source = torch.tensor([[True, True, False]] * 2)
    rays = model.encode_rays(raxels)
    end, _ = sample(lambda *a: model.velocity(*a, index, groups), z, rays, Schedule(3, 0), is_source)
    found = pipe.render_batch(video[:, :2], raxels, 3, torch.Generator().manual_seed(7))
    assert model.config.views == "warped"  # the difference from the first source, also of what the codec leaves out
    left_out = video[:, :1] - model.decode_frames(end[:, :1], (1,))
    wanted = model.decode_frames(end[:, 2:] + end[:, :1], (1,)) + left_out
    torch.testing.assert_close(found, wanted.clamp(-1, 1))


def test_posterior_samples_come_in_one_batch(pipe, frames):
    pose = pipe.estimate_trajectory(frames, CAMERA, steps=2, samples=4, refine=False)
    assert pose.draws.shape == (4, 5, 4, 4) and pipe.estimate_trajectory(frames, CAMERA).draws is None
    np.testing.assert_allclose(pose.draws[:, 0], np.tile(np.eye(4), (4, 1, 1)), atol=1e-9)
    spread = pose.draws[:, 1:, :3, 3].var(0, ddof=1)
    assert (spread > 0).all() and (np.diagonal(pose.covariance, axis1=1, axis2=2)[1:, :3] > spread).all()
    T = np.tile(np.eye(4), (2, 1, 1))
    T[1, 0, 3] = 0.2
    views = pipe.render_views(frames[:1], T[:1], CAMERA, T, samples=3)
    assert views.draws.shape == (3, 2, 64, 96, 3) and not np.array_equal(views.draws[0], views.draws[1])
    np.testing.assert_array_equal(views.frames, views.draws[0])
    joint = pipe.imagine(frames[0], CAMERA, steps=2, samples=3)
    assert joint.draws[0].shape == (3, 5, 64, 96, 3) and joint.draws[1].shape == (3, 5, 4, 4)
    assert not np.array_equal(joint.draws[1][0], joint.draws[1][1])


def test_guidance_on_the_sources_changes_the_view(pipe, frames):
    one = np.eye(4)[None]
    plain, same, more = (pipe.render_views(frames[:1], one, CAMERA, one, guidance=g).frames for g in (1.0, 1.0, 1.5))
    np.testing.assert_array_equal(plain, same)
    assert not np.array_equal(plain, more)


def test_scale_is_the_ratio_of_known_to_estimated_motion(pipe, frames):
    estimate = pipe.estimate_trajectory(frames, CAMERA, seed=0).T_reference_camera
    reach = np.linalg.norm(estimate[:, :3, 3], axis=1).max()
    known = estimate.copy()
    known[:, :3, 3] *= 7.5
    assert pipe.metres_per_unit(frames, CAMERA, known, minimum=0.5 * reach) == pytest.approx(7.5)
    with pytest.raises(ValueError, match="moved too little"):
        pipe.metres_per_unit(frames, CAMERA, np.tile(np.eye(4), (5, 1, 1)), minimum=0.5 * reach)
    known[:, :3, 3] *= -1
    with pytest.raises(ValueError, match="disagree"):
        pipe.metres_per_unit(frames, CAMERA, known, minimum=0.5 * reach)


def test_bad_input_is_named(pipe, frames):
    one = np.eye(4)[None]
    for call, error, words in (
        (lambda: pipe.estimate_trajectory(frames[:3], CAMERA), ValueError, "has 5 frames, got 3"),
        (lambda: pipe.estimate_trajectory(frames, CAMERA, steps=0), ValueError, "steps"),
        (lambda: pipe.estimate_trajectory(frames, CAMERA, reference=5), ValueError, "reference"),
        (lambda: pipe.estimate_trajectory(frames, CAMERA, solver="rk4"), ValueError, "'rk4'"),
        (lambda: pipe.imagine(frames[0], CAMERA, steps=2, ray_steps=0), ValueError, "ray_steps"),
        (lambda: pipe.imagine(frames[:0], CAMERA, steps=2), GeometryError, "not empty"),
        (lambda: pipe.imagine(frames[:2], Intrinsics.from_fov(60, 40, 64), steps=2), GeometryError, "40x64"),
        (lambda: pipe.render_views(frames[:1], one, CAMERA, one, samples=0), ValueError, "samples"),
        (lambda: pipe.estimate_trajectory(frames, Intrinsics.from_fov(60, 96, 64)), GeometryError, "96x64"),
        (lambda: pipe.estimate_trajectory(frames.astype(float), CAMERA), GeometryError, "uint8"),
        (lambda: pipe.render_views(frames[:1], one, CAMERA, one * np.nan), GeometryError, "finite"),
        (lambda: pipe.render_views(frames[:1], one, CAMERA, one[:0]), ValueError, "0 requested"),
        (lambda: pipe.render_views(frames[:1], one, CAMERA, one, metres_per_unit=0), ValueError, "metres_per_unit"),
        (lambda: pipe.render_views(frames[:1], one, None, one), GeometryError, "None"),
        (lambda: pipe.metres_per_unit(frames, CAMERA, np.tile(np.eye(4), (4, 1, 1))), GeometryError, r"\(4, 4, 4\)"),
        (lambda: Pipeline.from_checkpoint(device="tpu9"), ValueError, "tpu9"),
    ):
        with pytest.raises(error, match=words):
            call()


def test_checkpoints_there_and_back_and_what_is_refused(tmp_path):
    torch.manual_seed(0)
    model = RaysAsPixels(preset("micro"))
    folder = save_checkpoint(tmp_path / "ck", model, "# card\n", {"step": 3})
    again = load_checkpoint(folder, preset="micro").state_dict()
    assert all(torch.equal(v, again[k]) for k, v in model.state_dict().items())
    assert not list(tmp_path.glob("*.tmp")) and not list(tmp_path.glob("*.old"))
    save_checkpoint(folder, model, "# card\n")  # replaces

    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    with pytest.raises(CheckpointError, match="'micro', but 'tiny'"):
        load_checkpoint(folder, preset="tiny")
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="truncated"):
        load_checkpoint(folder)
    torch.save(model.state_dict(), weights)
    with pytest.raises(CheckpointError, match="pickle"):
        load_checkpoint(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="notes.txt"):
        save_checkpoint(folder, model, "# card\n")
    weights.unlink()
    with pytest.raises(CheckpointError, match="no model.safetensors"):
        load_checkpoint(folder)
    weights.write_bytes(whole)
    for name in ("model.safetensors", "config.json"):
        kept = (folder / name).rename(tmp_path / name)
        (folder / name).symlink_to(kept)
        with pytest.raises(CheckpointError, match=f"{name} is a link"):
            load_checkpoint(folder)
        kept.replace(folder / name)
    about = json.loads((folder / "config.json").read_text())
    about["model"]["transformer"]["depth"] += 1
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match="does not fit"):
        load_checkpoint(folder)
    (folder / "config.json").write_text('{"format": 1')
    with pytest.raises(CheckpointError, match="config.json"):
        load_checkpoint(folder)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "nowhere")


@pytest.mark.slow
def test_a_start_does_not_wait_for_torch_to_import_its_compiler():
    """Two fifths of the time to a loaded checkpoint, when its layers were made by the meta device's own functions."""
    code = "import sys; from rays_as_pixels_model.pipeline import Pipeline; Pipeline.from_checkpoint(device='cpu'); "
    code += "print('torch' in sys.modules, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.stdout == "True False\n", done.stderr


GOLDEN = json.loads((Path(__file__).parent / "golden" / "micro.json").read_text())


def test_golden_outputs():
    """Seeded outputs of the three tasks stay what they were; test/make_golden.py remakes them on purpose."""
    fresh = golden_outputs()
    assert fresh.keys() == GOLDEN.keys()
    for name, values in GOLDEN.items():
        np.testing.assert_allclose(fresh[name], values, rtol=2e-3, atol=2e-3, err_msg=name)


def test_golden_outputs_in_bfloat16():
    """The same within 0.02 (latents have a spread of about 0.5) with the transformer's products in bfloat16."""
    fresh = golden_outputs(torch.bfloat16)
    for name, values in GOLDEN.items():
        np.testing.assert_allclose(fresh[name], values, rtol=0, atol=0.02, err_msg=name)
    moved = [np.abs(np.subtract(fresh[name], GOLDEN[name])).max() for name in ("pose/r", "views/z, from the end")]
    assert min(moved) > 1e-5, "nothing was computed in bfloat16"
