# SPDX-License-Identifier: Apache-2.0
"""A folder of posed images (images/ and cameras.json) as a ROS 2 bag with camera_info: input for `rays-as-pixels bag`.

    python benchmarks/clip_to_bag.py ../shared/data/clips/tum_desk_slow out/desk.mcap
"""

import argparse
import shutil
from pathlib import Path

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from rays_as_pixels_model.media import open_video

STORE = get_typestore(Stores.ROS2_JAZZY)


def message(kind, **fields):
    """Make a message of a type."""
    return STORE.types[kind](**fields)


def main():
    """Write the bag."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clip", type=Path)
    parser.add_argument("out", type=Path, help="a .mcap file that does not exist yet")
    parser.add_argument("--jpeg", action="store_true", help="compressed images")
    args = parser.parse_args()
    video = open_video(str(args.clip))
    folder = args.out.with_suffix("")
    topic, kind = "/camera/image_raw", "sensor_msgs/msg/Image"
    if args.jpeg:
        topic, kind = topic + "/compressed", "sensor_msgs/msg/CompressedImage"
    with Writer(folder, version=8, storage_plugin=StoragePlugin.MCAP) as bag:
        images = bag.add_connection(topic, kind, typestore=STORE)
        infos = bag.add_connection("/camera/camera_info", "sensor_msgs/msg/CameraInfo", typestore=STORE)
        for index, frame in enumerate(video):
            ns = 1_700_000_000_000_000_000 + round((video.time(index) - video.time(0)) * 1e9)
            stamp = message("builtin_interfaces/msg/Time", sec=ns // 10**9, nanosec=ns % 10**9)
            header = message("std_msgs/msg/Header", stamp=stamp, frame_id="camera_optical_frame")
            height, width = frame.shape[:2]
            if args.jpeg:
                data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].ravel()
                image = message(kind, header=header, format="jpeg", data=data)
            else:
                image = message(kind, header=header, height=height, width=width, encoding="rgb8", is_bigendian=0,
                                step=3 * width, data=frame.ravel())  # fmt: skip
            fx, fy, cx, cy = video.frame_intrinsics[index].to_opencv()
            info = message(
                "sensor_msgs/msg/CameraInfo", header=header, height=height, width=width, distortion_model="plumb_bob",
                d=np.zeros(5), k=np.array([fx, 0, cx, 0, fy, cy, 0, 0, 1.0]), r=np.eye(3).ravel(),
                p=np.array([fx, 0, cx, 0, 0, fy, cy, 0, 0, 0, 1.0, 0]), binning_x=0, binning_y=0,
                roi=message("sensor_msgs/msg/RegionOfInterest", x_offset=0, y_offset=0, height=0, width=0,
                            do_rectify=False),
            )  # fmt: skip
            bag.write(images, ns, STORE.serialize_cdr(image, kind))
            bag.write(infos, ns, STORE.serialize_cdr(info, infos.msgtype))
    (folder / f"{folder.name}.mcap").replace(args.out)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
