# SPDX-License-Identifier: Apache-2.0
"""Procedural textured scenes with known cameras: training data, test data and a camera without hardware."""

from .paths import random_path
from .render import render
from .scene import Scene, random_scene
from .textures import TextureBank

__all__ = ["Scene", "TextureBank", "random_path", "random_scene", "render"]
