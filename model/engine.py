# SPDX-License-Identifier: Apache-2.0
"""The interface between the pipeline and what runs the model, and what the pipeline needs to work on either's arrays.

`joint.RaysAsPixels` (torch) and `onnx_engine.OnnxEngine` (ONNX Runtime, numpy arrays, no torch) are engines. Sampler
and pipeline keep to what arrays of both kinds can do, and take functions from `namespace`.

Axes: B batch, T frames, L latent frames, H W pixels, h w cells, C channels.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .config import ModelConfig

Array = Any
"""A numpy array or a torch tensor, as the engine has them."""


class Engine(Protocol):
    """A model that runs. `layout` is a `layout.Layout` or its groups: the frames of each latent frame, e.g. (1, 4)."""

    config: ModelConfig

    @property
    def device(self) -> Any:
        """Where it runs."""

    def on(self, device: Any) -> Engine:
        """Return it on another device, ready to run."""

    def array(self, values: np.ndarray) -> Array:
        """Bring numpy values to the engine."""

    def generator(self, seed: int) -> Any:
        """Make a source of randomness; equal seeds give equal noise on all engines, but for the last bits."""

    def noise(self, shape: Sequence[int], generator: Any) -> Array:
        """Draw float32 numbers from N(0, 1)."""

    def latent_shapes(self, batch: int, layout: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of z and r."""

    def encode_frames(self, frames: Array, layout: Any) -> Array:
        """(B, T, H, W, 3) in [-1, 1] to z (B, L, h, w, C)."""

    def decode_frames(self, z: Array, layout: Any) -> Array:
        """Invert `encode_frames`, clamped to [-1, 1]."""

    def encode_rays(self, raxels: Array) -> Array:
        """(B, T, H/2, W/2, 3) to r (B, T, h/2, w/2, C)."""

    def decode_rays(self, r: Array) -> Array:
        """Invert `encode_rays`."""

    def velocity(self, z: Array, r: Array, t_z: Array, t_r: Array, reference: Array, layout: Any
                 ) -> tuple[Array, Array]:  # fmt: skip
        """Velocities of z and r at times t_z (B, L) and t_r (B, T); reference (B,) int64."""


def namespace(x: Array) -> Any:
    """Return the library of an array: numpy or torch. Only names that both have may be used of it."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def to_numpy(x: Array) -> np.ndarray:
    """Bring an array of any engine to numpy."""
    return x.detach().cpu().numpy() if hasattr(x, "detach") else np.asarray(x)


def to_uint8(frames: Array) -> np.ndarray:
    """Bring frames in [-1, 1] of any engine to numpy, uint8."""
    return ((to_numpy(frames).clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)


def latent_shapes(
    config: ModelConfig, batch: int, latents: int, frames: int, size: tuple[int, int] | None = None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of z and r for L latent frames, T frames and a frame size (height, width; default: the config's)."""
    height, width = size or (config.height, config.width)
    h, w = height // config.codec.cell, width // config.codec.cell
    return (batch, latents, h, w, config.codec.channels), (batch, frames, h // 2, w // 2, config.ray_channels)


class MersenneNormal:
    """Normal numbers from the Mersenne Twister as `torch.randn` draws them on a CPU, without torch.

    Note: Matsumoto & Nishimura 1998; blocks of 16 numbers by Box & Muller 1958. Equal seeds give torch's noise, but for
        the last bits of logarithm and cosine; test/test_onnx.py holds them together.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.RandomState(seed & 0xFFFFFFFF)

    def __call__(self, shape: Sequence[int]) -> np.ndarray:
        """Draw an array, float32; of at least 16 numbers, as latents always have (torch draws fewer otherwise)."""
        count = int(np.prod(shape))
        if count < 16:
            raise ValueError(f"at least 16 numbers are drawn at a time, got shape {tuple(shape)}")
        uniform, whole = self._uniform(count), count // 16 * 16
        out = np.empty(count, np.float32)
        out[:whole] = _box_muller(uniform[:whole])
        if whole < count:
            out[-16:] = _box_muller(self._uniform(16))
        return out.reshape(tuple(shape))

    def _uniform(self, count: int) -> np.ndarray:
        bits = self._bits.randint(0, 2**32, count, dtype=np.uint32)
        return (bits & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Turn 16 n uniform numbers in [0, 1) into as many normal ones: of each 16, 8 are radii and 8 angles."""
    pairs = uniform.reshape(-1, 2, 8)
    radius, angle = np.sqrt(-2 * np.log(1 - pairs[:, 0])), np.float32(2 * np.pi) * pairs[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()
