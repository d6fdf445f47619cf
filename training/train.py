# SPDX-License-Identifier: Apache-2.0
"""Train a checkpoint on procedural clips.

rays-as-pixels train --out out/train                                  # the micro preset on this machine
rays-as-pixels train --out out/train --textures PHOTOS --workers 2    # with a folder of photos as textures
rays-as-pixels train --out out/train                                  # again: continues from the last save
rays-as-pixels train --out out/train --export CHECKPOINT              # write the averaged weights at the end
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

from .config import TrainConfig

_NUMBERS = (
    "steps",
    "batch",
    "lr",
    "warmup",
    "decay",
    "weight_decay",
    "clip",
    "ema",
    "cosine_weight",
    "motion_weight",
    "known_intrinsics",
    "pose_at_start",
    "view_frames",
    "max_stride",
    "slots",
    "min_clips",
    "seed",
)


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(
        prog="rays-as-pixels train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: state, log, clips")
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--pool", type=Path, help="folder of rendered clips (default: OUT/clips)")
    parser.add_argument("--textures", help="folder of photos used as textures beside the built-in ones")
    parser.add_argument("--workers", type=int, default=1, help="processes that render clips; 0 uses the pool as it is")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a C++ compiler on a CPU)")
    parser.add_argument("--tasks", help="shares of pose, views and joint steps, e.g. 0.5,0.35,0.15")
    parser.add_argument("--init", type=Path, help="checkpoint folder to start from, when OUT holds no run yet")
    parser.add_argument("--save-every", type=int, default=500, help="steps between saves")
    parser.add_argument("--log-every", type=int, default=50, help="steps between lines of OUT/log.jsonl")
    parser.add_argument("--minutes", type=float, help="stop (and save) after this long, though steps remain")
    parser.add_argument("--export", type=Path, help="write the averaged weights as a checkpoint folder at the end")
    defaults = TrainConfig()
    for name in _NUMBERS:
        value = getattr(defaults, name)
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=None, help=f"default {value}")
    return parser


def config_from_args(args: argparse.Namespace) -> TrainConfig:
    """Build the run's configuration; raises ValueError with the offending value."""
    given = {name: getattr(args, name) for name in _NUMBERS if getattr(args, name) is not None}
    if args.tasks:
        try:
            given["tasks"] = tuple(float(x) for x in args.tasks.split(","))
        except ValueError:
            raise ValueError(f"--tasks takes three numbers with commas between, got {args.tasks!r}") from None
    return TrainConfig(preset=args.preset, **given)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = make_parser().parse_args(argv)
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from rays_as_pixels_model.config import ConfigError, preset

    from .data.procedural import ClipConfig, ClipPool
    from .loop import Trainer

    console = Console(stderr=True)
    try:
        config = config_from_args(args)
        model_config = preset(config.preset)
        clip = ClipConfig(frames=max(13, 2 * model_config.frames), height=model_config.height, width=model_config.width)
        folder = args.pool or args.out / "clips"
        pool = ClipPool(folder, None if (Path(folder) / "pool.json").exists() else clip, config.slots)
    except (ValueError, ConfigError) as error:
        print(f"rays-as-pixels train: error: {error}", file=sys.stderr)
        return 2
    if pool.slots != config.slots:
        config = replace(config, slots=pool.slots)
    # The run ends between two steps, with its state saved; the signals may come in the middle of one.
    interrupted = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: interrupted.set())
    workers = _start_workers(folder, args)
    try:
        _wait_for_clips(pool, config, workers, interrupted, console)
        trainer = Trainer(config, pool, args.out, args.device, args.compile, args.init)
        (args.out / "train_config.json").write_text(json.dumps(config.to_dict(), indent=1) + "\n")
        deadline = time.monotonic() + 60 * args.minutes if args.minutes else None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
        )
        with Progress(*columns, console=console) as progress:
            bar = progress.add_task("training", total=config.steps, completed=trainer.step, loss="")

            def show(line: dict) -> None:
                losses = " ".join(f"{k[5:]} {v:.3f}" for k, v in line.items() if k.startswith("loss/"))
                rate = line["windows"] / max(line["seconds"], 1e-9)
                progress.update(bar, completed=line["step"], loss=f"{losses}  {rate:.0f} windows/s")

            trainer.run(
                save_every=args.save_every,
                log_every=args.log_every,
                on_log=show,
                stop=lambda: interrupted.is_set() or (deadline is not None and time.monotonic() > deadline),
            )
        if interrupted.is_set():
            console.print(f"stopped; the same command continues from {args.out}")
            return 130
        if args.export:
            trainer.export(args.export, _card(trainer, args))
            console.print(f"wrote {args.export}")
        return 0
    except (ValueError, FloatingPointError) as error:
        print(f"rays-as-pixels train: error: {error}", file=sys.stderr)
        return 1
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def _start_workers(folder: Path, args: argparse.Namespace) -> list[subprocess.Popen]:
    """Start the renderers; each fills its own residue class of the pool's slots."""
    command = [sys.executable, "-m", "rays_as_pixels_training.data.procedural", str(folder), "--with-parent"]
    if args.textures:
        command += ["--textures", args.textures]
    return [
        subprocess.Popen([*command, "--stride", str(args.workers), "--offset", str(i)]) for i in range(args.workers)
    ]


def _wait_for_clips(pool, config: TrainConfig, workers: list, interrupted: threading.Event, console) -> None:
    wanted = min(config.min_clips, pool.slots)
    while (count := len(pool.ready())) < wanted and not interrupted.is_set():
        if not workers or any(worker.poll() is not None for worker in workers):
            raise ValueError(
                f"the pool holds {count} clips, training starts at {wanted} (--min-clips), and no worker renders more; "
                "use --workers 1, or see above why the workers ended"
            )
        console.print(f"rendering clips: {count} of {wanted} before the first step")
        interrupted.wait(5)


def _card(trainer, args: argparse.Namespace) -> str:
    """The model card that goes beside the weights."""
    config, size = trainer.config, trainer.model.config
    rows = "\n".join(f"- {f.name}: {getattr(config, f.name)}" for f in fields(config))
    manifest = Path(args.textures or "") / "MANIFEST.csv"
    listed = ", sources and licences in its MANIFEST.csv" if args.textures and manifest.is_file() else ""
    photos = f"a folder of photos ({Path(args.textures).name}{listed}) and " if args.textures else ""
    return f"""# Rays as Pixels, preset {config.preset}

A joint video and camera-ray diffusion model trained from scratch by this package on rendered scenes:
{trainer.windows_seen} windows in {trainer.step} steps. Textures: {photos}the photos of
scikit-image and seeded noise. Licence: Apache-2.0. Evaluation: docs/training_log.md.

Limits: static scenes, small motion between frames, {size.width}x{size.height} pixels, translation only up to scale.

The last run's configuration:

{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
