# SPDX-License-Identifier: Apache-2.0
"""What learns: model, auxiliary head, average and optimizers, and one update of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rays_as_pixels_model.config import ModelConfig, preset
from rays_as_pixels_model.joint import RaysAsPixels

from .config import TrainConfig
from .distributed import Processes, motion_head, split_model
from .ema import Ema
from .loss import picture_weights, relative_weights, velocity_loss
from .motion import MotionHead, motion_loss
from .optimizer import clip_gradients, make_optimizers
from .tasks import TaskBatch, noised


def model_config(config: TrainConfig) -> ModelConfig:
    """Return the model that a run trains: its preset with the run's ablation switches."""
    return preset(config.preset).switched(attention=config.attention, camera_encoding=config.camera_encoding)


def bf16_pays(device: torch.device) -> bool:
    """Whether a bfloat16 matrix product is faster than float32 here: measured, since CPUs differ by a factor of 100."""
    if device.type == "cuda":
        return True

    def seconds(dtype: torch.dtype) -> float:
        a = torch.randn(512, 256, dtype=dtype)
        b = torch.randn(256, 256, dtype=dtype)
        a @ b
        start = time.perf_counter()
        a @ b
        return time.perf_counter() - start

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)


@dataclass(frozen=True)
class Losses:
    """Losses of a batch: of z, of r, and the auxiliary one (`motion.py`) where it applies."""

    z: Tensor
    r: Tensor
    motion: Tensor | None


@dataclass(frozen=True)
class Update:
    """What an update was: task, its losses before it, and gradient norms before clipping (total, z, r, both)."""

    task: str
    loss: float
    parts: dict[str, float]
    norms: dict[str, float] = field(default_factory=dict)


class Learner:
    """Weights and how they change. With several processes every one calls every method."""

    def __init__(
        self,
        config: TrainConfig,
        weights: RaysAsPixels | None,
        shape: ModelConfig,
        processes: Processes | None = None,
        compile_model: bool = False,
        recompute: bool = False,
    ) -> None:
        """Start from `weights` (None on all processes but the first); `config` must be settled, its precision too:
        auto is float32 here."""
        self.config, self.processes = config, processes or Processes()
        self.device = self.processes.device
        self.bf16 = config.precision == "bfloat16"
        motion = motion_head(shape) if self.processes.first else None
        if self.processes.count == 1:
            self.model, self.motion, average = weights.to(self.device), motion.to(self.device), None
        else:
            split_bf16 = self.bf16 and self.device.type == "cuda"
            self.model, average, self.motion = split_model(shape, weights, motion, self.processes, split_bf16)
        self.ema = Ema(self.model, config.ema, average)
        self.optimizers = make_optimizers(self.model, config, self.motion)
        self.usual_loss: dict[str, float] = {}
        self.ray_weights: tuple[Tensor, Tensor] | None = None
        blocks = self.model.transformer.blocks
        if recompute:
            for block in blocks:
                block.forward = partial(checkpoint, block.forward, use_reentrant=False)
        self.net: nn.Module | Callable = self.model.transformer
        if compile_model and self.processes.count == 1:
            self.net = torch.compile(self.model.transformer)
        elif compile_model:  # each block by itself: between them parameters are gathered
            for block in blocks:
                block.compile()

    @property
    def modules(self) -> dict[str, nn.Module]:
        """What a state holds."""
        return {"model": self.model, "ema": self.ema.model, "motion": self.motion}

    def losses(self, batch: TaskBatch, step: int, part: int = 0) -> Losses:
        """Losses of one part of a step's batch at the current weights."""
        seed = int(np.random.SeedSequence([self.config.seed, step, part, 1]).generate_state(1, np.uint64)[0] >> 1)
        generator = torch.Generator(self.device).manual_seed(seed)
        patch, weight = self.model.config.transformer.patch, self.config.cosine_weight
        (z, r), (u_z, u_r) = noised(self.model, batch, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            given = (z, r, batch.t_z, batch.t_r, batch.windows.reference, batch.layout)
            v_z, v_r, *features = self.net(*given, **({"features": True} if self._has_motion({part: batch}) else {}))
        moving, channels = batch.t_z < 1, None
        if batch.task == "views" and self.model.config.views == "warped":
            pixels = picture_weights(1 / self.model.normaliser.image_scale)
            moving = moving * relative_weights(z + (1 - batch.t_z)[..., None, None, None] * u_z, moving, pixels)
            channels = pixels, pixels
        loss_z = velocity_loss(v_z.float(), u_z, moving, patch, weight, channels)
        loss_r = velocity_loss(v_r.float(), u_r, batch.t_r < 1, patch, weight, self.ray_weights)
        if not features:
            return Losses(loss_z, loss_r, None)
        motion = motion_loss(self.motion(features[0].float(), z.shape[2]), batch.windows, batch.groups)
        return Losses(loss_z, loss_r, motion)

    def update(self, parts: dict[int, TaskBatch], step: int) -> Update:
        """Change the weights once by the batch whose parts, as far as they are this process's, are given.

        Raises:
            FloatingPointError: loss or gradient is not finite; nothing of the step is kept.
        """
        task = next(iter(parts.values())).task
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate(step)
        if task not in self.usual_loss or (self._has_motion(parts) and "motion" not in self.usual_loss):
            with torch.no_grad():
                first = self._mean([self.losses(batch, step, part) for part, batch in parts.items()])
            self._remember(task, first, rate=1.0)
        seen = []
        for part, batch in parts.items():
            found = self.losses(batch, step, part)
            # The tasks' losses differ by a factor of ten; each is taken relative to its own recent size, or pose would
            # hardly be heard among the gradients of the others.
            total = (found.z + found.r) / max(self.usual_loss[task], 1e-6)
            if found.motion is not None:
                total = total + self.config.motion_weight * found.motion / max(self.usual_loss["motion"], 1e-6)
            (total / len(parts)).backward()
            seen.append(found)
        losses = self._mean(seen)
        norms = clip_gradients(self.model.transformer, self.config.clip, self.processes.add)
        value = losses["z"] + losses["r"]
        if not (np.isfinite(value) and np.isfinite(norms["total"])):
            raise FloatingPointError(
                f"loss {value} and gradient norm {norms['total']} at step {step} ({task}); lower lr ({self.config.lr})"
            )
        self._remember(task, losses, rate=0.02)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, step)
        return Update(task, value, losses, norms)

    def _has_motion(self, parts: dict[int, TaskBatch]) -> bool:
        batch = next(iter(parts.values()))
        wanted = batch.task == "pose" and batch.windows.inverse_depth is not None and self.config.motion_weight > 0
        return wanted and isinstance(self.motion, MotionHead)

    def _mean(self, found: list[Losses]) -> dict[str, float]:
        """Mean over the parts of all processes."""
        rows = [[x.z.item(), x.r.item(), 0.0 if x.motion is None else x.motion.item()] for x in found]
        sums = self.processes.add([*np.sum(rows, axis=0), float(len(rows))])
        names = ["z", "r"] if found[0].motion is None else ["z", "r", "motion"]
        return {name: total / sums[-1] for name, total in zip(names, sums, strict=False)}

    def _remember(self, task: str, losses: dict[str, float], rate: float) -> None:
        for name, value in ((task, losses["z"] + losses["r"]), ("motion", losses.get("motion"))):
            if value is not None:
                usual = self.usual_loss.get(name, value)
                self.usual_loss[name] = usual + rate * (value - usual)
