# SPDX-License-Identifier: Apache-2.0
"""Predicted memory beside what a task takes on this machine's CPU: python -m benchmarks.memory [NAME ...].

Linux only: reads the process's largest resident size. With few blocks and random weights: a block more makes no
difference to the peak.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

MALLOC = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "MALLOC_ARENA_MAX": "1"}


def _configs() -> dict:
    from rays_as_pixels_model.config import ModelConfig, WanCodecConfig, WanTransformerConfig, preset

    wan = WanTransformerConfig(width=96, depth=2, heads=4, ffn_width=256, text_width=32, text_tokens=8)
    small_wan = ModelConfig("wan, base 16", 5, 128, 192, WanCodecConfig(base=16), wan)
    return {
        "micro-320x480": replace(preset("micro"), height=320, width=480),
        "tiny": preset("tiny"),
        "small-9": replace(preset("small"), frames=9),
        "wan-128x192": small_wan,
        "wan-256x384": replace(small_wan, height=256, width=384),
    }


def resident(key: str = "VmRSS") -> int:
    """Return the bytes of this process that are resident, or were at most since `reset_peak` (VmHWM)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def reset_peak() -> None:
    """Let the largest resident size of this process count from here."""
    Path("/proc/self/clear_refs").write_text("5")


def _measure(work: Callable[[], object]) -> int:
    """Return the most bytes that the process grew by during `work`."""
    gc.collect()
    before = resident()
    reset_peak()
    work()
    return resident("VmHWM") - before


def rows(names: list[str]) -> list[tuple[str, str, int, int]]:
    """Measure configurations: (name, task, predicted bytes, measured bytes)."""
    import torch

    from rays_as_pixels_model.config import preset
    from rays_as_pixels_model.joint import RaysAsPixels
    from rays_as_pixels_model.pipeline import Pipeline

    def tasks(pipe: Pipeline):
        c = pipe.config
        rays = torch.ones(1, 3, c.height // 2, c.width // 2, 3)
        for sources in (1, 2):
            images = torch.zeros(1, sources, c.height, c.width, 3)
            yield f"view, {sources} source(s)", sources, lambda x=images, n=sources: pipe.render_batch(
                x, rays[:, : n + 1], 1, torch.Generator(),
                on_step=lambda step, total, pictures: pictures is not None,
            )  # fmt: skip
        window = torch.zeros(1, c.frames, c.height, c.width, 3)
        latents = torch.zeros(pipe.model.latent_shapes(1, c.groups)[0])

        def both() -> None:
            pipe.estimate_batch(window, rays[:, 0], 0, 1, torch.Generator())
            with torch.no_grad():
                pipe.model.decode_frames(latents, c.groups)

        yield "window to rays, and to video", None, both

    found = []
    configs = _configs()
    # What the first run in a process takes for itself is no part of a task.
    for _, _, work in tasks(Pipeline(RaysAsPixels(preset("micro")))):
        work()
    for name in names or configs:
        config = configs[name]
        config = replace(config, transformer=replace(config.transformer, depth=min(config.transformer.depth, 3)))
        pipe = Pipeline(RaysAsPixels(config))
        for task, sources, work in tasks(pipe):
            found.append((name, task, pipe.predict_memory(sources), _measure(work)))
    return found


def main(argv: list[str] | None = None) -> int:
    """Print the table; starts itself again where malloc would keep what is freed."""
    argv = sys.argv[1:] if argv is None else argv
    if any(os.environ.get(key) != value for key, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.memory", *argv], {**os.environ, **MALLOC})
    print("| model | task | predicted MiB | measured MiB | predicted / measured |\n|---|---|---|---|---|")
    for name, task, predicted, measured in rows(argv):
        sizes = f"{predicted / 2**20:.1f} | {measured / 2**20:.1f}"
        print(f"| {name} | {task} | {sizes} | {predicted / measured:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
