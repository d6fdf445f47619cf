# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of: what is trained (`TrainConfig`), and where and how (`RunConfig`).

Every field is an argument of `rays-as-pixels train` and a key of its YAML file (`cli_config.py`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

LEAST_CLIPS = 4  # in an evaluation
LARGE = 200_000_000  # parameters; from here on AdamW is the default, and its rate is a twentieth


def clip_frames(window: int) -> int:
    """Frames of a clip to train windows of `window` frames from: room for two strides."""
    return max(13, 2 * window)


@dataclass(frozen=True)
class TrainConfig:
    """What is trained. Stored with every checkpoint; the same values and data give the same weights.

    Attributes:
        preset: size of the model.
        attention: dsca, or joint: one attention over all tokens (the paper's ablation).
        camera_encoding: raxel, or pluecker (the paper's ablation).
        steps: updates of the weights in the whole run.
        batch: windows to an update, over all processes.
        parts: the batch is drawn and computed in this many parts, one after the other (gradient accumulation) and
            shared out among the processes; 0 is one for each process.
        optimizer: muon (its matrices whole on one process), adamw, or auto: muon below 200M parameters on one process.
        lr: peak learning rate; 0 takes 2e-3, or 1e-4 from 200M parameters on.
        schedule: after the warm-up, hold and fall linearly at the end (`decay`), or fall along a half cosine.
        warmup: steps over which the learning rate rises.
        decay: share of the steps, at the end, over which the held learning rate falls to zero.
        weight_decay: decoupled; adamw: of the matrices of the blocks, muon: of all parameters.
        clip: largest gradient norm.
        ema: memory of the averaged weights, which evaluation and checkpoints use.
        cosine_weight: of the cosine term in the loss.
        motion_weight: of the auxiliary loss on image motion and depth (`motion.py`) in pose steps; 0 leaves it out.
        tasks: shares of pose estimation, view synthesis and joint generation among the steps that are not mixed.
        mixed: share of steps on the paper's whole sequence: source images, sparse target images and a target video
            whose cameras are all known, in one sequence (docs/model.md).
        mixed_images: images of such a sequence, sources and targets together.
        known_intrinsics: share of pose steps in which the reference frame's rays (its intrinsics) are given.
        pose_at_start: share of pose steps whose rays are all but pure noise, where one-step sampling starts.
        turned: share of the windows of pose steps whose frames are turned back by a guess of their rotation, as a
            second pass meets them (only of models with `ModelConfig.pose_passes` above 1; not of latents).
        view_frames: images in a view step, sources and targets; where sources are warped the most, one the target.
        max_stride: largest stride of a video window within its clip.
        precision: of the matrix products; auto takes bfloat16 where it is faster, as measured when the run begins.
        scenes: rendered scenes: plain, varied, or groups of variety joined by '+' (docs/scenes.md); of several pools
            those of one, whose held-out clips choose OUT/best.
        difficulty: of varied scenes, 0 to 1.
        ramp: clips over which the difficulty rises from 0 (a curriculum); 0 starts with all of it.
        slots: clips in the pool of rendered scenes.
        min_clips: rendered clips before the first step.
        seed: of weights, batches and noise.
    """

    preset: str = "micro"
    attention: Literal["dsca", "joint"] = "dsca"
    camera_encoding: Literal["raxel", "pluecker"] = "raxel"
    steps: int = 20_000
    batch: int = 64
    parts: int = 0
    optimizer: Literal["auto", "muon", "adamw"] = "auto"
    lr: float = 0.0
    schedule: Literal["hold", "cosine"] = "hold"
    warmup: int = 300
    decay: float = 0.25
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    cosine_weight: float = 0.5
    motion_weight: float = 0.5
    tasks: tuple[float, float, float] = (0.6, 0.28, 0.12)
    mixed: float = 0.0
    mixed_images: int = 3
    known_intrinsics: float = 0.8
    pose_at_start: float = 0.75
    turned: float = 0.5
    view_frames: int = 3
    max_stride: int = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    scenes: str = "plain"
    difficulty: float = 1.0
    ramp: int = 0
    slots: int = 24_000
    min_clips: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.decay <= 1 or self.warmup < 0:
            raise ValueError(
                f"steps and batch must be at least 1, warmup at least 0 and decay in [0, 1], got steps "
                f"{self.steps}, batch {self.batch}, warmup {self.warmup}, decay {self.decay}"
            )
        if not (0 <= self.lr < 1 and 0 <= self.ema < 1 and self.clip > 0 and self.seed >= 0):
            raise ValueError(
                f"lr must be in (0, 1) or 0 for the default, ema in [0, 1), clip above 0 and seed at least 0, got lr "
                f"{self.lr}, ema {self.ema}, clip {self.clip}, seed {self.seed}"
            )
        if self.view_frames < 2 or self.max_stride < 1 or self.slots < 1 or self.min_clips < 1:
            raise ValueError(
                f"view_frames must be at least 2, max_stride, slots and min_clips at least 1, got {self.view_frames}, "
                f"{self.max_stride}, {self.slots}, {self.min_clips}"
            )
        if len(self.tasks) != 3 or min(self.tasks) < 0 or not 0 < sum(self.tasks) < math.inf:
            raise ValueError(f"tasks needs three shares (pose, views, joint), not all zero, got {self.tasks}")
        if self.parts < 0 or (self.parts and self.batch % self.parts):
            raise ValueError(f"batch {self.batch} cannot be cut into {self.parts} equal parts")
        if self.mixed_images < 2:
            raise ValueError(f"mixed_images must be at least 2 (a source and a target), got {self.mixed_images}")
        if self.ramp < 0:
            raise ValueError(f"ramp must be at least 0 clips, got {self.ramp}")
        for name in ("mixed", "known_intrinsics", "pose_at_start", "turned", "difficulty"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        for name in ("weight_decay", "cosine_weight", "motion_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")

    def settled(self, parameters: int, processes: int = 1) -> TrainConfig:
        """Return the config with its automatic values chosen for a model of this size on so many processes.

        Raises:
            ValueError: Muon on several processes, or parts that they cannot share.
        """
        large = parameters >= LARGE
        optimizer = self.optimizer
        if optimizer == "auto":
            optimizer = "adamw" if large or processes > 1 else "muon"
        if optimizer == "muon" and processes > 1:
            raise ValueError(
                f"optimizer muon needs whole matrices, which {processes} processes split: use --optimizer adamw"
            )
        parts = self.parts or processes
        if parts % processes or self.batch % parts:
            raise ValueError(
                f"batch {self.batch} in {parts} parts cannot be shared by {processes} processes: batch must be a "
                "multiple of parts, and parts of the processes"
            )
        return replace(self, optimizer=optimizer, parts=parts, lr=self.lr or (1e-4 if large else 2e-3))

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step; `lr` must be settled."""
        rise = min((step + 1) / max(self.warmup, 1), 1.0)
        if self.schedule == "cosine":
            done = max(step - self.warmup, 0) / max(self.steps - self.warmup, 1)
            return self.lr * rise * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
        start = self.steps * (1 - self.decay)
        fall = (self.steps - step) / max(self.steps - start, 1) if step > start else 1.0
        return self.lr * rise * fall

    def to_dict(self) -> dict:
        return asdict(self)


@dataclass(frozen=True)
class RunConfig:
    """Where and how it is trained; none of this changes the weights, but where the data comes from.

    Attributes:
        out: folder of the run: states, log, pictures, clips.
        data: folder of shards made by `rays-as-pixels cache`, instead of rendered scenes.
        pool: folders of rendered clips (default: OUT/clips); of several, which must be there, all clips are drawn
            equally often.
        textures: folder of photos used as textures beside the built-in ones.
        workers: processes that render clips (not with data, several pools, nor under torchrun); 0 uses the pool as it
            is.
        renew: workers go on when the pool is full, so that clips keep changing; such a run cannot be repeated.
        device: cpu, cuda or cuda:N; with several processes each takes its own.
        compile: torch.compile (needs a C++ compiler on a CPU).
        recompute: compute activations again in the backward pass (activation checkpointing): less memory, a third more
            time.
        prefetch: batches drawn ahead by a thread; 0 draws each between two steps.
        init: checkpoint folder to start from, when OUT holds no run yet.
        save_every: steps between states.
        keep: older states kept beside the last and the best one.
        log_every: steps between lines of OUT/log.jsonl.
        eval_every: steps between evaluations on held-out clips, which choose OUT/best; 0 has none.
        eval_clips: held-out clips in an evaluation.
        eval_data: folder of shards (of frames) to evaluate on, instead of rendered scenes.
        pictures_every: steps between contact sheets in OUT/pictures; 0 has none.
        tensorboard: write OUT/tensorboard too (needs tensorboard).
        minutes: stop (and save) after this long, though steps remain; 0 has no limit.
        export: write the averaged weights as a checkpoint folder at the end.
    """

    out: Path
    data: Path | None = None
    pool: tuple[Path, ...] = ()
    textures: str | None = None
    workers: int = 1
    renew: bool = False
    device: str = "cpu"
    compile: bool = False
    recompute: bool = False
    prefetch: int = 2
    init: Path | None = None
    save_every: int = 500
    keep: int = 1
    log_every: int = 50
    eval_every: int = 1000
    eval_clips: int = 48
    eval_data: Path | None = None
    pictures_every: int = 1000
    tensorboard: bool = True
    minutes: float = 0.0
    export: Path | None = None

    def __post_init__(self) -> None:
        some = {"save_every": 1, "log_every": 1, "eval_clips": LEAST_CLIPS}
        for name in (*some, "workers", "prefetch", "keep", "eval_every", "pictures_every", "minutes"):
            least = some.get(name, 0)
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.data and self.renew:
            raise ValueError(f"renew replaces rendered clips, but data {self.data} is trained on: leave out one")
        if len(self.pool) > 1 and self.renew:
            raise ValueError(f"renew replaces the clips of one pool, got {len(self.pool)}: leave it out")
        if self.data and self.eval_data and self.eval_data.resolve().is_relative_to(self.data.resolve()):
            raise ValueError(f"eval_data {self.eval_data} is part of data {self.data}, which is trained on")

    def to_dict(self) -> dict:
        plain = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(self).items()}
        return {**plain, "pool": [str(folder) for folder in self.pool]}
