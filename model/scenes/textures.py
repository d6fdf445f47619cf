# SPDX-License-Identifier: Apache-2.0
"""Textures for procedural scenes: photos that ship with scikit-image, seeded noise and patterns, and any image folder.

A texture is a square mip pyramid, stored flat: level 0 (size x size, row by row), then level 1, ... down to 1 x 1.
The two splits, `train` and `held_out`, share no image and no seed.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

SPLITS = ("train", "held_out")
MAX_SIZE = 256
_SUFFIXES = {".jpg", ".jpeg", ".png"}
# Only images inside the scikit-image wheel: nothing is ever downloaded.
_PHOTOS = {
    "train": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "coins.png", "color.png", "grass.png",
        "hubble_deep_field.jpg", "page.png", "retina.jpg", "rocket.jpg",
    ),
    "held_out": (
        "coffee.png", "gravel.png", "ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "text.png",
    ),
}  # fmt: skip
_SYNTHETIC = {"train": (0, 96), "held_out": (1_000_000, 48)}  # first seed, number of seeds (noise and pattern each)
_NOISE_SHARE, _PATTERN_SHARE, _PHOTO_SHARE = 0.14, 0.10, 0.12  # the rest goes to the folder, if one is given


@dataclass(frozen=True)
class Texture:
    """One mip pyramid. texels: (sum of 4^k for k = log2_size .. 0,) int32 r | g << 8 | b << 16."""

    texels: np.ndarray
    log2_size: int


@dataclass
class TextureBank:
    """Names of textures with sampling weights; pixels are made or read at first use and kept.

    Args:
        names: 'noise:SEED', 'pattern:SEED' or 'file:PATH'.
        weights: sampling probability of each name, sums to 1.
    """

    names: list[str]
    weights: np.ndarray
    _cache: dict[str, Texture] = field(default_factory=dict, repr=False)

    @classmethod
    def default(cls, split: str = "train", folder: str | Path | None = None) -> TextureBank:
        """Collect the textures of one split.

        Args:
            split: 'train' or 'held_out'.
            folder: more images (jpg, png, recursively). Sorted by relative path, number 9, 19, 29, ... are held out;
                variants of one material (NAME_7_1.jpg, NAME_7_2.jpg) do not train where one of them is held out.
                Sub-folders are weighted by the square root of their size, so that a large one does not swamp the rest.

        Raises:
            ValueError: unknown split, or a folder without images.
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
        first, count = _SYNTHETIC[split]
        seeds = range(first, first + count)
        groups = [([f"noise:{seed}" for seed in seeds], _NOISE_SHARE)]
        groups.append(([f"pattern:{seed}" for seed in seeds], _PATTERN_SHARE))
        photos = [f"file:{path}" for path in _shipped_photos(split)]
        if photos:
            groups.append((photos, _PHOTO_SHARE))
        if folder is not None:
            by_sub_folder: dict[str, list[str]] = {}
            for sub_folder, path in _folder_images(Path(folder), split):
                by_sub_folder.setdefault(sub_folder, []).append(f"file:{path}")
            share = 1.0 - sum(share for _, share in groups)
            total = sum(np.sqrt(len(names)) for names in by_sub_folder.values())
            groups += [(names, share * np.sqrt(len(names)) / total) for names in by_sub_folder.values()]
        names = [name for group, _ in groups for name in group]
        weights = np.concatenate([np.full(len(group), group_share / len(group)) for group, group_share in groups])
        return cls(names, weights / weights.sum())

    def __len__(self) -> int:
        return len(self.names)

    def sample(self, rng: np.random.Generator, count: int) -> list[str]:
        """Draw `count` different names (fewer if the bank is smaller)."""
        count = min(count, len(self.names))
        return [self.names[i] for i in rng.choice(len(self.names), count, replace=False, p=self.weights)]

    def load(self, name: str) -> Texture:
        """Return the pyramid of one name, from memory after the first call."""
        if name not in self._cache:
            kind, _, value = name.partition(":")
            if kind == "file":
                image = _read(value)
            else:
                image = _noise(int(value)) if kind == "noise" else _pattern(int(value))
            self._cache[name] = _pyramid(_normalise(image))
        return self._cache[name]


