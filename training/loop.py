# SPDX-License-Identifier: Apache-2.0
"""The training loop: one step a batch of one task, average of the weights, saves, resume, log."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rays_as_pixels_model.checkpoint import load_checkpoint, save_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.joint import RaysAsPixels

from .config import TrainConfig
from .ema import Ema
from .fit_codec import fit_codec
from .loss import ray_weights, velocity_loss
from .motion import MotionHead, motion_loss
from .optimizer import Muon
from .state import load_state, save_state
from .tasks import TASKS, TaskBatch, draw_task, noised

STATE = "last.safetensors"


def make_optimizers(model: RaysAsPixels, config: TrainConfig, motion: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest (docs/training_log.md compares them)."""
    matrices = [p for n, p in model.transformer.blocks.named_parameters() if p.ndim == 2 and "modulation" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in chosen] + list(motion.parameters())
    return [
        Muon(matrices, lr=config.lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(rest, lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98)),
    ]


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


class Trainer:
    """Everything a run needs; `run` trains to the last step."""

    def __init__(
        self,
        config: TrainConfig,
        pool,
        out: Path,
        device: str = "cpu",
        compile_model: bool = False,
        init: Path | None = None,
    ) -> None:
        self.config, self.pool, self.out = config, pool, Path(out)
        self.device = torch.device(device)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.seed)
        self.model = RaysAsPixels(preset(config.preset))
        wanted = (self.model.config.height, self.model.config.width)
        if (pool.config.height, pool.config.width) != wanted:
            raise ValueError(
                f"clips are {pool.config.height}x{pool.config.width}, but preset {config.preset!r} takes "
                f"{wanted[0]}x{wanted[1]}"
            )
        self.step, self.windows_seen, self.seconds = 0, 0, 0.0
        self.usual_loss: dict[str, float] = {}
        stored = None
        fresh = not (self.out / STATE).exists()
        if fresh and init is not None:
            self.model.load_state_dict(load_checkpoint(init, preset=config.preset).state_dict())
        elif fresh:
            fit_codec(self.model, pool)
        self.model.to(self.device)
        size = self.model.config
        self.motion = MotionHead(size.transformer.width, size.transformer.patch, size.frames).to(self.device)
        self.ema = Ema(self.model, config.ema)
        self.optimizers = make_optimizers(self.model, config, self.motion)
        if not fresh:
            facts = load_state(self.out / STATE, self._modules(), self.optimizers)
            self.step, self.windows_seen, self.seconds = facts["step"], facts["windows_seen"], facts["seconds"]
            self.usual_loss = facts.get("usual_loss", {})
            stored = facts.get("ray_weights")
        self.ray_weights = tuple(torch.tensor(w, device=self.device) for w in stored) if stored else self._ray_weights()
        self.autocast = bf16_pays(self.device)
        self._net: nn.Module | Callable = (
            torch.compile(self.model.transformer) if compile_model else self.model.transformer
        )

    def _ray_weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Measure the weights of the ray channels once, on windows of the pool; the state keeps them."""
        pose_only = replace(self.config, tasks=(1, 0, 0), batch=256)
        windows = draw_task(self.pool, self.pool.ready(), pose_only, self.model.config, 0).windows
        rays = self.model.encode_rays(windows.raxels().to(self.device))
        return ray_weights(rays, windows.reference.to(self.device))

    def loss(self, batch: TaskBatch) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Loss of one batch at the current weights, and the auxiliary one (`motion.py`) where it applies."""
        generator = torch.Generator(self.device).manual_seed(self.config.seed * 1_000_003 + self.step)
        patch, weight = self.model.config.transformer.patch, self.config.cosine_weight
        (z, r), (u_z, u_r) = noised(self.model, batch, generator)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            v_z, v_r, features = self._net(
                z, r, batch.t_z, batch.t_r, batch.windows.reference, batch.groups, features=True
            )
        loss = velocity_loss(v_z.float(), u_z, batch.t_z < 1, patch, weight) + velocity_loss(
            v_r.float(), u_r, batch.t_r < 1, patch, weight, self.ray_weights
        )
        if batch.task != "pose" or batch.windows.inverse_depth is None or not self.config.motion_weight:
            return loss, None
        return loss, motion_loss(self.motion(features.float(), z.shape[2]), batch.windows, batch.groups)

    def train_step(self, batch: TaskBatch) -> float:
        """One update; returns the loss."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate(self.step)
        loss, motion = self.loss(batch)
        value = loss.item()
        # The tasks' losses differ by a factor of ten; each is taken relative to its own recent size, or pose would
        # hardly be heard among the gradients of the others.
        usual = self.usual_loss.get(batch.task, value)
        total = loss / max(usual, 1e-6)
        if motion is not None:
            usual_motion = self.usual_loss.get("motion", motion.item())
            total = total + self.config.motion_weight * motion / max(usual_motion, 1e-6)
            self.usual_loss["motion"] = usual_motion + 0.02 * (motion.item() - usual_motion)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        if not (np.isfinite(value) and torch.isfinite(norm)):
            raise FloatingPointError(
                f"loss {value} and gradient norm {norm.item()} at step {self.step} ({batch.task}); lower lr "
                f"({self.config.lr}) and continue from {self.out / STATE}"
            )
        self.usual_loss[batch.task] = usual + 0.02 * (value - usual)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.ema.update(self.model, self.step)
        self.step += 1
        self.windows_seen += len(batch.windows.frames)
        return value

    def _modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "ema": self.ema.model, "motion": self.motion}

    def save(self) -> None:
        """Write the state to continue from."""
        facts = {
            "step": self.step,
            "windows_seen": self.windows_seen,
            "seconds": self.seconds,
            "usual_loss": self.usual_loss,
            "ray_weights": [w.tolist() for w in self.ray_weights],
            "config": self.config.to_dict(),
        }
        save_state(self.out / STATE, self._modules(), self.optimizers, facts)

    def export(self, folder: Path, card: str) -> Path:
        """Write the averaged weights as a checkpoint."""
        training = {
            "step": self.step,
            "windows_seen": self.windows_seen,
            "seconds": round(self.seconds),
            **self.config.to_dict(),
        }
        return save_checkpoint(folder, self.ema.model, card, training)

    def run(
        self,
        *,
        save_every: int = 500,
        log_every: int = 50,
        on_log: Callable[[dict], None] | None = None,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to config.steps, or until `stop` says so between two steps; saves on the way and at the end.

        Raises:
            FloatingPointError: loss or gradient is not finite; nothing of that step is kept.
        """
        recent = {task: deque(maxlen=200) for task in TASKS}
        while self.step < self.config.steps and not stop():
            start = time.perf_counter()
            batch = draw_task(self.pool, self._ready(), self.config, self.model.config, self.step)
            batch = to_device(batch, self.device)
            loss = self.train_step(batch)
            recent[batch.task].append(loss)
            self.seconds += time.perf_counter() - start
            if self.step % log_every == 0:
                self._log(recent, loss, on_log)
            if self.step % save_every == 0:
                self.save()
        self.save()

    def _ready(self) -> np.ndarray:
        if self.step % 100 == 0 or not hasattr(self, "_slots"):
            self._slots = self.pool.ready()
        return self._slots

    def _log(self, recent: dict[str, deque], loss: float, on_log: Callable[[dict], None] | None) -> None:
        line = {
            "step": self.step,
            "windows": self.windows_seen,
            "seconds": round(self.seconds, 1),
            "clips": len(self._slots),
            "loss": loss,
            **{f"loss/{k}": round(float(np.mean(v)), 4) for k, v in recent.items() if v},
            **({"loss/motion": round(self.usual_loss["motion"], 4)} if "motion" in self.usual_loss else {}),
        }
        with open(self.out / "log.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")
        if on_log is not None:
            on_log(line)


def to_device(batch: TaskBatch, device: torch.device) -> TaskBatch:
    """Move a batch."""
    if device.type == "cpu":
        return batch
    w = batch.windows
    moved = type(w)(
        w.frames.to(device),
        w.T_reference_camera.to(device),
        w.intrinsics.to(device),
        w.reference.to(device),
        None if w.inverse_depth is None else w.inverse_depth.to(device),
    )
    return TaskBatch(batch.task, moved, batch.groups, batch.t_z.to(device), batch.t_r.to(device))
