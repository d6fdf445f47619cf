# SPDX-License-Identifier: Apache-2.0
"""The training loop: draws batches, updates the weights, and writes states, logs, evaluations and pictures.

A run is the folder OUT:

    config.yaml           every setting; `rays-as-pixels train --config OUT/config.yaml` is this run again
    states/00000500/      what a run continues from (`state.py`): the last and `keep` before it
    best/                 the averaged weights with the best evaluation, as a checkpoint
    log.jsonl             losses, gradient norms and evaluations; tensorboard/ shows the same
    pictures/             contact sheets
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from rays_as_pixels_model.checkpoint import CheckpointError, load_checkpoint, read_config, save_checkpoint
from rays_as_pixels_model.config import ModelConfig, WanTransformerConfig
from rays_as_pixels_model.files import write_png, write_text
from rays_as_pixels_model.joint import RaysAsPixels

from .cli_config import differences
from .config import RunConfig, TrainConfig
from .data.procedural import ClipConfig
from .data.source import ClipArrays, ClipSource
from .data.views import LATENT_VIEWS
from .data.windows import windows_in_parts
from .distributed import Processes
from .feed import Drawn, Feed
from .fit_codec import fit_codec
from .learner import Learner, Update, bf16_pays, model_config
from .loss import ray_weights
from .pictures import contact_sheet
from .records import Records
from .state import load_state, read_facts, save_state, states
from .tasks import draw_step, to_device
from .validation import estimate, read_held_out, render_held_out, score, way_of_scoring

_FIXED = ("preset", "attention", "camera_encoding", "optimizer")  # a state fits no other


class Trainer:
    """Everything a run needs; `run` trains to the last step. With several processes each makes one."""

    def __init__(
        self,
        config: TrainConfig,
        run: RunConfig,
        source: ClipSource,
        processes: Processes | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.run_config, self.source, self.out = run, source, Path(run.out)
        self.processes = processes or Processes(device=torch.device(run.device))
        self.say = say if self.processes.first else lambda text: None
        past = states(self.out)
        facts = read_facts(past[-1]) if past else None
        shape = self._shape(config, facts)
        self._check_source(config, shape)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in RaysAsPixels(shape).parameters())
        self.config = self._with_precision(config, facts).settled(parameters, self.processes.count)
        self.step, self.windows_seen, self.seconds = 0, 0, 0.0
        self.best: dict = {}
        self._recent: dict = {}
        self._source_state = at_start = source.state()
        self._held_out: ClipArrays | None = None
        self._recover()
        if not past and (self.out / "last.safetensors").exists():
            raise ValueError(f"{self.out} holds a run of an older version; use another --out with --init")
        if facts is not None:
            self._compare(past[-1], facts)
        torch.manual_seed(config.seed)
        self.learner = Learner(
            self.config,
            self._weights(shape, fresh=facts is None) if self.processes.first else None,
            shape,
            self.processes,
            run.compile,
            run.recompute,
        )
        if run.eval_data is not None:
            self._clips()  # what is wrong with them is told now, not at the first evaluation
        if facts is not None:
            load_state(past[-1], self.learner.modules, self.learner.optimizers)
            self._restore(facts)
        else:
            self._measure_ray_weights()
            source.restore(at_start)
            self.save()  # the codec is fitted: from here on a run can be repeated

    # -- starting -------------------------------------------------------------------------------------------------

    def _check_source(self, config: TrainConfig, shape) -> None:
        if (self.source.height, self.source.width) != (shape.height, shape.width):
            raise ValueError(
                f"clips are {self.source.height}x{self.source.width}, but preset {config.preset!r} takes "
                f"{shape.height}x{shape.width}"
            )
        latents = hasattr(self.source, "check_codec")
        if shape.views == "warped" and config.tasks[1] > 0 and latents:
            raise ValueError(LATENT_VIEWS)
        if shape.pose_passes > 1 and config.tasks[0] > 0 and (latents or not config.turned):
            why = "latents cannot be turned" if latents else "turned is 0"
            self.say(f"pose steps train the first of the model's {shape.pose_passes} passes only: {why}")
        longest = max(shape.frames if config.tasks[0] + config.tasks[2] > 0 else 0, config.view_frames)
        if config.mixed:
            longest = max(longest, shape.frames, config.mixed_images)
        if self.source.clip_frames < longest:
            raise ValueError(f"clips have {self.source.clip_frames} frames, but a window takes {longest}")

    def _with_precision(self, config: TrainConfig, facts: dict | None) -> TrainConfig:
        """Decide once in a run what precision `auto` is: a timing, which could come out otherwise when it continues."""
        if config.precision != "auto":
            return config
        precision = facts["config"]["precision"] if facts is not None else "auto"
        if precision == "auto":
            first = self.processes.first  # who decides for all
            pays = self.processes.add([float(first and bf16_pays(self.processes.device))])[0] > 0
            precision = "bfloat16" if pays else "float32"
            self.say(f"precision auto: {precision}, the faster one here; the run keeps it")
        return replace(config, precision=precision)

    def _recover(self) -> None:
        """Put the best weights back in place if a kill came between the two renames that replace them."""
        old = self.out / "best.old"
        if self.processes.first and old.is_dir() and not (self.out / "best").exists():
            os.replace(old, self.out / "best")

    def _compare(self, state: Path, facts: dict) -> None:
        """Say what differs from the stored config and data; refuse what the state cannot go on with."""
        stored, given = facts["config"], self.config.to_dict()
        fixed = [d for d in differences({k: stored[k] for k in _FIXED if k in stored}, given)]
        if fixed:
            raise ValueError(
                f"{self.out} holds a run with another {fixed[0]}; give its own settings (OUT/config.yaml), or "
                "another --out with --init"
            )
        before = {"data": facts["data"]} if "data" in facts else {}
        if changed := differences(stored | before, given | {"data": self.source.contents}):
            self.say(f"continuing from {state.name} with changed settings: {', '.join(changed)}")

    def _shape(self, config: TrainConfig, facts: dict | None) -> ModelConfig:
        """Return what is trained: as the state or the checkpoint to start from has it, else as the preset says."""
        wanted = model_config(config)
        if facts is not None:
            return ModelConfig.from_dict(facts["model"])
        if self.run_config.init is None:  # what is never turned knows one pass
            return wanted if config.turned else replace(wanted, pose_passes=1)
        _, found, _ = read_config(self.run_config.init)
        for name, a, b in (
            ("preset", found.preset, wanted.preset),
            ("attention", found.transformer.attention, wanted.transformer.attention),
            ("camera_encoding", found.camera_encoding, wanted.camera_encoding),
        ):
            if a != b:
                raise CheckpointError(f"checkpoint {self.run_config.init} has {name} {a!r}, but {b!r} was asked for")
        for name in ("views", "pose_passes"):
            if (a := getattr(found, name)) != (b := getattr(wanted, name)):
                self.say(f"{name}: {a}, as in {self.run_config.init}; new models of this preset: {b}")
        return found

    def _weights(self, shape: ModelConfig, fresh: bool) -> RaysAsPixels:
        """Make the model to start from: of a checkpoint, or new with a codec fitted to the clips."""
        latents = hasattr(self.source, "check_codec")  # the data is encoded already: the codec must be that one
        if fresh and self.run_config.init is not None:
            model = load_checkpoint(self.run_config.init).float().train()  # a file may hold bfloat16
        else:
            model = RaysAsPixels(shape)
        if fresh and not latents and not model.normaliser.rays_fitted:  # new, or imported from Wan
            fit_codec(model, self.source, device=self.processes.device)
        if fresh and latents:
            self.source.check_codec(model)
        return model

    def _restore(self, facts: dict) -> None:
        self.step, self.windows_seen, self.seconds = facts["step"], facts["windows_seen"], facts["seconds"]
        self.best, self._source_state = facts["best"], facts["source"]
        self._recent = facts.get("recent", {})
        self.learner.usual_loss = facts["usual_loss"]
        self.learner.ray_weights = tuple(torch.tensor(w, device=self.learner.device) for w in facts["ray_weights"])
        self.source.restore(self._source_state)

    def _measure_ray_weights(self) -> None:
        """Measure the weights of the ray channels once, on windows of the source; the state keeps them."""
        model, device, rng = self.learner.model, self.learner.device, np.random.default_rng([self.config.seed, 0, 0])
        wan = isinstance(model.config.transformer, WanTransformerConfig)  # every raxel image passes its VAE
        count = max(1280 // model.config.frames, 16) if wan else 256
        parts = windows_in_parts(self.source, count, rng, model.config.frames, max_stride=self.config.max_stride)
        rng.integers(1 << 62)  # what `draw_step` draws here: the windows are those of a batch of `count` at step 0

        def rays(windows) -> tuple[torch.Tensor, torch.Tensor]:
            encoded = hasattr(windows, "encoded")
            r = windows.encoded()[1].to(device) if encoded else model.encode_rays(windows.raxels().to(device))
            return r, windows.reference.to(device)

        self.learner.ray_weights = ray_weights(map(rays, parts))

    # -- running --------------------------------------------------------------------------------------------------

    def run(
        self,
        on_log: Callable[[dict], None] = lambda line: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train to the last step, or until `stop` says so between two steps; saves on the way and at the end.

        Returns:
            Whether the last step was reached.

        Raises:
            FloatingPointError: loss or gradient is not finite; nothing of that step is kept.
        """
        run = self.run_config
        records = Records(self.out, self.step, self.processes.first, run.tensorboard, self._recent)
        if records.note:
            self.say(records.note)
        feed = Feed(self._draw, self.step, self.config.steps, run.prefetch)
        try:
            while self.step < self.config.steps and not self.processes.add([float(stop())])[0]:
                start = time.perf_counter()
                drawn = feed.next()
                parts = {k: to_device(batch, self.learner.device) for k, batch in drawn.parts.items()}
                update = self.learner.update(parts, self.step)
                self._source_state = drawn.state
                self.step += 1
                self.windows_seen += self.config.batch
                self.seconds += time.perf_counter() - start
                records.add(update)
                self._recent = records.recent
                if self.step % run.log_every == 0:
                    on_log(records.line(self._facts_of(update, drawn)))
                self._look_at(records)
                if self.step % run.save_every == 0:
                    self.save()
        finally:
            feed.close()
            records.close()
        self.save()
        return self.step >= self.config.steps

    def _draw(self, step: int) -> Drawn:
        mine = self.processes.mine(self.config.parts)
        parts = draw_step(self.source, self.config, self.learner.model.config, step, mine)
        return Drawn(step, parts, self.source.state(), getattr(self.source, "clips", None))

    def _facts_of(self, update: Update, drawn: Drawn) -> dict:
        return {
            "step": self.step,
            "windows": self.windows_seen,
            "seconds": round(self.seconds, 1),
            **({} if drawn.clips is None else {"clips": drawn.clips}),
            "task": update.task,
            "loss": update.loss,
            "lr": self.config.learning_rate(self.step - 1),
        }

    def _look_at(self, records: Records) -> None:
        """Evaluate and draw, where it is time to."""
        run = self.run_config
        evaluate = run.eval_every and self.step % run.eval_every == 0
        draw = run.pictures_every and self.step % run.pictures_every == 0
        if not (evaluate or draw):
            return
        found = estimate(self.learner.ema.model, self._clips(), self.learner.device)
        if evaluate:
            result = score(found, self.config.tasks, self.config.mixed)
            records.write({"step": self.step, **{f"eval/{k}": v for k, v in result.items()}})
            passes = self.learner.model.config.pose_passes
            way = way_of_scoring(self._clips(), passes, self.config.tasks, self.config.mixed)
            if self.best and self.best.get("scored") != way:
                self._score_best_anew(way)
            if not self.best or result["score"] < self.best["score"]:
                self.best = {"step": self.step, **result, "scored": way}
                self.export(self.out / "best", f"# Best weights of a run\n\nStep {self.step}: {result}\n")
        if draw and self.processes.first:
            sheet = contact_sheet(found)
            write_png(self.out / "pictures" / f"{self.step:08d}.png", sheet)
            records.picture(self.step, "held_out", sheet)

    def _score_best_anew(self, way: dict) -> None:
        """Score the best weights in the way of this run, or forget their score where they cannot be read as they are:
        among several processes, which hold a model split."""
        how = ", ".join(differences(self.best.get("scored", {}), way)) or "it is not known how"
        said = f"the best weights, of step {self.best['step']}, were scored in another way ({how})"
        if self.processes.count > 1 or not (self.out / "best").is_dir():
            self.say(f"{said}: their score counts no more")
            self.best = {}
            return
        found = estimate(load_checkpoint(self.out / "best"), self._clips(), self.learner.device)
        result = score(found, self.config.tasks, self.config.mixed)
        self.say(f"{said}: score {self.best['score']} -> {result['score']}")
        self.best = {"step": self.best["step"], **result, "scored": way}

    def _clips(self) -> ClipArrays:
        if self._held_out is None:
            shape, count = self.learner.model.config, self.run_config.eval_clips
            if self.run_config.eval_data is not None:
                self._held_out = read_held_out(self.run_config.eval_data, count, shape, self.say)
                return self._held_out
            clip = ClipConfig(
                frames=self.source.clip_frames, height=shape.height, width=shape.width,
                scenes=self.config.scenes, difficulty=self.config.difficulty,
            )  # fmt: skip
            self._held_out = render_held_out(count, clip, self.run_config.textures)
        return self._held_out

    # -- writing --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state to continue from."""
        facts = {
            "step": self.step,
            "windows_seen": self.windows_seen,
            "seconds": self.seconds,
            "usual_loss": self.learner.usual_loss,
            "ray_weights": [w.tolist() for w in self.learner.ray_weights],
            "best": self.best,
            "recent": {name: list(values) for name, values in self._recent.items()},
            "source": self._source_state,
            "data": self.source.contents,
            "config": self.config.to_dict(),
            "model": self.learner.model.config.to_dict(),
        }
        modules, optimizers = self.learner.modules, self.learner.optimizers
        save_state(self.out, self.step, modules, optimizers, facts, self.processes, self.run_config.keep)

    def export(self, folder: Path, card: str) -> None:
        """Write the averaged weights as a checkpoint."""
        training = {
            "step": self.step,
            "windows_seen": self.windows_seen,
            "seconds": round(self.seconds),
            **({"evaluation": self.best} if self.best.get("step") == self.step else {}),
            "data": self.source.contents,
            **self.config.to_dict(),
        }
        whole = self._whole(self.learner.ema.model)
        if self.processes.first:
            save_checkpoint(folder, whole, card, training)
        self.processes.wait()

    def _whole(self, model: RaysAsPixels) -> RaysAsPixels | None:
        """Gather a model that is split, on the first process."""
        if self.processes.count == 1:
            return model
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if not self.processes.first:
            return None
        whole = RaysAsPixels(model.config)
        whole.load_state_dict(state)
        return whole

    def write_config(self) -> str:
        """Write OUT/config.yaml, the settled config; return its text."""
        import yaml

        settings = {**self.config.to_dict(), **self.run_config.to_dict()}
        settings["tasks"] = list(settings["tasks"])
        text = yaml.safe_dump(settings, sort_keys=False)
        if self.processes.first:
            write_text(self.out / "config.yaml", text)
        return text
