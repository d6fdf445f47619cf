# SPDX-License-Identifier: Apache-2.0
"""Shards of a rendered video, for the tests that write, read and train on them."""

from dataclasses import replace

import numpy as np
from rendered_video import INTRINSICS, rendered

from rays_as_pixels_training.data.clips import ClipCut
from rays_as_pixels_training.data.posed import PosedVideo
from rays_as_pixels_training.data.write_shards import encode_images, make_plan, write_shards

CUT = ClipCut(frames=3, width=48, height=32)


def video(name="clip", scale=True):
    clip, count = rendered(), len(rendered().frames)
    return PosedVideo(name, np.arange(count) / 10, clip.T_world_camera, [INTRINSICS] * count,
                      lambda i: clip.frames[i], scene_scale=clip.scene_scale if scale else None)  # fmt: skip


def write(folder, videos=None, cut=CUT, encode=None, suffix="png", clips_per_shard=2, **callbacks):
    videos = videos or [video(f"clip {number}") for number in range(5)]
    plan = make_plan(videos, cut, {"store": "frames", "suffix": suffix}, clips_per_shard)
    return write_shards(videos, folder, plan, cut, encode or encode_images(suffix), **callbacks)


def many(count=12):
    """Videos that differ in their unit of length."""
    one = video()
    return [replace(one, name=f"{n}", scene_scale=one.scene_scale * (n + 1)) for n in range(count)]