def _shipped_photos(split: str) -> list[Path]:
    """Photos in the installed scikit-image, found without importing it; none if it is not installed."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        return []
    data = Path(list(spec.submodule_search_locations)[0]) / "data"
    return [data / name for name in _PHOTOS[split] if (data / name).is_file()]


def _folder_images(folder: Path, split: str) -> list[tuple[str, Path]]:
    """(sub-folder, path) of the images of one split. A copy of a shipped photo stays in that photo's split."""
    images = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
    if not images:
        raise ValueError(f"no jpg or png image below {str(folder)!r}; give a folder of textures or photos")
    split_of_photo = {Path(name).stem: s for s in SPLITS for name in _PHOTOS[s]}
    split_of = {
        name: split_of_photo.get(Path(name).stem.rpartition("_data_")[2], SPLITS[i % 10 == 9])
        for i, name in enumerate(images)
    }
    material = {name: m[1] if (m := re.match(r"(.*_\d+)_\d+\.", name)) else name for name in images}
    held_out = {material[name] for name in images if split_of[name] == "held_out"}
    kept = [n for n in images if split_of[n] == split and (split == "held_out" or material[n] not in held_out)]
    return [(name.rpartition("/")[0], folder / name) for name in kept]


def _read(path: str) -> np.ndarray:
    """Read the centre square of an image as (S, S, 3) float32 RGB in [0, 1], S a power of two up to 256."""
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"cannot read the texture {path!r}; it must be a jpg or png image")
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    size = min(MAX_SIZE, 1 << max(side.bit_length() - 1, 4))
    image = cv2.resize(image[top : top + side, left : left + side, ::-1], (size, size), interpolation=cv2.INTER_AREA)
    return image.astype(np.float32) / 255.0


def _fractal(rng: np.random.Generator, size: int, persistence: float, first: int = 2) -> np.ndarray:
    """Value noise of several octaves. Returns (size, size) float32, zero mean, unit deviation."""
    total, amplitude, cells = np.zeros((size, size), np.float32), 1.0, first
    while cells <= size // 2:
        grid = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
        total += amplitude * cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
        amplitude, cells = amplitude * persistence, cells * 2
    return (total - total.mean()) / (total.std() + 1e-6)


def _palette(rng: np.random.Generator, colours: int) -> np.ndarray:
    """(colours, 3) float32 RGB around one random hue, spread in brightness."""
    base, spread = rng.uniform(0.25, 0.75, 3), rng.uniform(0.05, 0.3)
    levels = rng.permutation(np.linspace(-0.3, 0.3, colours))
    return np.clip(base + levels[:, None] + spread * rng.standard_normal((colours, 3)), 0.03, 0.97).astype(np.float32)


def _noise(seed: int) -> np.ndarray:
    """Coloured multi-octave noise, sometimes warped or ridged. Returns (256, 256, 3) float32."""
    rng = np.random.default_rng([seed, 1])
    value = _fractal(rng, MAX_SIZE, rng.uniform(0.55, 0.85), int(rng.integers(2, 6)))
    if rng.random() < 0.3:
        value = 2.0 - 2.5 * np.abs(value)  # ridges
    if rng.random() < 0.4:
        value = np.sign(np.sin(value * rng.uniform(1.0, 3.0))) * 0.8 + 0.5 * value  # veins with sharp edges
    palette = _palette(rng, int(rng.integers(3, 6)))
    stops = np.linspace(-1.8, 1.8, len(palette))
    image = np.stack([np.interp(value, stops, palette[:, c]) for c in range(3)], axis=-1).astype(np.float32)
    return image + 0.06 * _fractal(rng, MAX_SIZE, 0.9, 8)[..., None]


