# SPDX-License-Identifier: Apache-2.0
"""Poses, pinhole intrinsics, lens distortion and trajectory alignment.

Frames: a camera frame is optical (x right, y down, z forward). `T_a_b` maps points of frame b into frame a, so
`T_world_camera` is a camera-to-world pose. Quaternions are xyzw.
Pixels: the centre of the top-left pixel is (0.5, 0.5). ROS CameraInfo, OpenCV and posed-images files put it at (0, 0);
`Intrinsics.from_opencv` and `Intrinsics.to_opencv` are the only places where that half pixel is added or removed.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.spatial.transform import Rotation


class GeometryError(ValueError):
    """A camera or pose that cannot be one; the message holds the value and what would be right."""


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera, in pixels; the centre of the top-left pixel is (0.5, 0.5)."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int

    def __post_init__(self) -> None:
        values = (self.fx, self.fy, self.cx, self.cy)
        if not np.all(np.isfinite(values)) or self.fx <= 0 or self.fy <= 0:
            raise GeometryError(f"focal lengths must be positive and finite, got fx={self.fx} fy={self.fy} "
                                f"cx={self.cx} cy={self.cy}")
        if self.width <= 0 or self.height <= 0:
            raise GeometryError(f"image size must be positive, got {self.width}x{self.height}")

    @classmethod
    def from_opencv(cls, fx: float, fy: float, cx: float, cy: float, width: int, height: int) -> Intrinsics:
        """Make from the OpenCV / ROS CameraInfo convention (top-left pixel centre at (0, 0))."""
        return cls(float(fx), float(fy), float(cx) + 0.5, float(cy) + 0.5, int(width), int(height))

    @classmethod
    def from_fov(cls, horizontal_fov_deg: float, width: int, height: int) -> Intrinsics:
        """Make a camera with square pixels and a centred principal point."""
        if not 0.0 < horizontal_fov_deg < 180.0:
            raise GeometryError(f"horizontal field of view must be in (0, 180) degrees, got {horizontal_fov_deg}")
        f = 0.5 * width / np.tan(np.radians(horizontal_fov_deg) / 2)
        return cls(f, f, width / 2, height / 2, width, height)

    def to_opencv(self) -> tuple[float, float, float, float]:
        """Return (fx, fy, cx, cy) with the top-left pixel centre at (0, 0)."""
        return self.fx, self.fy, self.cx - 0.5, self.cy - 0.5

    def matrix(self) -> np.ndarray:
        """Return K: (3, 3) float64."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1.0]])

    def resized(self, width: int, height: int) -> Intrinsics:
        """Return the camera of the same view sampled at width x height."""
        sx, sy = width / self.width, height / self.height
        return Intrinsics(self.fx * sx, self.fy * sy, self.cx * sx, self.cy * sy, width, height)

    def cropped(self, left: int, top: int, width: int, height: int) -> Intrinsics:
        """Return the camera of a crop whose top-left corner is at (left, top)."""
        return replace(self, cx=self.cx - left, cy=self.cy - top, width=width, height=height)

    def binned(self, x: int, y: int) -> Intrinsics:
        """Return the camera whose pixels are x by y of these; columns and rows that are left over are cut off."""
        return Intrinsics(self.fx / x, self.fy / y, self.cx / x, self.cy / y, self.width // x, self.height // y)

    def read_out(self, roi: tuple[int, int, int, int], binning: tuple[int, int]) -> Intrinsics:
        """Return the camera of the images of this sensor: cut to a region of interest, then binned.

        Args:
            roi, binning: (x_offset, y_offset, width, height) and (x, y) as CameraInfo states them; a region of zeros
                is the whole sensor, and a binning of 0 is 1.

        Raises:
            GeometryError: the region is not within the sensor.
        """
        x, y, width, height = roi
        whole = not any(roi)
        if not whole and not (0 < width <= self.width - x and 0 < height <= self.height - y):
            raise GeometryError(f"its roi, {width}x{height} at ({x}, {y}), is not within the "
                                f"{self.width}x{self.height} of the camera")
        return (self if whole else self.cropped(*roi)).binned(binning[0] or 1, binning[1] or 1)

    def horizontal_fov_deg(self) -> float:
        """Return the angle between the leftmost and rightmost rays, degrees."""
        left, right = self.cx / self.fx, (self.width - self.cx) / self.fx
        return float(np.degrees(np.arctan(left) + np.arctan(right)))


def pixel_rays(intrinsics: Intrinsics, width: int | None = None, height: int | None = None) -> np.ndarray:
    """Return unit ray directions in the camera frame.

    Args:
        intrinsics: the camera.
        width, height: size of the grid of rays that covers the same view (default: the camera's own).

    Returns:
        (height, width, 3) float64, unit norm: K^-1 u / |K^-1 u| at the pixel centres.
    """
    k = intrinsics.resized(width or intrinsics.width, height or intrinsics.height)
    x = (np.arange(k.width) + 0.5 - k.cx) / k.fx
    y = (np.arange(k.height) + 0.5 - k.cy) / k.fy
    rays = np.stack([*np.meshgrid(x, y), np.ones((k.height, k.width))], axis=-1)
    return rays / np.linalg.norm(rays, axis=-1, keepdims=True)


def invert(transform: np.ndarray) -> np.ndarray:
    """Invert rigid transforms (..., 4, 4)."""
    rotation_t = np.swapaxes(transform[..., :3, :3], -1, -2)
    out = np.zeros_like(transform)
    out[..., :3, :3] = rotation_t
    out[..., :3, 3] = -np.einsum("...ij,...j->...i", rotation_t, transform[..., :3, 3])
    out[..., 3, 3] = 1.0
    return out


def make_pose(rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    """Stack rotation (..., 3, 3) and translation (..., 3) to (..., 4, 4) float64."""
    shape = np.broadcast_shapes(np.shape(rotation)[:-2], np.shape(translation)[:-1])
    out = np.zeros((*shape, 4, 4))
    out[..., :3, :3] = rotation
    out[..., :3, 3] = translation
    out[..., 3, 3] = 1.0
    return out


def so3_exp(rotation_vector: np.ndarray) -> np.ndarray:
    """Rotation vectors (..., 3), radians, to matrices (..., 3, 3)."""
    v = np.asarray(rotation_vector, dtype=np.float64)
    return Rotation.from_rotvec(v.reshape(-1, 3)).as_matrix().reshape(*v.shape[:-1], 3, 3)


def so3_log(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) to vectors (..., 3), radians."""
    r = np.asarray(rotation, dtype=np.float64)
    return Rotation.from_matrix(r.reshape(-1, 3, 3)).as_rotvec().reshape(*r.shape[:-2], 3)


def rotation_angle_deg(rotation: np.ndarray) -> np.ndarray:
    """Angle of rotation matrices (..., 3, 3), degrees in [0, 180]; exact also for tiny angles."""
    return np.degrees(np.linalg.norm(so3_log(rotation), axis=-1))


def direction_angle_deg(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Angle between vectors (..., 3), degrees in [0, 180]; 90 where one of them is zero."""
    cross = np.linalg.norm(np.cross(a, b), axis=-1)
    dot = np.sum(a * b, axis=-1)
    return np.degrees(np.where((cross == 0) & (dot == 0), np.pi / 2, np.arctan2(cross, dot)))


def sample_covariance(T_draws: np.ndarray, T_mean: np.ndarray) -> np.ndarray:
    """Covariance (T, 6, 6) of k posterior draws (k, T, 4, 4), k >= 2, around the mean camera (T, 4, 4).

    In the order (x, y, z, rx, ry, rz), the rotation a left perturbation. Its rank is at most k.
    """
    turn = so3_log(T_draws[..., :3, :3] @ np.swapaxes(T_mean[:, :3, :3], 1, 2))
    deviation = np.concatenate([T_draws[..., :3, 3] - T_mean[:, :3, 3], turn], axis=-1)         # (k, T, 6)
    return np.einsum("kti,ktj->tij", deviation, deviation) / (len(deviation) - 1)


def pose_from_quaternion(translation: np.ndarray, xyzw: np.ndarray) -> np.ndarray:
    """Make poses (..., 4, 4) from translations (..., 3) and unit quaternions (..., 4).

    Raises:
        GeometryError: a value is not finite, or a quaternion's norm is off 1 by more than 0.01.
    """
    t, q = np.asarray(translation, dtype=np.float64), np.asarray(xyzw, dtype=np.float64)
    if not (np.all(np.isfinite(t)) and np.all(np.isfinite(q))):
        raise GeometryError(f"pose has a value that is not finite: translation {t.tolist()}, quaternion {q.tolist()}")
    norm = np.linalg.norm(q, axis=-1)
    if np.any(np.abs(norm - 1) > 0.01):
        raise GeometryError(f"quaternion (x, y, z, w) must have norm 1, got norm {np.ravel(norm)[0]:.4g}: {q.tolist()}")
    rotation = Rotation.from_quat(q.reshape(-1, 4)).as_matrix().reshape(*q.shape[:-1], 3, 3)
    return make_pose(rotation, t)


def quaternion_from_matrix(rotation: np.ndarray) -> np.ndarray:
    """Rotation matrices (..., 3, 3) to quaternions (..., 4) xyzw with w >= 0."""
    r = np.asarray(rotation, dtype=np.float64)
    return Rotation.from_matrix(r.reshape(-1, 3, 3)).as_quat(canonical=True).reshape(*r.shape[:-2], 4)


def check_pose(pose: np.ndarray, name: str = "pose") -> np.ndarray:
    """Return the pose(s) (..., 4, 4) as float64, or raise GeometryError if one is not a rigid transform."""
    p = np.asarray(pose, dtype=np.float64)
    if p.shape[-2:] != (4, 4):
        raise GeometryError(f"{name} must have shape (..., 4, 4), got {p.shape}")
    if not np.all(np.isfinite(p)):
        raise GeometryError(f"{name} has a value that is not finite")
    r = p[..., :3, :3]
    error = np.abs(np.swapaxes(r, -1, -2) @ r - np.eye(3)).max() if r.size else 0.0
    if error > 1e-3 or np.any(np.linalg.det(r) < 0):
        raise GeometryError(f"{name} has no rotation matrix in its upper left 3x3: R^T R is off I by {error:.3g}")
    return p


def align_sim3(source: np.ndarray, target: np.ndarray, with_scale: bool = True) -> tuple[float, np.ndarray, np.ndarray]:
    """Find (s, R, t) that minimises sum |s R source + t - target|^2 (Umeyama 1991, eqs. 40 to 42).

    Args:
        source, target: (N, 3), N >= 1.
        with_scale: False keeps s = 1.

    Returns:
        s float, R (3, 3), t (3,). Source points that all coincide give s = 1; degenerate directions give the proper
        rotation closest to the data.
    """
    source, target = np.asarray(source, float), np.asarray(target, float)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) == 0:
        raise GeometryError(f"align_sim3 needs two (N, 3) arrays of one length, got {source.shape} and {target.shape}")
    mean_s, mean_t = source.mean(0), target.mean(0)
    xs, xt = source - mean_s, target - mean_t
    u, d, vt = np.linalg.svd(xt.T @ xs / len(source))
    sign = np.array([1, 1, np.sign(np.linalg.det(u) * np.linalg.det(vt)) or 1.0])
    rotation = u @ np.diag(sign) @ vt
    variance = (xs**2).sum() / len(source)
    scale = float((d * sign).sum() / variance) if with_scale and variance > 1e-18 else 1.0
    return scale, rotation, mean_t - scale * rotation @ mean_s


def centre_crop_box(width: int, height: int, target_width: int, target_height: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) of the largest centred crop with the target's aspect."""
    aspect = target_width / target_height
    crop_w, crop_h = min(width, round(height * aspect)), min(height, round(width / aspect))
    return (width - crop_w) // 2, (height - crop_h) // 2, max(crop_w, 1), max(crop_h, 1)


def fit_intrinsics(intrinsics: Intrinsics, width: int, height: int) -> Intrinsics:
    """Return the camera after `fit_frames` to width x height."""
    box = centre_crop_box(intrinsics.width, intrinsics.height, width, height)
    return intrinsics.cropped(*box).resized(width, height)


def fit_frames(frames: np.ndarray, intrinsics: Intrinsics | None, width: int, height: int
               ) -> tuple[np.ndarray, Intrinsics | None]:
    """Centre-crop to the target's aspect and resize by area.

    Args:
        frames: (T, H, W, 3) uint8.
        intrinsics: the camera of `frames`, or None.
        width, height: the target.

    Returns:
        (T, height, width, 3) uint8 and its camera (None if none was given).

    Raises:
        GeometryError: frames of another shape or type, or intrinsics of another size.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise GeometryError(f"frames must be (T, H, W, 3) uint8 and not empty, got {frames.shape} {frames.dtype}")
    full_h, full_w = frames.shape[1:3]
    if intrinsics is not None and (intrinsics.width, intrinsics.height) != (full_w, full_h):
        raise GeometryError(f"intrinsics are for {intrinsics.width}x{intrinsics.height} images, "
                            f"but the frames are {full_w}x{full_h}")
    left, top, w, h = centre_crop_box(full_w, full_h, width, height)
    fitted = intrinsics.cropped(left, top, w, h).resized(width, height) if intrinsics is not None else None
    crop = frames[:, top:top + h, left:left + w]
    if (w, h) == (width, height):
        return np.ascontiguousarray(crop), fitted
    mode = cv2.INTER_AREA if w >= width else cv2.INTER_LINEAR
    return np.stack([cv2.resize(f, (width, height), interpolation=mode) for f in crop]), fitted


@dataclass(frozen=True)
class Distortion:
    """Lens distortion as ROS CameraInfo states it.

    `model` is 'plumb_bob', 'rational_polynomial', 'equidistant' or '' (none); `coefficients` is CameraInfo.d.
    """

    model: str = ""
    coefficients: tuple[float, ...] = ()

    _COUNTS = {"": (0,), "plumb_bob": (0, 4, 5), "rational_polynomial": (0, 8, 12, 14), "equidistant": (0, 4)}

    def __post_init__(self) -> None:
        if self.model not in self._COUNTS:
            known = ", ".join(repr(m) for m in self._COUNTS)
            raise GeometryError(f"distortion model {self.model!r} is not known, use one of {known}")
        if len(self.coefficients) not in self._COUNTS[self.model] and any(self.coefficients):
            raise GeometryError(f"distortion model {self.model!r} takes {self._COUNTS[self.model]} coefficients, "
                                f"got {len(self.coefficients)}")
        if not np.all(np.isfinite(self.coefficients)):
            raise GeometryError(f"distortion coefficients must be finite, got {self.coefficients}")

    @property
    def is_none(self) -> bool:
        """Whether images are already those of a pinhole camera (an equidistant lens with zeros is not one)."""
        return self.model != "equidistant" and not any(self.coefficients)

    def undistort_maps(self, intrinsics: Intrinsics) -> tuple[np.ndarray, np.ndarray]:
        """Return cv2.remap maps from the distorted image to the pinhole image of the same K and size."""
        fx, fy, cx, cy = intrinsics.to_opencv()
        k = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])
        d = np.asarray(self.coefficients or (0.0,) * 4, dtype=np.float64)
        size = (intrinsics.width, intrinsics.height)
        if self.model == "equidistant":
            return cv2.fisheye.initUndistortRectifyMap(k, d, np.eye(3), k, size, cv2.CV_16SC2)
        return cv2.initUndistortRectifyMap(k, d, np.eye(3), k, size, cv2.CV_16SC2)
