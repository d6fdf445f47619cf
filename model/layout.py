# SPDX-License-Identifier: Apache-2.0
"""Which frames a token sequence holds, where each stands in time, and which are padding.

A sequence is: single images (N_s clean sources and N_t noisy sparse targets, in any order and mix), then one video of
1 + 4k frames or none. Every frame has rays. What is clean, and so a source, is told by the times t of the noising, not
by the layout: any image and any frame of the video can be a source, and any frame the reference.

Axes: B batch, T frames, L latent frames (an image is one; a video has its first frame alone, then 4 to one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The frames of a sequence, shared by a batch but for `times` and `exists`.

    Attributes:
        groups: frames of each latent frame, a tuple of ints: single images and the video's first frame (1 each), then
            the groups of 4 of the video.
        times: (T,) or (B, T), the place of each frame in time, in frames of the video; None counts 0, 1, 2, ...
        exists: (B, T) bool, false for padding, which nothing else sees; None: all exist. A group of 4 exists whole.
    """

    groups: tuple[int, ...]
    times: Tensor | None = None
    exists: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = set(self.groups) - {1}
        sorted_ints = all(type(g) is int for g in self.groups) and list(self.groups) == sorted(self.groups)
        if not sorted_ints or self.groups[:1] != (1,) or len(sizes) > 1:
            raise ValueError(
                f"groups must hold single images first, then groups of equal size behind the first frame of a video, "
                f"as (1, 1, 4, 4), got {self.groups}"
            )
        if self.times is not None and (self.times.ndim not in (1, 2) or self.times.shape[-1] != self.frames):
            raise ValueError(f"times must be (T,) or (B, T) for {self.frames} frames, got {tuple(self.times.shape)}")
        if self.exists is None:
            return
        if self.exists.ndim != 2 or self.exists.shape[1] != self.frames or self.exists.dtype != torch.bool:
            raise ValueError(
                f"exists must be (B, T) bool for {self.frames} frames, got {tuple(self.exists.shape)} "
                f"{self.exists.dtype}"
            )

    @classmethod
    def of(cls, layout: Layout | Sequence[int]) -> Layout:
        """Return a layout as it is, or the one of `groups`."""
        return layout if isinstance(layout, Layout) else cls(tuple(layout))

    @classmethod
    def window(
        cls, images: int, frames: int, image_times: Sequence[float] | Tensor | None = None, group: int = 4
    ) -> Layout:
        """Return the layout of `images` single images (N_s + N_t), then a video of `frames` frames (0, or 1 + 4k).

        Args:
            image_times: (images,) or (B, images), place of the images in time, where the video is 0 .. frames - 1: a
                source that is frame 3 of the video has time 3. None: they precede it, at -images .. -1.
        """
        if images < 0 or frames < 0 or images + frames < 1 or (frames and (frames - 1) % group):
            raise ValueError(f"need images >= 0 and 0 or 1 + {group} k frames, got {images} images, {frames} frames")
        groups = (1,) * (images + (frames > 0)) + (group,) * (max(frames - 1, 0) // group)
        before = torch.arange(-float(images), 0) if image_times is None else torch.as_tensor(image_times).float()
        if before.shape[-1] != images:
            raise ValueError(f"image_times must hold {images} times, got {before.shape[-1]}")
        video = torch.arange(float(frames)).expand(*before.shape[:-1], frames)
        return cls(groups, torch.cat([before, video], dim=-1))

    @property
    def frames(self) -> int:
        """T."""
        return sum(self.groups)

    @property
    def images(self) -> int:
        """Single images before the video; all frames if there is no video of more than one frame."""
        singles = self.groups.count(1)
        return singles if singles == len(self.groups) else singles - 1

    def to(self, device: torch.device) -> Layout:
        """Move times and exists."""
        if self.times is None and self.exists is None:
            return self
        moved = (None if x is None else x.to(device) for x in (self.times, self.exists))
        return Layout(self.groups, *moved)

    def frame_times(self, device: torch.device | None = None) -> Tensor:
        """Place in time of each frame, (T,) or (B, T)."""
        if self.times is None:
            return torch.arange(float(self.frames), device=device)
        return self.times.to(device, torch.float32)

    def latent_mean(self, values: Tensor) -> Tensor:
        """Mean over the frames of each latent frame: (..., T) to (..., L)."""
        singles = self.groups.count(1)
        if singles == len(self.groups):
            return values
        grouped = values[..., singles:].unflatten(-1, (-1, self.groups[-1])).mean(-1)
        return torch.cat([values[..., :singles], grouped], dim=-1)

    def latent_exists(self) -> Tensor | None:
        """Which latent frames exist, (B, L) bool; None: all."""
        return None if self.exists is None else self.latent_mean(self.exists.float()) == 1


def batch_layouts(layouts: Sequence[Layout]) -> tuple[Layout, Tensor, Tensor]:
    """Join windows of different layouts into one padded batch: images padded to the most, videos to the longest.

    Args:
        layouts: of one window each (times (T,) or none, no padding).

    Returns:
        The layout; frame_index (B, T) and latent_index (B, L): which of its own frames and latent frames a window has
        in each slot, -1 for padding.
    """
    if any(x.exists is not None or (x.times is not None and x.times.ndim > 1) for x in layouts):
        raise ValueError("layouts to batch must be of one window each, without padding")
    images = max(x.images for x in layouts)
    longest = max(layouts, key=lambda x: len(x.groups) - x.images)
    groups = (1,) * images + longest.groups[longest.images :]
    frame_index = torch.full((len(layouts), sum(groups)), -1)
    latent_index = torch.full((len(layouts), len(groups)), -1)
    times = torch.zeros(len(layouts), sum(groups))
    for row, x in enumerate(layouts):
        video = x.groups[x.images :]
        if video != longest.groups[longest.images :][: len(video)]:
            raise ValueError(f"videos of one batch need equal groups, got {x.groups} and {longest.groups}")
        for index, own in ((frame_index, x.frames), (latent_index, len(x.groups))):
            index[row, : x.images] = torch.arange(x.images)
            index[row, images : images + own - x.images] = torch.arange(x.images, own)
        times[row] = pad_frames([x.frame_times()], frame_index[row : row + 1])[0]
    return Layout(groups, times, frame_index >= 0), frame_index, latent_index


def pad_frames(windows: Sequence[Tensor], index: Tensor) -> Tensor:
    """Put windows [(F_b, ...)] into the slots of `batch_layouts`: (B, F, ...), zeros where the index is -1."""
    rows = []
    for x, slots in zip(windows, index.to(windows[0].device), strict=True):
        kept = (slots >= 0).reshape(-1, *[1] * (x.ndim - 1))
        rows.append(torch.where(kept, x[slots.clamp(min=0)], torch.zeros((), dtype=x.dtype, device=x.device)))
    return torch.stack(rows)
