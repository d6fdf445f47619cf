# SPDX-License-Identifier: Apache-2.0
"""Bags of a small camera that pans over a textured wall, made by rosbags, for the tests of the bag command."""

import cv2
import numpy as np
from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.ROS2_JAZZY)
START, PERIOD = 1_700_000_000_000_000_000, 100_000_000  # ns
SIZE = (120, 80)
K = (90.0, 91.0, 59.0, 40.0)  # fx, fy, cx, cy, the centre of the top-left pixel at (0, 0)
BARREL = (-0.2, 0.05, 0.001, -0.001, 0.0)
OPTICAL = "camera_optical_frame"
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
INFO, TF = "sensor_msgs/msg/CameraInfo", "tf2_msgs/msg/TFMessage"
_ALWAYS = QosTime(9223372036, 854775807)
LATCHED = Qos(QosHistory.KEEP_LAST, 1, QosReliability.RELIABLE, QosDurability.TRANSIENT_LOCAL, _ALWAYS, _ALWAYS,
              QosLiveliness.AUTOMATIC, _ALWAYS, False)  # fmt: skip


def frames(count=8):
    """Images (count, 80, 120, 3) uint8."""
    wall = np.random.default_rng(3).uniform(0, 255, (24, 48, 3)).astype(np.float32)
    wall = np.clip(cv2.resize(wall, (480, 240), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    return np.stack([wall[60 + i : 60 + i + SIZE[1], 100 + 4 * i : 100 + 4 * i + SIZE[0]] for i in range(count)])


def message(kind, **fields):
    return STORE.types[kind](**fields)


def header(ns, frame_id=OPTICAL):
    stamp = message("builtin_interfaces/msg/Time", sec=ns // 10**9, nanosec=ns % 10**9)
    return message("std_msgs/msg/Header", stamp=stamp, frame_id=frame_id)


def image(rgb, ns, compressed=False):
    if compressed:
        data = cv2.imencode(".png", rgb[..., ::-1])[1].ravel()
        return message(COMPRESSED, header=header(ns), format="png", data=data)
    return message(IMAGE, header=header(ns), height=SIZE[1], width=SIZE[0], encoding="rgb8", is_bigendian=0,
                   step=3 * SIZE[0], data=np.ascontiguousarray(rgb).ravel())  # fmt: skip


def camera_info(ns, k=K, d=(0.0,) * 5):
    fx, fy, cx, cy = k
    roi = message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0, do_rectify=False)
    return message(
        INFO, header=header(ns), height=SIZE[1], width=SIZE[0], distortion_model="plumb_bob", d=np.array(d),
        k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]), r=np.eye(3).ravel(),
        p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0]), binning_x=0, binning_y=0, roi=roi,
    )  # fmt: skip


def transform(ns, parent, child, xyz=(0.0, 0.0, 0.0), xyzw=(0.0, 0.0, 0.0, 1.0)):
    inner = message(
        "geometry_msgs/msg/Transform",
        translation=message("geometry_msgs/msg/Vector3", **dict(zip("xyz", xyz, strict=True))),
        rotation=message("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", xyzw, strict=True))),
    )
    kind = "geometry_msgs/msg/TransformStamped"
    return message(TF, transforms=[message(kind, header=header(ns, parent), child_frame_id=child, transform=inner)])


def recorded(compressed=False, k=K, d=(0.0,) * 5, topic="/camera/image_raw", infos=True, stamps=None, moving=False,
             mount=True, pictures=None):  # fmt: skip
    """List (topic, type, time of reception in ns, message): images 20 ms after their stamps, and other topics."""
    stamps = [START + i * PERIOD for i in range(8)] if stamps is None else stamps
    # A camera 0.3 m ahead of the robot's middle and 0.5 m up, looking forward.
    mounted = OPTICAL if mount else "lidar"
    out = [("/tf_static", TF, START - PERIOD,
            transform(START, "base_link", mounted, (0.3, 0.0, 0.5), (-0.5, 0.5, -0.5, 0.5)))]  # fmt: skip
    kind = COMPRESSED if compressed else IMAGE
    pictures = frames(len(stamps)) if pictures is None else pictures
    for index, (rgb, stamp) in enumerate(zip(pictures, stamps, strict=True)):
        received = START + index * PERIOD + 20_000_000
        out.append((topic + ("/compressed" if compressed else ""), kind, received, image(rgb, stamp, compressed)))
        if infos:
            out.append(("/camera/camera_info", INFO, received + 1_000_000, camera_info(stamp, k, d)))
        said = message("std_msgs/msg/String", data=f"step {index}")
        out.append(("/chatter", "std_msgs/msg/String", received + 40_000_000, said))
        if moving:
            out.append(("/tf", TF, received, transform(stamp, "odom", "base_link")))
    return out


def write_bag(path, messages, storage=StoragePlugin.MCAP):
    """Write a bag folder; returns its path."""
    with Writer(path, version=8, storage_plugin=storage) as bag:
        connections = {}
        for topic, kind, received, content in messages:
            if topic not in connections:
                qos = [LATCHED] if topic == "/tf_static" else []
                connections[topic] = bag.add_connection(topic, kind, typestore=STORE, offered_qos_profiles=qos)
            bag.write(connections[topic], received, STORE.serialize_cdr(content, kind))
    return path
