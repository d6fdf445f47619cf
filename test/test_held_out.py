# SPDX-License-Identifier: Apache-2.0
"""The evaluation: perfect and absent knowledge get the figures they should, and the shipped model beats guessing."""

import numpy as np
import pytest
import torch

from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.raxels import make_raxels_batch
from rays_as_pixels_training.data.procedural import ClipConfig
from rays_as_pixels_training.data.windows import relative_poses
from rays_as_pixels_training.held_out import clip_length, evaluate_pose, evaluate_views, held_out_clips, markdown


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_checkpoint(device="cpu")


def clips_for(pipe, count):
    size = {"height": pipe.config.height, "width": pipe.config.width}
    return held_out_clips(count, ClipConfig(frames=clip_length(pipe.config.frames), **size))


def test_a_model_that_knows_the_cameras_has_no_error(pipe, monkeypatch):
    clips = clips_for(pipe, 4)
    index = 4 + 2 * np.arange(pipe.config.frames)
    T = relative_poses(
        np.stack([c.T_world_camera[index] for c in clips]),
        np.stack([c.scene_scale[index] for c in clips]),
        np.zeros(4, int),
    )
    k = torch.tensor([[c.intrinsics.fx, c.intrinsics.fy, c.intrinsics.cx, c.intrinsics.cy] for c in clips])
    height, width = pipe.config.height, pipe.config.width
    truth = make_raxels_batch(
        torch.from_numpy(T[..., :3, :3]), torch.from_numpy(T[..., :3, 3]), k, (width, height), height // 2, width // 2
    )
    monkeypatch.setattr(Pipeline, "estimate_batch", lambda self, video, *_: truth)
    report = evaluate_pose(pipe, clips, steps=(2,))
    assert report["rays_as_pixels"]["rotation_error_deg_median"] < 0.01
    assert report["rays_as_pixels"]["translation_direction_error_deg_median"] < 0.1
    assert report["identity"]["rotation_error_deg_median"] > 1
    assert report["identity"]["translation_direction_error_deg_median"] == 90


@pytest.mark.slow
def test_the_shipped_model_beats_guessing(pipe):
    """Looser than the figures of docs/training_log.md, which 200 windows give; a broken checkpoint fails by far."""
    clips = clips_for(pipe, 60)
    pose, views = evaluate_pose(pipe, clips, steps=(2,)), evaluate_views(pipe, clips[:20], steps=(1,))
    model, identity = pose["rays_as_pixels"], pose["identity"]
    assert model["rotation_error_deg_median"] < 0.6 * identity["rotation_error_deg_median"]
    assert model["translation_direction_error_deg_median"] < 45
    for case in views.values():
        assert case["rays_as_pixels_1_steps"]["psnr"] > case["copy_nearest"]["psnr"] + 1
    assert "rays_as_pixels" in markdown({"pose": pose, "views": views})
