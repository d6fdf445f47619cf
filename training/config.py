# SPDX-License-Identifier: Apache-2.0
"""What a training run is made of."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TrainConfig:
    """Every choice of a run; stored with its checkpoints.

    Attributes:
        tasks: shares of pose estimation, view synthesis and joint generation among the steps.
        pose_at_start: share of pose steps whose rays are all but pure noise, where one-step sampling starts.
        known_intrinsics: share of pose steps in which the reference frame's rays (its intrinsics) are given.
        motion_weight: of the auxiliary loss on image motion and depth (`motion.py`) in pose steps; 0 leaves it out.
        decay: share of the steps, at the end, over which the learning rate falls to zero; before it is constant, so a
            run can be continued from its last constant step.
    """

    preset: str = "micro"
    steps: int = 20_000
    batch: int = 64
    lr: float = 2e-3
    warmup: int = 300
    decay: float = 0.25
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float = 0.999
    cosine_weight: float = 0.5
    motion_weight: float = 0.5
    tasks: tuple[float, float, float] = (0.6, 0.28, 0.12)
    known_intrinsics: float = 0.8
    pose_at_start: float = 0.75
    view_frames: int = 3
    max_stride: int = 3
    slots: int = 24_000
    min_clips: int = 512
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or not 0 <= self.decay <= 1 or self.warmup < 0:
            raise ValueError(
                f"steps and batch must be at least 1, warmup at least 0 and decay in [0, 1], got steps "
                f"{self.steps}, batch {self.batch}, warmup {self.warmup}, decay {self.decay}"
            )
        if not (0 < self.lr < 1 and 0 <= self.ema < 1 and self.clip > 0 and self.seed >= 0):
            raise ValueError(
                f"lr must be in (0, 1), ema in [0, 1), clip above 0 and seed at least 0, got lr {self.lr}, "
                f"ema {self.ema}, clip {self.clip}, seed {self.seed}"
            )
        if self.view_frames < 2 or self.max_stride < 1 or self.slots < 1 or self.min_clips < 1:
            raise ValueError(
                f"view_frames must be at least 2, max_stride, slots and min_clips at least 1, got {self.view_frames}, "
                f"{self.max_stride}, {self.slots}, {self.min_clips}"
            )
        if len(self.tasks) != 3 or min(self.tasks) < 0 or sum(self.tasks) <= 0:
            raise ValueError(f"tasks needs three shares (pose, views, joint), not all zero, got {self.tasks}")

    def learning_rate(self, step: int) -> float:
        """Warm up, hold, then fall linearly to zero."""
        start = self.steps * (1 - self.decay)
        fall = (self.steps - step) / max(self.steps - start, 1) if step > start else 1.0
        return self.lr * min((step + 1) / max(self.warmup, 1), 1.0) * fall

    def to_dict(self) -> dict:
        return asdict(self)
