# SPDX-License-Identifier: Apache-2.0
"""Windows of the paper's whole sequence: N_s source and N_t target images, then a video or none, mixed in one batch.

N_s + N_t is the same for all windows of a batch; N_s, the length of the video and where in the clip the images lie are
drawn for each window, shorter videos are padded. Axes: B batch, T frames of the padded sequence, L its latent frames.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.layout import Layout, batch_layouts, pad_frames

from .windows import WindowBatch, cut_frames


def cut_mixed(
    clips, slots: np.ndarray, rng: np.random.Generator, images: int, frames: int, max_stride: int = 3, group: int = 4
) -> tuple[WindowBatch, Layout, Tensor, Tensor]:
    """Cut one window from each clip: `images` scattered frames, then a video of up to `frames` frames, or none.

    The video is drawn as that of `cut_windows`; an image may be any frame of the clip, also one of the video's. In half
    of the windows the layout tells the images' places in time, in the others they stand before the video, as sparse
    pictures without a time do.

    Clips of latents have the first frame as reference and one stride: there the first image is that frame, and a video
    begins with it. Their shorter videos are the first latent frames of the whole one, as the codecs are causal.

    Args:
        clips, slots: as of `cut_windows`.
        images: N_s + N_t, at least 2 and at most the frames of a clip.
        frames: the longest video, 1 + group k.

    Returns:
        The windows, whose reference is one of the sources; their layout; is_source and exists, (B, L) bool: which
        latent frames are sources (the first N_s images), and which are no padding.
    """
    encoded = hasattr(clips, "cut_mixed")
    total = clips.poses.shape[1]
    rows, layouts, sources = [], [], []
    for _ in slots:
        length = int(rng.choice([0, *range(1 + group, frames + 1, group)]))
        if encoded:
            index = np.concatenate([[0], rng.choice(total - 1, images - 1, replace=False) + 1])
            video = np.arange(length)
        else:
            index = rng.choice(total, images, replace=False)
            video = _video(rng, length, total, max_stride)
        times = None
        if length and rng.random() < 0.5:
            times = (index - video[0]) / (video[1] - video[0])
        layouts.append(Layout.window(images, length, times, group))
        rows.append(torch.from_numpy(np.concatenate([index, video])))
        sources.append(int(rng.integers(1, images + (length > 0))))
    # Room for the longest video in every batch: one shape, and the same layers in use on all processes.
    room = Layout.window(images, frames, group=group)
    layout, frame_index, latent_index = batch_layouts([*layouts, room])
    frame_index, latent_index = frame_index[:-1], latent_index[:-1]
    layout = Layout(layout.groups, layout.times[:-1], layout.exists[:-1])
    index = pad_frames(rows, frame_index).numpy()  # padding holds frame 0, which nobody sees
    if encoded:
        windows = clips.cut_mixed(slots, index, layout.images)
    else:
        windows = cut_frames(clips, slots, rng, index, rng.integers(0, sources))
    is_source = torch.arange(len(layout.groups)) < torch.tensor(sources)[:, None]
    return windows, layout, is_source, latent_index >= 0


def _video(rng: np.random.Generator, length: int, total: int, max_stride: int) -> np.ndarray:
    """Frames of a video window in a clip of `total`: stride, start and direction drawn."""
    if length == 0:
        return np.zeros(0, int)
    strides = np.arange(1, min(max_stride, (total - 1) // (length - 1)) + 1)
    stride = rng.choice(strides, p=strides / strides.sum())
    index = rng.integers(0, total - stride * (length - 1)) + stride * np.arange(length)
    return index[::-1] if rng.random() < 0.5 else index
