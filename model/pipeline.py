# SPDX-License-Identifier: Apache-2.0
"""The public entry: a camera stream to a trajectory, poses to views, a picture to both, and the loop closed.

Axes: B batch, T frames of a window, S sources, V views, H W pixels. Poses are camera to reference (or world). The unit
of model-space translation is the harmonic mean depth of the reference frame ("scene scale"): images tell no metres, so
`metres_per_unit` comes from outside (odometry, a known size) whenever metres are meant.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .checkpoint import load_checkpoint
from .geometry import (
    GeometryError,
    Intrinsics,
    check_pose,
    fit_frames,
    fit_intrinsics,
    invert,
    rotation_angle_deg,
    so3_log,
)
from .joint import RaysAsPixels
from .raxels import make_raxels, read_cameras
from .sampler import Cancelled, euler

__all__ = ["Cancelled", "Imagined", "LoopReport", "Pipeline", "RenderedViews", "TrajectoryEstimate"]

OnStep = Callable[[int, int, np.ndarray], bool]


@dataclass(frozen=True)
class TrajectoryEstimate:
    """Cameras of one window.

    Attributes:
        T_reference_camera: (T, 4, 4) float64, model units.
        intrinsics: of the frames as the model saw them: given, or found.
        residual: (T,) rms distance of the decoded raxels from those of the camera read from them.
        covariance: (T, 6, 6) of (x, y, z, rx, ry, rz); left perturbation in the reference frame, model units, radians.
        raxels: (T, H/2, W/2, 3) float32, decoded.
    """

    T_reference_camera: np.ndarray
    intrinsics: Intrinsics
    residual: np.ndarray
    covariance: np.ndarray
    raxels: np.ndarray


@dataclass(frozen=True)
class RenderedViews:
    """frames: (V, H, W, 3) uint8 in the order of the poses, at the model's size; intrinsics: their camera."""

    frames: np.ndarray
    intrinsics: Intrinsics


@dataclass(frozen=True)
class Imagined:
    """frames: (T, H, W, 3) uint8, the first close to the source; T_reference_camera: (T, 4, 4), model units."""

    frames: np.ndarray
    T_reference_camera: np.ndarray
    intrinsics: Intrinsics


@dataclass(frozen=True)
class LoopReport:
    """Video to trajectory to video to trajectory: errors of the second trajectory against the first, and of the video.

    rotation_error_deg and translation_error (of the last frame; model units), psnr over the frames but the first.
    """

    rotation_error_deg: float
    translation_error: float
    psnr: float
    frames: np.ndarray


