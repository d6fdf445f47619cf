# SPDX-License-Identifier: Apache-2.0
"""What a real camera does to a picture: exposure, white balance, tone, vignetting, blur, noise and JPEG blocks.

Applied to rendered frames, in torch on any device. Slow things drift smoothly over a clip. Lengths in a picture are
stated for one `_WIDTH` pixels wide and scale with it. Nothing here moves a pixel's centre: cameras stay what they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

_WIDTH = 96.0
_TAPS = 5  # pictures averaged over the open shutter
_LONGEST = 4.0  # pixels of motion blur


@dataclass(frozen=True)
class Sensor:
    """gain: (T, 3) factor of each channel; gamma, saturation: 1 leaves the tone; vignette: share of light lost in the
    corners; defocus: (T,) pixels; shutter: share of the time between frames that it is open; noise: (shot, read) for
    values in [0, 1]; clumps: share of the noise that is as large as two pixels; quality: of JPEG, 0 is none; seed: of
    the noise."""

    gain: np.ndarray
    gamma: float
    saturation: float
    vignette: float
    defocus: np.ndarray
    shutter: float
    noise: tuple[float, float]
    clumps: float
    quality: float
    seed: int


def random_sensor(seed: int, frames: int, difficulty: float) -> Sensor:
    """Draw the camera of a clip; difficulty in (0, 1] is how far it may be from a perfect one."""
    rng = np.random.default_rng([seed, 103])
    d = difficulty
    exposure = d * (rng.normal(0, 0.18) + rng.exponential(0.1) * _drift(rng, frames))
    balance = d * (rng.normal(0, 0.09) + rng.exponential(0.03) * _drift(rng, frames))
    green = d * (rng.normal(0, 0.03) + rng.exponential(0.01) * _drift(rng, frames))
    gain = np.exp(np.stack([exposure + balance, exposure + green, exposure - balance], axis=-1))
    soft = d * rng.exponential(0.35) if rng.random() < 0.6 else 0.0
    return Sensor(
        gain=gain,
        gamma=float(np.exp(d * rng.normal(0, 0.22))),
        saturation=float(np.clip(1 + d * rng.normal(0, 0.35), 0.0, 1.8)),
        vignette=float(d * rng.uniform(0, 0.45)) if rng.random() < 0.6 else 0.0,
        defocus=np.clip(soft * (1 + 0.4 * _drift(rng, frames)), 0.0, 1.5),
        shutter=float(d * rng.uniform(0.1, 0.8)) if rng.random() < 0.6 else 0.0,
        noise=(float(d * rng.exponential(0.02)), float(d * rng.exponential(0.008))),
        clumps=float(rng.uniform(0, 0.7)),
        quality=float(rng.uniform(95 - 55 * d, 95)) if rng.random() < 0.5 else 0.0,
        seed=int(rng.integers(1 << 31)),
    )


def _drift(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Smooth signal (frames,) of about unit size, over periods of 8 to 60 frames."""
    period, phase = np.exp(rng.uniform(np.log(8), np.log(60), 2))[:, None], rng.uniform(0, 2 * np.pi, (2, 1))
    return np.sin(2 * np.pi * np.arange(frames) / period + phase).sum(axis=0)


def expose(
    sensor: Sensor, frames: torch.Tensor, flow: torch.Tensor | None, index: np.ndarray, seed: int = 0
) -> torch.Tensor:
    """Take pictures of rendered frames.

    Args:
        frames: (T, H, W, 3) uint8.
        flow: (T, 2, H, W) pixels that the picture moves until the next frame; None leaves motion blur out.
        index: (T,) which frames of the clip these are.

    Returns:
        (T, H, W, 3) uint8 on the device of `frames`. The noise of a frame depends on the sensor, the frame's number
        and the picture's size alone.
    """
    x = frames.permute(0, 3, 1, 2).float().div_(255.0)
    scale = x.shape[-1] / _WIDTH
    if flow is not None and sensor.shutter > 0:
        x = _blur_along(x, flow * sensor.shutter, _LONGEST * scale)
    x = _defocus(x, sensor.defocus[index] * scale)
    gain = torch.as_tensor(sensor.gain[index], dtype=torch.float32, device=x.device)[:, :, None, None]
    x = x * gain * _vignette(sensor.vignette, x)
    x = _noisy(sensor, x, index, scale).clamp_(0.0, 1.0)
    x = x.pow(sensor.gamma)
    grey = (0.299 * x[:, :1]).add_(x[:, 1:2], alpha=0.587).add_(x[:, 2:], alpha=0.114)
    x = torch.lerp(grey, x, sensor.saturation)
    if sensor.quality:
        x = _jpeg(x, sensor.quality)
    return x.clamp_(0.0, 1.0).mul_(255.0).round_().to(torch.uint8).permute(0, 2, 3, 1)


