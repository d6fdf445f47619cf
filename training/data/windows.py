# SPDX-License-Identifier: Apache-2.0
"""Windows for training and evaluation, cut from clips: stride, direction, reference frame and augmentation.

Axes: B batch, T frames, H W pixels. Cameras are camera to reference frame, with the harmonic mean depth of the
reference frame as the unit of length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.geometry import invert
from rays_as_pixels_model.raxels import make_raxels_batch

_PART_BYTES = 64 << 20  # of the frames of windows that are in memory at a time


@dataclass(frozen=True)
class WindowBatch:
    """frames (B, T, H, W, 3) float32 in [-1, 1]; T_reference_camera (B, T, 4, 4) float64; intrinsics (B, 4) float32 for
    frames of this size; reference (B,) int64; inverse_depth (B, T, H/8, W/8) float32 in the unit of the poses, the mean
    over each cell, or None where a dataset has no depth."""

    frames: Tensor
    T_reference_camera: Tensor
    intrinsics: Tensor
    reference: Tensor
    inverse_depth: Tensor | None = None

    def raxels(self) -> Tensor:
        """Return the raxel images (B, T, H/2, W/2, 3) float32."""
        return raxels_of(self.T_reference_camera, self.intrinsics, self.frames.shape[2:4])


def raxels_of(T_reference_camera: Tensor, intrinsics: Tensor, size: tuple[int, int]) -> Tensor:
    """Return raxel images (B, T, H/2, W/2, 3) float32 of cameras (B, T, 4, 4), (B, 4) of frames of size (H, W)."""
    T, (height, width) = T_reference_camera.float(), size
    return make_raxels_batch(T[..., :3, :3], T[..., :3, 3], intrinsics, (width, height), height // 2, width // 2)


def relative_poses(T_world_camera: np.ndarray, scales: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return T_reference_camera (B, T, 4, 4): poses (B, T, 4, 4) in the frame and the unit of the reference (B,)."""
    rows = np.arange(len(reference))
    T = invert(T_world_camera[rows, reference])[:, None] @ T_world_camera
    T[..., :3, 3] /= scales[rows, reference][:, None, None]
    return T


@dataclass(frozen=True)
class Cuts:
    """How windows are cut from clips, all that is drawn at random: index (B, T), frames of the clip; reference (B,),
    which of the T. Augmentation, or None: mirrored (B,) bool; mix (B, 3, 3) and offset (B, 1, 1, 3) of the colours."""

    index: np.ndarray
    reference: np.ndarray
    mirrored: np.ndarray | None = None
    mix: np.ndarray | None = None
    offset: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: slice) -> Cuts:
        """Return the cuts of some of the windows."""
        return Cuts(*(None if v is None else v[rows] for v in (getattr(self, f.name) for f in fields(self))))


def cut_windows(
    pool,
    slots: np.ndarray,
    rng: np.random.Generator,
    frames: int,
    *,
    scattered: bool = False,
    augment: bool = True,
    max_stride: int = 3,
    references: int | None = None,
) -> WindowBatch:
    """Cut one window from each slot of a pool of clips.

    Args:
        pool: has frames, poses, intrinsics, scales as `ClipPool`, and inverse_depth or None.
        slots: (B,) indices.
        frames: T. A video window takes evenly spaced frames in a random direction (time reversal), a stride
            as often as it is long (large motion is learnt last);
            `scattered` takes any T frames of the clip in any order. Clips that are latents already cut their own.
        augment: mirror, permute colours, change gain (some negative) and offset.
        references: the reference frame is drawn from the first this many frames (default: all).
    """
    if hasattr(pool, "cut"):
        return pool.cut(slots, rng, frames, scattered)
    total, count = pool.frames.shape[1], len(slots)
    if scattered:
        index = np.argsort(rng.random((count, total)), axis=1)[:, :frames]  # (B, T)
        return cut_frames(pool, slots, rng, index, rng.integers(0, references or frames, count), augment=augment)
    cuts = draw_cuts(rng, count, total, frames, augment=augment, max_stride=max_stride, references=references)
    return cut(pool, slots, cuts)


