# SPDX-License-Identifier: Apache-2.0
"""Encode a dataset to shards that training streams.

rays-as-pixels cache --data BAG --out out/shards                        # frames, for the micro preset
rays-as-pixels cache --data BAG --out out/shards --option image_topic=/camera/image_raw --stride 3
rays-as-pixels cache --data CLIPS --out out/latents --store latents --checkpoint out/checkpoint
The same command again after an interruption writes what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NoReturn

from rays_as_pixels_model.arguments import integer

from .data.registry import KINDS, parse_options

_PROG = "rays-as-pixels cache"
_JUDGED = 3  # videos whose cameras are compared with their pictures
_SUSPICIOUS_PX = 2.0
_TELL_EVERY = 30  # seconds between two lines where there is no terminal to draw a bar on


class _Parser(argparse.ArgumentParser):
    """Errors are one line."""

    def error(self, message: str) -> NoReturn:
        print(f"{_PROG}: error: {message} (see {_PROG} --help)", file=sys.stderr)
        sys.exit(2)


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = (int(part) for part in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not WIDTHxHEIGHT, e.g. 96x64") from None
    return width, height


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = _Parser(prog=_PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="dataset, or a folder of datasets; 'procedural' renders scenes")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--kind", choices=["auto", *KINDS], default="auto", help="default: found by the files' names")
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE",
                        help="of the kind, e.g. image_topic=/camera/image_raw; may be repeated")  # fmt: skip
    parser.add_argument("--preset", default="micro", help="model to train: gives size and frames (default micro)")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the frames instead of the preset's")
    parser.add_argument("--frames", type=integer(2), help="of a clip; default: room for windows of two strides")
    parser.add_argument("--stride", type=integer(1), default=1,
                        help="frames of the video from one frame of a clip to the next (default 1)")  # fmt: skip
    parser.add_argument("--step", type=integer(1),
                        help="frames of the video from one clip to the next (default: no overlap)")  # fmt: skip
    parser.add_argument("--store", choices=["frames", "latents"], default="frames")
    parser.add_argument("--format", choices=["jpg", "png"], default="jpg", help="of stored frames (default jpg)")
    parser.add_argument("--checkpoint", type=Path, help="whose codec makes the latents (default: the one shipped)")
    parser.add_argument("--device", default="cpu", help="where latents are made (default cpu)")
    parser.add_argument("--clips-per-shard", type=integer(1), default=256, help="default 256")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    args = make_parser().parse_args(argv)
    try:
        options = parse_options(args.option)
    except ValueError as error:
        return _fail(error, 2)
    from rays_as_pixels_model.config import ConfigError
    from rays_as_pixels_model.media import MediaError

    from .data.posed import DatasetError

    try:
        cut, store, encode = _how(args)
    except (ValueError, ConfigError) as error:
        return _fail(error, 2)
    try:
        _run(args, options, cut, store, encode)
    except (DatasetError, MediaError, OSError) as error:
        return _fail(error, 1)
    except KeyboardInterrupt:
        print("stopped; the same command writes the shards that are missing", file=sys.stderr)
        return 130
    return 0


def _fail(error: object, code: int) -> int:
    print(f"{_PROG}: error: {' '.join(str(error).split())}", file=sys.stderr)
    return code


def _how(args: argparse.Namespace):
    """Return how clips are cut, the facts of what samples hold, and their encoder."""
    from rays_as_pixels_model.config import preset

    from .config import clip_frames
    from .data.clips import ClipCut
    from .data.write_shards import encode_images

    if args.store == "latents":
        from .data.latents import LatentEncoder

        for name in ("size", "frames"):
            if getattr(args, name) is not None:
                raise ValueError(f"latents have the checkpoint's size and frames: leave out --{name}")
        encoder = LatentEncoder(args.checkpoint, args.device)
        config, store, encode = encoder.model.config, encoder.facts, encoder
        frames, size = config.frames, (config.width, config.height)
    else:
        config = preset(args.preset)
        store, encode = {"store": "frames", "suffix": args.format}, encode_images(args.format)
        frames, size = args.frames or clip_frames(config.frames), args.size or (config.width, config.height)
    return ClipCut(frames, *size, args.stride, args.step or 0), store, encode


def _run(args: argparse.Namespace, options: dict, cut, store: dict, encode) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .data import open_dataset
    from .data.write_shards import make_plan, write_shards

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    videos = open_dataset(args.data, args.kind, **options)
    console.print(f"{len(videos)} videos, {sum(len(video) for video in videos)} frames", markup=False)
    _judge(videos, console)
    plan = make_plan(videos, cut, store, args.clips_per_shard)
    columns = (TextColumn("clips"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task, told = bar.add_task("clips", total=plan["planned_clips"]), time.monotonic()

        def show(count: int) -> None:
            nonlocal told
            bar.update(task, completed=count)
            if not console.is_terminal and time.monotonic() - told > _TELL_EVERY:
                told = time.monotonic()
                console.print(f"{count} of {plan['planned_clips']} clips")

        done = write_shards(
            videos, args.out, plan, cut, encode,
            on_clip=show,
            on_skip=lambda why: console.print(f"left out {why}", markup=False),
        )  # fmt: skip
    console.print(f"wrote {done['clips']} clips in {len(done['shards'])} shards to {args.out}", markup=False)


def _judge(videos, console) -> None:
    """Print how well the cameras of some videos agree with their pictures, so that wrong axes or times show at once."""
    from .data.matching import agreement

    for number in sorted({round(i * (len(videos) - 1) / max(_JUDGED - 1, 1)) for i in range(_JUDGED)}):
        video = videos[number]
        found = agreement(video)
        if not found["epipolar_px"] >= 0:
            line = f"too few matches ({found['matches']}) to compare its cameras with its pictures"
        else:
            line = f"cameras agree with pictures to {found['epipolar_px']:.2f} px ({found['matches']} matches)"
            if found["epipolar_px"] > _SUSPICIOUS_PX:
                line += "; more than about 1 px: check axes, extrinsics, intrinsics and clocks before training on it"
        console.print(f"{video.name}: {line}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
