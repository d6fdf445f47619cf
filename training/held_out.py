# SPDX-License-Identifier: Apache-2.0
"""Held-out procedural windows: scenes with seeds that training never uses and textures that it never sees.

A window takes every second frame of a 13-frame clip from frame 4 on. Views are rendered twice: from one source to a
target 6 frames on, and halfway between two sources 8 frames apart.

The model's own resolution is as small as 96x64. Methods that look for features get the same cameras rendered
`FULL_SCALE` times larger, as a real camera's picture is larger than what the model sees.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from rays_as_pixels_model.geometry import invert

from .data.procedural import HELD_OUT_SEED, Clip, ClipConfig, first_clip, make_shot
from .eval_windows import VIEW_CASES, EvalWindow, ViewCase

FULL_SCALE = 4
_FIRST, _STRIDE = 4, 2


def window_index(window: int) -> np.ndarray:
    """Frames of a clip that are its evaluation window of `window` frames."""
    return _FIRST + _STRIDE * np.arange(window)


def clip_length(window: int) -> int:
    """Frames of a clip that holds an evaluation window of `window` frames."""
    return max(13, int(window_index(window)[-1]) + 1)


def held_out_clips(count: int, config: ClipConfig, textures: str | None = None, first: int = 0) -> list[Clip]:
    """Render clips from held-out seeds and textures."""
    return [clip for _, clip in _clips(count, config, _bank(textures), first)]


def held_out_windows(
    count: int, frames: int, size: tuple[int, int], textures: str | None = None, scenes: str = "plain"
) -> list[EvalWindow]:
    """Render the held-out windows of a model.

    Args:
        count: windows, one from each scene.
        frames: T; size: (width, height) of the model.
        textures: folder of photos; its held-out files are used.
        scenes: plain, varied or groups of variety, with @DIFFICULTY if it is not 1.

    Raises:
        ValueError: unknown scenes.
    """
    name, difficulty = split_scenes(scenes)
    bank = _bank(textures)
    config = ClipConfig(
        frames=clip_length(frames), width=size[0], height=size[1], scenes=name, difficulty=difficulty
    )  # fmt: skip
    return [_window(seed, clip, bank, config, frames) for seed, clip in _clips(count, config, bank)]


def split_scenes(text: str) -> tuple[str, float]:
    """Split 'varied@0.5' into the name and the difficulty (1 where none is given).

    Raises:
        ValueError: the difficulty is no number.
    """
    name, at, difficulty = text.partition("@")
    try:
        return name, float(difficulty) if at else 1.0
    except ValueError:
        raise ValueError(f"scenes {text!r}: what follows @ must be a difficulty from 0 to 1") from None


def _bank(textures: str | None):
    from rays_as_pixels_model.scenes import TextureBank

    return TextureBank.default(split="held_out", folder=textures)


def _clips(count: int, config: ClipConfig, bank, first: int = 0) -> Iterator[tuple[int, Clip]]:
    seed = HELD_OUT_SEED + first
    for _ in range(count):
        found, clip = first_clip(itertools.count(seed), bank, config)
        yield found, clip
        seed = found + 1


def _window(seed: int, clip: Clip, bank, config: ClipConfig, frames: int) -> EvalWindow:
    index = window_index(frames)
    poses, unit = clip.T_world_camera, float(clip.scene_scale[_FIRST])
    camera = clip.intrinsics
    large = camera.resized(FULL_SCALE * camera.width, FULL_SCALE * camera.height)

    def full() -> np.ndarray:
        return make_shot(seed, bank, config)[0].render(large, index)[0]

    before = invert(poses[_FIRST - _STRIDE]) @ poses[_FIRST]
    before[:3, 3] /= unit
    views = {}
    for name, (sources, target) in VIEW_CASES.items():
        rows, goal = [_FIRST + _STRIDE * s for s in sources], _FIRST + _STRIDE * target
        views[name] = ViewCase(
            clip.frames[rows], poses[rows], clip.frames[goal], poses[goal], np.asarray(clip.scene_scale[rows], float)
        )
    return EvalWindow(
        "procedural", seed, clip.frames[index], camera, poses[index], unit, before, full, large, views
    )  # fmt: skip
