# SPDX-License-Identifier: Apache-2.0
"""The images of a bag, raw or compressed, one at a time: RGB (H, W, 3) uint8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from rosbags.highlevel import AnyReader

from rays_as_pixels_model.bags import BagError, bag_messages, open_bag

from .posed import DatasetError

# Encoding to channels and the conversion to RGB (None: it is RGB).
_ENCODINGS = {
    "rgb8": (3, None),
    "bgr8": (3, cv2.COLOR_BGR2RGB),
    "8UC3": (3, cv2.COLOR_BGR2RGB),
    "rgba8": (4, cv2.COLOR_RGBA2RGB),
    "bgra8": (4, cv2.COLOR_BGRA2RGB),
    "mono8": (1, cv2.COLOR_GRAY2RGB),
    "8UC1": (1, cv2.COLOR_GRAY2RGB),
    # OpenCV names a Bayer pattern by its second row, ROS by its first.
    "bayer_rggb8": (1, cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": (1, cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": (1, cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": (1, cv2.COLOR_BayerGB2RGB),
    "yuv422": (2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": (2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": (2, cv2.COLOR_YUV2RGB_YUY2),
    "yuyv": (2, cv2.COLOR_YUV2RGB_YUY2),
}


@contextmanager
def bags_as_datasets() -> Iterator[None]:
    """Turn what is wrong with a bag into a DatasetError."""
    try:
        yield
    except BagError as error:
        raise DatasetError(str(error)) from error


def decode(message, where: str) -> np.ndarray:
    """Decode an Image or CompressedImage message."""
    data = np.asarray(message.data, dtype=np.uint8)
    if not hasattr(message, "encoding"):
        image = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if image is None:
            raise DatasetError(f"{where}: compressed image of format {message.format!r} is not a readable jpeg or png")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if message.encoding not in _ENCODINGS:
        raise DatasetError(
            f"{where}: encoding {message.encoding!r} is not known, use one of {', '.join(_ENCODINGS)}"
        )
    channels, conversion = _ENCODINGS[message.encoding]
    height, width, step = message.height, message.width, message.step
    if step < width * channels or data.size < height * step:
        raise DatasetError(
            f"{where}: {width}x{height} {message.encoding} needs a step of at least {width * channels} and "
            f"{height} rows of it, got a step of {step} and {data.size} bytes"
        )
    rows = data[: height * step].reshape(height, step)[:, : width * channels]
    image = np.ascontiguousarray(rows.reshape(height, width, channels) if channels > 1 else rows)
    return image if conversion is None else cv2.cvtColor(image, conversion)


class BagImages:
    """Reads image `index` of a topic; the bag is opened at the first call and stays open."""

    def __init__(self, path: Path, topic: str, received: np.ndarray) -> None:
        """Args:
        received: (N,) int64, the time at which the bag received each image, nanoseconds.
        """
        self._path, self._topic, self._received = path, topic, received
        self._reader: AnyReader | None = None

    def __call__(self, index: int) -> np.ndarray:
        time = int(self._received[index])
        skip = index - int(np.searchsorted(self._received, time))  # images received at the very same time before it
        with bags_as_datasets():
            self._reader = self._reader or open_bag(self._path)
            connections = [c for c in self._reader.connections if c.topic == self._topic]
            messages = bag_messages(self._path, self._reader, connections, time, time + 1)
            for connection, _, raw in islice(messages, skip, None):
                return decode(self._reader.deserialize(raw, connection.msgtype), f"{self._path}: {self._topic} {index}")
        raise DatasetError(f"{self._path}: image {index} of {self._topic} is gone: the bag changed while it was read")
