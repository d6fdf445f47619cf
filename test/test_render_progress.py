# SPDX-License-Identifier: Apache-2.0
"""While the model works: previews that become the render, views as they finish, and no step after a cancellation."""

import numpy as np
import pytest

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.pipeline import Cancelled, Pipeline

CAMERA = Intrinsics.from_fov(70.0, 160, 120)


@pytest.fixture(scope="module")
def pipe():
    return Pipeline.from_checkpoint(device="cpu")


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(0).integers(0, 255, (1, 120, 160, 3), dtype=np.uint8)


def poses(count):
    T = np.tile(np.eye(4), (count, 1, 1))
    T[:, 0, 3] = 0.05 * np.arange(count)
    return T


def test_the_last_preview_of_a_view_is_the_view_which_is_told_at_once(pipe, frames):
    previews, told = {}, []

    def on_step(step, total, preview):
        previews[step] = preview
        assert len(told) == (step - 1) // 3, "a view is told before the first step of the next"
        return True

    views = pipe.render_views(
        frames, poses(1), CAMERA, poses(3), steps=3, on_step=on_step, on_view=lambda *view: told.append(view)
    )
    for number in range(3):
        np.testing.assert_array_equal(previews[3 * (number + 1)], views.frames[number])
        assert not np.array_equal(previews[3 * number + 1], views.frames[number]), "early previews are not the view"
    assert [view[0] for view in told] == [0, 1, 2] and all(view[2] == views.intrinsics for view in told)
    np.testing.assert_array_equal([view[1] for view in told], views.frames)


def test_the_last_preview_of_a_video_is_its_last_frame(pipe, frames):
    previews = []
    video = pipe.imagine(frames[0], CAMERA, steps=3, on_step=lambda step, total, image: previews.append(image) or True)
    np.testing.assert_array_equal(previews[-1], video.frames[-1])


@pytest.mark.parametrize("task", ["views", "video"])
def test_the_model_is_not_evaluated_after_a_cancellation(pipe, frames, task, monkeypatch):
    evaluated = []
    forward = type(pipe.model).forward
    monkeypatch.setattr(type(pipe.model), "forward", lambda *args: evaluated.append(1) or forward(*args))
    with pytest.raises(Cancelled):
        if task == "views":
            # The second view's second step.
            pipe.render_views(frames, poses(1), CAMERA, poses(3), steps=3, on_step=lambda step, total, image: step < 5)
        else:
            pipe.imagine(frames[0], CAMERA, steps=9, on_step=lambda step, total, image: step < 5)
    assert len(evaluated) == 5
