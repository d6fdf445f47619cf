# SPDX-License-Identifier: Apache-2.0
"""LPIPS, FID and FVD with networks that the user gives as TorchScript files; none is shipped or downloaded.

Axes: N pictures or videos, T frames, H W pixels, F features.

| figure | the file is called with | and returns |
|---|---|---|
| LPIPS | two (N, 3, H, W) float32 in [-1, 1] | N distances, any shape |
| FID | (N, 3, H, W) uint8 | (N, F) features |
| FVD | (N, 3, T, H, W) float32 in [-1, 1] | (N, F) features |

A network that wants another size or range has to resize and scale inside.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

_BATCH = 16


@dataclass(frozen=True)
class Weights:
    """TorchScript files, each None where the user gave none."""

    lpips: Path | None = None
    fid: Path | None = None
    fvd: Path | None = None


def load_network(path: Path, device: str | torch.device = "cpu"):
    """Load a TorchScript file as a function of tensors.

    Raises:
        ValueError: not such a file; names it.
    """
    try:
        return torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not a TorchScript file: {str(error).splitlines()[0]}") from error


@torch.no_grad()
def _run(path: Path, *inputs: torch.Tensor) -> np.ndarray:
    network, out = load_network(path), []
    try:
        for start in range(0, len(inputs[0]), _BATCH):
            out.append(network(*(x[start : start + _BATCH] for x in inputs)).float().cpu().numpy())
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(x.shape[1:])) for x in inputs)
        raise ValueError(f"{path}: does not take inputs (N, ...) of {shapes}: {str(error).splitlines()[-1]}") from error
    return np.concatenate(out)


def lpips(path: Path, a: np.ndarray, b: np.ndarray) -> float:
    """Mean LPIPS of pictures (N, H, W, 3) uint8."""
    scaled = [torch.from_numpy(x).permute(0, 3, 1, 2).float() * (2 / 255) - 1 for x in (a, b)]
    return float(_run(path, *scaled).reshape(len(a), -1).mean())


def fid(path: Path, a: np.ndarray, b: np.ndarray) -> float:
    """FID of two sets of pictures (N, H, W, 3) uint8. Far more pictures than features make it mean something."""
    return frechet_distance(*(_features(path, torch.from_numpy(x).permute(0, 3, 1, 2)) for x in (a, b)))


def fvd(path: Path, a: np.ndarray, b: np.ndarray) -> float:
    """FVD of two sets of videos (N, T, H, W, 3) uint8."""
    moved = (torch.from_numpy(x).permute(0, 4, 1, 2, 3).float() * (2 / 255) - 1 for x in (a, b))
    return frechet_distance(*(_features(path, x) for x in moved))


def _features(path: Path, inputs: torch.Tensor) -> np.ndarray:
    out = _run(path, inputs.contiguous())
    return out.reshape(len(out), -1).astype(np.float64)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of Gaussians fitted to features (N, F) and (M, F), N, M >= 2.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)). The trace of the root is the sum of the singular values of the
    product of the two centred, normalised feature matrices, so that no root of a matrix is needed.

    Raises:
        ValueError: fewer than two rows, or different numbers of features.
    """
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a Frechet distance needs two or more rows of equal length, got {a.shape} and {b.shape}")
    mean_a, mean_b = a.mean(0), b.mean(0)
    left, right = (a - mean_a) / np.sqrt(len(a) - 1), (b - mean_b) / np.sqrt(len(b) - 1)
    root = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(((mean_a - mean_b) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2 * root)
