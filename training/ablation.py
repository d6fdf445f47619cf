# SPDX-License-Identifier: Apache-2.0
"""The paper's ablation at equal compute: full model, no DSCA, no cosine term, Pluecker rays instead of raxels.

    rays-as-pixels ablation --out out/ablation                      # 4 rows x 3 seeds, prints the closed-loop table
    rays-as-pixels ablation --out out/ablation                      # again: what is finished is not trained again

Each row trains the same preset on the same rendered clips. --steps is of the full model; a row whose step costs more
(or less) gets as many steps as the same number of FLOPs allows. Then every held-out window goes round the closed loop:
video to trajectory to video to trajectory. R_err (radians) and T_err (scene depths) compare both trajectories, PSNR the
videos; FID and FVD need feature weights. A model that says "no motion" agrees with itself, so the error of the first
trajectory against the truth stands beside them.
"""

from __future__ import annotations

import functools
import json
import signal
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from .cli_config import ArgumentProblem, parse
from .config import RunConfig, TrainConfig, clip_frames

_PROG = "rays-as-pixels ablation"
ROWS = {
    "full": {},
    "no_dsca": {"attention": "joint"},
    "no_cosine": {"cosine_weight": 0.0},
    "pluecker": {"camera_encoding": "pluecker"},
}