def _pattern(seed: int) -> np.ndarray:
    """Checker, stripes, bricks, dots or random rectangles, weathered by noise. Returns (256, 256, 3) float32."""
    rng = np.random.default_rng([seed, 2])
    v, u = np.mgrid[0:MAX_SIZE, 0:MAX_SIZE].astype(np.float32) / MAX_SIZE
    cells = int(rng.integers(2, 9))
    colours = _palette(rng, 12)
    kind = rng.integers(5)
    if kind == 0:  # checker
        index = (np.floor(u * cells) + np.floor(v * cells)) % 2
    elif kind == 1:  # stripes of uneven width
        edges = np.sort(rng.random(2 * cells))
        index = np.searchsorted(edges, u + 0.0 * v) % int(rng.integers(2, 5))
    elif kind == 2:  # bricks, each of its own shade, with joints
        row = np.floor(v * 2 * cells)
        column = np.floor(u * cells + 0.5 * (row % 2))
        index = rng.integers(1, 12, (64, 64))[row.astype(int), column.astype(int)]
        joint = (np.mod(v * 2 * cells, 1) < 0.12) | (np.mod(u * cells + 0.5 * (row % 2), 1) < 0.06)
        index = np.where(joint, 0, index)
    elif kind == 3:  # dots
        radius = np.hypot(np.mod(u * cells, 1) - 0.5, np.mod(v * cells, 1) - 0.5)
        cell = rng.integers(2, 12, (16, 16))[np.floor(v * cells).astype(int), np.floor(u * cells).astype(int)]
        index = np.where(radius < rng.uniform(0.2, 0.45), cell, 1)
    else:  # rectangles thrown on each other, large to small
        index = np.zeros((MAX_SIZE, MAX_SIZE))
        for k in range(40):
            w, h = (rng.uniform(0.05, 0.5, 2) * MAX_SIZE * (1 - k / 60)).astype(int)
            x, y = rng.integers(-20, MAX_SIZE, 2)
            index[max(y, 0) : max(y + h, 0), max(x, 0) : max(x + w, 0)] = rng.integers(12)
    image = colours[index.astype(int)]
    return image * (1.0 + 0.18 * _fractal(rng, MAX_SIZE, 0.75)[..., None])


def _normalise(image: np.ndarray) -> np.ndarray:
    """Make a texture useful at low resolution: brightness near the middle, contrast at the scale of a few pixels, no
    garish colour, and some noise where the image itself is flat. image: (S, S, 3) float32.
    """
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * min(1.0, 0.07 / (float(image.std(axis=2).mean()) + 1e-6))
    coarse = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA)
    mean, deviation = float(coarse.mean()), float(coarse.std())
    gain = np.clip(0.17 / (deviation + 1e-3), 0.8, 3.0)
    image = (image - mean) * gain + np.clip(mean, 0.38, 0.62)
    missing = np.sqrt(max(0.14**2 - (gain * deviation) ** 2, 0.0))
    if missing > 0.03:
        rng = np.random.default_rng(int(image.sum() * 10) % 2**32)
        image = image + missing * _fractal(rng, len(image), 0.8)[..., None]
    return np.clip(image, 0.02, 0.98)


def _pyramid(image: np.ndarray) -> Texture:
    """Flatten an image and its halvings. image: (S, S, 3) float32 in [0, 1], S a power of two."""
    levels, size = [], len(image)
    while True:
        r, g, b = np.round(image * 255.0).astype(np.int32).reshape(-1, 3).T
        levels.append(r | g << 8 | b << 16)
        if len(image) == 1:
            return Texture(np.concatenate(levels), size.bit_length() - 1)
        image = image.reshape(len(image) // 2, 2, len(image) // 2, 2, 3).mean(axis=(1, 3))
