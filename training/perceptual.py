# SPDX-License-Identifier: Apache-2.0
"""LPIPS, FID and FVD with networks that the user gives as TorchScript files; none is shipped or downloaded.

FID and FVD networks give features, as `rays_as_pixels_model.features` calls them. A LPIPS network is called with two
(N, 3, H, W) float32 in [-1, 1] and returns N distances of any shape.

Axes: N pictures or videos, T frames, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rays_as_pixels_model.features import FeatureError, Features, frechet_distance

_BATCH = 16


@dataclass(frozen=True)
class Weights:
    """TorchScript files, each None where the user gave none."""

    lpips: Path | None = None
    fid: Path | None = None
    fvd: Path | None = None


def frechet(path: Path, a: np.ndarray, b: np.ndarray) -> float:
    """FID of pictures (N, H, W, 3) uint8, or FVD of videos (N, T, H, W, 3). Few of them bias it upwards."""
    features = Features(path)
    return frechet_distance(features(a), features(b))


@torch.no_grad()
def lpips(path: Path, a: np.ndarray, b: np.ndarray) -> float:
    """Mean LPIPS of pictures (N, H, W, 3) uint8.

    Raises:
        FeatureError: not a TorchScript file, or not one that takes two pictures.
    """
    try:
        network = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise FeatureError(f"{path}: not a TorchScript file: {str(error).strip().splitlines()[0]}") from None
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2).float() * (2 / 255) - 1 for v in (a, b))
    out = []
    for start in range(0, len(x), _BATCH):
        part = slice(start, start + _BATCH)
        try:
            out.append(network(x[part], y[part]).float().numpy().reshape(len(x[part]), -1).mean(1))
        except RuntimeError as error:
            said = str(error).strip().splitlines()[-1]
            raise FeatureError(f"{path}: does not take two (N, 3, H, W) of {tuple(x.shape)}: {said}") from None
    return float(np.concatenate(out).mean())
