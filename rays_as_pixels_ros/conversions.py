# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back. Pixel centres move by half a pixel in Intrinsics.from_opencv / to_opencv, nowhere here.

Poses are (4, 4) float64, camera (or child) to the frame in the header. Images are (H, W, 3) uint8 RGB. Stamps are ns.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from functools import lru_cache

import cv2
import numpy as np
import PIL.Image
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, PoseStamped, PoseWithCovarianceStamped, Transform, TransformStamped
from nav_msgs.msg import Odometry, Path
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from rays_as_pixels_model.geometry import (
    Distortion,
    GeometryError,
    Intrinsics,
    fit_frames,
    pose_from_quaternion,
    quaternion_from_matrix,
)

from .track import T_REP103_OPTICAL as T_REP103_OPTICAL
from .track import TrackedPose
from .uncertainty import rotate_covariance

# Bytes of one pixel for the encodings that say what their colours are.
BYTES_PER_PIXEL = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "yuv422": 2, "yuv422_yuy2": 2,
    "bayer_rggb8": 1, "bayer_bggr8": 1, "bayer_gbrg8": 1, "bayer_grbg8": 1,
}  # fmt: skip
_bridge = CvBridge()
_REDUCED = {8: cv2.IMREAD_REDUCED_COLOR_8, 4: cv2.IMREAD_REDUCED_COLOR_4, 2: cv2.IMREAD_REDUCED_COLOR_2}
_GREY, _ORANGE = ColorRGBA(r=0.6, g=0.6, b=0.6, a=0.8), ColorRGBA(r=1.0, g=0.5, b=0.0, a=1.0)


class ConversionError(ValueError):
    """A message that cannot be used; the text is one line with the value and what would be right."""


def stamp_ns(stamp: Time) -> int:
    """Stamp message to nanoseconds."""
    return stamp.sec * 1_000_000_000 + stamp.nanosec


