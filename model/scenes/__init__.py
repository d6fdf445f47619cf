# SPDX-License-Identifier: Apache-2.0
"""Procedural textured scenes with known cameras: training data, test data and a camera without hardware."""

from .paths import NoRoomError, random_path
from .render import render
from .scene import Scene, random_scene
from .shots import GROUPS, Profile, Shot, random_shot, shot_of_camera, varied_lens
from .textures import TextureBank

__all__ = [
    "GROUPS", "NoRoomError", "Profile", "Scene", "Shot", "TextureBank", "random_path", "random_scene", "random_shot",
    "render", "shot_of_camera", "varied_lens",
]  # fmt: skip
