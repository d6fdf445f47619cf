# SPDX-License-Identifier: Apache-2.0
"""Messages as a bag holds them: CDR bytes to messages and back, and the transforms of a whole bag."""

from __future__ import annotations

import numpy as np
from rclpy.duration import Duration
from rclpy.serialization import deserialize_message, serialize_message
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from tf2_msgs.msg import TFMessage
from tf2_ros import Buffer, TransformException

from . import conversions

_KINDS = {
    "sensor_msgs/msg/Image": Image,
    "sensor_msgs/msg/CompressedImage": CompressedImage,
    "sensor_msgs/msg/CameraInfo": CameraInfo,
    "tf2_msgs/msg/TFMessage": TFMessage,
}


def from_cdr(raw: bytes, kind: str):
    """Make a message of CDR bytes.

    Raises:
        ConversionError: the bytes are not such a message.
    """
    try:
        return deserialize_message(bytes(raw), _KINDS[kind])
    except Exception as error:  # what it raises depends on the ROS that is here
        raise conversions.ConversionError(f"{len(raw)} bytes are not a {kind}: {error}") from error


def to_cdr(message) -> bytes:
    """Make the CDR bytes of a message."""
    return serialize_message(message)


def tf_message(transforms: list) -> TFMessage:
    """Make the message of /tf."""
    return TFMessage(transforms=transforms)


class BagTransforms:
    """All transforms of a bag, at any time of it."""

    def __init__(self, seconds: float):
        """
        Args:
            seconds: how long the bag is.
        """
        self._buffer = Buffer(cache_time=Duration(seconds=seconds + 60.0))
        self.parents: dict[str, str] = {}

    def add(self, message: TFMessage, static: bool) -> None:
        """Take a message of /tf or /tf_static."""
        for transform in message.transforms:
            self.parents[transform.child_frame_id.lstrip("/")] = transform.header.frame_id.lstrip("/")
            insert = self._buffer.set_transform_static if static else self._buffer.set_transform
            insert(transform, "bag")

    def lookup(self, target: str, source: str, ns: int) -> np.ndarray:
        """Return T_target_source (4, 4) at a stamp, or the newest where TF does not reach it.

        Raises:
            ValueError: TF does not connect the frames.
        """
        try:
            at = Time(nanoseconds=ns)
            if not self._buffer.can_transform(target, source, at):
                at = Time()
            return conversions.transform_to_matrix(self._buffer.lookup_transform(target, source, at).transform)
        except TransformException as error:
            raise ValueError(" ".join(str(error).split())) from error