def _blur_along(x: torch.Tensor, path: torch.Tensor, longest: float) -> torch.Tensor:
    """Mean over the way that each pixel goes while the shutter is open, its middle being the frame itself."""
    size = path.norm(dim=1, keepdim=True)
    path = path * (longest / size.clamp(min=longest))
    if float(size.max()) < 0.4:  # nothing to see
        return x
    height, width = x.shape[-2:]
    v, u = torch.meshgrid(torch.arange(height, device=x.device), torch.arange(width, device=x.device), indexing="ij")
    grid = (torch.stack([u, v], -1) + 0.5).float()
    per_pixel = torch.tensor([2.0 / width, 2.0 / height], device=x.device)
    path = path.permute(0, 2, 3, 1)
    total = torch.zeros_like(x)
    for share in np.linspace(-0.5, 0.5, _TAPS):
        where = (grid + float(share) * path) * per_pixel - 1
        total += F.grid_sample(x, where, padding_mode="border", align_corners=False)
    return total / _TAPS


def _defocus(x: torch.Tensor, sigma: np.ndarray) -> torch.Tensor:
    """Gaussian blur, each frame by its own deviation in pixels."""
    if sigma.max() < 0.2:
        return x
    radius = int(np.ceil(2.5 * sigma.max()))
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=torch.float32)
    deviation = torch.as_tensor(np.maximum(sigma, 0.05), dtype=torch.float32, device=x.device)[:, None]
    kernel = torch.exp(-0.5 * (taps / deviation) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = x.reshape(1, -1, *x.shape[-2:])
    n = len(taps)
    for shape, pad in (((-1, 1, 1, n), (radius, radius, 0, 0)), ((-1, 1, n, 1), (0, 0, radius, radius))):
        flat = F.conv2d(F.pad(flat, pad, mode="replicate"), kernel.view(shape), groups=flat.shape[1])
    return flat.view(x.shape)


def _vignette(loss: float, x: torch.Tensor) -> torch.Tensor | float:
    if not loss:
        return 1.0
    height, width = x.shape[-2:]
    v = torch.linspace(-1, 1, height, device=x.device)[:, None] * (height / np.hypot(height, width))
    u = torch.linspace(-1, 1, width, device=x.device) * (width / np.hypot(height, width))
    return 1.0 - loss * (u * u + v * v)


def _noisy(sensor: Sensor, x: torch.Tensor, index: np.ndarray, scale: float) -> torch.Tensor:
    """Add noise. Drawn on the CPU, so that every device sees the same."""
    shot, read = sensor.noise
    if shot + read < 1e-4:
        return x
    height, width = x.shape[-2:]
    drawn = []
    for i in index:
        rng = np.random.default_rng([sensor.seed, int(i)])
        fine = rng.standard_normal((3, height, width), np.float32)
        coarse = rng.standard_normal((3, (height + 1) // 2, (width + 1) // 2), np.float32)
        coarse = coarse.repeat(2, 1).repeat(2, 2)[:, :height, :width]
        drawn.append((1 - sensor.clumps) * fine + sensor.clumps * coarse)
    noise = torch.from_numpy(np.stack(drawn)).to(x.device)
    # a larger picture has less light in a pixel
    deviation = (x.clamp(min=0.0) * (shot * shot)).add_(read * read).sqrt_().mul_(max(scale, 1.0) ** 0.5)
    return x + noise * deviation


def _jpeg(x: torch.Tensor, quality: float) -> torch.Tensor:
    """Round the cosine transform of 8 x 8 blocks, high frequencies and colour more coarsely, as JPEG does."""
    height, width = x.shape[-2:]
    x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
    k = torch.arange(8, dtype=torch.float32, device=x.device)
    basis = torch.cos((2 * k + 1) * k[:, None] * (torch.pi / 16)) * 0.5
    basis[0] *= 0.5**0.5
    red, green, blue = x.unbind(1)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    planes = torch.stack([luma, (blue - luma) / 1.772, (red - luma) / 1.402], 1)
    blocks = planes.unflatten(-1, (-1, 8)).unflatten(-3, (-1, 8)).transpose(-3, -2)  # (T, 3, rows, columns, 8, 8)
    strength = (50 / quality if quality < 50 else 2 - quality / 50) / 255.0
    step = (10.0 + 6.0 * (k + k[:, None])) * strength
    step = torch.stack([step, 2 * step, 2 * step])[:, None, None]
    coefficients = torch.round(basis @ blocks @ basis.T / step) * step
    planes = (basis.T @ coefficients @ basis).transpose(-3, -2).flatten(-4, -3).flatten(-2)
    luma, cb, cr = planes.unbind(1)
    red, blue = luma + 1.402 * cr, luma + 1.772 * cb
    green = (luma - 0.299 * red - 0.114 * blue) / 0.587
    return torch.stack([red, green, blue], 1)[..., :height, :width]
