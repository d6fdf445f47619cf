# SPDX-License-Identifier: Apache-2.0
"""Stream the clips of shards in an order that a seed decides, so that a small state resumes it exactly.

In each epoch the shards are shuffled, taken `mix` at a time into memory (still compressed), and the clips of those are
shuffled. Every process of a run sees the same order, and decodes only its own parts of a batch.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np

from rays_as_pixels_model.config import ModelConfig

from .posed import DatasetError
from .source import ClipArrays
from .write_shards import DONE, FORMAT, PLAN

_SAME = ("format", "store", "frames", "height", "width")  # what the folders of one source must share


class ShardSource:
    """A `ClipSource` of shards.

    Attributes:
        height, width: of the frames.
        clip_frames: T.
        clips: how many there are.
    """

    def __init__(self, folder: Path, seed: int = 0, mix: int = 4) -> None:
        """Args:
            folder: made by `rays-as-pixels cache`, or a folder of such folders.
            mix: shards in memory, among which clips are shuffled.

        Raises:
            DatasetError: no shards, unfinished ones, or folders that do not fit together.
        """
        self._shards, about, self._identity = _find(Path(folder))
        self._about, self._seed, self._mix = about, int(seed), mix
        self.height, self.width, self.clip_frames = about["height"], about["width"], about["frames"]
        self.clips = sum(count for _, count in self._shards)
        self._epoch, self._position = 0, 0
        self._loaded: tuple[int, int] | None = None  # epoch and group of _samples
        self._samples: list[dict[str, bytes]] = []

    @property
    def about(self) -> dict:
        """What the shards hold, as shards.json states it."""
        return dict(self._about)

    @property
    def contents(self) -> str:
        """How many clips of which shards these are."""
        return f"{self.clips} clips of shards {self._identity}"

    def misfit(self, config: ModelConfig) -> str:
        """Say why no windows of frames can be cut for a model, "" where they can."""
        if self.about["store"] == "frames" and (self.height, self.width) == (config.height, config.width):
            if self.clip_frames >= config.frames:
                return ""
        return (
            f"holds {self.about['store']} of {self.height}x{self.width}, {self.clip_frames} to a clip; it takes frames "
            f"of {config.height}x{config.width}, at least {config.frames}"
        )

    def take(self, count: int, rng: np.random.Generator):
        """Return (ClipArrays of the next `count` clips, their indices 0, 1, ...); `rng` is not used."""
        return self.arrays([self._next() for _ in range(count)]), np.arange(count)

    def take_parts(self, count: int, part: int, rng: np.random.Generator):
        """Yield what `take` gives, at most `part` of the next `count` clips at a time."""
        for start in range(0, count, part):
            yield self.take(min(part, count - start), rng)

    def skip(self, count: int) -> None:
        """Move on by `count` clips; shards of which no clip is taken are not read."""
        passed, self._position = divmod(self._position + count, self.clips)
        self._epoch += passed

    def arrays(self, samples: list[dict[str, bytes]]) -> ClipArrays:
        """Decode samples."""
        cameras = [np.load(io.BytesIO(sample["cameras.npz"])) for sample in samples]
        poses, intrinsics, scales = (
            np.stack([camera[name] for camera in cameras]) for name in ("poses", "intrinsics", "scales")
        )
        return ClipArrays(self._frames(samples), poses, intrinsics.astype(np.float32), scales)

    def _frames(self, samples: list[dict[str, bytes]]) -> np.ndarray:
        frames = np.empty((len(samples), self.clip_frames, self.height, self.width, 3), np.uint8)
        for row, sample in enumerate(samples):
            for index in range(self.clip_frames):
                data = np.frombuffer(sample[f"{index:03d}.{self._about['suffix']}"], np.uint8)
                frames[row, index] = cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        return frames

    def state(self) -> dict:
        """Return where the stream is."""
        where = {"epoch": self._epoch, "position": self._position}
        return {"shards": self._identity, "seed": self._seed, "mix": self._mix, **where}

    def restore(self, state: dict) -> None:
        """Go on where a stream of the same shards was.

        Raises:
            ValueError: the state is of other shards.
        """
        if state.get("shards") != self._identity:
            raise ValueError(
                f"the run's state is of shards {state.get('shards')}, but these are {self._identity}: give the shards "
                "that the run began with"
            )
        self._seed, self._mix, self._epoch, self._position = (state[k] for k in ("seed", "mix", "epoch", "position"))
        self._loaded = None

    def _next(self) -> dict[str, bytes]:
        """Return the next sample and move on."""
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._shards))
        before = 0
        for group in range(0, len(order), self._mix):
            members = [self._shards[i] for i in order[group : group + self._mix]]
            count = sum(clips for _, clips in members)
            if self._position < before + count:
                break
            before += count
        if self._loaded != (self._epoch, group):
            samples = [sample for path, clips in members for sample in _read(path, clips)]
            shuffled = np.random.default_rng([self._seed, self._epoch, group]).permutation(len(samples))
            self._samples, self._loaded = [samples[i] for i in shuffled], (self._epoch, group)
        sample = self._samples[self._position - before]
        self.skip(1)
        return sample


def _find(folder: Path) -> tuple[list[tuple[Path, int]], dict, str]:
    """Return (path, clips) of the shards of a folder or of the folders in it, what they hold, and a name for it."""
    done = [folder / DONE] if (folder / DONE).is_file() else sorted(folder.glob(f"*/{DONE}"))
    if not done:
        unfinished = " (it is unfinished: the same command goes on)" if (folder / PLAN).is_file() else ""
        raise DatasetError(
            f"{folder}: holds no {DONE}{unfinished}; make shards with rays-as-pixels cache --data PATH --out {folder}"
        )
    begun = sorted(folder.glob(f"*/{PLAN}")) if done[0].parent != folder else []
    for path in begun:  # left out in silence it would be missed, and once finished these would be other shards
        if not (path.parent / DONE).is_file():
            raise DatasetError(f"{path.parent}: is unfinished: the same cache command goes on; or move it elsewhere")
    shards, about, digest = [], {}, hashlib.sha256()
    for path in done:
        part = json.loads(path.read_text())
        if part.get("format") != FORMAT:
            raise DatasetError(f"{path}: has format {part.get('format')}, this version reads {FORMAT}; make it anew")
        about = about or part
        for key in _SAME:
            if part[key] != about[key]:
                raise DatasetError(f"{path}: {key} is {part[key]!r}, but in {done[0]} it is {about[key]!r}")
        digest.update(json.dumps([part["data"], part["shards"]]).encode())
        for shard in part["shards"]:
            if not (path.parent / shard["name"]).is_file():
                raise DatasetError(f"{path}: names {shard['name']}, which does not exist; run the cache command again")
            if shard["clips"]:
                shards.append((path.parent / shard["name"], shard["clips"]))
    return shards, about, digest.hexdigest()[:12]


def _read(path: Path, clips: int) -> list[dict[str, bytes]]:
    """Return the samples of a shard: file name after the key, to bytes."""
    samples: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, name = member.name.partition(".")
                samples.setdefault(key, {})[name] = tar.extractfile(member).read()
    except (tarfile.TarError, OSError) as error:
        raise DatasetError(f"{path}: not readable: {error}; remove it and run the cache command again") from error
    if len(samples) != clips:
        raise DatasetError(f"{path}: holds {len(samples)} clips, {DONE} says {clips}; run the cache command again")
    return [samples[key] for key in sorted(samples)]
