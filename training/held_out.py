# SPDX-License-Identifier: Apache-2.0
"""Held-out procedural windows, and how a model and the baselines do on them.

A window takes every second frame of a 13-frame clip from frame 4 on; scenes have seeds that training never uses and
textures that it never sees. Rotation and translation are of the last frame against the first. Views are rendered twice:
from one source to a target 6 frames on, and halfway between two sources 8 frames apart.
"""

from __future__ import annotations

import numpy as np
import torch

from rays_as_pixels_model.geometry import invert
from rays_as_pixels_model.pipeline import Pipeline, pose_distance
from rays_as_pixels_model.raxels import make_raxels_batch, read_cameras

from .baselines import constant_velocity, rotation_warp
from .data.procedural import HELD_OUT_SEED, Clip, ClipConfig, make_clip
from .data.windows import relative_poses
from .metrics import last_against_first, pose_errors, psnr

STEPS = (1, 2, 20)
_FIRST, _STRIDE = 4, 2
_MOVING_DB = 30.0  # a view counts as moving content when copying the nearest source is below this PSNR


def clip_length(window: int) -> int:
    """Frames of a clip that holds an evaluation window of `window` frames."""
    return max(13, _FIRST + _STRIDE * (window - 1) + 1)


def held_out_clips(count: int, config: ClipConfig, textures: str | None = None, first: int = 0) -> list[Clip]:
    """Render clips from held-out seeds and textures."""
    from rays_as_pixels_model.scenes import TextureBank

    bank = TextureBank.default(split="held_out", folder=textures)
    clips, seed = [], HELD_OUT_SEED + first
    while len(clips) < count:
        try:
            clips.append(make_clip(seed, bank, config))
        except ValueError:  # a scene without free space for a camera
            pass
        seed += 1
    return clips


def evaluate_pose(
    pipe: Pipeline, clips: list[Clip], steps: tuple[int, ...] = STEPS, seed: int = 0, batch: int = 50
) -> dict:
    """Pose errors of the model at several step counts (known and unknown intrinsics) and of the baselines."""
    frames = pipe.config.frames
    index = _FIRST + _STRIDE * np.arange(frames)
    poses = np.stack([c.T_world_camera for c in clips])
    scales = np.stack([c.scene_scale for c in clips])[:, index]
    T = relative_poses(poses[:, index], scales, np.zeros(len(clips), int))  # (N, T, 4, 4)
    truth = last_against_first(T)
    intrinsics = np.array(
        [[c.intrinsics.fx, c.intrinsics.fy, c.intrinsics.cx, c.intrinsics.cy] for c in clips], np.float32
    )
    video = torch.from_numpy(np.stack([c.frames[index] for c in clips])).float() * (2 / 255) - 1
    raxels = make_raxels_batch(
        torch.eye(3).expand(len(clips), 1, 3, 3),
        torch.zeros(len(clips), 1, 3),
        torch.from_numpy(intrinsics),
        (pipe.config.width, pipe.config.height),
        pipe.config.height // 2,
        pipe.config.width // 2,
    )[:, 0]
    before = invert(poses[:, _FIRST - _STRIDE]) @ poses[:, _FIRST]
    before[:, :3, 3] /= scales[:, :1]
    out = {
        "identity": pose_errors(np.broadcast_to(np.eye(4), truth.shape), truth),
        "constant_velocity": pose_errors(constant_velocity(before, frames - 1), truth),
    }

    def run(count: int, known: bool) -> np.ndarray:
        generator, found = torch.Generator().manual_seed(seed), []
        for start in range(0, len(clips), batch):
            part = slice(start, start + batch)
            decoded = (
                pipe.estimate_batch(
                    video[part].to(pipe.device), raxels[part].to(pipe.device) if known else None, 0, count, generator
                )
                .double()
                .cpu()
                .numpy()
            )
            for images, clip in zip(decoded, clips[part], strict=True):
                size = (pipe.config.width, pipe.config.height)
                try:
                    found.append(
                        read_cameras(images, clip.intrinsics if known else None, image_size=size).T_reference_camera
                    )
                except ValueError:  # no camera made these: the estimate failed
                    found.append(np.broadcast_to(np.eye(4), images.shape[:1] + (4, 4)))
        return last_against_first(np.stack(found))

    for count in steps:
        out["rays_as_pixels" if count == 2 else f"rays_as_pixels_{count}_steps"] = pose_errors(run(count, True), truth)
    out["rays_as_pixels_unknown_focal"] = pose_errors(run(2, False), truth)
    return out


def evaluate_views(pipe: Pipeline, clips: list[Clip], steps: tuple[int, ...] = (1, 2, 4, 20), seed: int = 0) -> dict:
    """PSNR of rendered views and of the trivial ways on the same views; only views whose content moves count."""
    cases = {"one_source": ((4,), 10), "two_sources": ((4, 12), 8)}
    rows: dict[str, dict[str, list[float]]] = {}
    for name, (sources, target) in cases.items():
        table = rows.setdefault(name, {})
        for clip in clips:
            scale = float(clip.scene_scale[sources[0]])
            given, truth = clip.frames[list(sources)], clip.frames[target]
            poses = clip.T_world_camera
            nearest = sources[int(np.argmin(pose_distance(poses[list(sources)], poses[target], scale)))]
            copied = psnr(clip.frames[nearest], truth)
            if copied >= _MOVING_DB:
                continue
            turn = invert(poses[nearest])[:3, :3] @ poses[target][:3, :3]
            table.setdefault("copy_nearest", []).append(copied)
            table.setdefault("rotation_warp", []).append(
                psnr(rotation_warp(clip.frames[nearest], clip.intrinsics, turn), truth)
            )
            for count in steps:
                views = pipe.render_views(
                    given,
                    poses[list(sources)],
                    clip.intrinsics,
                    poses[[target]],
                    metres_per_unit=float(clip.scene_scale[nearest]),
                    steps=count,
                    seed=seed,
                )
                table.setdefault(f"rays_as_pixels_{count}_steps", []).append(psnr(views.frames[0], truth))
    return {
        case: {
            "views": len(table["copy_nearest"]) if table else 0,
            **{method: {"psnr": float(np.mean(values))} for method, values in table.items()},
        }
        for case, table in rows.items()
    }


def markdown(report: dict) -> str:
    """Return the tables of a report."""
    lines = [
        "| pose | rotation error, median (p90) deg | direction error, median deg | RRA@5 | RTA@15 |",
        "|---|---|---|---|---|",
    ]
    for method, e in report["pose"].items():
        lines.append(
            f"| {method} | {e['rotation_error_deg_median']:.2f} ({e['rotation_error_deg_p90']:.2f}) | "
            f"{e['translation_direction_error_deg_median']:.1f} | {e['RRA@5']:.0f} | {e['RTA@15']:.0f} |"
        )
    for case, table in report["views"].items():
        lines += ["", f"| views, {case.replace('_', ' ')} ({table['views']} views) | PSNR dB |", "|---|---|"]
        lines += [f"| {method} | {v['psnr']:.2f} |" for method, v in table.items() if isinstance(v, dict)]
    return "\n".join(lines)
