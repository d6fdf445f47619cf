# SPDX-License-Identifier: Apache-2.0
"""The public entry: a camera stream to a trajectory, poses to views, a picture to both, and the loop closed.

Axes: B batch, T frames of a window, S sources, V views, H W pixels. Poses are camera to reference (or world). The unit
of model-space translation is the harmonic mean depth of the reference frame ("scene scale"): images tell no metres, so
`metres_per_unit` comes from outside (odometry, a known size) whenever metres are meant.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .calibration import STEPS as DRAW_STEPS
from .calibration import Calibration, read_calibration
from .checkpoint_folder import read_exported
from .closed_loop import close_the_loop
from .engine import Array, Engine, namespace, to_numpy, to_uint8
from .geometry import (
    GeometryError,
    Intrinsics,
    check_pose,
    fit_frames,
    fit_intrinsics,
    invert,
    sample_covariance,
)
from .joint_generation import imagine
from .memory import predict_memory
from .raxels import fit_cameras, make_raxels, read_cameras, relative_covariance
from .refinement import refine_cameras
from .results import Imagined, LoopReport, RenderedVideo, RenderedViews, TrajectoryEstimate
from .sampler import Cancelled, Schedule, Velocity, guided, sample
from .turning import raxels_turned_on, turn_back, turn_on
from .view_sources import SOURCES_OF_A_VIEW, choose_sources, view_sources

if TYPE_CHECKING:
    from .layout import Layout

__all__ = ["Cancelled", "Imagined", "LoopReport", "Pipeline", "RenderedVideo", "RenderedViews", "TrajectoryEstimate"]

OnStep = Callable[[int, int, np.ndarray], bool]
OnView = Callable[[int, np.ndarray, Intrinsics], None]


class Pipeline:
    """One loaded model and the three tasks it answers."""

    def __init__(self, model: Engine, device: Any = "cpu", calibration: Calibration | None = None) -> None:
        self.model = model.on(device)
        self.device = self.model.device
        self.config = model.config
        self.calibration = calibration or Calibration()  # factors of 1, said to be unmeasured

    @classmethod
    def from_checkpoint(cls, path=None, device: str = "auto") -> Pipeline:
        """Load a checkpoint folder, or one that `rays-as-pixels export` wrote; None is the shipped default.

        Args:
            device: 'auto' (a GPU if there is one), 'cpu', 'cuda', 'cuda:1'.

        Raises:
            CheckpointError: the checkpoint cannot be used.
            ValueError: no such device here.
        """
        calibration = read_calibration(path)
        if read_exported(path) is not None:
            from .onnx_engine import OnnxEngine

            return cls(OnnxEngine(path, device), device, calibration)
        from .checkpoint import load_checkpoint, torch_device  # torch is imported for a checkpoint only

        device = torch_device(device)
        return cls(load_checkpoint(path, device=device), device, calibration)

    # -- pose -----------------------------------------------------------------------------------------------------

    def estimate_batch(self, video: Array, raxel_of_reference: Array | None, reference: int, steps: int,
                       generator: Any, *, samples: int = 1, solver: str = "euler", shift: float = 1.0
                       ) -> Array:
        """Denoise the rays of windows of one layout.

        Args:
            video: (B, T, H, W, 3) in [-1, 1] at the model's size.
            raxel_of_reference: (B, H/2, W/2, 3), the known rays of the reference frame, or None.
            samples: posterior draws of each window, k rows of the batch that follow each other.
            solver, shift: see `sampler.Schedule`.

        Returns:
            Decoded raxels (B k, T, H/2, W/2, 3).
        """
        batch, frames = video.shape[0] * samples, video.shape[1]
        groups = self.config.groups
        z = _repeat(self.model.encode_frames(video, groups), samples)
        r = self.model.noise(self.model.latent_shapes(batch, groups)[1], generator)
        clean_r = np.zeros((batch, frames), bool)
        if raxel_of_reference is not None:
            known = self.model.encode_rays(raxel_of_reference[:, None])[:, 0]
            r[:, reference] = _repeat(known, samples)
            clean_r[:, reference] = True
        velocity = self._velocity(batch, reference, groups)
        _, r = sample(velocity, z, r, Schedule(0, steps, solver, shift), clean_r=self.model.array(clean_r))
        return self.model.decode_rays(r)

    def estimate_trajectory(self, frames: np.ndarray, intrinsics: Intrinsics | None, steps: int = 1, samples: int = 1,
                            seed: int = 0, reference: int = 0, *, passes: int | None = None, refine: bool = True,
                            solver: str = "euler", shift: float = 1.0) -> TrajectoryEstimate:
        """Estimate the cameras of one window.

        Args:
            frames: (T, H, W, 3) uint8, T == config.frames, any size (cropped about the centre to the model's aspect).
            intrinsics: of `frames`; None estimates the focal length too.
            steps: of the sampler; 1 is the posterior mean, best with the shipped weights: docs/training_log.md.
            samples: draws from the posterior; the estimate is read from their mean; the covariance holds their spread.
            reference: index of the frame that is the identity.
            passes: how often the window is estimated; before each pass but the first its frames are turned back by the
                rotations found so far (`turning.py`). None: as the model was trained for (`ModelConfig.pose_passes`).
            refine: adjust the cameras to points tracked in the frames (`refinement.py`), best in frames that are as
                large as `ModelConfig.picture_size`.
            solver, shift: see `sampler.Schedule`.

        Raises:
            ValueError: wrong number of frames, steps, samples, passes or reference; an unknown solver.
            GeometryError: frames and intrinsics that do not fit, or rays that no camera made.
        """
        if len(frames) != self.config.frames:
            raise ValueError(f"a window has {self.config.frames} frames, got {len(frames)}; longer videos go through "
                             "overlapping windows")
        passes = self.config.pose_passes if passes is None else passes
        if not 0 <= reference < len(frames) or min(steps, samples, passes) < 1:
            raise ValueError(f"need 0 <= reference < {len(frames)}, steps, samples and passes >= 1, got {reference}, "
                             f"{steps}, {samples} and {passes}")
        fitted, camera = fit_frames(np.asarray(frames), intrinsics, self.config.width, self.config.height)
        size, cell = (self.config.width, self.config.height), self.config.codec.cell
        found, turned_by = camera, np.tile(np.eye(3), (len(frames), 1, 1))
        for left in reversed(range(passes)):
            seen = turn_back(fitted, turned_by, found)
            raxels = self._decoded(seen, camera, reference, steps, seed, 1 if left else samples, solver, shift)
            reading = read_cameras(raxels.mean(0), camera, image_size=size, cell=cell)
            T, covariance = relative_covariance(reading.T_reference_camera, reading.covariance, reference)
            found = reading.intrinsics
            if left:
                turned_by = T[:, :3, :3] @ turned_by
        T, draws = turn_on(T, turned_by), None
        if samples > 1:
            draws = np.stack([read_cameras(draw, found).T_reference_camera for draw in raxels])
            draws = turn_on(invert(draws[:, reference, None]) @ draws, turned_by)           # (samples, T, 4, 4)
            covariance = covariance + sample_covariance(draws, T)
        mean = raxels_turned_on(raxels.mean(0), reading.T_reference_camera, turned_by, found).astype(np.float32)
        refined = None
        if refine:
            pictures, _ = fit_frames(np.asarray(frames), None, *self.config.picture_size)
            refined = refine_cameras(pictures, T, found.resized(*self.config.picture_size), reference)
            T, covariance = refined.T_reference_camera, refined.covariance
        return TrajectoryEstimate(T, found, reading.residual, covariance, mean, draws, turned_by, refined)

    def draw_cameras(self, frames: np.ndarray, intrinsics: Intrinsics, samples: int = 8, steps: int = DRAW_STEPS,
                     seed: int = 0, reference: int = 0, turned_by: np.ndarray | None = None) -> np.ndarray:
        """Draw cameras of one window from the posterior: how far they lie apart says how sure the model is.

        Args:
            frames, intrinsics, reference: as in `estimate_trajectory`.
            samples: draws, at least 2; steps: of the sampler, at least 2 (one step gives the mean, without spread).
            turned_by: (T, 3, 3), what the last pass of the window's estimate was turned back by
                (`TrajectoryEstimate.turned_by`), so that these are draws of that pass; None: of a first pass.

        Returns:
            (samples, T, 4, 4), camera to reference, model units. `calibration.py` makes a covariance of them.

        Raises:
            ValueError: too few samples or steps.
            GeometryError: frames and intrinsics that do not fit.
        """
        if samples < 2 or steps < 2:
            raise ValueError(f"draws need samples >= 2 and steps >= 2, got {samples} and {steps}")
        fitted, camera = fit_frames(np.asarray(frames), intrinsics, self.config.width, self.config.height)
        turned_by = np.tile(np.eye(3), (len(frames), 1, 1)) if turned_by is None else turned_by
        seen = turn_back(fitted, turned_by, camera)
        T = fit_cameras(self._decoded(seen, camera, reference, steps, seed, samples), camera)    # (samples, T, 4, 4)
        return turn_on(invert(T[:, reference, None]) @ T, turned_by)

    # -- views ----------------------------------------------------------------------------------------------------

    def render_batch(self, sources: Array, raxels: Array, steps: int, generator: Any, reference: int = 0,
                     on_step: Callable[[int, int, Array], bool] | None = None, *, samples: int = 1,
                     solver: str = "euler", shift: float = 1.0, guidance: float = 1.0) -> Array:
        """Denoise the target frames that follow the sources, every frame an image of its own.

        Args:
            sources: (B, S, H, W, 3) in [-1, 1]; raxels: (B, S + V, H/2, W/2, 3), targets last. `view_sources` arranges
                both.
            on_step: (step, steps, what would be returned) after every denoising step; False cancels.
            samples: posterior draws of each, k rows of the batch that follow each other.
            solver, shift: see `sampler.Schedule`; guidance: weight on the sources, see `sampler.guided`.

        Returns:
            (B k, V, H, W, 3) in [-1, 1].
        """
        batch, count, total = sources.shape[0] * samples, sources.shape[1], raxels.shape[1]
        groups = (1,) * total
        noise = self.model.noise(self.model.latent_shapes(batch, groups[count:])[0], generator)
        known = _repeat(self.model.encode_frames(sources, groups[:count]), samples)
        z = namespace(noise).concatenate([known, noise], axis=1)
        clean_z = self._mask(batch, total, range(count))
        r = _repeat(self.model.encode_rays(raxels), samples)
        velocity = self._velocity(batch, reference, groups, clean_z, z, guidance, generator)
        base, detail = 0.0, 0.0
        if self.config.views == "warped":
            base, shown = z[:, reference : reference + 1], _repeat(sources[:, reference : reference + 1], samples)
            detail = shown - self.model.decode_frames(base, (1,))  # what the codec leaves out of what is shown

        def pictures(z: Array) -> Array:
            return (self.model.decode_frames(z[:, count:] + base, groups[count:]) + detail).clip(-1, 1)

        told = None if on_step is None else lambda step, total, z, r: on_step(step, total, pictures(z))
        z, _ = sample(velocity, z, r, Schedule(steps, 0, solver, shift), clean_z, on_step=told)
        return pictures(z)

    def render_views(self, source_frames: np.ndarray, T_world_source: np.ndarray, source_intrinsics: Intrinsics,
                     T_world_target: np.ndarray, target_intrinsics: Intrinsics | None = None, *,
                     metres_per_unit: float = 1.0, steps: int = 1, seed: int = 0, on_step: OnStep | None = None,
                     on_view: OnView | None = None, samples: int = 1, solver: str = "euler", shift: float = 1.0,
                     guidance: float = 1.0) -> RenderedViews:
        """Render what the camera would see.

        Each view is made from at most two sources, the nearest and one that stands apart from it (`choose_sources`).

        Args:
            source_frames: (S, H, W, 3) uint8; T_world_source: (S, 4, 4); source_intrinsics: shared by the sources.
            T_world_target: (V, 4, 4); target_intrinsics: None takes the sources'.
            metres_per_unit: world length of one model unit (the scene scale).
            steps: of the sampler; 1 is the posterior mean, best with the shipped weights: docs/training_log.md.
            on_step: (step, total, preview (H, W, 3) uint8) after every denoising step; False cancels. The preview is of
                the view being made, and after its last step it is that view.
            on_view: (number, view (H, W, 3) uint8, its camera) as soon as each view is finished, in order.
            samples: posterior draws of every view, made in one batch.
            solver, shift: see `sampler.Schedule`; guidance: weight on the sources, see `sampler.guided`.

        Raises:
            Cancelled: on_step returned False.
            ValueError: no sources, no poses, a scale that is not positive, no samples, or an unknown solver.
            GeometryError: a bad pose, frame or camera.
        """
        if source_intrinsics is None:
            raise GeometryError("render_views needs the intrinsics of the sources, got None")
        sources = check_pose(T_world_source, "source pose").reshape(-1, 4, 4)
        targets = check_pose(T_world_target, "requested pose").reshape(-1, 4, 4)
        if not (np.isfinite(metres_per_unit) and metres_per_unit > 0) or steps < 1 or samples < 1:
            raise ValueError(f"need metres_per_unit > 0, steps >= 1 and samples >= 1, got {metres_per_unit}, {steps} "
                             f"and {samples}")
        if len(sources) == 0 or len(targets) == 0 or len(sources) != len(source_frames):
            raise ValueError(f"need one pose per source and at least one of each, got {len(source_frames)} frames, "
                             f"{len(sources)} source poses, {len(targets)} requested poses")
        width, height = self.config.width, self.config.height
        fitted, source_camera = fit_frames(np.asarray(source_frames), source_intrinsics, width, height)
        target_camera = source_camera if target_intrinsics is None else fit_intrinsics(target_intrinsics, width, height)
        generator = self.model.generator(seed)
        total, views = steps * len(targets), []
        for number, target in enumerate(targets):
            chosen = choose_sources(sources, target, metres_per_unit)
            T = invert(sources[chosen[0]]) @ np.concatenate([sources[chosen], target[None]])
            T[:, :3, 3] /= metres_per_unit
            pictures, raxels = view_sources(self.config, fitted[chosen], T[:-1], source_camera, T[-1], target_camera)
            report = self._reporter(on_step, number * steps, total)
            frame = self.render_batch(self._to_array(pictures)[None], self.model.array(raxels[None]), steps, generator,
                                      on_step=report, samples=samples, solver=solver, shift=shift, guidance=guidance)
            views.append(to_uint8(frame[:, 0]))                                            # (samples, H, W, 3)
            if on_view is not None:
                on_view(number, views[-1][0], target_camera)
        draws = np.stack(views, axis=1)
        return RenderedViews(draws[0], target_camera, draws if samples > 1 else None)

    def render_video(self, source_frames: np.ndarray, T_world_source: np.ndarray, source_intrinsics: Intrinsics,
                     T_world_video: np.ndarray | None = None, T_world_target: np.ndarray | None = None,
                     target_intrinsics: Intrinsics | None = None, **options) -> RenderedVideo:
        """Render a video, sparse views, or both, in one joint denoising that holds all sources.

        `render_views` makes each view alone; here all frames are denoised together, so that they agree. The sources
        may be any pictures of the scene, also frames of the video: then `source_times` says which.

        Args:
            source_frames: (S, H, W, 3) uint8; T_world_source: (S, 4, 4); source_intrinsics: shared by the sources.
            T_world_video: (N, 4, 4), N = 1 + 4 k poses of a smooth path; T_world_target: (V, 4, 4), any poses. Either
                may be missing. target_intrinsics: of both; None takes the sources'.
            options: reference, the source whose camera is the identity (default: 0); source_times (S,) and target_times
                (V,), places in time in frames of the video (default: sources and targets stand before the video, as
                pictures without a time); metres_per_unit, steps (default: 20), seed, on_step (its preview is the last
                frame), samples, solver, shift, guidance as in `render_views`.

        Raises:
            Cancelled: on_step returned False.
            ValueError: no sources, nothing to render, a number of video poses other than 1 + 4 k, a reference that is
                no source, times that do not fit, a scale that is not positive, no samples or steps, an unknown solver,
                or a model that was exported to ONNX.
            GeometryError: a bad pose, frame or camera.

        Note: the shipped weights were not trained on such sequences (`mixed` in training/config.py was 0).
        """
        from .video import render_video  # runs on torch only

        return render_video(self, source_frames, T_world_source, source_intrinsics, T_world_video, T_world_target,
                            target_intrinsics, **options)

    # -- joint ----------------------------------------------------------------------------------------------------

    def imagine(self, source_frames: np.ndarray, intrinsics: Intrinsics, steps: int = 20, seed: int = 0,
                on_step: OnStep | None = None, *, ray_steps: int | None = None, samples: int = 1,
                solver: str = "euler", shift: float = 1.0, guidance: float = 1.0) -> Imagined:
        """Draw a video and its camera path that start at a picture (the joint task).

        Further pictures of the scene stand before the video in the sequence, as sources whose cameras are not known:
        their rays are drawn with the video's, so the answer tells where they were taken.

        Args:
            source_frames: (S, H, W, 3) or (H, W, 3) uint8, the first is the video's; intrinsics: their camera.
            steps: of the video; ray_steps: of the rays (None: as many), see `sampler.Schedule`.
            samples: posterior draws, made in one batch.
            solver, shift: see `sampler.Schedule`; guidance: weight on the source, see `sampler.guided`.

        Raises:
            Cancelled: on_step returned False.
            ValueError: no steps, no samples, or an unknown solver.
            GeometryError: a bad frame or camera.

        Note: training draws one source (training/tasks.py), so further ones are untrained ground: of the shipped
            weights their cameras come out no better than the identity guess (docs/model.md).
        """
        return imagine(self, source_frames, intrinsics, steps, seed, on_step, ray_steps=ray_steps, samples=samples,
                       solver=solver, shift=shift, guidance=guidance)

    def close_the_loop(self, frames: np.ndarray, intrinsics: Intrinsics, pose_steps: int = 1, view_steps: int = 1,
                       seed: int = 0, *, estimate: TrajectoryEstimate | None = None,
                       image_features: str | Path | None = None, video_features: str | Path | None = None
                       ) -> LoopReport:
        """Estimate a trajectory, render it from its first frame, estimate it again: see `closed_loop`."""
        return close_the_loop(self, frames, intrinsics, pose_steps, view_steps, seed, estimate=estimate,
                              image_features=image_features, video_features=video_features)

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

    def predict_memory(self, sources: int | None = None, video: bool = False) -> int:
        """Predict the bytes that a task takes on the device.

        Args:
            sources: of a view, or of a video if `video` is set (`imagine`); None: a window whose cameras are estimated.
        """
        if sources is None or video:
            return predict_memory(self.config, images=max((sources or 1) - 1, 0), video=True)
        return predict_memory(self.config, images=min(sources, SOURCES_OF_A_VIEW) + 1)

    # -- helpers --------------------------------------------------------------------------------------------------

    def _decoded(self, frames: np.ndarray, camera: Intrinsics | None, reference: int, steps: int, seed: int,
                 samples: int, solver: str = "euler", shift: float = 1.0) -> np.ndarray:
        """Decoded raxels (samples, T, h, w, 3) float64 of a window (T, H, W, 3) uint8 at the model's size."""
        rays = None if camera is None else self.model.array(self._raxels(np.eye(4)[None], camera))
        decoded = self.estimate_batch(self._to_array(frames)[None], rays, reference, steps, self.model.generator(seed),
                                      samples=samples, solver=solver, shift=shift)
        return to_numpy(decoded).astype(np.float64)

    def _velocity(self, batch: int, reference: int | Sequence[int], layout: Layout | tuple[int, ...],
                  source_z: Array | None = None, z: Array | None = None, guidance: float = 1.0,
                  generator: Any | None = None) -> Velocity:
        """The model's velocity, guided on the sources (B, L) where a weight says so; z gives the noise its shape."""
        index = self.model.array(np.full(batch, reference))

        def velocity(z: Array, r: Array, t_z: Array, t_r: Array) -> tuple[Array, Array]:
            return self.model.velocity(z, r, t_z, t_r, index, layout)

        if guidance == 1.0:
            return velocity
        return guided(velocity, source_z, self.model.noise(z.shape, generator), guidance)

    def _raxels(self, T: np.ndarray, camera: Intrinsics) -> np.ndarray:
        """(n, H/2, W/2, 3) raxels of cameras (n, 4, 4) at the model's size."""
        return make_raxels(T, camera, self.config.height // 2, self.config.width // 2)

    def _mask(self, batch: int, total: int, chosen: Sequence[int]) -> Array:
        """(batch, total) bool, true for the chosen."""
        return self.model.array(np.tile(np.isin(np.arange(total), chosen), (batch, 1)))

    def _to_array(self, frames: np.ndarray) -> Array:
        return self.model.array(frames.astype(np.float32) * np.float32(2 / 255) - 1)

    def _reporter(self, on_step: OnStep | None, before: int, total: int):
        if on_step is None:
            return None

        def report(step: int, _: int, pictures: Array) -> bool:
            return on_step(before + step, total, to_uint8(pictures[0, -1]))

        return report


def _repeat(x: Array, samples: int) -> Array:
    """Rows of a batch k times each: (B, ...) to (B k, ...)."""
    return x if samples == 1 else x[np.repeat(np.arange(len(x)), samples)]