@dataclass(frozen=True)
class AblationConfig:
    """What is trained and judged.

    Attributes:
        out: folder of the ablation: clips, one run a row and seed, the table.
        preset: size of the model.
        steps: updates of the full model.
        seeds: runs of each row.
        batch: windows to an update.
        optimizer: of all rows.
        lr: peak learning rate; 0 takes the trainer's default.
        tasks: shares of pose estimation, view synthesis and joint generation.
        pool: folder of rendered clips (default: OUT/clips).
        slots: clips in a new pool; all are rendered before the first row.
        textures: folder of photos used as textures.
        workers: processes that render clips.
        windows: held-out windows in the closed loop.
        device: cpu, cuda or cuda:N.
        compile: torch.compile (needs a C++ compiler on a CPU).
        image_features: TorchScript features for FID.
        video_features: TorchScript features for FVD.
    """

    out: Path
    preset: str = "micro"
    steps: int = 4000
    seeds: int = 3
    batch: int = 64
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    lr: float = 0.0
    tasks: tuple[float, float, float] = (0.6, 0.28, 0.12)
    pool: Path | None = None
    slots: int = 4000
    textures: str | None = None
    workers: int = 1
    windows: int = 200
    device: str = "cpu"
    compile: bool = False
    image_features: Path | None = None
    video_features: Path | None = None

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("windows", 2), ("slots", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        self.train_config("full", 0, self.steps)

    def train_config(self, row: str, seed: int, steps: int) -> TrainConfig:
        """Return the config of one run."""
        common = {k: getattr(self, k) for k in ("preset", "batch", "optimizer", "lr", "tasks", "slots")}
        warmup = min(300, steps // 10)
        return TrainConfig(**common, steps=steps, warmup=warmup, min_clips=self.slots, seed=seed, **ROWS[row])

    def run_config(self, out: Path) -> RunConfig:
        """Return where one run lies."""
        shared = {k: getattr(self, k) for k in ("textures", "workers", "device", "compile")}
        return RunConfig(out, pool=(self.pool or self.out / "clips",), eval_every=0, pictures_every=0, **shared)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        config = parse(AblationConfig, sys.argv[1:] if argv is None else argv, _PROG, __doc__)
    except ArgumentProblem as problem:
        print(f"{_PROG}: error: {problem}", file=sys.stderr)
        return 2
    interrupted = threading.Event()
    before = {n: signal.signal(n, lambda *_: interrupted.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        results = _run(config, interrupted)
    except (ValueError, FloatingPointError, OSError) as error:
        print(f"{_PROG}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if results is None:
        print(f"stopped; the same command continues from {config.out}", file=sys.stderr)
        return 130
    from rays_as_pixels_model.files import write_text

    from .ablation_table import table

    text = table(results)
    write_text(config.out / "ablation.json", json.dumps(results, indent=1) + "\n")
    write_text(config.out / "ablation.md", text + "\n")
    print(text)
    return 0


def _run(config: AblationConfig, interrupted: threading.Event) -> dict[str, list[dict]] | None:
    """Train and judge what is not finished yet; None if interrupted."""
    from rich.console import Console

    from .data.procedural import ClipConfig, ClipPool
    from .distributed import join
    from .held_out import clip_length
    from .learner import model_config
    from .train import start_workers, wait_for_clips
    from .validation import render_held_out

    console, processes = Console(stderr=True, highlight=False), join(config.device)
    if processes.count > 1:
        raise ValueError("an ablation runs in one process; run it without torchrun")
    shape = model_config(config.train_config("full", 0, config.steps))
    clip = ClipConfig(frames=clip_frames(shape.frames), height=shape.height, width=shape.width)
    folder = config.pool or config.out / "clips"
    pool = ClipPool(folder, None if (folder / "pool.json").exists() else clip, config.slots)
    config = replace(config, slots=pool.slots)
    run = config.run_config(config.out)
    workers = start_workers(run, [pool]) if len(pool.ready()) < pool.slots else []
    try:
        wait_for_clips(pool, config.train_config("full", 0, config.steps), workers, interrupted, console)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
    flops = {row: step_flops(config.train_config(row, 0, config.steps), pool) for row in ROWS}
    judged = replace(clip, frames=clip_length(shape.frames))
    held_out = functools.cache(
        lambda: render_held_out(config.windows, judged, config.textures)
    )  # rendered once, and only where a row is left to be judged
    precision = _precision(config, processes)
    results: dict[str, list[dict]] = {row: [] for row in ROWS}
    for seed in range(config.seeds):
        for row in ROWS:
            steps = max(round(config.steps * flops["full"] / flops[row]), 1)
            result = _one(config, row, seed, steps, precision, pool, held_out, processes, interrupted, console)
            if result is None:
                return None
            results[row].append({**result, "gflop_per_step": round(flops[row] / 1e9, 3)})
    return results


def step_flops(config: TrainConfig, pool) -> float:
    """FLOPs of a training step, forward and backward, in the mean over the tasks."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rays_as_pixels_model.joint import RaysAsPixels

    from .data.source import PoolSource
    from .learner import Learner, model_config
    from .tasks import TASKS, draw_step

    shape = model_config(config)
    learner = Learner(config.settled(1), RaysAsPixels(shape), shape)
    total = 0.0
    for number in range(len(TASKS)):
        only = tuple(float(i == number) for i in range(len(TASKS)))
        small = replace(learner.config, tasks=only, batch=2, parts=1)
        batch = draw_step(PoolSource(pool), small, shape, 0)[0]
        counter = FlopCounterMode(display=False)
        with counter:
            found = learner.losses(batch, 0)
            (found.z + found.r + (found.motion if found.motion is not None else torch.zeros(()))).backward()
        total += config.tasks[number] / sum(config.tasks) * counter.get_total_flops()
    return total * config.batch / 2


def _precision(config: AblationConfig, processes) -> str:
    """Decide once for all rows what the trainer's precision `auto` is: that of the first row where it has begun."""
    from .learner import bf16_pays
    from .state import read_facts, states

    begun = states(config.out / next(iter(ROWS)) / "seed_0")
    if begun:
        return read_facts(begun[-1])["config"]["precision"]
    return "bfloat16" if bf16_pays(processes.device) else "float32"


def _one(
    config: AblationConfig, row: str, seed: int, steps: int, precision: str, pool, held_out, processes, interrupted,
    console,
) -> dict | None:  # fmt: skip
    """Train and judge one run, or read what an earlier call made of it."""
    from rays_as_pixels_model.files import write_text
    from rays_as_pixels_model.pipeline import Pipeline

    from .cli_config import differences
    from .data.source import PoolSource
    from .loop import Trainer

    out = config.out / row / f"seed_{seed}"
    train, done = config.train_config(row, seed, steps), out / "result.json"
    asked = {**train.to_dict(), "windows": config.windows, "features": _features(config)}
    if done.exists():
        stored = json.loads(done.read_text())
        if changed := differences(stored["asked"], asked):
            raise ValueError(f"{done} was made with other settings ({', '.join(changed)}); name another --out")
        return stored["result"]
    train = replace(train, precision=precision)
    trainer = Trainer(train, config.run_config(out), PoolSource(pool, journal=out / "clips_seen.jsonl"), processes)
    console.print(f"{row}, seed {seed}: training from step {trainer.step} to {steps}")
    trainer.write_config()
    if not trainer.run(stop=interrupted.is_set):
        return None
    console.print(f"{row}, seed {seed}: {config.windows} windows round the loop")
    result = judge(Pipeline(trainer.learner.ema.model, trainer.learner.device), held_out(), config)
    result = {**result, "steps": steps, "seconds": round(trainer.seconds)}
    write_text(done, json.dumps({"asked": asked, "result": result}, indent=1) + "\n")
    return result


def _features(config: AblationConfig) -> list[str]:
    return [str(f) for f in (config.image_features, config.video_features) if f is not None]


def judge(pipe, clips, config: AblationConfig) -> dict:
    """Send held-out windows round the closed loop; return the means, and the first trajectory's errors."""
    import numpy as np

    from rays_as_pixels_model.features import Features, frechet_distance
    from rays_as_pixels_model.geometry import Intrinsics

    from .data.windows import relative_poses
    from .held_out import window_index
    from .metrics import last_against_first, pose_errors

    frames, size = pipe.config.frames, (pipe.config.width, pipe.config.height)
    index = window_index(frames)
    windows, scales = clips.frames[:, index], clips.scales[:, index]
    truth = last_against_first(relative_poses(clips.poses[:, index], scales, np.zeros(len(windows), int)))
    reports, kept = [], []
    for number, window in enumerate(windows):
        camera = Intrinsics(*(float(k) for k in clips.intrinsics[number]), *size)
        try:
            reports.append(pipe.close_the_loop(window, camera))
        except ValueError:  # raxels that no camera made: the loop cannot be closed
            continue
        kept.append(number)
    if not kept:
        return {"failed": len(windows)}
    mean = {k: float(np.mean([getattr(r, k) for r in reports])) for k in ("R_err", "T_err", "psnr", "ssim")}
    errors = pose_errors(last_against_first(np.stack([r.T_first for r in reports])), truth[kept])
    given, made = windows[kept], np.stack([r.frames for r in reports])
    if config.image_features is not None:
        features = Features(config.image_features, pipe.device)
        mean["fid"] = frechet_distance(features(_flat(made)), features(_flat(given[:, 1:])))
    if config.video_features is not None:
        features = Features(config.video_features, pipe.device)
        mean["fvd"] = frechet_distance(features(np.concatenate([given[:, :1], made], axis=1)), features(given))
    names = ("rotation_error_deg_median", "translation_direction_error_deg_median")
    return {**mean, **{k: errors[k] for k in names}, "failed": len(windows) - len(kept)}


def _flat(frames):
    return frames.reshape(-1, *frames.shape[2:])


if __name__ == "__main__":
    raise SystemExit(main())
