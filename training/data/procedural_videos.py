# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes as a dataset: each clip of `procedural.make_clip` is a video, rendered when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

from rays_as_pixels_model.scenes import NoRoomError

from .posed import DatasetError, PosedVideo
from .procedural import HELD_OUT_SEED, Clip, ClipConfig, first_clip

_FPS = 10.0


class ProceduralVideos(Sequence):
    """A list of videos that are rendered one at a time; the last one is kept."""

    def __init__(self, clips: int, first_seed: int, config: ClipConfig, bank) -> None:
        self._clips, self._first, self._config, self._bank = clips, first_seed, config, bank
        self._last: tuple[int, PosedVideo] | None = None

    def __len__(self) -> int:
        return self._clips

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(self._clips)[index]  # IndexError where there is none
        if self._last is None or self._last[0] != index:
            self._last = index, self._video(index)
        return self._last[1]

    def _video(self, index: int) -> PosedVideo:
        seed, clip = self._clip(self._first + index)
        return PosedVideo(
            name=f"seed {seed}",
            times=np.arange(self._config.frames) / _FPS,
            T_world_camera=clip.T_world_camera,
            intrinsics=[clip.intrinsics] * self._config.frames,
            load=lambda i: clip.frames[i],
            metric=True,
            scene_scale=np.asarray(clip.scene_scale, dtype=np.float64),
        )

    def _clip(self, seed: int) -> tuple[int, Clip]:
        """Render a seed; a scene without free space for a camera gives its place to a seed far away."""
        others = (seed + 1_000_003 * attempt * (attempt + 1) // 2 for attempt in count())
        try:
            return first_clip(others, self._bank, self._config)
        except NoRoomError as error:
            raise DatasetError(f"procedural: {error}") from None


def detect(path: Path) -> bool:
    return False  # it has no files; the registry knows its name


def open_videos(
    path: Path,
    *,
    clips: int = 100,
    seed: int = 0,
    frames: int = 13,
    width: int = 96,
    height: int = 64,
    held_out: bool = False,
    textures: str | None = None,
    scenes: str = "plain",
    difficulty: float = 1.0,
) -> Sequence[PosedVideo]:
    """Render scenes.

    Args:
        clips, seed: how many, from which seed on.
        frames, width, height: of each clip.
        held_out: seeds and textures that training never sees.
        textures: folder of photos used beside the built-in textures.
        scenes, difficulty: plain, varied or groups of variety; how strong they are, 0 to 1.
    """
    from rays_as_pixels_model.scenes import TextureBank

    if min(clips, frames, width, height) < 1 or seed < 0:
        raise DatasetError(
            f"procedural: clips, frames, width and height must be at least 1 and seed at least 0, got {clips}, "
            f"{frames}, {width}, {height} and {seed}"
        )
    try:
        bank = TextureBank.default(split="held_out" if held_out else "train", folder=textures)
        config = ClipConfig(frames=frames, height=height, width=width, scenes=scenes, difficulty=difficulty)
    except ValueError as error:
        raise DatasetError(f"procedural: {error}") from None
    return ProceduralVideos(clips, seed + (HELD_OUT_SEED if held_out else 0), config, bank)
