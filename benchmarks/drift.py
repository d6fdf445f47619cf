# SPDX-License-Identifier: Apache-2.0
"""Drift of stitched windows over long procedural paths: python -m benchmarks.drift [--paths 8] [--frames 500].

Windows are made (a) from the true poses with noise and (b) by a checkpoint from the rendered clip; each is stitched
with and without carrying the scale along. A window's unit is the harmonic mean depth of its first frame, as the model's
is, so even exact windows change unit from one to the next.

The stitched path is put on the true one at its first frame, in the unit of the first window, and never aligned to it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rays_as_pixels_model.config import preset
from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, rotation_angle_deg, so3_exp
from rays_as_pixels_ros.stitching import Stitcher

from .report import show

LENGTH, HOP = 5, 2  # of the micro preset and the trajectory node
_FIRST_SEED = (1 << 40) + 5000  # held-out scenes


@dataclass(frozen=True)
class Noise:
    """Errors of a window's poses: at its last frame, growing in proportion to the distance from its first.

    rotation_deg: standard deviation per axis; translation: per axis, as a share of the window's motion; scale: standard
    deviation of the log of a factor on the whole window; lost: share of windows that do not arrive.
    """

    rotation_deg: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    lost: float = 0.0


NOISES = {
    "exact windows": Noise(),
    "rotation 0.1 deg, translation 2 %, scale 2 %": Noise(0.1, 0.02, 0.02),
    "rotation 0.1 deg, translation 2 %, scale 10 %": Noise(0.1, 0.02, 0.10),
    "rotation 1 deg, translation 10 %, scale 10 %": Noise(1.0, 0.10, 0.10),
    "rotation 0.1 deg, translation 2 %, scale 10 %, 10 % of windows lost": Noise(0.1, 0.02, 0.10, 0.1),
}


@dataclass(frozen=True)
class LongPath:
    """T_world_camera (T, 4, 4); scale (T,), harmonic mean depth of each frame; frames (T, H, W, 3); intrinsics."""

    T_world_camera: np.ndarray
    scale: np.ndarray
    frames: np.ndarray
    intrinsics: Intrinsics


def make_paths(count: int, frames: int) -> list[LongPath]:
    """Render paths of held-out scenes whose camera moves: over half of the windows by 2 % of the depth or more."""
    from rays_as_pixels_model.scenes import NoRoomError, TextureBank, random_path, random_scene, render

    bank, found, seed = TextureBank.default(split="held_out"), [], _FIRST_SEED
    intrinsics = Intrinsics.from_fov(65, *preset("micro").picture_size)
    while len(found) < count:
        seed += 1
        try:
            scene = random_scene(seed, bank)
            T = random_path(seed, scene, frames, ("handheld", "forward", "orbit")[seed % 3])
        except NoRoomError:
            continue
        pictures, depth = render(scene, T, intrinsics)
        scale = 1.0 / np.mean(1.0 / depth.reshape(len(depth), -1), axis=1)
        motion = np.linalg.norm(T[LENGTH - 1 :, :3, 3] - T[: 1 - LENGTH, :3, 3], axis=1) / scale[: 1 - LENGTH]
        if np.median(motion) > 0.02:
            found.append(LongPath(T, scale, pictures, intrinsics))
    return found


def windows(frames: int) -> Iterator[np.ndarray]:
    """Yield the frame numbers of the overlapping windows."""
    for start in range(0, frames - LENGTH + 1, HOP):
        yield np.arange(start, start + LENGTH)


def noisy_window(path: LongPath, ids: np.ndarray, noise: Noise, rng: np.random.Generator) -> np.ndarray:
    """Poses (LENGTH, 4, 4) of a window in its own frame and unit, with noise."""
    T = invert(path.T_world_camera[ids[0]]) @ path.T_world_camera[ids]
    T[:, :3, 3] /= path.scale[ids[0]]
    grow = (np.arange(LENGTH) / (LENGTH - 1))[:, None]
    reach = np.linalg.norm(T[:, :3, 3], axis=1).max()
    turn = so3_exp(np.radians(noise.rotation_deg) * grow * rng.normal(size=(LENGTH, 3)))
    shift = noise.translation * reach * grow * rng.normal(size=(LENGTH, 3))
    return make_pose(turn @ T[:, :3, :3], np.exp(noise.scale * rng.normal()) * (T[:, :3, 3] + shift))


def from_noise(path: LongPath, noise: Noise, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows (frame numbers, poses) of the noise model; the first always arrives."""
    rng, out = np.random.default_rng(seed), []
    for ids in windows(len(path.scale)):
        T = noisy_window(path, ids, noise, rng)
        if not out or rng.random() >= noise.lost:
            out.append((ids, T))
    return out