def stamp_message(ns: int) -> Time:
    """Nanoseconds to a stamp message."""
    return Time(sec=int(ns // 1_000_000_000), nanosec=int(ns % 1_000_000_000))


def header(ns: int, frame_id: str) -> Header:
    """Make a header."""
    return Header(stamp=stamp_message(ns), frame_id=frame_id)


def check_image(message: Image) -> None:
    """Check an image's header fields against its data, without touching the pixels.

    Raises:
        ConversionError: empty, unknown encoding, or sizes that contradict each other.
    """
    if message.width == 0 or message.height == 0:
        raise ConversionError(f"image is {message.width}x{message.height}; it has no pixels")
    if message.encoding not in BYTES_PER_PIXEL:
        raise ConversionError(
            f"image encoding is '{message.encoding}'; it must be one of {', '.join(sorted(BYTES_PER_PIXEL))}"
        )
    least = message.width * BYTES_PER_PIXEL[message.encoding]
    if message.step < least:
        raise ConversionError(
            f"image step is {message.step}; {message.width} pixels of {message.encoding} need at least {least}"
        )
    held = _byte_count(message)
    if held != message.step * message.height:
        raise ConversionError(
            f"image has {held} bytes; step {message.step} x height {message.height} is {message.step * message.height}"
        )


def _byte_count(message: Image) -> int:
    """Count the bytes of an image's data; embedded_ros copies what came over the wire when `data` is read."""
    wire = getattr(message, "_wire_data", None)
    return len(message.data if wire is None else wire)


def image_to_rgb(message: Image | CompressedImage) -> np.ndarray:
    """Decode an image message to (H, W, 3) uint8 RGB.

    Raises:
        ConversionError: the message contradicts itself or cannot be decoded.
    """
    compressed = hasattr(message, "format")
    try:
        if compressed:
            rgb = _bridge.compressed_imgmsg_to_cv2(message, "rgb8") if len(message.data) else None
        else:
            check_image(message)
            rgb = _bridge.imgmsg_to_cv2(message, desired_encoding="rgb8")
    except ConversionError:
        raise
    except (CvBridgeError, cv2.error, ValueError, TypeError) as error:
        raise ConversionError(f"image cannot be decoded: {str(error).strip().splitlines()[0]}") from error
    if rgb is None or rgb.ndim != 3 or 0 in rgb.shape:
        what = f"compressed image of format '{message.format}'" if compressed else "image"
        raise ConversionError(f"{what} with {len(message.data)} bytes cannot be decoded")
    return np.ascontiguousarray(rgb)


def _shrunk_jpeg(message: Image | CompressedImage, size: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]] | None:
    """Decode a JPEG to a half, quarter or eighth, at least four times `size`: (h, w, 3) and its (width, height).

    The discrete cosine transform gives those means of 2x2 to 8x8 pixels for less than the pixels. A part of one
    at the right or lower edge is cut off. None where the image is no JPEG, or not that large.
    """
    if not hasattr(message, "format"):
        return None
    try:
        with PIL.Image.open(io.BytesIO(message.data)) as header:
            kind, (width, height) = header.format, header.size
    except OSError:
        return None
    factor = next((f for f in _REDUCED if min(width // (4 * size[0]), height // (4 * size[1])) >= f), 1)
    if kind != "JPEG" or factor == 1:
        return None
    bgr = cv2.imdecode(np.frombuffer(message.data, np.uint8), _REDUCED[factor] | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        return None
    rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
    return rgb[: height // factor, : width // factor], (width, height)


def rgb_to_image(rgb: np.ndarray, ns: int, frame_id: str) -> Image:
    """Make an rgb8 image message from (H, W, 3) uint8."""
    message = _bridge.cv2_to_imgmsg(np.ascontiguousarray(rgb), encoding="rgb8")
    message.header = header(ns, frame_id)
    return message


def is_zero(info: CameraInfo) -> bool:
    """Say whether a CameraInfo was left empty (in a goal: use the live camera's)."""
    return info.width == 0 and info.height == 0 and not np.any(np.asarray(info.k))


def is_rectified(choice: str, topic: str) -> bool:
    """Say whether the images of a topic are taken as rectified: always, never, or (auto) when image_proc named it.

    image_proc calls what its rectify node publishes image_rect or image_rect_color.
    """
    name = topic.removesuffix("/compressed").rpartition("/")[2]
    return choice == "always" or (choice == "auto" and name.startswith("image_rect"))


def camera_from_info(info: CameraInfo, rectified: bool = False) -> tuple[Intrinsics, Distortion]:
    """Read the camera of the images that come with a camera_info: cut to its roi, then binned.

    Args:
        rectified: the images come from a rectifier, so that P is their camera; else it is K with the distortion D.

    Raises:
        ConversionError: no focal length, not finite, no size, a roi outside of the image, or an unknown distortion
            model.

    Note: as image_geometry reads it, but for the principal point of binned images: there it is divided by the binning
        as it stands, here its distance to the corner of the image is, which is where a bin's centre lies.
    """
    name, m, (fx, fy, cx, cy) = ("P", info.p, (0, 5, 2, 6)) if rectified else ("K", info.k, (0, 4, 2, 5))
    if not np.any(np.asarray(m)):
        raise ConversionError(f"camera_info is not calibrated: {name} is all zero")
    try:
        full = Intrinsics.from_opencv(m[fx], m[fy], m[cx], m[cy], info.width, info.height)
        lens = () if rectified else tuple(float(c) for c in info.d)
        roi = info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height
        camera = full.read_out(roi, (info.binning_x, info.binning_y))
        return camera, Distortion(info.distortion_model if lens else "", lens)
    except GeometryError as error:
        raise ConversionError(f"camera_info: {error}") from error


def check_size(camera: Intrinsics, width: int, height: int) -> None:
    """Check that a camera belongs to images of this size.

    Raises:
        ConversionError: another size.
    """
    if (camera.width, camera.height) != (width, height):
        raise ConversionError(
            f"camera_info is for {camera.width}x{camera.height} images, but the image is {width}x{height}"
        )


@lru_cache(maxsize=4)
def _undistort_maps(intrinsics: Intrinsics, distortion: Distortion):
    return distortion.undistort_maps(intrinsics)


def pinhole_frame(
    image: Image | CompressedImage, info: CameraInfo, size: tuple[int, int] | None = None, rectified: bool = False
) -> tuple[np.ndarray, Intrinsics]:
    """Decode an image and undo its lens distortion: (H, W, 3) uint8 and its pinhole camera.

    Args:
        size: (width, height) that it will be fitted to. A much larger image is shrunk first, to four times that size or
            more, so that decoding a JPEG and undoing the distortion cost little.
        rectified: see `camera_from_info`.

    Raises:
        ConversionError: the image, the camera, or the two together cannot be used.
    """
    shrunk = None if size is None else _shrunk_jpeg(image, size)
    rgb, full = shrunk or (image_to_rgb(image), None)
    intrinsics, distortion = camera_from_info(info, rectified)
    check_size(intrinsics, *(full or rgb.shape[1::-1]))
    if full:
        factor = full[0] // rgb.shape[1]
        intrinsics = intrinsics.binned(factor, factor)
    if not distortion.is_none:
        factor = 1 if size is None else min(rgb.shape[1] // (4 * size[0]), rgb.shape[0] // (4 * size[1]))
        if factor > 1:
            intrinsics = intrinsics.resized(rgb.shape[1] // factor, rgb.shape[0] // factor)
            rgb = cv2.resize(rgb, (intrinsics.width, intrinsics.height), interpolation=cv2.INTER_AREA)
        rgb = cv2.remap(rgb, *_undistort_maps(intrinsics, distortion), cv2.INTER_LINEAR)
    return rgb, intrinsics


def fitted_frame(
    image: Image | CompressedImage, info: CameraInfo, width: int, height: int, rectified: bool = False
) -> tuple[np.ndarray, Intrinsics]:
    """Decode an image, undo its lens distortion and fit it to width x height: what a window is made of.

    Raises:
        ConversionError: as `pinhole_frame`.
    """
    rgb, intrinsics = pinhole_frame(image, info, (width, height), rectified)
    fitted, intrinsics = fit_frames(rgb[None], intrinsics, width, height)
    return fitted[0], intrinsics


def camera_info(intrinsics: Intrinsics, ns: int, frame_id: str) -> CameraInfo:
    """Make the message of a pinhole camera without distortion."""
    fx, fy, cx, cy = intrinsics.to_opencv()
    return CameraInfo(
        header=header(ns, frame_id), width=int(intrinsics.width), height=int(intrinsics.height),
        distortion_model="plumb_bob", d=[0.0] * 5, k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[fx, 0.0, cx, 0.0, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
    )  # fmt: skip


def pose_to_matrix(pose: Pose) -> np.ndarray:
    """Pose message to (4, 4).

    Raises:
        ConversionError: NaN or infinity, or a quaternion that is not a unit one.
    """
    p, q = pose.position, pose.orientation
    try:
        return pose_from_quaternion([p.x, p.y, p.z], [q.x, q.y, q.z, q.w])
    except GeometryError as error:
        raise ConversionError(str(error)) from error


def matrix_to_pose(T: np.ndarray) -> Pose:
    """(4, 4) to a pose message."""
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = (float(value) for value in T[:3, 3])
    q = pose.orientation
    q.x, q.y, q.z, q.w = (float(value) for value in quaternion_from_matrix(T[:3, :3]))
    return pose


def transform_to_matrix(transform: Transform) -> np.ndarray:
    """Transform message to (4, 4)."""
    t, q = transform.translation, transform.rotation
    return pose_from_quaternion([t.x, t.y, t.z], [q.x, q.y, q.z, q.w])


def transform_message(T: np.ndarray, ns: int, frame_id: str, child_frame_id: str) -> TransformStamped:
    """Make the TF message of T_frame_child (4, 4)."""
    message = TransformStamped(header=header(ns, frame_id), child_frame_id=child_frame_id)
    pose = matrix_to_pose(T)
    t, q = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = pose.position.x, pose.position.y, pose.position.z
    q.x, q.y, q.z, q.w = pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w
    return message


def odometry_message(tracked: TrackedPose, frame_id: str, child_frame_id: str) -> Odometry:
    """Make the message of a pose in odom."""
    message = Odometry(header=header(tracked.stamp, frame_id), child_frame_id=child_frame_id)
    message.pose.pose = matrix_to_pose(tracked.T_odom_base)
    message.pose.covariance = rotate_covariance(tracked.covariance, tracked.T_map_odom[:3, :3].T).reshape(-1)
    twist = message.twist.twist
    twist.linear.x, twist.linear.y, twist.linear.z = (float(value) for value in tracked.twist[:3])
    twist.angular.x, twist.angular.y, twist.angular.z = (float(value) for value in tracked.twist[3:])
    message.twist.covariance = tracked.twist_covariance.reshape(-1)
    return message


def pose_message(tracked: TrackedPose, frame_id: str) -> PoseWithCovarianceStamped:
    """Make the message of a pose in map."""
    message = PoseWithCovarianceStamped(header=header(tracked.stamp, frame_id))
    message.pose.pose = matrix_to_pose(tracked.T_map_base)
    message.pose.covariance = tracked.covariance.reshape(-1)
    return message


def path_pose(message: PoseWithCovarianceStamped) -> PoseStamped:
    """Make a published pose a part of paths. Making a thousand anew for every path would take a fifth of a second."""
    return PoseStamped(header=message.header, pose=message.pose.pose)


def path_message(poses: Iterable[PoseStamped], ns: int, frame_id: str) -> Path:
    """Make the message of a path."""
    return Path(header=header(ns, frame_id), poses=list(poses))


def frusta_message(lines: np.ndarray, width: float, ns: int, frame_id: str) -> MarkerArray:
    """Make the markers of drawn cameras: lines (N, 16, 3) of `width`, see `track.frusta_lines`, the newest camera last.

    No camera clears the display.
    """
    at = header(ns, frame_id)
    if not len(lines):
        return MarkerArray(markers=[Marker(header=at, action=Marker.DELETEALL)])
    made = []
    for name, part, colour in (("path", lines[:-1], _GREY), ("newest", lines[-1:], _ORANGE)):
        marker = Marker(header=at, ns=name, id=0, type=Marker.LINE_LIST, action=Marker.ADD, color=colour)
        marker.points = [Point(x=x, y=y, z=z) for x, y, z in part.reshape(-1, 3).tolist()]
        marker.scale.x, marker.pose.orientation.w = float(width), 1.0
        if marker.points:
            made.append(marker)
    return MarkerArray(markers=made)
