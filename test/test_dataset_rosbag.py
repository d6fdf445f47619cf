# SPDX-License-Identifier: Apache-2.0
"""Bags that rosbags writes: a robot with a camera drives through a rendered scene; loaded cameras fit its pictures."""

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from rendered_video import (
    INTRINSICS,
    SIZE,
    assert_same_cameras,
    assert_undistorted,
    brown_slopes,
    check_epipolar,
    rendered,
    seen_through,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from scipy.interpolate import CubicSpline
from scipy.spatial.transform import Rotation

from rays_as_pixels_training.data import open_dataset
from rays_as_pixels_training.data.posed import DatasetError

STORE = get_typestore(Stores.ROS2_HUMBLE)
START = 1_700_000_000.0  # seconds
# The camera on the robot: 0.2 m ahead, 0.5 m up, turned down by 10 degrees. The optical frame is the body frame turned:
# its z is the body's x (forward), its x the body's -y, its y the body's -z.
COS, SIN = np.cos(np.radians(10)), np.sin(np.radians(10))
BASE_TO_BODY = np.array([[COS, 0, SIN, 0.2], [0, 1, 0, 0], [-SIN, 0, COS, 0.5], [0, 0, 0, 1]])
BODY_TO_OPTICAL = np.array([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
BARREL = (-0.12, 0.03, 0.002, -0.001, 0.0)


def message(kind, **fields):
    return STORE.types[kind](**fields)


def stamp(time):
    nanoseconds = round(time * 1e9)
    return message("builtin_interfaces/msg/Time", sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def header(time, frame):
    return message("std_msgs/msg/Header", stamp=stamp(time), frame_id=frame)


def vector(xyz):
    return message("geometry_msgs/msg/Vector3", **dict(zip("xyz", map(float, xyz), strict=True)))


def quaternion(pose):
    xyzw = Rotation.from_matrix(pose[:3, :3]).as_quat()
    return message("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", map(float, xyzw), strict=True)))


def transform(time, parent, child, pose):
    inner = message("geometry_msgs/msg/Transform", translation=vector(pose[:3, 3]), rotation=quaternion(pose))
    kind = "geometry_msgs/msg/TransformStamped"
    return message(kind, header=header(time, parent), child_frame_id=child, transform=inner)


def image_message(frame, time, frame_id, encoding):
    if encoding in ("jpeg", "png"):
        _, data = cv2.imencode(f".{encoding}", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        return message("sensor_msgs/msg/CompressedImage", header=header(time, frame_id), format=encoding, data=data)
    height, width = frame.shape[:2]
    padding = np.zeros((height, 5), np.uint8)  # rows may be longer than their pixels
    pixels = {
        "rgb8": frame,
        "bgr8": frame[..., ::-1],
        "bgra8": np.concatenate([frame[..., ::-1], frame[..., :1]], 2),
        "mono8": cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY),
        "bayer_rggb8": bayer(frame),
    }[encoding].reshape(height, -1)
    data = np.concatenate([pixels, padding], axis=1)
    return message("sensor_msgs/msg/Image", header=header(time, frame_id), height=height, width=width,
                   encoding=encoding, is_bigendian=0, step=data.shape[1], data=data.ravel())  # fmt: skip


def bayer(frame):
    out = frame[..., 1].copy()
    out[::2, ::2], out[1::2, 1::2] = frame[::2, ::2, 0], frame[1::2, 1::2, 2]
    return out


def camera_info(time, frame_id, d=(0.0,) * 5, k=INTRINSICS):
    fx, fy, cx, cy = k.to_opencv()
    roi = message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return message(
        "sensor_msgs/msg/CameraInfo", header=header(time, frame_id), height=SIZE[1], width=SIZE[0],
        distortion_model="plumb_bob", d=np.array(d, float), k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]),
        r=np.eye(3).ravel(), p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0]), binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


@dataclass
class Motion:
    """The rendered camera's motion made continuous, as that of the robot's base: T_odom_base at any time."""

    times: np.ndarray = field(default_factory=lambda: START + np.arange(len(rendered().frames)) / 10)

    def __post_init__(self):
        camera = rendered().T_world_camera
        base = camera @ np.linalg.inv(BASE_TO_BODY @ BODY_TO_OPTICAL)
        self.first = Rotation.from_matrix(base[0, :3, :3])
        self.position = CubicSpline(self.times - START, base[:, :3, 3])
        turn = Rotation.from_matrix(base[:, :3, :3]) * self.first.inv()
        self.turn = CubicSpline(self.times - START, turn.as_rotvec())

    def at(self, time):
        pose = np.eye(4)
        pose[:3, :3] = (Rotation.from_rotvec(self.turn(time - START)) * self.first).as_matrix()
        pose[:3, 3] = self.position(time - START)
        return pose


