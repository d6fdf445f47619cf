# SPDX-License-Identifier: Apache-2.0
"""The demo's figures: recorded poses and views against the truth, where there is one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rays_as_pixels_model.comparison import psnr, rotation_warp
from rays_as_pixels_model.geometry import Intrinsics, fit_frames, fit_intrinsics, rotation_angle_deg

from .demo_source import DemoSource
from .trajectory_report import errors_against_truth


@dataclass(frozen=True)
class Track:
    """The estimated trajectory, oldest first.

    Attributes:
        stamps: (T,) ns.
        T_map_camera: (T, 4, 4), up to scale. T_world_camera: (T, 4, 4) truth or None.
    """

    stamps: np.ndarray
    T_map_camera: np.ndarray
    T_world_camera: np.ndarray | None

    @property
    def seconds(self) -> np.ndarray:
        """Time since the first pose, (T,)."""
        return (self.stamps - self.stamps[0]) * 1e-9


@dataclass(frozen=True)
class View:
    """A rendered view with what it is compared to; pictures are (H, W, 3) uint8 at the model's size.

    Attributes:
        T_source_view: (4, 4) of the requested pose.
        copy: the source picture, which is the nearest there is. warp: the source turned by the rotation alone.
        truth: None where nobody knows it.
        metres_per_unit: as the node estimated it.
        depth: the true one, or None.
    """

    T_source_view: np.ndarray
    rendered: np.ndarray
    copy: np.ndarray
    warp: np.ndarray
    truth: np.ndarray | None
    metres_per_unit: float
    depth: float | None

    @property
    def caption(self) -> str:
        """How far the view is from its source."""
        turn = float(rotation_angle_deg(self.T_source_view[:3, :3]))
        move = float(np.linalg.norm(self.T_source_view[:3, 3])) / (self.depth or self.metres_per_unit)
        return f"{turn:.1f} deg\n{move:.2f} depth"


def make_track(record, seconds: float = np.inf) -> Track:
    """Order the recorded poses of the first `seconds` of images; the truth is used only if every pose has one."""
    stamps = sorted(record.poses)
    stamps = [stamp for stamp in stamps if stamp - stamps[0] <= seconds * 1e9]
    known = all(stamp in record.truth for stamp in stamps)
    truth = np.stack([record.truth[stamp] for stamp in stamps]) if known and stamps else None
    return Track(np.array(stamps, dtype=np.int64), np.stack([record.poses[stamp] for stamp in stamps]), truth)


def make_views(
    record, answers: list[tuple[dict, list[tuple[int, np.ndarray, Intrinsics]]]], source: DemoSource
) -> list[View]:
    """Join each answer with its source image, the trivial ways to get the view, and the truth.

    Args:
        answers: what views.json holds, and the views as they came on the wire (stamp of the source, picture, camera).
    """
    views, depths = [], {}
    for told, heard in answers:
        for T_source_view, (stamp, rendered, camera) in zip(np.array(told["T_frame_camera"]), heard, strict=True):
            image, image_camera = record.images[stamp]
            copy = fit_frames(image[None], image_camera, camera.width, camera.height)[0][0]
            warp = rotation_warp(copy, fit_intrinsics(image_camera, camera.width, camera.height), T_source_view[:3, :3])
            truth, depth = None, None
            if stamp in record.truth:
                T_world_view = record.truth[stamp] @ T_source_view
                # Rendered at the size of the camera's images and made smaller as they are.
                true_picture = source.render(T_world_view[None], image_camera, record.truth[stamp])
                if true_picture is not None:
                    truth = fit_frames(true_picture, image_camera, camera.width, camera.height)[0][0]
                    if stamp not in depths:
                        depths[stamp] = source.depth(record.truth[stamp])
                    depth = depths[stamp]
            views.append(View(T_source_view, rendered, copy, warp, truth, float(told["metres_per_unit"]), depth))
    return views


def summarise(runtime: str, track: Track, views: list[View], window: int, pose_times: dict, goal_times) -> dict:
    """Return what summary.json holds; figures that need a truth nobody knows are None.

    Args:
        window: frames of the model's window; a motion is that of its last frame against its first.
        pose_times: by stamp, when a pose came, seconds. goal_times: seconds of each answered goal.
    """
    errors = {}
    if track.T_world_camera is not None and len(track.stamps) > 1:
        errors = errors_against_truth(track.T_map_camera, track.T_world_camera, span=window - 1)
    judged = [view for view in views if view.truth is not None]

    def mean_psnr(name: str) -> float | None:
        return float(np.mean([psnr(getattr(view, name), view.truth) for view in judged])) if judged else None

    came = [pose_times[stamp] for stamp in track.stamps.tolist()]
    took = came[-1] - came[0]
    return {
        "runtime": runtime,
        "pose": {
            "frames": len(track.stamps),
            "rotation_error_deg_median": errors.get("rotation_error_deg_median"),
            "rotation_error_deg_identity": errors.get("rotation_of_truth_deg_median"),
            "translation_direction_error_deg_median": errors.get("direction_error_deg_median"),
        },
        "views": {
            "count": len(views),
            "psnr": mean_psnr("rendered"),
            "psnr_copy_nearest": mean_psnr("copy"),
            "psnr_rotation_warp": mean_psnr("warp"),
        },
        "timing": {
            "pose_frames_per_s": (len(came) - 1) / took if took > 0 else None,
            "seconds_per_view": float(sum(goal_times) / len(views)) if goal_times and views else None,
        },
    }
