# SPDX-License-Identifier: Apache-2.0
"""Frechet distances of frames (FID) and of videos (FVD), by feature weights that the user has on disk.

Nothing is downloaded and nothing is unpickled: the weights are a TorchScript file, and what it holds is its user's
choice, so figures are comparable only for the same file. It is called as

    features = module(x)    x: (N, 3, H, W) for images, (N, 3, T, H, W) for videos, float32 in [0, 255]
                            features: (N, F), float

and resizes as it needs. Where its `forward` has arguments named `return_features`, `rescale` or `resize` they are True
(the usual TorchScript exports of Inception v3 and of I3D have those).

Axes: N pictures or videos, T frames, H W pixels, F features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

_SWITCHES = ("return_features", "rescale", "resize")


class FeatureError(ValueError):
    """Feature weights that cannot be used, or too few pictures; one line with what would be right."""


class Features:
    """A TorchScript feature network."""

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        self.path, self.device = Path(path), torch.device(device)
        if not self.path.is_file():
            raise FeatureError(f"no feature weights at {self.path}; give a TorchScript file (model/features.py)")
        try:
            self._module = torch.jit.load(str(self.path), map_location=self.device).eval()
            names = {argument.name for argument in self._module.forward.schema.arguments}
        except (RuntimeError, AttributeError) as error:
            raise FeatureError(f"{self.path} is no TorchScript file: {_last_line(error)}") from None
        self._switches = {name: True for name in _SWITCHES if name in names}

    @torch.no_grad()
    def __call__(self, pictures: np.ndarray, batch: int = 16) -> np.ndarray:
        """Pictures (N, H, W, 3) or videos (N, T, H, W, 3), uint8, to features (N, F) float64."""
        axes = "(N, 3, H, W)" if pictures.ndim == 4 else "(N, 3, T, H, W)"
        found = []
        for start in range(0, len(pictures), batch):
            x = torch.from_numpy(pictures[start : start + batch]).to(self.device).movedim(-1, 1).float()
            try:
                out = self._module(x, **self._switches)
            except (RuntimeError, torch.jit.Error) as error:
                raise FeatureError(
                    f"{self.path} fails on {axes} float32 of shape {tuple(x.shape)}: {_last_line(error)}"
                ) from None
            if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != len(x):
                shape = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
                raise FeatureError(f"{self.path} must give features ({len(x)}, F), got {shape}")
            if not torch.isfinite(out).all():
                raise FeatureError(f"{self.path} gives features that are not finite for {axes} float32 in [0, 255]")
            found.append(out.double().cpu().numpy())
        return np.concatenate(found)


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Frechet distance of the Gaussians of two sets of features (N, F) and (M, F), N and M at least 2.

    |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) with A and B the covariances.

    Note: the trace of the root is the sum of the singular values of C_a C_b^T, where A = C_a^T C_a: exact also when
        there are fewer pictures than features, where a matrix square root is not stable. With few pictures the distance
        is biased upwards: compare only equal counts.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise FeatureError(f"a Frechet distance needs two sets of 2 or more features, got {a.shape} and {b.shape}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise FeatureError("a Frechet distance needs finite features, got a value that is not")
    roots = [_root(x) for x in (a, b)]
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    traces = sum(float((root**2).sum()) for root in roots)
    distance = float(((a.mean(0) - b.mean(0)) ** 2).sum() + traces - 2 * shared)
    return max(distance, 0.0)  # of equal sets rounding may leave a little less


def _root(x: np.ndarray) -> np.ndarray:
    """C (min(N, F), F) with C^T C the covariance of x (N, F)."""
    centred = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    return np.linalg.qr(centred, mode="r") if len(x) > x.shape[1] else centred


def _last_line(error: Exception) -> str:
    """What went wrong: TorchScript's errors begin with a traceback of its own."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
