# SPDX-License-Identifier: Apache-2.0
"""Guidance on the sources, and what a closed loop costs and catches: python -m benchmarks.guidance.

Held-out windows, so the truth is known: views of one source at several weights of guidance; and the closed loop's
figures on windows as they are, with the trajectory of another window, and with pictures that show nothing of a scene.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from scipy.stats import spearmanr

from rays_as_pixels_model.geometry import Intrinsics, rotation_angle_deg
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_training.data.procedural import ClipConfig
from rays_as_pixels_training.data.views import cut_views
from rays_as_pixels_training.data.windows import cut_windows
from rays_as_pixels_training.held_out import clip_length
from rays_as_pixels_training.validation import render_held_out

WEIGHTS, STEPS = (1.0, 1.5, 2.0, 3.0), (2, 8)


def guidance(pipe: Pipeline, clips) -> None:
    """Print the PSNR of held-out views at each weight."""
    slots = np.arange(len(clips.frames))
    views = cut_views(clips, slots, np.random.default_rng(0), pipe.config.views, 1, augment=False)
    source, target, rays = views.frames[:, :1], views.frames[:, 1], views.raxels()

    def psnr(x):
        return float(np.median(10 * np.log10(4 / ((x - target) ** 2).mean((1, 2, 3)).numpy())))

    print(f"copying the source: {psnr(source[:, 0]):.1f} dB")
    for steps in STEPS:
        for weight in WEIGHTS:
            made = pipe.render_batch(source, rays, steps, torch.Generator().manual_seed(0), guidance=weight)[:, 0]
            print(f"{steps} steps, guidance {weight}: {psnr(made.cpu()):.1f} dB", flush=True)


def loop(pipe: Pipeline, clips) -> None:
    """Print cost and figures of the loop that the trajectory node runs."""
    config, rng = pipe.config, np.random.default_rng(0)
    slots = np.arange(len(clips.frames))
    windows = cut_windows(clips, slots, rng, config.frames, augment=False, max_stride=2, references=1)
    frames = ((windows.frames + 1) * 127.5).round().to(torch.uint8).numpy()
    cameras = [Intrinsics(*k, config.width, config.height) for k in windows.intrinsics.tolist()]
    blank = np.full_like(frames[0], 128)
    noise = rng.integers(0, 256, frames[0].shape, dtype=np.uint8)
    estimates, errors, times = [], [], {"estimate": [], "loop": []}
    for video, camera, truth in zip(frames, cameras, windows.T_reference_camera.numpy(), strict=True):
        start = time.perf_counter()
        estimates.append(pipe.estimate_trajectory(video, camera))
        times["estimate"].append(time.perf_counter() - start)
        turn = np.swapaxes(truth[1:, :3, :3], 1, 2) @ estimates[-1].T_reference_camera[1:, :3, :3]
        errors.append(rotation_angle_deg(turn).mean())
    rows = {"as it is": [], "trajectory of another window": [], "grey pictures": [], "noise": []}
    for number, (video, camera) in enumerate(zip(frames, cameras, strict=True)):
        cases = zip(
            rows,
            ((video, estimates[number]), (video, estimates[number - 1]), (blank, None), (noise, None)),
            strict=True,
        )
        for name, (pictures, estimate) in cases:
            start = time.perf_counter()
            found = pipe.close_the_loop(pictures, camera, view_steps=1, estimate=estimate)
            if name == "as it is":
                times["loop"].append(time.perf_counter() - start)
            rows[name].append((found.rotation_error_deg, found.T_err, found.psnr))
    cost = np.median(times["loop"]) / np.median(times["estimate"])
    print(f"one loop costs {cost:.1f} estimates (medians of one run)")
    plain = np.array(rows["as it is"])
    for name, figures in rows.items():
        middle = np.median(figures, axis=0)
        worse = [(np.array(figures)[:, k, None] > plain[:, k]).mean() for k in (0, 1)]
        lower = (np.array(figures)[:, 2, None] < plain[:, 2]).mean()
        print(f"{name}: rotation {middle[0]:.2f} deg, translation {middle[1]:.3f}, PSNR {middle[2]:.1f} dB")
        print(f"    worse than a window as it is: {worse[0]:.2f}, {worse[1]:.2f}, {lower:.2f} of pairs", flush=True)
    for name, k in (("rotation", 0), ("translation", 1), ("PSNR", 2)):
        print(f"rank correlation of {name} with the true rotation error: {spearmanr(plain[:, k], errors)[0]:.2f}")


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guidance", description=__doc__)
    parser.add_argument("--checkpoint", help="folder (default: the one shipped)")
    parser.add_argument("--windows", type=int, default=48, help="views of the guidance table (default 48)")
    parser.add_argument("--loops", type=int, default=16, help="windows of the closed loops (default 16)")
    args = parser.parse_args(argv)
    pipe = Pipeline.from_checkpoint(args.checkpoint, "cpu")
    size = ClipConfig(frames=clip_length(pipe.config.frames), height=pipe.config.height, width=pipe.config.width)
    guidance(pipe, render_held_out(args.windows, size))
    loop(pipe, render_held_out(args.loops, size))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
