# SPDX-License-Identifier: Apache-2.0
"""Train a model on rendered scenes or on shards of your own data.

    rays-as-pixels train --out out/train                                  # the micro preset on this machine
    rays-as-pixels train --out out/train                                  # again: continues from the last state
    rays-as-pixels train --out out/train --textures PHOTOS --workers 2    # with a folder of photos as textures
    rays-as-pixels train --config run.yaml --lr 0.001                     # settings from a file, arguments override it
    rays-as-pixels train --out out/train --export CHECKPOINT              # write the averaged weights at the end
    torchrun --nproc-per-node 8 -m rays_as_pixels_training.train ...      # several GPUs: docs/training.md
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields, replace
from pathlib import Path

from .cli_config import ArgumentProblem, Settings, parse
from .config import RunConfig, TrainConfig, clip_frames

_PROG = "rays-as-pixels train"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        settings = parse(Settings, sys.argv[1:] if argv is None else argv, _PROG, __doc__)
    except ArgumentProblem as problem:
        return _fail(problem, 2)
    from rays_as_pixels_model.config import ConfigError

    from .distributed import join, leave
    from .learner import model_config

    try:
        model_config(settings.train)
        processes = join(settings.run.device)
    except (ValueError, ConfigError) as error:
        return _fail(error, 2)
    try:
        return _train(settings, processes)
    finally:
        leave()


def _fail(error: object, code: int) -> int:
    print(f"{_PROG}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _train(settings: Settings, processes) -> int:
    from rich.console import Console

    from rays_as_pixels_model.checkpoint import check_place
    from rays_as_pixels_model.files import check_writable
    from rays_as_pixels_model.scenes import TextureBank

    from .loop import Trainer

    run = settings.run
    console = Console(stderr=True, quiet=not processes.first, highlight=False)
    # The run ends between two steps, with its state saved; the signals may come in the middle of one.
    interrupted = threading.Event()
    before = {n: signal.signal(n, lambda *_: interrupted.set()) for n in (signal.SIGTERM, signal.SIGINT)}
    workers: list[subprocess.Popen] = []
    try:
        try:
            if run.renew and processes.count > 1:
                raise ValueError(f"renew needs a process that renders, and {processes.count} train: leave it out")
            if run.textures:
                TextureBank.default(folder=run.textures)  # a wrong folder is told here, not by each worker
            check_writable(run.out / "states")
            if run.export:
                check_place(run.export)
            source = _open_source(settings, processes)
            processes.agree(_of_all(settings, source))
        except ValueError as error:
            return _fail(error, 2)
        _say_unused(run, processes, console)
        if run.data is None:
            if processes.count == 1:
                workers += start_workers(run, source.pools)
            wait_for_clips(source, settings.train, workers, interrupted, console)
            settings = replace(settings, train=replace(settings.train, slots=source.slots))
        if interrupted.is_set():
            return 130
        trainer = Trainer(settings.train, run, source, processes, console.print)
        judged = f"; evaluations are on held-out {settings.train.scenes} scenes" if run.eval_data is None else ""
        console.print(f"trained on {source.contents}{judged}", markup=False, soft_wrap=True)
        console.print(" ".join(trainer.write_config().replace("\n- ", " ").split("\n")), style="dim")
        deadline = time.monotonic() + 60 * run.minutes if run.minutes else None
        _run_with_bar(
            trainer,
            console,
            lambda: interrupted.is_set() or (deadline is not None and time.monotonic() > deadline),
        )
        if interrupted.is_set():
            console.print(f"stopped; the same command continues from {run.out}")
            return 130
        if run.export:
            trainer.export(run.export, _card(trainer, run))
            console.print(f"wrote {run.export}")
        return 0
    except (ValueError, FloatingPointError, OSError) as error:
        return _fail(error, 1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait()


def _run_with_bar(trainer, console, stop) -> None:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("training", total=trainer.config.steps, completed=trainer.step, loss="")

        def show(line: dict) -> None:
            losses = " ".join(f"{k[5:]} {v:.3f}" for k, v in line.items() if k.startswith("loss/"))
            rate = line["windows"] / max(line["seconds"], 1e-9)
            progress.update(bar, completed=line["step"], loss=f"{losses}  {rate:.0f} windows/s")

        trainer.run(show, stop)
        progress.update(bar, completed=trainer.step)


def _say_unused(run: RunConfig, processes, console) -> None:
    """Say which settings about rendering this run has no use for."""
    names = ("workers", "pool", "textures") if run.data is not None else ("workers",)
    if run.data is not None:
        why = f"clips are those of --data {run.data}"
    elif processes.count > 1:
        why = "several processes render nothing"
    elif len(run.pool) > 1:
        why = "nothing is rendered into several pools"
    else:
        return
    defaults, values = {f.name: f.default for f in fields(RunConfig)}, run.to_dict()
    given = [(name, values[name]) for name in names if getattr(run, name) not in (defaults[name], 0)]
    given = [f"--{name} {' '.join(v) if isinstance(v, list) else v}" for name, v in given]
    if given:
        console.print(f"not used: {', '.join(given)}; {why}", markup=False, soft_wrap=True)


def _of_all(settings: Settings, source) -> dict[str, object]:
    """What must be the same in every process; of paths, which may differ among machines, whether they are given."""
    from .state import states

    run = {k: bool(v) if isinstance(v, str | list) else v for k, v in settings.run.to_dict().items()}
    past = [state.name for state in states(settings.run.out)]
    return {**settings.train.to_dict(), **run, "data": source.contents, "the last state in OUT": past[-1:]}


def _open_source(settings: Settings, processes):
    """Open the shards, or the pools of rendered clips."""
    from .data.latents import open_shards
    from .data.procedural import ClipConfig, ClipPool
    from .data.source import PoolSource
    from .learner import model_config

    if settings.run.data is not None:
        return open_shards(settings.run.data, settings.train.seed)
    config, run, shape = settings.train, settings.run, model_config(settings.train)
    clip = ClipConfig(
        frames=clip_frames(shape.frames), height=shape.height, width=shape.width,
        scenes=config.scenes, difficulty=config.difficulty, ramp=config.ramp,
    )  # fmt: skip
    folders = run.pool or (run.out / "clips",)
    pools = []
    for folder in folders:
        exists = (folder / "pool.json").exists()
        if not exists and (processes.count > 1 or len(folders) > 1):
            takers = "several processes" if processes.count > 1 else "several pools"
            raise ValueError(
                f"{folder} holds no clips, and {takers} take them rendered: run `python -m "
                f"rays_as_pixels_training.data.procedural FOLDER --preset {config.preset} --slots N --limit N` first, "
                "then give --pool FOLDER"
            )
        pools.append(ClipPool(folder, None if exists else clip, config.slots))
    if clip.kind not in (kinds := [pool.config.kind for pool in pools]):
        held = ", ".join(f"{folder} holds clips of {kind} scenes" for folder, kind in zip(folders, kinds, strict=True))
        raise ValueError(
            f"{held}, not of {clip.kind}: give --scenes, --difficulty and --ramp of "
            f"{'one of them' if len(pools) > 1 else 'it'}, or another --pool"
        )
    return PoolSource(*pools, journal=run.out / "clips_seen.jsonl" if processes.count == 1 else None)


def start_workers(run: RunConfig, pools) -> list[subprocess.Popen]:
    """Start the renderers of one pool; each fills its own residue class of its slots, and ends when they are full.

    Several pools are taken as they are.
    """
    if len(pools) > 1:
        return []
    (folder,) = map(str, run.pool or (run.out / "clips",))
    command = [sys.executable, "-m", "rays_as_pixels_training.data.procedural", folder, "--with-parent"]
    if run.textures:
        command += ["--textures", run.textures]
    if not run.renew:
        command += ["--limit", str(pools[0].slots)]
    return [subprocess.Popen([*command, "--stride", str(run.workers), "--offset", str(i)],
                             stdout=subprocess.DEVNULL) for i in range(run.workers)]  # fmt: skip


def wait_for_clips(pool, config: TrainConfig, workers: list, interrupted: threading.Event, console) -> None:
    wanted = min(config.min_clips, pool.slots)
    while (count := len(pool.ready())) < wanted and not interrupted.is_set():
        if not workers or any(worker.poll() not in (None, 0) for worker in workers):
            raise ValueError(
                f"the pool holds {count} clips, training starts at {wanted} (--min-clips), and no worker renders more; "
                "use --workers 1, or see above why the workers ended"
            )
        console.print(f"rendering clips: {count} of {wanted} before the first step")
        interrupted.wait(5)


def _card(trainer, run: RunConfig) -> str:
    """The model card that goes beside the weights."""
    config, size = trainer.config, trainer.learner.model.config
    rows = "\n".join(f"- {f.name}: {getattr(config, f.name)}" for f in fields(config))
    manifest = Path(run.textures or "") / "MANIFEST.csv"
    listed = ", sources and licences in its MANIFEST.csv" if run.textures and manifest.is_file() else ""
    photos = f"a folder of photos ({Path(run.textures).name}{listed}) and " if run.textures else ""
    data = f"shards ({run.data.name})" if run.data else f"rendered scenes ({trainer.source.contents})"
    textures = "" if run.data else f"Textures: {photos}the photos of\nscikit-image and seeded noise. "
    return f"""# Rays as Pixels, preset {config.preset}

A joint video and camera-ray diffusion model trained from scratch by this package on {data}:
{trainer.windows_seen} windows in {trainer.step} steps. {textures}Licence: Apache-2.0.
Evaluation: docs/training_log.md.

Limits: static scenes, small motion between frames, {size.width}x{size.height} pixels, translation only up to scale.

The last run's configuration:

{rows}
"""


if __name__ == "__main__":
    raise SystemExit(main())
