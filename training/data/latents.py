# SPDX-License-Identifier: Apache-2.0
"""Clips as latents of a checkpoint's codec: encoded once by `rays-as-pixels cache`, so that training does not.

For codecs that cost more than the step itself (the Wan VAE). What that gives up: windows are whole clips in their own
order, with the first frame as reference, and nothing is mirrored or recoloured.

A sample's `latents.npz`, float16, normalised as the transformer takes them (L latent frames, T frames, h w cells,
C channels): video (L, h, w, C), images (T, h, w, C), each frame alone, rays (T, h/2, w/2, C), camera to first frame.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.checkpoint import load_checkpoint
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.raxels import make_raxels_batch

from .clips import CutClip
from .posed import DatasetError
from .shards import ShardSource
from .windows import relative_poses
from .write_shards import npz


def codec_name(model: RaysAsPixels) -> str:
    """Name what turns frames into latents: the weights of codec and normaliser, and the layout."""
    digest = hashlib.sha256(repr((model.config.groups, model.config.height, model.config.width)).encode())
    for part in (model.codec, model.normaliser):
        for name, value in sorted(part.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class LatentEncoder:
    """Encodes clips for shards with a checkpoint's codec (None: the checkpoint that is shipped)."""

    def __init__(self, checkpoint: Path | None = None, device: str = "cpu") -> None:
        self.model = load_checkpoint(checkpoint, device=device)
        if not self.model.normaliser.rays_fitted:
            raise ValueError(
                f"checkpoint {checkpoint} has no statistics of ray latents yet: fit them to frames first, with python "
                f"-m rays_as_pixels_training.fit_codec {checkpoint} --data SHARDS_OF_FRAMES --out FITTED"
            )
        self._device = torch.device(device)
        config = self.model.config
        self.facts = {
            "store": "latents", "codec": codec_name(self.model), "preset": config.preset, "groups": list(config.groups),
        }  # fmt: skip

    def __call__(self, clip: CutClip) -> dict[str, bytes]:
        """Encode one clip of config.frames frames."""
        config, count = self.model.config, len(clip.frames)
        video = torch.from_numpy(clip.frames)[None].to(self._device).float() * (2 / 255) - 1
        T = relative_poses(clip.T_world_camera[None], np.asarray(clip.scene_scale)[None], np.zeros(1, int))
        poses, k = torch.from_numpy(T).float(), clip.intrinsics
        raxels = make_raxels_batch(
            poses[..., :3, :3], poses[..., :3, 3], torch.tensor([[k.fx, k.fy, k.cx, k.cy]], dtype=torch.float32),
            (config.width, config.height), config.height // 2, config.width // 2,
        )  # fmt: skip
        parts = {
            "video": self.model.encode_frames(video, config.groups),
            "images": self.model.encode_frames(video, (1,) * count),
            "rays": self.model.encode_rays(raxels.to(self._device)),
        }
        return {"latents.npz": npz(**{name: part[0].cpu().numpy().astype(np.float16) for name, part in parts.items()})}


@dataclass(frozen=True)
class LatentWindows:
    """Windows that are encoded already: z (B, L, h, w, C) and r (B, T, h/2, w/2, C), float32.

    T_reference_camera, intrinsics, reference as in WindowBatch; there are no frames and no depth.
    """

    z: Tensor
    r: Tensor
    T_reference_camera: Tensor
    intrinsics: Tensor
    reference: Tensor
    inverse_depth: None = None

    def encoded(self) -> tuple[Tensor, Tensor]:
        """Return (z, r)."""
        return self.z, self.r

    def to(self, device: torch.device) -> LatentWindows:
        """Move to a device."""
        values = [getattr(self, field.name) for field in fields(self)]
        return LatentWindows(*(v if v is None else v.to(device, non_blocking=True) for v in values))


@dataclass(frozen=True)
class LatentClips:
    """What `LatentSource.take` gives: latents and cameras of N clips, which cut their own windows."""

    video: np.ndarray
    images: np.ndarray
    rays: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    scales: np.ndarray

    def cut(self, slots: np.ndarray, rng: np.random.Generator, frames: int, scattered: bool) -> LatentWindows:
        """Take whole clips as video windows, or (scattered) the first frame and `frames` - 1 others as images."""
        rows, total = slots[:, None], self.poses.shape[1]
        if scattered:
            others = np.argsort(rng.random((len(slots), total - 1)), axis=1)[:, : frames - 1] + 1
            index = np.concatenate([np.zeros((len(slots), 1), int), others], axis=1)  # (B, T)
            z = self.images[rows, index]
        elif frames != total:
            raise DatasetError(f"latents are of videos of {total} frames, but windows of {frames} are wanted")
        else:
            index = np.broadcast_to(np.arange(total), (len(slots), total))
            z = self.video[slots]
        return self._windows(slots, index, z)

    def cut_mixed(self, slots: np.ndarray, index: np.ndarray, images: int) -> LatentWindows:
        """Take the frames `index` (B, T): `images` single ones, the first of them frame 0, then the clip's beginning
        as a video."""
        z, length = self.images[slots[:, None], index[:, :images]], index.shape[1] - images
        if length:
            latents = 1 + (length - 1) * (self.video.shape[1] - 1) // (self.poses.shape[1] - 1)
            z = np.concatenate([z, self.video[slots, :latents]], axis=1)
        return self._windows(slots, index, z)

    def _windows(self, slots: np.ndarray, index: np.ndarray, z: np.ndarray) -> LatentWindows:
        """Windows of video latents z and the cameras of the frames `index` (B, T), of which one that is 0 leads."""
        rows, reference = slots[:, None], np.zeros(len(slots), int)
        T = relative_poses(self.poses[rows, index], self.scales[rows, index], reference)
        z, r = (torch.from_numpy(part.astype(np.float32)) for part in (z, self.rays[rows, index]))
        return LatentWindows(
            z, r, torch.from_numpy(T), torch.from_numpy(self.intrinsics[slots]), torch.from_numpy(reference)
        )


class LatentSource(ShardSource):
    """A `ShardSource` of latents; training must start from a checkpoint with the codec that made them."""

    def check_codec(self, model: RaysAsPixels) -> None:
        """Raise DatasetError unless the model's codec made the latents."""
        if (name := codec_name(model)) != self.about["codec"]:
            raise DatasetError(
                f"the shards hold latents of codec {self.about['codec']}, but the model has codec {name}: start from "
                "the checkpoint that made them (--init), or make them again with this one"
            )

    def arrays(self, samples: list[dict[str, bytes]]) -> LatentClips:
        """Decode samples."""
        latents, cameras = (
            [np.load(io.BytesIO(sample[name])) for sample in samples] for name in ("latents.npz", "cameras.npz")
        )
        parts = {name: np.stack([one[name] for one in latents]) for name in ("video", "images", "rays")}
        cameras = {name: np.stack([one[name] for one in cameras]) for name in ("poses", "intrinsics", "scales")}
        cameras["intrinsics"] = cameras["intrinsics"].astype(np.float32)
        return LatentClips(**parts, **cameras)


def open_shards(folder: Path, seed: int = 0, mix: int = 4) -> ShardSource:
    """Open shards of frames or of latents, whichever the folder holds."""
    source = ShardSource(folder, seed, mix)
    return LatentSource(folder, seed, mix) if source.about["store"] == "latents" else source
