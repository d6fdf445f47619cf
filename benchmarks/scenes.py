# SPDX-License-Identifier: Apache-2.0
"""How fast scenes render, and what they look like: python -m benchmarks.scenes [--device cuda] [--sheet FILE.png].

Processor time of one thread (cpu) or elapsed time (other devices), with textures already in memory, as in a renderer
that has run for a while. A clip is 13 frames of 96x64; `frames/s` counts them, `of plain` is the ratio of the times.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path

import numpy as np
import torch

from rays_as_pixels_model.scenes import GROUPS, TextureBank
from rays_as_pixels_training.data.procedural import ClipConfig, first_clip

_FIRST_SEED = 300


def clips(bank, config: ClipConfig, count: int, device: str, first: int = _FIRST_SEED):
    """Yield `count` clips; a scene without free space for a camera is passed over."""
    seed = first
    for _ in range(count):
        seed, clip = first_clip(itertools.count(seed), bank, config, device)
        yield clip
        seed += 1


def clip_seconds(bank, config: ClipConfig, count: int, device: str) -> float:
    """Mean seconds a clip, after one round that loads textures (and kernels)."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    for _ in clips(bank, config, count, device):
        pass
    start = clock()
    for _ in clips(bank, config, count, device):
        pass
    return (clock() - start) / count


def sheet(path: Path, bank, columns: int = 8, plain_rows: int = 2, varied_rows: int = 6) -> None:
    """Write first frames: rows of plain scenes, then of varied ones."""
    from PIL import Image

    rows = []
    for scenes, count in (("plain", plain_rows), ("varied", varied_rows)):
        frames = [clip.frames[0] for clip in clips(bank, ClipConfig(frames=3, scenes=scenes), columns * count, "cpu")]
        rows += [np.concatenate(frames[i : i + columns], axis=1) for i in range(0, len(frames), columns)]
        rows.append(np.full((6, rows[0].shape[1], 3), 255, np.uint8))
    Image.fromarray(np.concatenate(rows[:-1])).quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--scenes", nargs="+", default=["plain", *GROUPS, "varied"])
    parser.add_argument("--size", default="96x64", help="WIDTHxHEIGHT")
    parser.add_argument("--textures", help="folder of photos")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet here, instead of the table")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    bank = TextureBank.default("train", args.textures)
    if args.sheet:
        sheet(args.sheet, bank)
        return 0
    width, height = (int(v) for v in args.size.split("x"))
    print(f"| {args.device}, {width}x{height} | ms a clip | frames/s | of plain |\n|---|---|---|---|")
    plain = None
    for scenes in args.scenes:
        config = ClipConfig(scenes=scenes, width=width, height=height)
        seconds = clip_seconds(bank, config, args.clips, args.device)
        plain = plain or seconds
        rate = config.frames / seconds
        print(f"| {scenes} | {1000 * seconds:.0f} | {rate:.0f} | {seconds / plain:.2f} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
