# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a process for each preset and task: python -m benchmarks.peak_memory [PRESET ...] [--gib 8].

A preset that is predicted to fit runs in a process of its own on the CPU: float32, random weights, one step of each
task, whose largest resident size is read (Linux only). For a larger one the peak is computed: its weights, what
`predict_memory` says of the task, and what the measured processes held before their model (the largest).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from rays_as_pixels_model.config import PRESETS, preset
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.memory import predict_memory
from rays_as_pixels_model.pipeline import Pipeline

from .memory import MALLOC, reset_peak, resident
from .parity import random_model
from .report import show

# What `predict_memory` is asked: a window's cameras, a view from two sources, a video and its cameras from one picture.
TASKS = {"pose": {"images": 0, "video": True}, "views": {"images": 3}, "joint": {"images": 0, "video": True}}


def measure(name: str) -> dict[str, int]:
    """Run the tasks of a preset in this process; bytes 'before' the model and at the peak of each task."""
    found = {"before": resident()}
    pipe = Pipeline(random_model(name))
    config = pipe.config
    camera, T = Intrinsics.from_fov(65, config.width, config.height), np.tile(np.eye(4), (2, 1, 1))
    frames = np.zeros((config.frames, config.height, config.width, 3), np.uint8)
    calls = {
        "pose": lambda: pipe.estimate_trajectory(frames, camera, 1),
        "views": lambda: pipe.render_views(frames[:2], T, camera, T[:1], steps=1),
        "joint": lambda: pipe.imagine(frames[0], camera, 1),
    }
    for task, call in calls.items():
        reset_peak()
        call()
        found[task] = resident("VmHWM")
    return found


def rows(names: list[str], limit: float) -> list[dict]:
    """Measure presets that fit into `limit` bytes, compute the others; [{preset, weights, measured, task: bytes}]."""
    report, before = [], 0
    for name in names:
        config = preset(name)
        with torch.device("meta"):
            weights = sum(4 * x.numel() for x in RaysAsPixels(config).state_dict().values())
        peaks = {task: before + weights + predict_memory(config, **asked) for task, asked in TASKS.items()}
        measured = max(peaks.values()) < limit
        if measured:
            command = [sys.executable, "-m", "benchmarks.peak_memory", "--inside", name]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | MALLOC)
            peaks = json.loads(done.stdout)
            before = max(before, peaks.pop("before"))
        report.append({"preset": name, "weights": weights, "measured": measured, **peaks})
    return report


def table(report: list[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| preset | weights MiB | {' | '.join(f'{task} MiB' for task in TASKS)} | |", "|---" * 6 + "|"]
    for row in report:
        sizes = " | ".join(f"{row[key] / 2**20:,.0f}" for key in ("weights", *TASKS))
        lines.append(f"| {row['preset']} | {sizes} | {'measured' if row['measured'] else 'computed'} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peak_memory", description=__doc__.splitlines()[0])
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)} (default: all)")
    parser.add_argument("--gib", type=float, default=8.0, help="what a process may take; a larger one is computed")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        print(json.dumps(measure(args.presets[0])))
        return 0
    report = rows(args.presets or list(PRESETS), args.gib * 2**30)
    show(report, table(report), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