def odometry(time, pose):
    point = message("geometry_msgs/msg/Point", **dict(zip("xyz", map(float, pose[:3, 3]), strict=True)))
    inner = message("geometry_msgs/msg/Pose", position=point, orientation=quaternion(pose))
    with_covariance = message("geometry_msgs/msg/PoseWithCovariance", pose=inner, covariance=np.zeros(36))
    twist = message("geometry_msgs/msg/Twist", linear=vector([0, 0, 0]), angular=vector([0, 0, 0]))
    twist = message("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=np.zeros(36))
    return message("nav_msgs/msg/Odometry", header=header(time, "odom"), child_frame_id="base_link",
                   pose=with_covariance, twist=twist)  # fmt: skip


def messages(*, poses="tf", encoding="rgb8", frames=None, frame_id="camera_optical", static=True, d=(0.0,) * 5, hz=97.0,
             topic="/camera/image_raw", info=True):  # fmt: skip
    """Return (topic, type, time received, message) of a recording; images arrive 30 ms after their stamps."""
    motion = Motion()
    out = []
    kind = "sensor_msgs/msg/CompressedImage" if encoding in ("jpeg", "png") else "sensor_msgs/msg/Image"
    for time, frame in zip(motion.times, rendered().frames if frames is None else frames, strict=True):
        out.append((topic, kind, time + 0.03, image_message(frame, time, frame_id, encoding)))
        if info:
            about = camera_info(time, frame_id, d)
            out.append(("/camera/camera_info", "sensor_msgs/msg/CameraInfo", time + 0.03, about))
    tf = "tf2_msgs/msg/TFMessage"
    for time in np.arange(motion.times[0] - 0.013, motion.times[-1] + 0.02, 1 / hz):
        if poses == "tf":
            moved = message(tf, transforms=[transform(time, "odom", "base_link", motion.at(time))])
            out.append(("/tf", tf, time + 0.001, moved))
        else:
            out.append(("/odom", "nav_msgs/msg/Odometry", time + 0.001, odometry(time, motion.at(time))))
    if static:
        links = [transform(START, "base_link", "camera_link", BASE_TO_BODY),
                 transform(START, "camera_link", "camera_optical", BODY_TO_OPTICAL)]  # fmt: skip
        out.append(("/tf_static", tf, START - 1, message(tf, transforms=links)))
    return sorted(out, key=lambda entry: entry[2])


def write_bag(path, recorded, storage=StoragePlugin.MCAP):
    with Writer(path, version=9, storage_plugin=storage) as bag:
        connections = {}
        for topic, kind, received, content in recorded:
            if topic not in connections:
                connections[topic] = bag.add_connection(topic, kind, typestore=STORE)
            bag.write(connections[topic], round(received * 1e9), STORE.serialize_cdr(content, kind))
    return path


# Between poses 10 ms apart the smooth motion is all but linear.
TOLERANCE = 1e-4


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("poses", ["tf", "odometry"])
def test_poses_from_tf_or_odometry_lead_to_the_camera(tmp_path, storage, poses):
    write_bag(tmp_path / "drive", messages(poses=poses), storage)
    (video,) = open_dataset(tmp_path / "drive")
    assert_same_cameras(video, tolerance=TOLERANCE)
    assert video.metric and video.name == "drive"
    np.testing.assert_allclose(video.times, Motion().times, atol=1e-6)
    np.testing.assert_allclose(video.T_world_camera, rendered().T_world_camera, atol=TOLERANCE)  # in odom
    for index in (4, 0, 1):  # in any order
        np.testing.assert_array_equal(video.load(index), rendered().frames[index])


def test_a_bag_is_also_its_single_file(tmp_path):
    folder = write_bag(tmp_path / "drive", messages())
    for path in (folder / "drive.mcap", tmp_path):
        (video,) = open_dataset(path)
        assert video.name == "drive" and len(video) == 6


@pytest.mark.parametrize(
    "encoding, tolerance", [("bgr8", 0), ("bgra8", 0), ("png", 0), ("jpeg", 6), ("bayer_rggb8", 12), ("mono8", None)]
)
def test_encodings(tmp_path, encoding, tolerance):
    topic = "/camera/image_raw" + ("/compressed" if encoding in ("jpeg", "png") else "")
    write_bag(tmp_path / "drive", messages(encoding=encoding, topic=topic))
    (video,) = open_dataset(tmp_path / "drive")
    truth = rendered().frames[2]
    if tolerance is None:
        truth, tolerance = np.repeat(cv2.cvtColor(truth, cv2.COLOR_RGB2GRAY)[..., None], 3, 2), 0
    assert np.abs(video.load(2).astype(float) - truth).mean() <= tolerance
    check_epipolar(video)


def test_distortion_of_camera_info_is_undone_and_rectified_images_are_left_alone(tmp_path):
    bent = seen_through(brown_slopes(BARREL))
    write_bag(tmp_path / "raw", messages(frames=bent, d=BARREL))
    (video,) = open_dataset(tmp_path / "raw")
    assert_undistorted(video)
    write_bag(tmp_path / "rect", messages(d=BARREL, topic="/camera/image_rect"))
    (video,) = open_dataset(tmp_path / "rect")
    assert_same_cameras(video, tolerance=TOLERANCE)
    np.testing.assert_array_equal(video.load(2), rendered().frames[2])


@pytest.mark.parametrize("d", [(0.0,) * 5, BARREL], ids=["pinhole", "barrel"])
def test_pixels_of_a_binned_region_look_where_those_of_the_whole_sensor_did(tmp_path, d):
    """The driver cuts and bins; the loaded camera then shows along each ray what the whole one shows there."""
    x, y, width, height, bins = 30, 22, 180, 120, (3, 5)

    def cut_and_bin(recorded):
        for info in of(recorded, "/camera/camera_info"):
            info.roi = message("sensor_msgs/msg/RegionOfInterest", x_offset=x, y_offset=y, height=height, width=width,
                               do_rectify=False)  # fmt: skip
            info.binning_x, info.binning_y = bins

    sensor = seen_through(brown_slopes(d)) if any(d) else rendered().frames
    cut = sensor[:, y : y + height, x : x + width].astype(float)
    binned = cut.reshape(len(cut), height // bins[1], bins[1], width // bins[0], bins[0], 3).mean((2, 4))
    write_bag(tmp_path / "drive", changed(cut_and_bin, frames=binned.round().astype(np.uint8), d=d))
    (video,) = open_dataset(tmp_path / "drive")
    found = video.intrinsics[2]
    assert (found.width, found.height) == (60, 24)
    if not any(d):
        fx, fy, cx, cy = INTRINSICS.to_opencv()
        K = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
        points = np.array([[0.1, 0.2, 1.0], [-0.3, 0.05, 1.2], [0.0, -0.2, 2.0]])
        on_sensor = cv2.projectPoints(points, np.zeros(3), np.zeros(3), K, None)[0][:, 0] + 0.5 - [x, y]
        own = points[:, :2] / points[:, 2:] * [found.fx, found.fy] + [found.cx, found.cy]
        np.testing.assert_allclose(own, on_sensor / bins, atol=1e-6)
    column, row = np.meshgrid(np.arange(60) + 0.5, np.arange(24) + 0.5)
    slopes = [(column - found.cx) / found.fx, (row - found.cy) / found.fy]
    k = INTRINSICS
    at = [(slopes[0] * k.fx + k.cx - 0.5).astype(np.float32), (slopes[1] * k.fy + k.cy - 0.5).astype(np.float32)]
    smooth = cv2.blur(rendered().frames[2], bins)  # what a bin takes together
    error = np.abs(cv2.remap(smooth, *at, cv2.INTER_LINEAR).astype(float) - video.load(2))[3:-3, 3:-3].mean()
    assert error < (6 if any(d) else 1), error  # undoing the distortion smooths once more


def text(pose):
    return ",".join(map(str, (*pose[:3, 3], *Rotation.from_matrix(pose[:3, :3]).as_quat())))


def test_images_in_a_ros_body_frame_are_turned_to_optical_axes(tmp_path):
    write_bag(tmp_path / "drive", messages(frame_id="camera_link"))
    assert_same_cameras(open_dataset(tmp_path / "drive", camera_axes="ros")[0], tolerance=TOLERANCE)
    with pytest.raises(AssertionError):
        assert_same_cameras(open_dataset(tmp_path / "drive")[0], tolerance=TOLERANCE)


@pytest.mark.parametrize("poses", ["tf", "odometry"])
def test_extrinsics_and_intrinsics_can_be_stated(tmp_path, poses):
    write_bag(tmp_path / "drive", messages(poses=poses, static=False, info=False))
    fx, fy, cx, cy = INTRINSICS.to_opencv()
    options = {"base_to_camera": text(BASE_TO_BODY @ BODY_TO_OPTICAL), "intrinsics": f"{fx},{fy},{cx},{cy}"}
    if poses == "tf":
        options["camera_frame"] = "base_link"
    assert_same_cameras(open_dataset(tmp_path / "drive", **options)[0], tolerance=TOLERANCE)


def test_a_camera_on_a_turning_head(tmp_path):
    """Two moving transforms, at times of their own: the base drives on a line, the head does the rest."""
    motion, tf, recorded = Motion(), "tf2_msgs/msg/TFMessage", messages(static=False)
    recorded = [entry for entry in recorded if entry[0] != "/tf"]
    T_base_camera = BASE_TO_BODY @ BODY_TO_OPTICAL

    def base(time):
        pose = np.eye(4)
        pose[0, 3] = 0.4 * (time - START)
        return pose

    for time in np.arange(START - 0.05, START + 0.6, 0.01):
        recorded.append(("/tf", tf, time, message(tf, transforms=[transform(time, "odom", "base", base(time))])))
    for time in np.arange(START - 0.005, START + 0.55, 0.0087):
        head = np.linalg.inv(base(time)) @ motion.at(time) @ T_base_camera
        recorded.append(("/tf", tf, time, message(tf, transforms=[transform(time, "base", "camera_optical", head)])))
    write_bag(tmp_path / "drive", sorted(recorded, key=lambda entry: entry[2]))
    assert_same_cameras(open_dataset(tmp_path / "drive")[0], tolerance=TOLERANCE)


def test_a_world_frame_that_is_not_above_the_camera(tmp_path):
    """A localiser that publishes map as a child of odom, as some do to keep TF a tree."""
    recorded, tf = messages(), "tf2_msgs/msg/TFMessage"
    T_odom_map = BASE_TO_BODY @ BODY_TO_OPTICAL  # any transform
    link = message(tf, transforms=[transform(START, "odom", "map", T_odom_map)])
    recorded.append(("/tf_static", tf, START, link))
    write_bag(tmp_path / "drive", sorted(recorded, key=lambda entry: entry[2]))
    (video,) = open_dataset(tmp_path / "drive", world_frame="map")
    expected = np.linalg.inv(T_odom_map) @ rendered().T_world_camera
    np.testing.assert_allclose(video.T_world_camera, expected, atol=TOLERANCE)
    with pytest.raises(DatasetError, match="no transform connects 'camera_optical' to 'utm'; TF has base_link, "):
        open_dataset(tmp_path / "drive", world_frame="utm")


def test_time_offset_and_gaps(tmp_path):
    recorded = messages()
    for entry in recorded:
        if entry[0] == "/camera/image_raw":
            entry[3].header.stamp = stamp(entry[2] - 0.03 + 0.25)  # a driver that stamps late
    kept = [e for e in recorded if e[0] != "/tf" or not START + 0.15 < e[2] < START + 0.25]
    write_bag(tmp_path / "drive", kept)
    videos = open_dataset(tmp_path / "drive", time_offset=-0.25, max_gap=0.05)
    assert [(video.name, len(video)) for video in videos] == [("drive/0", 2), ("drive/1", 3)]
    np.testing.assert_allclose(videos[1].T_world_camera, rendered().T_world_camera[3:], atol=TOLERANCE)
    np.testing.assert_array_equal(videos[1].load(0), rendered().frames[3])


def changed(edit, **options):
    recorded = messages(**options)
    edit(recorded)
    return recorded


def of(recorded, topic):
    return [entry[3] for entry in recorded if entry[0] == topic]


def drop(topic):
    return lambda recorded: recorded.__setitem__(slice(None), [entry for entry in recorded if entry[0] != topic])


def bad_quaternion(recorded):
    of(recorded, "/tf")[5].transforms[0].transform.rotation.w = 3.0


def same_stamps(recorded):
    of(recorded, "/camera/image_raw")[2].header.stamp = of(recorded, "/camera/image_raw")[1].header.stamp


def other_clock(recorded):
    for entry in of(recorded, "/camera/image_raw"):
        entry.header.stamp.sec -= 1_699_999_990


def two_cameras(recorded):
    recorded += [("/rear/image_raw", kind, time, content) for topic, kind, time, content in recorded
                 if topic == "/camera/image_raw"]  # fmt: skip


def uncalibrated(recorded):
    for entry in of(recorded, "/camera/camera_info"):
        entry.k = np.zeros(9)


def other_size(recorded):
    for entry in of(recorded, "/camera/camera_info"):
        entry.width = 640


def two_parents(recorded):
    of(recorded, "/tf")[3].transforms[0].header.frame_id = "map"


def depth_encoding(recorded):
    of(recorded, "/camera/image_raw")[0].encoding = "16UC1"


def short_data(recorded):
    of(recorded, "/camera/image_raw")[0].data = np.zeros(100, np.uint8)


@pytest.mark.parametrize(
    "recorded, message_",
    [
        (lambda: changed(bad_quaternion), r"/tf message 5 \(odom to base_link\): quaternion .* must have norm 1"),
        (lambda: changed(same_stamps), r"/camera/image_raw image 2 \(by its header\): time .* does not come after"),
        (lambda: changed(other_clock), r"no two images have poses within .* s around them: .*one clock must stamp"),
        (lambda: changed(two_cameras), r"several .* topics; name image_topic, one of: /camera/image_raw, /rear/"),
        (lambda: changed(uncalibrated), r"/camera/camera_info message 0: K is not calibrated .* give intrinsics"),
        (lambda: changed(other_size), r"images are 240x160, but camera_info is for 640x160"),
        (lambda: changed(two_parents), r"frame 'base_link' has two parents, 'odom' and 'map'"),
        (lambda: changed(depth_encoding), r"/camera/image_raw message 0: encoding '16UC1' is not known, use one of"),
        (lambda: changed(short_data), r"/camera/image_raw message 0: 240x160 rgb8 needs a step of at least 720"),
        (lambda: changed(drop("/tf_static")), r"no poses of the camera frame 'camera_optical': TF does not move it"),
        (lambda: changed(drop("/tf_static"), poses="odometry"), r"odometry is of 'base_link' .* record /tf_static"),
        (lambda: changed(drop("/camera/image_raw")), r"no Image or CompressedImage topics"),
        (lambda: messages(info=False), r"no CameraInfo topics; name camera_info_topic \(or intrinsics\)"),
    ],
)  # fmt: skip
def test_inconsistent_bags_say_what_is_wrong(tmp_path, recorded, message_):
    write_bag(tmp_path / "drive", recorded())
    with pytest.raises(DatasetError, match=message_) as error:
        open_dataset(tmp_path / "drive")
    assert str(tmp_path / "drive") in str(error.value)


def test_a_bag_that_is_damaged_in_its_middle(tmp_path):
    """Found when its messages are read, or when an image is, after it was opened."""
    file = next(write_bag(tmp_path / "drive", messages(), StoragePlugin.SQLITE3).glob("*.db3"))
    whole = bytearray(file.read_bytes())
    (video,) = open_dataset(tmp_path / "drive")
    middle = len(whole) // 2 // 4096 * 4096
    whole[middle : middle + 8192] = b"\x77" * 8192
    file.write_bytes(whole)
    for read in (lambda: open_dataset(tmp_path / "drive"), lambda: [video.load(i) for i in range(len(video))]):
        with pytest.raises(DatasetError, match=r"drive: damaged after \d+ messages: .*malformed"):
            read()


def test_a_file_that_is_no_bag(tmp_path):
    Path(tmp_path / "drive.mcap").write_bytes(b"nothing")
    with pytest.raises(DatasetError, match=r"drive\.mcap: not a readable bag"):
        open_dataset(tmp_path / "drive.mcap")
    write_bag(tmp_path / "good", messages())
    with pytest.raises(DatasetError, match="has no option imagetopic; it has base_to_camera, camera_axes"):
        open_dataset(tmp_path / "good", imagetopic="/camera/image_raw")
    with pytest.raises(DatasetError, match="camera_axes must be optical or ros, got 'flu'"):
        open_dataset(tmp_path / "good", camera_axes="flu")
