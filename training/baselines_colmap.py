# SPDX-License-Identifier: Apache-2.0
"""Incremental structure from motion by COLMAP (pycolmap), with known intrinsics.

Axes: T frames, H W pixels. Lengths have no scale of their own.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose


def window_trajectory(frames: np.ndarray, intrinsics: Intrinsics, seed: int = 0) -> np.ndarray | None:
    """Find the cameras of a window.

    COLMAP's own thresholds ask for more images, matches and parallax than a window has; those that only guard the
    start of a large model are lowered. Camera parameters stay as given.

    Args:
        frames: (T, H, W, 3) uint8 RGB, full resolution; intrinsics: their camera.

    Returns:
        (T, 4, 4), camera to first; None where no model holds all frames.
    """
    import pycolmap

    pycolmap.logging.minloglevel = pycolmap.logging.FATAL.value
    pycolmap.set_random_seed(seed)
    with tempfile.TemporaryDirectory(prefix="colmap-") as name:
        folder = Path(name)
        for number, frame in enumerate(frames):
            cv2.imwrite(str(folder / f"{number:04d}.png"), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        models = _reconstruct(pycolmap, folder, intrinsics, seed)
        poses = {}
        for model in models.values():
            if model.num_reg_images() > len(poses):
                poses = {image.name: image.cam_from_world() for image in model.images.values() if image.has_pose}
    if len(poses) < len(frames):
        return None
    T_camera_world = np.stack([make_pose(poses[n].rotation.matrix(), poses[n].translation) for n in sorted(poses)])
    T_world_camera = invert(T_camera_world)
    return T_camera_world[0] @ T_world_camera


def _reconstruct(pycolmap, folder: Path, intrinsics: Intrinsics, seed: int) -> dict:
    """Run features, matches and mapping on the images of a folder."""
    database = folder / "database.db"
    # COLMAP's pixels have their top-left centre at (0.5, 0.5), as ours.
    values = (intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy)
    reader = pycolmap.ImageReaderOptions(camera_model="PINHOLE", camera_params=",".join(f"{v:.9g}" for v in values))
    extraction = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    matching = pycolmap.FeatureMatchingOptions(num_threads=1, use_gpu=False)
    geometry = pycolmap.TwoViewGeometryOptions()
    geometry.ransac.random_seed = seed
    pycolmap.extract_features(
        database, folder, camera_mode=pycolmap.CameraMode.SINGLE, reader_options=reader,
        extraction_options=extraction, device=pycolmap.Device.cpu,
    )  # fmt: skip
    pycolmap.match_exhaustive(
        database, matching_options=matching, verification_options=geometry, device=pycolmap.Device.cpu
    )
    options = pycolmap.IncrementalPipelineOptions()
    options.num_threads = options.mapper.num_threads = 1
    options.random_seed = options.mapper.random_seed = options.triangulation.random_seed = seed
    options.multiple_models, options.extract_colors = False, False
    options.min_model_size = 2
    options.ba_refine_focal_length = options.ba_refine_extra_params = False
    options.mapper.abs_pose_refine_focal_length = False
    options.mapper.init_min_num_inliers, options.mapper.init_min_tri_angle = 30, 2.0
    options.mapper.abs_pose_min_num_inliers = 12
    options.triangulation.ignore_two_view_tracks = False
    return pycolmap.incremental_mapping(database, folder, folder / "models", options)