class Pipeline:
    """One loaded model and the three tasks it answers."""

    def __init__(self, model: RaysAsPixels, device: str | torch.device = "cpu") -> None:
        self.model = model.to(device).eval()
        self.device = torch.device(device)
        self.config = model.config

    @classmethod
    def from_checkpoint(cls, path=None, device: str = "auto") -> Pipeline:
        """Load a checkpoint folder; None is the shipped default.

        Args:
            device: 'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1'.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            ValueError: no such device here.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            kind = torch.device(device).type
        except RuntimeError:
            raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {device!r}") from None
        if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
            raise ValueError(f"device {device!r} is not here; use 'cpu' or 'auto'")
        return cls(load_checkpoint(path, device=device), device)

    # -- pose -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def estimate_batch(self, video: Tensor, raxel_of_reference: Tensor | None, reference: int, steps: int,
                       generator: torch.Generator) -> Tensor:
        """Denoise the rays of windows of one layout.

        Args:
            video: (B, T, H, W, 3) in [-1, 1] at the model's size.
            raxel_of_reference: (B, H/2, W/2, 3), the known rays of the reference frame, or None.

        Returns:
            Decoded raxels (B, T, H/2, W/2, 3).
        """
        batch, frames = video.shape[:2]
        groups = self.config.groups
        z = self.model.encode_frames(video, groups)
        r = torch.randn(self.model.latent_shapes(batch, groups)[1], generator=generator).to(self.device)
        clean_r = torch.zeros(batch, frames, dtype=torch.bool, device=self.device)
        if raxel_of_reference is not None:
            known = self.model.encode_rays(raxel_of_reference[:, None])[:, 0]
            r[:, reference] = known
            clean_r[:, reference] = True
        clean_z = torch.ones(batch, len(groups), dtype=torch.bool, device=self.device)
        _, r = euler(self._velocity(batch, reference, groups), z, r, clean_z, clean_r, steps)
        return self.model.decode_rays(r)

    def estimate_trajectory(self, frames: np.ndarray, intrinsics: Intrinsics | None, steps: int = 1, samples: int = 1,
                            seed: int = 0, reference: int = 0) -> TrajectoryEstimate:
        """Estimate the cameras of one window.

        Args:
            frames: (T, H, W, 3) uint8, T == config.frames, any size (cropped about the centre to the model's aspect).
            intrinsics: of `frames`; None estimates the focal length too.
            steps: of the sampler; 1 is the posterior mean, best with the shipped weights: docs/training_log.md.
            samples: draws from the posterior; the estimate is read from their mean; the covariance holds their spread.
            reference: index of the frame that is the identity.

        Raises:
            ValueError: wrong number of frames, steps, samples or reference.
            GeometryError: frames and intrinsics that do not fit, or rays that no camera made.
        """
        if len(frames) != self.config.frames:
            raise ValueError(f"a window has {self.config.frames} frames, got {len(frames)}; longer videos go through "
                             "overlapping windows")
        if not 0 <= reference < len(frames) or steps < 1 or samples < 1:
            raise ValueError(f"need 0 <= reference < {len(frames)}, steps >= 1 and samples >= 1, got {reference}, "
                             f"{steps}, {samples}")
        fitted, camera = fit_frames(np.asarray(frames), intrinsics, self.config.width, self.config.height)
        video = self._to_tensor(fitted)[None].expand(samples, -1, -1, -1, -1)
        rays = None if camera is None else self._raxels(np.eye(4)[None], camera).expand(samples, -1, -1, -1)
        decoded = self.estimate_batch(video, rays, reference, steps, torch.Generator().manual_seed(seed))
        draws = decoded.double().cpu().numpy()                                              # (samples, T, h, w, 3)
        size = (self.config.width, self.config.height)
        reading = read_cameras(draws.mean(0), camera, image_size=size)
        covariance = reading.covariance
        if samples > 1:
            covariance = covariance + self._spread(draws, reading.T_reference_camera, reading.intrinsics)
        T = invert(reading.T_reference_camera[reference]) @ reading.T_reference_camera
        return TrajectoryEstimate(T, reading.intrinsics, reading.residual, covariance, draws.mean(0).astype(np.float32))

    def _spread(self, draws: np.ndarray, T_mean: np.ndarray, camera: Intrinsics) -> np.ndarray:
        """Covariance (T, 6, 6) of the cameras read from each draw around the mean camera."""
        deviation = []
        for draw in draws:
            T = read_cameras(draw, camera).T_reference_camera
            turn = so3_log(T[:, :3, :3] @ np.swapaxes(T_mean[:, :3, :3], 1, 2))
            deviation.append(np.concatenate([T[:, :3, 3] - T_mean[:, :3, 3], turn], axis=1))
        deviation = np.stack(deviation)                                                     # (samples, T, 6)
        return np.einsum("kti,ktj->tij", deviation, deviation) / (len(draws) - 1)

    # -- views ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def render_batch(self, sources: Tensor, raxels: Tensor, steps: int, generator: torch.Generator, reference: int = 0,
                     on_step: Callable[[int, int, Tensor, Tensor], bool] | None = None) -> Tensor:
        """Denoise the target frames that follow the sources, every frame an image of its own.

        Args:
            sources: (B, S, H, W, 3) in [-1, 1]; raxels: (B, S + V, H/2, W/2, 3), targets last.

        Returns:
            (B, V, H, W, 3) in [-1, 1].
        """
        batch, count, total = sources.shape[0], sources.shape[1], raxels.shape[1]
        groups = (1,) * total
        noise = torch.randn(self.model.latent_shapes(batch, groups[count:])[0], generator=generator).to(self.device)
        z = torch.cat([self.model.encode_frames(sources, groups[:count]), noise], dim=1)
        clean_z = (torch.arange(total, device=self.device) < count).expand(batch, -1)
        clean_r = torch.ones(batch, total, dtype=torch.bool, device=self.device)
        r = self.model.encode_rays(raxels)
        z, _ = euler(self._velocity(batch, reference, groups), z, r, clean_z, clean_r, steps, on_step=on_step)
        return self.model.decode_frames(z[:, count:], groups[count:])

    def render_views(self, source_frames: np.ndarray, T_world_source: np.ndarray, source_intrinsics: Intrinsics,
                     T_world_target: np.ndarray, target_intrinsics: Intrinsics | None = None, *,
                     metres_per_unit: float = 1.0, steps: int = 2, seed: int = 0, on_step: OnStep | None = None
                     ) -> RenderedViews:
        """Render what the camera would see.

        Each view is made from the sources nearest to it (at most two), the nearest being the reference.

        Args:
            source_frames: (S, H, W, 3) uint8; T_world_source: (S, 4, 4); source_intrinsics: shared by the sources.
            T_world_target: (V, 4, 4); target_intrinsics: None takes the sources'.
            metres_per_unit: world length of one model unit (the scene scale).
            on_step: (step, total, preview (H, W, 3) uint8) after every denoising step; False cancels.

        Raises:
            Cancelled: on_step returned False.
            ValueError: no sources, no poses, or a scale that is not positive.
            GeometryError: a bad pose, frame or camera.
        """
        if source_intrinsics is None:
            raise GeometryError("render_views needs the intrinsics of the sources, got None")
        sources = check_pose(T_world_source, "source pose").reshape(-1, 4, 4)
        targets = check_pose(T_world_target, "requested pose").reshape(-1, 4, 4)
        if not (np.isfinite(metres_per_unit) and metres_per_unit > 0) or steps < 1:
            raise ValueError(f"need metres_per_unit > 0 and steps >= 1, got {metres_per_unit} and {steps}")
        if len(sources) == 0 or len(targets) == 0 or len(sources) != len(source_frames):
            raise ValueError(f"need one pose per source and at least one of each, got {len(source_frames)} frames, "
                             f"{len(sources)} source poses, {len(targets)} requested poses")
        width, height = self.config.width, self.config.height
        fitted, source_camera = fit_frames(np.asarray(source_frames), source_intrinsics, width, height)
        target_camera = source_camera if target_intrinsics is None else fit_intrinsics(target_intrinsics, width, height)
        generator = torch.Generator().manual_seed(seed)
        total, views = steps * len(targets), []
        for number, target in enumerate(targets):
            nearest = np.argsort(pose_distance(sources, target, metres_per_unit), kind="stable")[:2]
            T = invert(sources[nearest[0]]) @ np.concatenate([sources[nearest], target[None]])
            T[:, :3, 3] /= metres_per_unit
            raxels = torch.cat([self._raxels(T[:-1], source_camera), self._raxels(T[-1:], target_camera)])[None]
            report = self._reporter(on_step, number * steps, total)
            frame = self.render_batch(self._to_tensor(fitted[nearest])[None], raxels, steps, generator, on_step=report)
            views.append(_to_uint8(frame[0, 0]))
        return RenderedViews(np.stack(views), target_camera)

    # -- joint ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def imagine(self, source_frame: np.ndarray, intrinsics: Intrinsics, steps: int = 20, seed: int = 0,
                on_step: OnStep | None = None) -> Imagined:
        """Draw a video and its camera path that start at a picture (the joint task).

        Args:
            source_frame: (H, W, 3) uint8; intrinsics: its camera.

        Raises:
            Cancelled: on_step returned False.
            GeometryError: a bad frame or camera.
        """
        if intrinsics is None:
            raise GeometryError("imagine needs the intrinsics of the source, got None")
        fitted, camera = fit_frames(np.asarray(source_frame)[None], intrinsics, self.config.width, self.config.height)
        groups, generator = self.config.groups, torch.Generator().manual_seed(seed)
        shape_z, shape_r = self.model.latent_shapes(1, groups)
        z, r = (torch.randn(s, generator=generator).to(self.device) for s in (shape_z, shape_r))
        z[:, :1] = self.model.encode_frames(self._to_tensor(fitted)[None], (1,))
        r[:, 0] = self.model.encode_rays(self._raxels(np.eye(4)[None], camera)[:, None])[:, 0]
        clean_z = torch.arange(len(groups), device=self.device)[None] == 0
        clean_r = torch.arange(self.config.frames, device=self.device)[None] == 0
        last = None if on_step is None else (
            lambda step, total, z, r: on_step(step, total, _to_uint8(self.model.decode_frames(z, groups)[0, -1])))
        z, r = euler(self._velocity(1, 0, groups), z, r, clean_z, clean_r, steps, on_step=last)
        frames = np.stack([_to_uint8(f) for f in self.model.decode_frames(z, groups)[0]])
        reading = read_cameras(self.model.decode_rays(r)[0].double().cpu().numpy(), camera)
        return Imagined(frames, invert(reading.T_reference_camera[0]) @ reading.T_reference_camera, camera)

    def close_the_loop(self, frames: np.ndarray, intrinsics: Intrinsics, pose_steps: int = 1, view_steps: int = 2,
                       seed: int = 0) -> LoopReport:
        """Estimate a window's trajectory, render it from its first frame, and estimate it again from the rendering.

        Small figures mean that the model agrees with itself; they need no truth, so a node can report them.
        """
        first = self.estimate_trajectory(frames, intrinsics, pose_steps, seed=seed)
        T = first.T_reference_camera
        views = self.render_views(frames[:1], T[:1], intrinsics, T[1:], intrinsics, steps=view_steps, seed=seed)
        fitted, camera = fit_frames(np.asarray(frames), intrinsics, self.config.width, self.config.height)
        again = self.estimate_trajectory(np.concatenate([fitted[:1], views.frames]), camera, pose_steps, seed=seed)
        difference = invert(T[-1]) @ again.T_reference_camera[-1]
        mse = np.mean((views.frames.astype(np.float64) - fitted[1:]) ** 2)
        return LoopReport(float(rotation_angle_deg(difference[:3, :3])), float(np.linalg.norm(difference[:3, 3])),
                          float(10 * np.log10(255**2 / max(mse, 1e-9))), views.frames)

    def metres_per_unit(self, frames: np.ndarray, intrinsics: Intrinsics, T_world_camera: np.ndarray, steps: int = 1,
                        seed: int = 0, minimum: float = 0.02) -> float:
        """Find the scene scale of a window whose poses are known in metres: known over estimated camera motion.

        Args:
            frames: (T, H, W, 3), one window; T_world_camera: (T, 4, 4), metres.
            minimum: least estimated motion (model units) that tells a scale; the known one must reach 1 mm.

        Raises:
            ValueError: the camera moved too little, or the two motions differ by more than 60 degrees.
        """
        estimate = self.estimate_trajectory(frames, intrinsics, steps, seed=seed).T_reference_camera[:, :3, 3]
        known_poses = check_pose(T_world_camera, "known pose")
        if known_poses.shape != (self.config.frames, 4, 4):
            raise GeometryError(f"need one known pose per frame, ({self.config.frames}, 4, 4), got {known_poses.shape}")
        known = (invert(known_poses[0]) @ known_poses)[:, :3, 3]
        known_reach, reach = np.linalg.norm(known, axis=1).max(), np.linalg.norm(estimate, axis=1).max()
        if known_reach < 1e-3 or reach < minimum:
            raise ValueError(f"the camera moved too little to tell the scale: {known_reach:.3g} m known, {reach:.3g} "
                             "of the scene depth estimated; move it sideways, or give metres_per_unit")
        cosine = float((known * estimate).sum() / np.sqrt((known**2).sum() * (estimate**2).sum()))
        if cosine < 0.5:
            angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
            raise ValueError(f"known and estimated motion disagree by {angle:.0f} degrees, so they tell no scale "
                             "(at most 60); give metres_per_unit")
        return float(np.sqrt((known**2).sum() / (estimate**2).sum()))

    # -- helpers --------------------------------------------------------------------------------------------------

    def _velocity(self, batch: int, reference: int, groups: Sequence[int]):
        index = torch.full((batch,), reference, dtype=torch.int64, device=self.device)
        return lambda z, r, t_z, t_r: self.model(z, r, t_z, t_r, index, tuple(groups))

    def _raxels(self, T: np.ndarray, camera: Intrinsics) -> Tensor:
        """(n, H/2, W/2, 3) raxels of cameras (n, 4, 4) at the model's size."""
        raxels = make_raxels(T, camera, self.config.height // 2, self.config.width // 2)
        return torch.from_numpy(raxels).to(self.device)

    def _to_tensor(self, frames: np.ndarray) -> Tensor:
        return torch.from_numpy(frames).to(self.device).float() * (2 / 255) - 1

    def _reporter(self, on_step: OnStep | None, before: int, total: int):
        if on_step is None:
            return None

        def report(step: int, _: int, z: Tensor, r: Tensor) -> bool:
            return on_step(before + step, total, _to_uint8(self.model.decode_frames(z[:, -1:], (1,))[0, 0]))

        return report


def pose_distance(poses: np.ndarray, target: np.ndarray, unit: float) -> np.ndarray:
    """How far cameras (S, 4, 4) are from a target (4, 4): radians of rotation plus translation in units."""
    turn = np.radians(rotation_angle_deg(np.swapaxes(poses[:, :3, :3], 1, 2) @ target[:3, :3]))
    return turn + np.linalg.norm(poses[:, :3, 3] - target[:3, 3], axis=1) / unit


def _to_uint8(frame: Tensor) -> np.ndarray:
    return ((frame.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()
