# SPDX-License-Identifier: Apache-2.0
"""Procedural clips with known cameras, kept in a pool on disk that worker processes fill and keep renewing.

The trainer reads random slots of the pool and never waits for the renderer: a step stays compute-bound, and how often a
clip is seen is set by how many workers render beside it. A slot is one clip of consecutive frames.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from rays_as_pixels_model.config import preset
from rays_as_pixels_model.geometry import Intrinsics

from ..config import clip_frames

if TYPE_CHECKING:
    from rays_as_pixels_model.scenes import Shot

CELL = 8  # pixels to a cell of the depth maps, as in the codec
HELD_OUT_SEED = 1 << 40  # scenes from here on are never rendered for training
_TRIES = 20  # seeds in a row without room for a camera


@dataclass(frozen=True)
class ClipConfig:
    """What one clip is.

    Attributes:
        scenes: plain, varied, or groups of variety joined by '+' (`model/scenes/shots.py`).
        difficulty: 0 to 1, how strong they are.
        ramp: clips in a pool over which the difficulty rises from 0; 0 starts with all of it.
    """

    frames: int = 13
    height: int = 64
    width: int = 96
    fov_deg: tuple[float, float] = (40.0, 85.0)
    scenes: str = "plain"
    difficulty: float = 1.0
    ramp: int = 0

    def __post_init__(self) -> None:
        from rays_as_pixels_model.scenes import Profile

        Profile.parse(self.scenes, self.difficulty)
        if self.ramp < 0:
            raise ValueError(f"ramp must be at least 0 clips, got {self.ramp}")

    @property
    def kind(self) -> str:
        """The scenes in a word: plain, varied, varied@0.5 (its difficulty), varied@0.5 over 1000 clips (its ramp)."""
        difficulty = "" if self.scenes == "plain" or self.difficulty == 1 else f"@{self.difficulty:g}"
        return f"{self.scenes}{difficulty}" + (f" over {self.ramp} clips" if self.ramp else "")

    def at(self, number: int) -> ClipConfig:
        """Return the config of the `number`-th clip of a pool."""
        if not self.ramp:
            return self
        return replace(self, difficulty=self.difficulty * min(number / self.ramp, 1.0), ramp=0)


@dataclass(frozen=True)
class Clip:
    """frames (T, H, W, 3) uint8; T_world_camera (T, 4, 4); intrinsics; scene_scale (T,), metres: the harmonic mean
    depth of each frame, which is the unit of the model when that frame is the reference; inverse_depth (T, H/8, W/8),
    1/metres: its mean over each cell."""

    frames: np.ndarray
    T_world_camera: np.ndarray
    intrinsics: Intrinsics
    scene_scale: np.ndarray
    inverse_depth: np.ndarray


def make_shot(seed: int, bank, config: ClipConfig, style: str | None = None) -> tuple[Shot, Intrinsics]:
    """Draw the scene, path and camera of a seed; `bank` is a scenes.TextureBank.

    Raises:
        NoRoomError: a scene without free space for a camera.
    """
    from rays_as_pixels_model.scenes import Profile, random_shot, varied_lens

    profile = Profile.parse(config.scenes, config.difficulty)
    size = config.width, config.height
    if "lens" in profile.groups:
        intrinsics = varied_lens(seed, profile.difficulty, config.fov_deg, *size)
    else:
        rng = np.random.default_rng([seed, 71])
        focal = Intrinsics.from_fov(rng.uniform(*config.fov_deg), *size).fx
        centre = np.array(size) * (0.5 + rng.uniform(-0.03, 0.03, 2))
        intrinsics = Intrinsics(focal, focal * rng.uniform(0.98, 1.02), *centre, *size)
    return random_shot(seed, bank, config.frames, profile, style), intrinsics


def make_clip(seed: int, bank, config: ClipConfig, style: str | None = None, device: str = "cpu") -> Clip:
    """Render the clip of a seed; `bank` is a scenes.TextureBank."""
    shot, intrinsics = make_shot(seed, bank, config, style)
    frames, depth = shot.render(intrinsics, device=device)
    cells = (len(depth), config.height // CELL, CELL, config.width // CELL, CELL)
    inverse_depth = (1.0 / depth).reshape(cells).mean((2, 4))
    return Clip(frames, shot.T_world_camera, intrinsics, 1.0 / inverse_depth.mean((1, 2)), inverse_depth)


def first_clip(seeds: Iterable[int], bank, config: ClipConfig, device: str = "cpu") -> tuple[int, Clip]:
    """Render the first of some seeds whose scene has room for a camera; returns the seed and its clip.

    Raises:
        NoRoomError: none of the first 20 has.
    """
    from rays_as_pixels_model.scenes import NoRoomError

    tried = list(islice(seeds, _TRIES))
    for seed in tried:
        try:
            return seed, make_clip(seed, bank, config, device=device)
        except NoRoomError:
            pass
    seeds = f"seeds {tried[0]} to {tried[-1]}"
    raise NoRoomError(f"none of {len(tried)} {config.scenes} scenes has free space for a camera ({seeds})")


class ClipPool:
    """Clips in memory-mapped files: frames, poses, intrinsics, scales, depth and how many slots are filled."""

    def __init__(self, folder: Path, config: ClipConfig | None = None, slots: int | None = None) -> None:
        folder = Path(folder)
        about = folder / "pool.json"
        if about.exists():
            stored = json.loads(about.read_text())
            stored_config = ClipConfig(**{**stored["clip"], "fov_deg": tuple(stored["clip"]["fov_deg"])})
            if config is not None and config != stored_config:
                raise ValueError(f"{folder} holds clips of {stored_config}, not of {config}: name another folder")
            config, slots, mode = stored_config, stored["slots"], "r+"
        elif config is None or slots is None:
            raise ValueError(f"{folder} is no pool of clips: {about.name} is missing")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            mode = "w+"
        t = config.frames
        shapes = {
            "frames": (np.uint8, (slots, t, config.height, config.width, 3)),
            "poses": (np.float64, (slots, t, 4, 4)),
            "intrinsics": (np.float32, (slots, 4)),
            "scales": (np.float32, (slots, t)),
            "inverse_depth": (np.float32, (slots, t, config.height // CELL, config.width // CELL)),
            "filled": (np.uint8, (slots,)),
        }
        for name, (dtype, shape) in shapes.items():
            file, wanted = folder / f"{name}.bin", int(np.prod(shape)) * np.dtype(dtype).itemsize
            if mode == "r+" and (size := file.stat().st_size if file.exists() else 0) != wanted:
                raise ValueError(f"{file} has {size} bytes, but {about} needs {wanted}: copy or render the pool again")
            setattr(self, name, np.memmap(folder / f"{name}.bin", dtype, mode, shape=shape))
        self.config, self.slots = config, slots
        if mode == "w+":
            temporary = about.with_suffix(".tmp")
            temporary.write_text(json.dumps({"clip": asdict(config), "slots": slots}))
            os.replace(temporary, about)

    def write(self, slot: int, clip: Clip) -> None:
        """Put a clip into a slot."""
        self.filled[slot] = 0
        self.frames[slot], self.poses[slot], self.scales[slot] = clip.frames, clip.T_world_camera, clip.scene_scale
        self.inverse_depth[slot] = clip.inverse_depth
        k = clip.intrinsics
        self.intrinsics[slot] = k.fx, k.fy, k.cx, k.cy
        self.filled[slot] = 1

    def ready(self) -> np.ndarray:
        """Return the indices of the filled slots."""
        return np.flatnonzero(self.filled)


def fill(
    folder: Path,
    *,
    slots: int | None,
    first_seed: int,
    stride: int,
    offset: int,
    textures: str | None,
    config: ClipConfig | None = None,
    limit: int | None = None,
    parent: int | None = None,
) -> None:
    """Render clips into the pool until `limit` (None: for ever, or until the parent process is gone).

    Worker `offset` of `stride` writes the slots offset, offset + stride, ... again and again, so workers never meet:
    neither in a slot nor in a seed. The first round of them keeps what is there already.

    Raises:
        NoRoomError: 20 scenes in a row have no room for a camera.
    """
    import torch

    from rays_as_pixels_model.scenes import TextureBank

    torch.set_num_threads(1)
    pool = ClipPool(folder, config, slots)
    bank = TextureBank.default(split="train", folder=textures)
    own = range(offset, pool.slots, stride)
    if not own:  # more workers than slots
        return
    for number in (first + slot for first in count(0, pool.slots) for slot in own):
        if limit is not None and number >= limit or parent is not None and os.getppid() != parent:
            return
        slot = number % pool.slots
        if number < pool.slots and pool.filled[slot]:
            continue
        # A scene without room for a camera: the seed that its slot would have in the next round, from then on.
        seed, clip = first_clip(count(first_seed + number, pool.slots), bank, pool.config.at(number))
        first_seed = seed - number
        pool.write(slot, clip)


def main(argv: list[str] | None = None) -> int:
    """Fill a pool from the command line."""
    parser = argparse.ArgumentParser(description="Render procedural clips into a pool.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--slots", type=int, default=None, help="size of a new pool; an existing one knows its own")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--offset", type=int, default=0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--textures")
    parser.add_argument("--preset", default="micro", help="of a new pool: model to train, gives size and frames")
    parser.add_argument("--scenes", default="plain", help="of a new pool: plain, varied, or groups joined by '+'")
    parser.add_argument("--difficulty", type=float, default=1.0, help="of a new pool: 0 to 1 (default: 1)")
    parser.add_argument("--ramp", type=int, default=0, help="of a new pool: clips over which the difficulty rises")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one does")
    args = parser.parse_args(argv)
    try:
        size = preset(args.preset)
        config = ClipConfig(
            clip_frames(size.frames), size.height, size.width,
            scenes=args.scenes, difficulty=args.difficulty, ramp=args.ramp,
        )  # fmt: skip
    except ValueError as error:
        parser.error(str(error))
    start = time.time()
    try:
        fill(
            args.folder,
            slots=args.slots,
            config=config if args.slots else None,
            first_seed=args.first_seed,
            stride=args.stride,
            offset=args.offset,
            textures=args.textures,
            limit=args.limit,
            parent=os.getppid() if args.with_parent else None,
        )
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command renders the clips that are missing", file=sys.stderr)
        return 130
    print(f"{args.limit} clips in {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
