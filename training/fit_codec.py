# SPDX-License-Identifier: Apache-2.0
"""Fit the linear codec and the latent statistics to clips: once, before training, which does it by itself.

Only latents, which are made before training, need the command: of an imported Wan model, whose ray statistics nobody
has measured yet.

    python -m rays_as_pixels_training.fit_codec WAN_START --data SHARDS_OF_FRAMES --out WAN_FITTED
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rays_as_pixels_model.codec import BlockMoments, LinearCodec, fit_basis
from rays_as_pixels_model.joint import RaysAsPixels

from .data.windows import raxels_of, windows_in_parts

_IMAGE_DEGREE, _VIDEO_DEGREE = 2, 1
_WINDOWS, _WAN_IMAGES, _WAN_LEAST = 1024, 5120, 32


def blocks_of(frames: Tensor, cell: int, group: int) -> Tensor:
    """Cut frames (B, T, H, W, 3), T a multiple of group, into (n, group * cell * cell * 3)."""
    b, t, h, w, _ = frames.shape
    x = frames.reshape(b, t // group, group, h // cell, cell, w // cell, cell, 3)
    return x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, group * cell * cell * 3)


@torch.no_grad()
def fit_codec(
    model: RaysAsPixels, source, windows: int | None = None, seed: int = 0, device: torch.device | str = "cpu"
) -> None:
    """Set codec bases and normaliser statistics of `model` in place from windows of a `ClipSource`, a few at a time.

    A Wan model's codec is frozen and its latents are normalised already: only the ray statistics are set.

    Args:
        windows: how many; by default 1024, of a Wan model, whose VAE every raxel image passes, as many as hold 5120
            frames (at least 32).
        device: where raxel images are encoded; the model stays where it is.
    """
    config, linear = model.config, isinstance(model.codec, LinearCodec)
    if windows is None:
        windows = _WINDOWS if linear else max(_WAN_IMAGES // config.frames, _WAN_LEAST)
    cell, group, channels = config.codec.cell, config.codec.group, config.codec.channels
    image, video, cameras = BlockMoments(), BlockMoments(), []
    for batch in windows_in_parts(source, windows, np.random.default_rng(seed), config.frames):
        cameras.append((batch.T_reference_camera, batch.intrinsics))
        if linear:
            image.add(blocks_of(batch.frames[:, :1], cell, 1))
            video.add(blocks_of(batch.frames[:, 1:], cell, group))
    if linear:
        model.codec.image_basis.copy_(fit_basis(image.gram, cell, 1, channels, _IMAGE_DEGREE))
        model.codec.video_basis.copy_(fit_basis(video.gram, cell, group, channels, _VIDEO_DEGREE))
        model.normaliser.fit_frames(image.spread(model.codec.image_basis), video.spread(model.codec.video_basis))
    raxels = (raxels_of(*part, (config.height, config.width)).to(device) for part in cameras)
    home = model.device
    for part in (model.codec, model.normaliser):
        part.to(device)
    model.normaliser.fit_rays(model.ray_latents(part).flatten(0, 1) for part in raxels)
    for part in (model.codec, model.normaliser):
        part.to(home)


def main(argv: list[str] | None = None) -> int:
    """Fit the statistics of a checkpoint to shards of frames; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fit an imported checkpoint's ray statistics to shards of frames.")
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="shards of frames of the checkpoint's size")
    parser.add_argument("--out", type=Path, required=True, help="folder of the fitted checkpoint")
    parser.add_argument("--device", default="cpu", help="where the codec runs (default cpu)")
    args = parser.parse_args(argv)
    from rays_as_pixels_model.checkpoint import (
        check_place,
        load_checkpoint,
        read_config,
        save_checkpoint,
        torch_device,
    )

    from .data.shards import ShardSource

    try:
        device = torch_device(args.device)
        _, config, training = read_config(args.checkpoint)
        card, source = (args.checkpoint / "README.md").read_text(), ShardSource(args.data)
        if misfit := source.misfit(config):
            raise ValueError(f"--data {args.data} {misfit}")
        check_place(args.out)
        model = load_checkpoint(args.checkpoint)
        if model.normaliser.rays_fitted:
            raise ValueError(f"checkpoint {args.checkpoint} is fitted already: use it as it is")
        fit_codec(model, source, device=device)
        save_checkpoint(args.out, model, card, training)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
