# SPDX-License-Identifier: Apache-2.0
"""A rendered video with known cameras, for the tests of datasets: what each file format must give back."""

from dataclasses import astuple, dataclass
from functools import lru_cache

import cv2
import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, make_pose, so3_exp
from rays_as_pixels_model.scenes import TextureBank, random_path, random_scene, render
from rays_as_pixels_training.data.matching import agreement

SIZE = (240, 160)
INTRINSICS = Intrinsics(190.0, 195.0, 118.0, 82.0, *SIZE)
_SEED, _FRAMES = 10, 6
_MARGIN = 40  # pixels around the picture that a lens may reach for


@dataclass(frozen=True)
class Rendered:
    """frames (T, H, W, 3) uint8; T_world_camera (T, 4, 4); depth (T, H, W), metres; all of the pinhole INTRINSICS."""

    frames: np.ndarray
    T_world_camera: np.ndarray
    depth: np.ndarray

    @property
    def scene_scale(self):
        return 1.0 / np.mean(1.0 / self.depth.reshape(len(self.depth), -1), axis=1)


@lru_cache(1)
def _wide():
    k = INTRINSICS
    wide = Intrinsics(k.fx, k.fy, k.cx + _MARGIN, k.cy + _MARGIN, k.width + 2 * _MARGIN, k.height + 2 * _MARGIN)
    scene = random_scene(_SEED, TextureBank.default("train"))
    poses = random_path(_SEED, scene, _FRAMES, "handheld")
    return (*render(scene, poses, wide), poses)


def rendered() -> Rendered:
    """Return the video, rendered once a process."""
    frames, depth, poses = _wide()
    inner = slice(_MARGIN, -_MARGIN)
    return Rendered(frames[:, inner, inner].copy(), poses, depth[:, inner, inner])


def seen_through(slopes_of) -> np.ndarray:
    """Return the frames (T, H, W, 3) of a lens on the same camera.

    Args:
        slopes_of: pixels (N, 2), top-left centre at (0.5, 0.5), of the distorted image to slopes (N, 2).
    """
    k, frames = INTRINSICS, _wide()[0]
    column, row = np.meshgrid(np.arange(k.width) + 0.5, np.arange(k.height) + 0.5)
    slopes = slopes_of(np.stack([column, row], -1).reshape(-1, 2)).reshape(k.height, k.width, 2)
    at = (slopes * [k.fx, k.fy] + [k.cx, k.cy] + _MARGIN - 0.5).astype(np.float32)
    assert at.min() >= 0 and np.all(at.max((0, 1)) <= np.array(frames.shape[2:0:-1]) - 1), "the lens sees too much"
    return np.stack([cv2.remap(frame, at[..., 0], at[..., 1], cv2.INTER_LINEAR) for frame in frames])


def brown_slopes(coefficients):
    """Return `slopes_of` for OpenCV's k1, k2, p1, p2, k3: OpenCV's own iterative inverse."""
    fx, fy, cx, cy = INTRINSICS.to_opencv()
    K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-10)

    def slopes_of(pixels):
        return cv2.undistortPoints(pixels[:, None] - 0.5, K, np.array(coefficients), criteria=stop)[:, 0]

    return slopes_of


def elsewhere(poses):
    """Return the poses in another world frame: what a format may choose freely."""
    return make_pose(so3_exp(np.array([0.3, -0.5, 0.9])), np.array([1.0, 2.0, -0.5])) @ poses


def assert_same_cameras(video, intrinsics=INTRINSICS, tolerance=1e-6):
    """Check the poses (up to the world frame) and the intrinsics of a loaded video, and both against its pictures."""
    truth = rendered().T_world_camera
    assert len(video) == len(truth)
    relative = np.linalg.inv(video.T_world_camera[0]) @ video.T_world_camera
    np.testing.assert_allclose(relative, np.linalg.inv(truth[0]) @ truth, atol=tolerance)
    if intrinsics is not None:
        for found in video.intrinsics:
            np.testing.assert_allclose(astuple(found), astuple(intrinsics), atol=1e-4)
    check_epipolar(video)


def check_epipolar(video):
    """Check that points matched between the pictures agree with the cameras: rendered ones, to a third of a pixel."""
    judged = agreement(video, pairs=2, apart=2)
    assert judged["matches"] > 100 and judged["epipolar_px"] < 0.3, judged


def assert_undistorted(video, index=2):
    """Check a picture against the rendered one, moved to the camera that undoing the distortion chose, part by part."""
    k, found = INTRINSICS, video.intrinsics[index]
    zoom = found.fx / k.fx
    np.testing.assert_allclose(astuple(found)[1:], (zoom * k.fy, *astuple(k)[2:]))
    assert 1 <= zoom < 1.25
    shift = np.array([[zoom, 0, (1 - zoom) * (k.cx - 0.5)], [0, zoom, (1 - zoom) * (k.cy - 0.5)]])
    truth = cv2.warpAffine(rendered().frames[index], shift, SIZE, borderMode=cv2.BORDER_REPLICATE)
    parts = [
        [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[row : row + 80, column : column + 80].astype(np.float64)
         for picture in (truth, video.load(index))]
        for row in (0, 80) for column in (0, 80, 160)
    ]  # fmt: skip
    window = cv2.createHanningWindow((80, 80), cv2.CV_64F)
    shifts = np.array([cv2.phaseCorrelate(a, b, window)[0] for a, b in parts])
    assert np.abs(shifts).max() < 0.3 and np.abs(shifts.mean(0)).max() < 0.1, shifts
