# SPDX-License-Identifier: Apache-2.0
"""ATE and RPE of trajectories, computed by evo.

Poses are (T, 4, 4), camera to some frame. Lengths are in the truth's unit.
"""

from __future__ import annotations

import numpy as np

from rays_as_pixels_model.geometry import align_sim3, invert, make_pose

NAMES = ("ATE_sim3", "ATE_se3", "RPE_translation", "RPE_rotation_deg")


def trajectory_errors(estimated: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Compare a trajectory with the true one.

    Returns:
        ATE_sim3, ATE_se3: rms distance of the camera centres after the best Sim(3) or SE(3) alignment.
        RPE_translation, RPE_rotation_deg: rms error of the motion from frame to frame, the estimate scaled as in the
            Sim(3) alignment.

    Note: evo aligns by Umeyama's method and refuses paths that are straight or stand still, where the rotation about
    the path is free. Those are aligned by `align_sim3`, whose residual is the least one all the same.
    """
    from evo.core.metrics import APE, RPE, PoseRelation, StatisticsType, Unit

    rms = StatisticsType.rmse
    reference = _path(truth)
    scaled, rigid = _aligned(estimated, truth, True), _aligned(estimated, truth, False)
    out = {}
    for name, path in (("ATE_sim3", scaled), ("ATE_se3", rigid)):
        metric = APE(PoseRelation.translation_part)
        metric.process_data((reference, path))
        out[name] = float(metric.get_statistic(rms))
    for name, relation in (
        ("RPE_translation", PoseRelation.translation_part),
        ("RPE_rotation_deg", PoseRelation.rotation_angle_deg),
    ):
        metric = RPE(relation, delta=1, delta_unit=Unit.frames)
        metric.process_data((reference, scaled))
        out[name] = float(metric.get_statistic(rms))
    return out


def window_trajectory_errors(estimated: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Median over windows (N, T, 4, 4) of `trajectory_errors`."""
    rows = [trajectory_errors(e, t) for e, t in zip(estimated, truth, strict=True)]
    return {name: float(np.median([row[name] for row in rows])) for name in NAMES}


def chain(T_first_camera: np.ndarray) -> np.ndarray:
    """Put windows (N, T, 4, 4) end to end, each starting at the last camera of the one before: (N (T - 1) + 1, 4, 4).

    Nothing is averaged and no scale is carried, so that methods are compared and not the joining.
    """
    poses = [np.eye(4)]
    for window in T_first_camera:
        start = poses[-1]
        poses += list(start @ invert(window[0]) @ window[1:])
    return np.stack(poses)


def aligned_to(estimated: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return the estimate (T, 4, 4) in the truth's frame and unit, by the best Sim(3)."""
    return np.stack(_aligned(estimated, truth, True).poses_se3)


def _path(T: np.ndarray):
    from evo.core.trajectory import PosePath3D

    # evo refuses rotations that are off by the rounding of a text file.
    u, _, vt = np.linalg.svd(T[:, :3, :3])
    return PosePath3D(poses_se3=list(make_pose(u @ vt, T[:, :3, 3])))


def _aligned(estimated: np.ndarray, truth: np.ndarray, with_scale: bool):
    from evo.core.geometry import GeometryException

    path = _path(estimated)
    try:
        path.align(_path(truth), correct_scale=with_scale)
    except GeometryException:
        scale, rotation, shift = align_sim3(estimated[:, :3, 3], truth[:, :3, 3], with_scale)
        path = _path(make_pose(rotation @ estimated[:, :3, :3], scale * estimated[:, :3, 3] @ rotation.T + shift))
    return path
