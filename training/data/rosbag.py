# SPDX-License-Identifier: Apache-2.0
"""Bags of ROS 2 (sqlite3, MCAP) and ROS 1, read without ROS: images, camera_info, and poses from TF or Odometry.

Poses are interpolated to the images' stamps (linear and slerp). Where the poses are of a robot's base, TF leads from
there to the camera. Images without poses around them are left out, and a gap in the poses begins a new video.
docs/train_on_your_robot.md shows what to record.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rays_as_pixels_model.bags import IMAGE_TYPES, bag_messages, choose_info_topic, choose_topic, open_bag
from rays_as_pixels_model.geometry import Distortion, GeometryError, Intrinsics
from rays_as_pixels_model.media import is_bag

from . import checks
from .bag_images import BagImages, bags_as_datasets, decode
from .bag_poses import Track, TransformTree, frame_name, pose_of, seconds
from .posed import DatasetError, PosedVideo
from .stamped import runs
from .undistort import Undistorter, stated_lens, undistorter

_TF, _ODOMETRY = "tf2_msgs/msg/TFMessage", "nav_msgs/msg/Odometry"
_ROS1_TF = "tf/msg/tfMessage"
_WORLDS = ("odom", "map", "world")  # odom first: its poses never jump, and windows are short
# Optical axes seen from REP 103 axes (x forward, y left, z up).
_T_REP103_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])


@dataclass
class _Contents:
    """What is read from a bag in one pass."""

    tree: TransformTree
    stamps: list[float] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    image_frame: str = ""
    first_image: np.ndarray | None = None
    info: list[tuple[float, Undistorter]] = field(default_factory=list)
    odometry: Track = field(default_factory=Track)
    odometry_frame: str = ""


def detect(path: Path) -> bool:
    return is_bag(path)


def open_videos(
    path: Path,
    *,
    image_topic: str = "",
    camera_info_topic: str = "",
    odometry_topic: str = "",
    world_frame: str = "",
    camera_frame: str = "",
    camera_axes: str = "optical",
    base_to_camera: str = "",
    intrinsics: str = "",
    distortion: str = "",
    max_gap: float = 0.2,
    time_offset: float = 0.0,
) -> list[PosedVideo]:
    """Open a bag.

    Args:
        image_topic: Image or CompressedImage; needed if the bag has several.
        camera_info_topic: default: camera_info beside the image topic, or the only one of the bag.
        odometry_topic: take the poses from it; default: TF where it leads to the camera, or the only Odometry topic.
        world_frame: of the poses from TF; default: odom, map, world or the root, the first that is above the camera.
        camera_frame: default: the frame_id of the images.
        camera_axes: 'optical' (z forward, as sensor_msgs asks) or 'ros' (x forward) if that frame has REP 103 axes.
        base_to_camera: x,y,z,qx,qy,qz,qw of the camera in the frame of the poses, if TF does not know it: the frame
            of the Odometry, or camera_frame (then the robot's frame) in TF.
        intrinsics, distortion: fx,fy,cx,cy (top-left pixel centre at (0, 0)) and k1,k2,p1,p2,k3 without camera_info.
        max_gap: seconds between two poses around an image, at most.
        time_offset: seconds added to the images' stamps, for a camera that stamps late or early.
    """
    if camera_axes not in ("optical", "ros"):
        raise DatasetError(f"{path}: camera_axes must be optical or ros, got {camera_axes!r}")
    with bags_as_datasets():
        reader = open_bag(path)
    try:
        topics = {c.topic: c.msgtype for c in reader.connections}
        with bags_as_datasets():
            image_topic = choose_topic(path, topics, IMAGE_TYPES, image_topic, "image_topic")
            info_topic = None
            if not intrinsics:
                option = "camera_info_topic (or intrinsics)"
                info_topic = choose_info_topic(path, topics, image_topic, camera_info_topic, option)
            if odometry_topic:
                choose_topic(path, topics, (_ODOMETRY,), odometry_topic, "odometry_topic")
            contents = _read(path, reader, topics, image_topic, info_topic, odometry_topic)
    finally:
        reader.close()
    where = f"{path}: {image_topic}"
    stamps = checks.increasing(
        np.array(contents.stamps) + time_offset, lambda index: f"{where} image {index} (by its header)"
    )
    camera_frame = frame_name(camera_frame) or contents.image_frame
    poses, valid = _poses(path, contents, stamps, camera_frame, odometry_topic, world_frame, base_to_camera, max_gap)
    if camera_axes == "ros":
        poses = poses @ _T_REP103_OPTICAL
    lenses = _lenses(where, contents, stamps, intrinsics, distortion)
    load = BagImages(path, image_topic, np.array(contents.received))
    parts, name = runs(valid), path.resolve().stem if path.is_file() else path.resolve().name
    if not parts:
        raise DatasetError(
            f"{where}: no two images have poses within {max_gap} s around them: images are stamped {stamps[0]:.3f} to "
            f"{stamps[-1]:.3f}; one clock must stamp images and poses (see use_sim_time), or max_gap be larger"
        )
    return [_video(name if len(parts) == 1 else f"{name}/{i}", part, stamps, poses, lenses, load)
            for i, part in enumerate(parts)]  # fmt: skip


def _video(name: str, part: np.ndarray, stamps, poses, lenses: list[Undistorter], load: BagImages) -> PosedVideo:
    """Make the video of one unbroken run of images."""
    return PosedVideo(
        name=name,
        times=stamps[part],
        T_world_camera=poses[part],
        intrinsics=[lenses[index].intrinsics for index in part],
        load=lambda index: lenses[part[index]](load(int(part[index]))),
        metric=True,
    )


def _read(path: Path, reader, topics, image_topic: str, info_topic: str | None, odometry_topic: str) -> _Contents:
    """Go through a bag once; only the first image is decoded."""
    out = _Contents(TransformTree(str(path)))
    odometry = {odometry_topic} if odometry_topic else {t for t, kind in topics.items() if kind == _ODOMETRY}
    odometry = odometry if len(odometry) == 1 else set()
    wanted = {image_topic, info_topic, *odometry} | {t for t, kind in topics.items() if kind in (_TF, _ROS1_TF)}
    rectified = image_topic.removesuffix("/compressed").rpartition("/")[2].startswith("image_rect")  # as the nodes
    lenses: dict[_StatedCamera, Undistorter] = {}
    counts: dict[str, int] = {}
    connections = [c for c in reader.connections if c.topic in wanted]
    for connection, received, raw in bag_messages(path, reader, connections):
        topic = connection.topic
        message = reader.deserialize(raw, connection.msgtype)
        number = counts[topic] = counts.get(topic, -1) + 1
        where = f"{path}: {topic} message {number}"
        if topic == image_topic:
            out.stamps.append(seconds(message.header.stamp))
            out.received.append(received)
            if out.first_image is None:
                out.first_image, out.image_frame = decode(message, where), frame_name(message.header.frame_id)
        elif topic == info_topic:
            stated = _StatedCamera.of(message)
            if stated not in lenses:
                lenses[stated] = _lens(where, stated, rectified)
            out.info.append((seconds(message.header.stamp), lenses[stated]))
        elif topic in odometry:
            pose = message.pose.pose
            out.odometry.add(seconds(message.header.stamp), pose_of(where, pose.position, pose.orientation))
            out.odometry_frame = frame_name(message.child_frame_id)
        else:
            for t in message.transforms:
                text = f"{where} ({t.header.frame_id} to {t.child_frame_id})"
                pose = pose_of(text, t.transform.translation, t.transform.rotation)
                static = topic.endswith("tf_static")
                out.tree.add(t.header.frame_id, t.child_frame_id, seconds(t.header.stamp), pose, static)
    if len(out.stamps) < 2:
        raise DatasetError(f"{path}: {image_topic} holds {len(out.stamps)} images; at least 2 are needed")
    return out


@dataclass(frozen=True)
class _StatedCamera:
    """What a CameraInfo of ROS 2 or ROS 1 says; k: (9,), p: (12,), roi: (x_offset, y_offset, width, height)."""

    size: tuple[int, int]
    model: str
    k: tuple[float, ...]
    d: tuple[float, ...]
    p: tuple[float, ...]
    roi: tuple[int, int, int, int]
    binning: tuple[int, int]

    @classmethod
    def of(cls, info) -> _StatedCamera:
        k, d, p = (tuple(map(float, getattr(info, name, getattr(info, name.upper(), ())))) for name in "kdp")
        roi = info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height
        binning = info.binning_x, info.binning_y
        return cls((info.width, info.height), info.distortion_model, k, d, p, roi, binning)


def _lens(where: str, info: _StatedCamera, rectified: bool) -> Undistorter:
    """Make the lens of the images: K and D, or P for images that are rectified already; cut to the roi, binned."""
    fx, fy, cx, cy = (info.k[i] for i in (0, 4, 2, 5))
    if not fx > 0:
        raise DatasetError(f"{where}: K is not calibrated (fx is {fx:g}): calibrate, or give intrinsics")
    if rectified and info.p[0] > 0:
        fx, fy, cx, cy = (info.p[i] for i in (0, 5, 2, 6))
    try:
        camera = Intrinsics.from_opencv(fx, fy, cx, cy, *info.size).read_out(info.roi, info.binning)
        bent = Distortion() if rectified else Distortion(info.model, info.d)
    except GeometryError as error:
        raise DatasetError(f"{where}: {error}") from error
    return undistorter(where, camera, bent)


def _lenses(where: str, contents: _Contents, stamps: np.ndarray, intrinsics: str, distortion: str) -> list[Undistorter]:
    """Return the lens of each image: by camera_info nearest in time, or as the options state it."""
    height, width = contents.first_image.shape[:2]
    if intrinsics:
        return [stated_lens(where, intrinsics, distortion, (width, height))] * len(stamps)
    if not contents.info:
        raise DatasetError(f"{where}: the camera_info topic holds no message: record it, or give intrinsics")
    order = np.argsort([time for time, _ in contents.info], kind="stable")
    times = np.array([contents.info[i][0] for i in order])
    after = np.clip(np.searchsorted(times, stamps), 1, max(len(times) - 1, 1))
    nearest = np.where(np.abs(times[after - 1] - stamps) <= np.abs(times[np.minimum(after, len(times) - 1)] - stamps),
                       after - 1, np.minimum(after, len(times) - 1))  # fmt: skip
    lenses = [contents.info[order[i]][1] for i in nearest]
    for lens in lenses:
        if (lens.intrinsics.width, lens.intrinsics.height) != (width, height):
            raise DatasetError(
                f"{where}: images are {width}x{height}, but camera_info is for {lens.intrinsics.width}x"
                f"{lens.intrinsics.height}: name the camera_info_topic that goes with them, or give intrinsics"
            )
    return lenses


def _poses(path: Path, contents: _Contents, stamps, camera: str, odometry_topic: str, world: str, extrinsic: str,
           max_gap: float) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return T_world_camera (N, 4, 4) at the stamps, in the axes of the camera frame, and where it is known."""
    tree = contents.tree
    T_base_camera = None
    if extrinsic:
        values = checks.numbers(f"{path}: base_to_camera", extrinsic.split(","), "x y z qx qy qz qw")
        T_base_camera = checks.quaternion_pose(f"{path}: base_to_camera", values[:3], values[3:])
    if not odometry_topic and tree.moves(camera):
        above = tree.ancestors(camera)
        world = frame_name(world) or next((frame for frame in _WORLDS if frame in above), above[-1])
        poses, valid = tree.lookup(world, camera, stamps, max_gap)
        return (poses if T_base_camera is None else poses @ T_base_camera), valid
    if not contents.odometry.times:
        raise DatasetError(
            f"{path}: no poses of the camera frame {camera!r}: TF does not move it (frames: "
            f"{', '.join(tree.frames) or 'none'}) and there is no single Odometry topic: name odometry_topic, or "
            "camera_frame, or record /tf and /tf_static"
        )
    poses, valid = contents.odometry.at(stamps, max_gap)
    base = contents.odometry_frame
    if T_base_camera is None and base != camera:
        if base not in tree.frames or camera not in tree.frames:
            raise DatasetError(
                f"{path}: odometry is of {base!r} and images of {camera!r}, but TF does not connect them (frames: "
                f"{', '.join(tree.frames) or 'none'}): record /tf_static, or give base_to_camera=x,y,z,qx,qy,qz,qw"
            )
        T_base_camera, known = tree.lookup(base, camera, stamps, max_gap)
        valid = valid & known
    return (poses if T_base_camera is None else poses @ T_base_camera), valid
