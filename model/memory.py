# SPDX-License-Identifier: Apache-2.0
"""Memory that a task takes beside the weights, predicted before it starts, and what a device has left.

The prediction counts what is alive at the peak of a block (residual streams, queries, keys and values, the feed-forward
layer), the pixels around the codec, and the codec's own features. docs/benchmarks.md holds it beside what was measured.

Axes: N video tokens, M ray tokens, D width, F width of the feed-forward layer.
"""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from .config import ModelConfig, WanCodecConfig

# Predicted over measured was 0.92 to 1.61 (docs/benchmarks.md): what must fit is the prediction with this added.
MARGIN = 0.2
_FLOAT = 4
_WORKSPACE = 2 * 2**20                 # of matrix products, whatever their size
_WAN_IMAGE, _WAN_VIDEO = 46, 60        # peak of the Wan VAE in (H, W, base) feature maps, an image and 4 frames at once
_WAN_WORKSPACE = 128 * 2**20           # of its convolutions over frames


def predict_memory(config: ModelConfig, images: int, video: bool = False, batch: int = 1) -> int:
    """Predict the bytes of one denoising step at its peak, codec included, without the weights.

    Args:
        config: the preset; its height and width are the size of every frame.
        images: frames that are images of their own (sources and the views made at once).
        video: a window of config.frames frames as well (a trajectory or a video).
        batch: layouts denoised at once.
    """
    c = config.transformer
    frames = images + (config.frames if video else 0)
    latents = images + (len(config.groups) if video else 0)
    cell = config.codec.cell * c.patch
    per_frame = (config.height // cell) * (config.width // cell)
    n, m = latents * per_frame, frames * per_frame // 4
    streams = 4 * (n + m) * c.width                                # x, q, k and v of both modalities
    block = max(8 * n * c.width, n * (2 * c.width + 4 * c.ffn_width))      # an attention, or the feed-forward layer
    pixels = config.height * config.width
    around = 3 * 3 * frames * pixels                               # 3 copies in colour
    workspace = _WORKSPACE
    if isinstance(config.codec, WanCodecConfig):
        around += (_WAN_VIDEO if video else _WAN_IMAGE) * config.codec.base * pixels
        workspace += _WAN_WORKSPACE if video else 0
    return batch * _FLOAT * (streams + block + around) + workspace


def available_memory(device: Any) -> int:
    """Return the bytes that a device ('cpu', 'cuda:0', a torch.device) has free: of the GPU, or of the machine.

    What torch keeps unused of a GPU counts as free; without torch the driver is asked. A limit of the process's control
    group counts too.
    """
    kind, _, index = str(device).partition(":")
    if kind != "cuda":
        return free_host_memory()
    try:
        import torch
    except ImportError:
        ask = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={index or 0}"]
        return int(subprocess.run(ask, capture_output=True, text=True, check=True).stdout) * 2**20
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def free_host_memory(root: Path = Path("/")) -> int:
    """Return the free bytes of the machine's memory, or of the control group's where that is less.

    Where there is no /proc (not Linux) it is all memory of the machine.
    """
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (root / "proc/meminfo").exists():
        lines = (root / "proc/meminfo").read_text().splitlines()
        free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), free)
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):                                  # no such group, or its limit is "max"
        return free
    return min(free, max(0, limit - used))


def release_memory(device: Any) -> None:
    """Give back to a GPU what torch keeps of tensors that are gone."""
    if str(device).startswith("cuda") and "torch" in sys.modules:
        sys.modules["torch"].cuda.empty_cache()
