# SPDX-License-Identifier: Apache-2.0
"""Rendered views of a model and of the trivial ways on the same views, and the closed loop.

Axes: N views or windows, S sources, T frames, H W pixels. Pictures are at the model's size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from rays_as_pixels_model.geometry import invert, rotation_angle_deg
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_model.plane_sweep import sweep_sources
from rays_as_pixels_model.view_sources import choose_sources, pose_distance, view_sources

from . import perceptual
from .baselines import rotation_warp
from .eval_pose import BATCH, STEPS, default_steps, estimate_paths
from .eval_windows import VIEW_CASES, EvalWindow, ViewCase
from .metrics import camera_errors, psnr, ssim
from .perceptual import Weights

METHODS = ("rays_as_pixels", "copy_nearest", "rotation_warp", "plane_warp", "plane_sweep")
_MEANS = ("psnr", "ssim", "lpips")
_MOVING_DB = 30.0  # a view counts as moving content when copying the nearest source is below this PSNR


def render_cases(
    pipe: Pipeline,
    windows: Sequence[EvalWindow],
    methods: Iterable[str] = METHODS,
    steps: Sequence[int] = STEPS,
    seed: int = 0,
    progress: Callable[[str], None] = lambda method: None,
) -> dict[str, dict[str, np.ndarray]]:
    """Render every view case whose content moves.

    Returns:
        case to method to pictures (N, H, W, 3) uint8; the method "truth" holds the true ones.
    """
    out = {}
    for name in VIEW_CASES:
        given = [(w, w.views[name]) for w in windows if name in w.views]
        nearest = [_nearest(case) for _, case in given]
        moving = [
            (w, case, near)
            for (w, case), near in zip(given, nearest, strict=True)
            if psnr(case.sources[near], case.target) < _MOVING_DB
        ]
        if not moving:
            continue
        table = out[name] = {"truth": np.stack([case.target for _, case, _ in moving])}
        if "copy_nearest" in methods:
            table["copy_nearest"] = np.stack([case.sources[near] for _, case, near in moving])
        if "rotation_warp" in methods:
            table["rotation_warp"] = np.stack([_warped(*row) for row in moving])
        given, cameras, intrinsics = _sources_and_cameras(moving)
        # On a plane at the scene's depth, and where all sources agree: what the model starts from.
        for method, count in (("plane_warp", 1), ("plane_sweep", given.shape[1])):
            if method in methods:
                table[method] = _swept(given[:, :count], cameras[:, [*range(count), -1]], intrinsics)
        if "rays_as_pixels" in methods:
            usual = default_steps(Pipeline.render_views)
            pictures = {}
            for count in sorted({usual, *steps}):
                progress(f"rays_as_pixels, views from {name.replace('_', ' ')}, {count} steps")
                pictures[count] = _render(pipe, given, cameras, intrinsics, count, seed)
            table["rays_as_pixels"] = pictures[usual]
            table.update({f"rays_as_pixels_{count}_steps": pictures[count] for count in sorted(set(steps))})
    return out


def _nearest(case: ViewCase) -> int:
    return int(np.argmin(pose_distance(case.T_world_source, case.T_world_target, float(case.units[0]))))


def _warped(window: EvalWindow, case: ViewCase, near: int) -> np.ndarray:
    turn = (invert(case.T_world_source[near]) @ case.T_world_target)[:3, :3]
    return rotation_warp(case.sources[near], window.intrinsics, turn)


def _swept(given: np.ndarray, cameras: np.ndarray, intrinsics: Sequence) -> np.ndarray:
    """What sources (N, S, H, W, 3) show of the last of the cameras (N, S + 1, 4, 4): (N, H, W, 3) uint8."""
    rows = zip(given, cameras, intrinsics, strict=True)
    return np.stack([sweep_sources(frames, invert(T[:-1]) @ T[-1], k, k)[0][0] for frames, T, k in rows])


def _sources_and_cameras(moving) -> tuple[np.ndarray, np.ndarray, list]:
    """Sources (N, S, H, W, 3), cameras in the nearest source (N, S + 1, 4, 4), and intrinsics, as `render_views` has
    them: the nearest source first."""
    sources, cameras = [], []
    for _, case, near in moving:
        order = choose_sources(case.T_world_source, case.T_world_target, float(case.units[0]))  # `near` is the first
        T = invert(case.T_world_source[near]) @ np.concatenate(
            [case.T_world_source[order], case.T_world_target[None]]
        )
        T[:, :3, 3] /= float(case.units[near])
        sources.append(case.sources[order])
        cameras.append(T)
    return np.stack(sources), np.stack(cameras), [w.intrinsics for w, _, _ in moving]


def _render(pipe: Pipeline, sources: np.ndarray, cameras: np.ndarray, intrinsics: Sequence, steps: int, seed: int):
    """Render the last camera of each row, in batches: (N, H, W, 3) uint8."""
    generator, out = torch.Generator().manual_seed(seed), []
    for start in range(0, len(sources), BATCH):
        part = slice(start, start + BATCH)
        rows = zip(sources[part], cameras[part], intrinsics[part], strict=True)
        arranged = [view_sources(pipe.config, frames, T[:-1], k, T[-1]) for frames, T, k in rows]
        given, raxels = (torch.from_numpy(np.stack(x)).to(pipe.device) for x in zip(*arranged, strict=True))
        views = pipe.render_batch(given.float() * (2 / 255) - 1, raxels, steps, generator)[:, 0]
        out.append(((views.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy())
    return np.concatenate(out)


def render_videos(
    pipe: Pipeline, first: np.ndarray, T_first_camera: np.ndarray, intrinsics: Sequence, steps: int, seed: int = 0
) -> np.ndarray:
    """Render whole windows from their first frames, each frame a view of its own as `Pipeline.render_views` does.

    Args:
        first: (N, H, W, 3) uint8; T_first_camera: (N, T, 4, 4), model units; intrinsics: N cameras.

    Returns:
        (N, T, H, W, 3) uint8; frame 0 is the given one.
    """
    count, frames = T_first_camera.shape[:2]
    sources = np.repeat(first, frames - 1, axis=0)[:, None]  # (N (T - 1), 1, H, W, 3)
    target = T_first_camera[:, 1:].reshape(-1, 1, 4, 4)
    cameras = np.concatenate([np.broadcast_to(np.eye(4), target.shape), target], axis=1)
    views = _render(pipe, sources, cameras, [k for k in intrinsics for _ in range(frames - 1)], steps, seed)
    return np.concatenate([first[:, None], views.reshape(count, frames - 1, *first.shape[1:])], axis=1)


def view_report(pipe: Pipeline, windows: Sequence[EvalWindow], cases: dict, weights: Weights, seed: int = 0) -> dict:
    """Figures of rendered views.

    Returns:
        method to: PSNR in dB, SSIM, and LPIPS and FID if their networks are given, over the views of all cases and of
        each; and, for the methods at their default steps, R_err and T_err (and FVD) of the windows rendered from their
        first frames by the true cameras. The cameras in these videos are found by the model itself: the row "truth"
        holds what it finds in the true frames, below which no video can be expected.
    """
    methods = list(dict.fromkeys(m for table in cases.values() for m in table if m != "truth"))
    out = {}
    for method in methods:
        parts = {name: _pictures(table[method], table["truth"], weights) for name, table in cases.items()}
        counts = [part["views"] for part in parts.values()]
        pooled = {
            k: float(np.average([p[k] for p in parts.values()], weights=counts))
            for k in _MEANS
            if k in next(iter(parts.values()))
        }
        if weights.fid:
            pooled["fid"] = perceptual.frechet(
                weights.fid, *(np.concatenate([t[m] for t in cases.values()]) for m in (method, "truth"))
            )
        out[method] = {**pooled, "views": sum(counts), **parts}
    truth, true_cameras = np.stack([w.frames for w in windows]), np.stack([w.T_first_camera() for w in windows])
    intrinsics = [w.intrinsics for w in windows]
    for method, video in {"truth": truth, **_videos(pipe, windows, methods, true_cameras, seed)}.items():
        found = estimate_paths(pipe, _scaled(video), intrinsics, default_steps(Pipeline.estimate_trajectory), seed)[0]
        row = out.setdefault(method, {})
        row.update(camera_errors(found, true_cameras))
        if weights.fvd and method != "truth":
            row["fvd"] = perceptual.frechet(weights.fvd, truth, video)
    return out


def _videos(pipe, windows, methods, true_cameras, seed) -> dict[str, np.ndarray]:
    first, intrinsics = np.stack([w.frames[0] for w in windows]), [w.intrinsics for w in windows]
    out = {}
    if "rays_as_pixels" in methods:
        out["rays_as_pixels"] = render_videos(
            pipe, first, true_cameras, intrinsics, default_steps(Pipeline.render_views), seed
        )
    if "copy_nearest" in methods:
        out["copy_nearest"] = np.repeat(first[:, None], true_cameras.shape[1], axis=1)
    if "rotation_warp" in methods:
        out["rotation_warp"] = np.stack(
            [
                np.stack([rotation_warp(frame, k, T[:3, :3]) for T in path])
                for frame, k, path in zip(first, intrinsics, true_cameras, strict=True)
            ]
        )
    if "plane_warp" in methods:
        out["plane_warp"] = np.stack(
            [
                np.stack([sweep_sources(frame[None], T[None], k, k)[0][0] for T in path])
                for frame, k, path in zip(first, intrinsics, true_cameras, strict=True)
            ]
        )
    return out


def _scaled(video: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(video)).float() * (2 / 255) - 1


def _pictures(a: np.ndarray, b: np.ndarray, weights: Weights) -> dict[str, float]:
    """Figures of pictures (N, H, W, 3) against true ones."""
    out = {
        "psnr": float(np.mean([psnr(x, y) for x, y in zip(a, b, strict=True)])),
        "ssim": float(np.mean([ssim(x, y) for x, y in zip(a, b, strict=True)])),
        "views": len(a),
    }
    if weights.lpips:
        out["lpips"] = perceptual.lpips(weights.lpips, a, b)
    if weights.fid and len(a) > 1:
        out["fid"] = perceptual.frechet(weights.fid, a, b)
    return out


def closed_loop(pipe: Pipeline, windows: Sequence[EvalWindow], weights: Weights, seed: int = 0) -> dict:
    """Video to trajectory, to video rendered from its first frame along it, to trajectory again.

    Returns:
        R_err (radians) and T_err (model units) of the second trajectory against the first, over all frames but the
        first, as `rays_as_pixels_model.closed_loop` defines them (which takes windows of one camera, one by one); the
        same of the last frame as medians and p90; `first_rotation_deg_median`, how far the first trajectory
        turns (what standing still would be off by); PSNR, SSIM (and LPIPS, FID, FVD) of the video, and the PSNR of
        repeating the first frame.
    """
    pose_steps, view_steps = default_steps(Pipeline.estimate_trajectory), default_steps(Pipeline.render_views)
    truth, intrinsics = np.stack([w.frames for w in windows]), [w.intrinsics for w in windows]
    first = estimate_paths(pipe, _scaled(truth), intrinsics, pose_steps, seed)[0]
    video = render_videos(pipe, truth[:, 0], first, intrinsics, view_steps, seed)
    second = estimate_paths(pipe, _scaled(video), intrinsics, pose_steps, seed)[0]
    last = invert(first[:, -1]) @ second[:, -1]
    turn, moved = rotation_angle_deg(last[:, :3, :3]), np.linalg.norm(last[:, :3, 3], axis=1)
    frames = [v[:, 1:].reshape(-1, *v.shape[2:]) for v in (video, truth)]
    still = [psnr(w[0], frame) for w in truth for frame in w[1:]]
    out = {
        **camera_errors(second, first),
        "rotation_error_deg_median": float(np.median(turn)),
        "rotation_error_deg_p90": float(np.percentile(turn, 90)),
        "translation_error_median": float(np.median(moved)),
        "translation_error_p90": float(np.percentile(moved, 90)),
        "first_rotation_deg_median": float(np.median(rotation_angle_deg(first[:, -1, :3, :3]))),
        **_pictures(*frames, weights),
        "psnr_of_repeating_the_first_frame": float(np.mean(still)),
        "windows": len(windows),
    }
    if weights.fvd:
        out["fvd"] = perceptual.frechet(weights.fvd, truth, video)
    return out