def windows_in_parts(
    source, count: int, rng: np.random.Generator, frames: int, *, augment: bool = True, max_stride: int = 3
) -> Iterator[WindowBatch]:
    """Yield `cut_windows` of `count` clips of a source a few at a time, so that windows of any size fit into memory.

    All are drawn at once, the clips by the call and how they are cut before the first part: how many are a part changes
    no window.
    """
    part = max(1, _PART_BYTES // (frames * source.height * source.width * 12))
    taken = source.take_parts(count, part, rng)

    def parts() -> Iterator[WindowBatch]:
        cuts, done = None, 0
        for clips, slots in taken:
            if hasattr(clips, "cut"):
                yield clips.cut(slots, rng, frames, False)
                continue
            if cuts is None:
                cuts = draw_cuts(rng, count, clips.frames.shape[1], frames, augment=augment, max_stride=max_stride)
            yield cut(clips, slots, cuts[done : done + len(slots)])
            done += len(slots)

    return parts()


def cut_frames(
    pool, slots: np.ndarray, rng: np.random.Generator, index: np.ndarray, reference: np.ndarray, *, augment: bool = True
) -> WindowBatch:
    """Cut windows that hold the given frames of their clips.

    Args:
        pool, slots, augment: see `cut_windows`.
        index: (B, T), frames of the clip in any order; reference: (B,), which of the T is the reference.
    """
    return cut(pool, slots, _augmented(rng, Cuts(index, reference)) if augment else Cuts(index, reference))


def draw_cuts(
    rng: np.random.Generator,
    count: int,
    total: int,
    frames: int,
    *,
    augment: bool = True,
    max_stride: int = 3,
    references: int | None = None,
) -> Cuts:
    """Draw video windows of `frames` frames from clips of `total`; see `cut_windows`."""
    strides = np.arange(1, min(max_stride, (total - 1) // (frames - 1)) + 1)
    stride = rng.choice(strides, count, p=strides / strides.sum())
    start = (rng.random(count) * (total - stride * (frames - 1))).astype(int)
    index = start[:, None] + stride[:, None] * np.arange(frames)
    flip = rng.random(count) < 0.5
    index[flip] = index[flip, ::-1]
    cuts = Cuts(index, rng.integers(0, references or frames, count))
    return _augmented(rng, cuts) if augment else cuts


def _augmented(rng: np.random.Generator, cuts: Cuts) -> Cuts:
    """Mirror half; permute the colours, change gain and offset, the same in all of a window; 15 % become negatives."""
    count = len(cuts)
    mirrored = rng.random(count) < 0.5
    mix = np.zeros((count, 3, 3), np.float32)
    permutation = np.argsort(rng.random((count, 3)), axis=1)
    gain = (
        rng.uniform(0.6, 1.2, (count, 1))
        * rng.uniform(0.9, 1.1, (count, 3))
        * rng.choice([1, -1], (count, 1), p=[0.85, 0.15])
    )
    np.put_along_axis(mix, permutation[:, None], gain[:, None].astype(np.float32), axis=1)
    offset = rng.uniform(-0.15, 0.15, (count, 1, 1, 3)).astype(np.float32)
    return replace(cuts, mirrored=mirrored, mix=mix, offset=offset)


def cut(pool, slots: np.ndarray, cuts: Cuts) -> WindowBatch:
    """Cut one window from each slot as drawn."""
    index, reference, count = cuts.index, cuts.reference, len(cuts)
    picture = np.empty((*index.shape, *pool.frames.shape[2:]), np.uint8)
    for row in np.argsort(slots, kind="stable"):  # read the file in order
        picture[row] = pool.frames[slots[row], index[row]]
    rows = slots[:, None]
    poses, scales = np.asarray(pool.poses)[rows, index], np.asarray(pool.scales)[rows, index].astype(np.float64)
    T = relative_poses(poses, scales, reference)
    intrinsics = np.array(pool.intrinsics[slots])
    video = torch.from_numpy(picture).float().mul_(2 / 255).sub_(1)
    depth = None
    if getattr(pool, "inverse_depth", None) is not None:
        unit = scales[np.arange(count), reference][:, None, None, None]
        depth = torch.from_numpy((np.asarray(pool.inverse_depth)[rows, index] * unit).astype(np.float32))
    if (mirrored := cuts.mirrored) is not None:
        video[mirrored] = video[mirrored].flip(3)
        sign = np.array([-1.0, 1, 1, 1])
        T[mirrored] = T[mirrored] * sign[:, None] * sign
        intrinsics[mirrored, 2] = picture.shape[3] - intrinsics[mirrored, 2]
        if depth is not None:
            depth[mirrored] = depth[mirrored].flip(3)
        mixed = torch.bmm(video.flatten(1, 3), torch.from_numpy(cuts.mix))  # (B, T H W, 3)
        video = (mixed + torch.from_numpy(cuts.offset).flatten(1, 2)).clamp_(-1, 1).view_as(video)
    return WindowBatch(video, torch.from_numpy(T), torch.from_numpy(intrinsics), torch.from_numpy(reference), depth)
