# SPDX-License-Identifier: Apache-2.0
"""Where a training step's time goes, and its share of the matrix product peak measured in the same run."""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from rays_as_pixels_training.config import RunConfig, TrainConfig
from rays_as_pixels_training.data.procedural import ClipConfig, ClipPool, fill
from rays_as_pixels_training.data.source import PoolSource
from rays_as_pixels_training.loop import Trainer
from rays_as_pixels_training.tasks import draw_step, noised


def median_seconds(run: Callable[[], object], repeats: int = 7) -> float:
    """Median time of a call after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return sorted(times)[repeats // 2]


def gemm_peak() -> float:
    """Best FLOP/s of a float32 matrix product of a size that fills the caches of two cores."""
    a, b = torch.randn(4096, 1024), torch.randn(1024, 1024)
    a @ b
    best = 1e9
    for _ in range(15):
        start = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - start)
    return 2 * 4096 * 1024 * 1024 / best


def measure(preset: str, batch: int, compile_model: bool) -> dict:
    """Time the parts of a pose step on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        threads = torch.get_num_threads()
        fill(
            Path(folder) / "clips",
            slots=16,
            first_seed=0,
            stride=1,
            offset=0,
            textures=None,
            config=ClipConfig(),
            limit=16,
        )
        render = (time.perf_counter() - start) / 16
        torch.set_num_threads(threads)
        source = PoolSource(ClipPool(Path(folder) / "clips"))
        config = TrainConfig(preset=preset, batch=batch, slots=16, tasks=(1, 0, 0))
        run = RunConfig(Path(folder) / "run", compile=compile_model, eval_every=0, pictures_every=0, tensorboard=False)
        trainer = Trainer(config, run, source)
        learner, shape = trainer.learner, trainer.learner.model.config
        drawn = draw_step(source, trainer.config, shape, 0)
        generator = torch.Generator().manual_seed(0)
        counter = FlopCounterMode(display=False)
        network, learner.net = learner.net, learner.model.transformer
        with counter:
            losses = [x for part in drawn.values() for x in vars(learner.losses(part, 0)).values()]
            sum(x for x in losses if x is not None).backward()
        learner.net = network
        parts = {
            "data": lambda: draw_step(source, trainer.config, shape, 1),
            "encode": lambda: [noised(learner.model, part, generator) for part in drawn.values()],
            "whole step": lambda: learner.update(drawn, 0),
        }
        seconds = {name: median_seconds(run) for name, run in parts.items()}
    peak, flops = gemm_peak(), counter.get_total_flops()
    step = seconds["whole step"]
    return {
        "hardware": f"{platform.machine()}, {threads} threads, torch {torch.__version__}",
        "preset": preset,
        "batch": batch,
        "compiled": compile_model,
        "gemm_peak_gflops": peak / 1e9,
        "step_gflop": flops / 1e9,
        "share_of_gemm_peak": flops / step / peak,
        "windows_per_second": batch / (step + seconds["data"]),
        "data_over_step": seconds["data"] / step,
        "encode_over_step": seconds["encode"] / step,
        "render_clip_over_step": render / step,
    }


def table(report: dict) -> str:
    """Return the report as Markdown."""
    rows = [f"| {k} | {v:.3g} |" if isinstance(v, float) else f"| {k} | {v} |" for k, v in report.items()]
    return "\n".join(["| training step | |", "|---|---|", *rows])