def from_model(path: LongPath, pipe) -> list[tuple[np.ndarray, np.ndarray]]:
    """Windows (frame numbers, poses) by the model; one that no camera explains is lost."""
    out = []
    for ids in windows(len(path.scale)):
        try:
            out.append((ids, pipe.estimate_trajectory(path.frames[ids], path.intrinsics).T_reference_camera))
        except ValueError:
            continue
    return out


def drift(path: LongPath, made: list[tuple[np.ndarray, np.ndarray]], carry_scale: bool) -> dict[str, float]:
    """Stitch windows and compare with the truth.

    Returns:
        worst_percent, end_percent: distance from the truth at the worst and at the last frame, in percent of the path's
        length; rotation_deg: at the last frame; scale_factor: how wrong the unit of the last window is, 1 or more;
        breaks: windows that shared no frame with what came before.
    """
    stitcher = Stitcher(carry_scale=carry_scale, memory=10**6, max_scale_step=2.0)
    found = {f.frame: f for ids, T in made for f in stitcher.add(ids.tolist(), T)}
    ids = np.array(sorted(found))
    T_map = np.stack([found[i].T_map_camera for i in ids])
    truth = invert(path.T_world_camera[ids[0]]) @ path.T_world_camera[ids]
    truth[:, :3, 3] /= path.scale[ids[0]]
    length = np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1).sum()
    off = np.linalg.norm(T_map[:, :3, 3] - truth[:, :3, 3], axis=1)
    last = made[-1][0][0]
    ratio = stitcher.scale / (path.scale[last] / path.scale[ids[0]])
    return {
        "worst_percent": float(100 * off.max() / length),
        "end_percent": float(100 * off[-1] / length),
        "rotation_deg": float(rotation_angle_deg(T_map[-1, :3, :3].T @ truth[-1, :3, :3])),
        "scale_factor": float(np.exp(abs(np.log(ratio)))),
        "breaks": float(stitcher.segments),
    }


def measure(count: int, frames: int, checkpoint: Path | None = None, with_model: bool = True) -> dict:
    """Medians over the paths of every kind of windows, with and without carrying the scale."""
    paths, rows = make_paths(count, frames), {}
    kinds = {name: [from_noise(p, noise, i) for i, p in enumerate(paths)] for name, noise in NOISES.items()}
    if with_model:
        from rays_as_pixels_model.pipeline import Pipeline

        pipe = Pipeline.from_checkpoint(checkpoint, device="cpu")
        kinds["the checkpoint on the rendered clip"] = [from_model(p, pipe) for p in paths]
    for name, made in kinds.items():
        for carry in (True, False):
            each = [drift(p, w, carry) for p, w in zip(paths, made, strict=True)]
            row = {key: float(np.median([e[key] for e in each])) for key in each[0]}
            rows[f"{name} | {'carried' if carry else 'not carried'}"] = row
    return {"paths": count, "frames": frames, "window": LENGTH, "hop": HOP, "rows": rows}


def table(report: dict) -> str:
    """Return the report as Markdown."""
    lines = [
        "| windows | scale | end, % of path | worst, % of path | rotation at the end, deg | scale at the end, factor | "
        "breaks |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, r in report["rows"].items():
        lines.append(
            f"| {name} | {r['end_percent']:.2f} | {r['worst_percent']:.2f} | {r['rotation_deg']:.2f} | "
            f"{r['scale_factor']:.3f} | {r['breaks']:.0f} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=8)
    parser.add_argument("--frames", type=int, default=500)
    parser.add_argument("--checkpoint", type=Path, help="default: the shipped one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args.paths, args.frames, args.checkpoint)
    show(report, table(report), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
