# SPDX-License-Identifier: Apache-2.0
"""A recorded camera: the images of a bag with their cameras and transforms, as a node would have met them live."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from rays_as_pixels_model.bags import (
    IMAGE_TYPES,
    INFO_TYPE,
    BagError,
    bag_messages,
    choose_info_topic,
    choose_topic,
    open_bag,
)
from rays_as_pixels_model.geometry import Intrinsics

from . import bag_messages as messages
from . import conversions

TF_TYPE = "tf2_msgs/msg/TFMessage"


@dataclass(frozen=True)
class RecordedFrame:
    """One usable image: its number among the bag's images, stamp (ns), frame_id and message.

    life grows by one where time goes back: there a new trajectory begins.
    """

    index: int
    stamp: int
    frame_id: str
    image: object = field(repr=False)
    life: int = 0


class Recording:
    """The camera of a bag. Opening reads its camera_infos and transforms; images are read when they are asked for."""

    def __init__(self, path: Path, image_topic: str = "", info_topic: str = "", rectified_images: str = "auto"):
        """
        Args:
            image_topic: Image or CompressedImage; needed if the bag has several.
            info_topic: default: camera_info beside the image topic, or the only one of the bag.
            rectified_images: see `conversions.is_rectified`.
        Raises:
            BagError: the bag, or the choice of its topics, cannot be used.
        """
        self.path = path
        self.reader = open_bag(path)
        self.refused: Counter = Counter()  # images that could not be used, by reason
        try:
            if not self.reader.is2:
                raise BagError(f"{path}: this is a bag of ROS 1; `rosbags-convert` makes one of ROS 2 of it")
            self.topics = {c.topic: c.msgtype for c in self.reader.connections}
            self.image_topic = choose_topic(path, self.topics, IMAGE_TYPES, image_topic, "--image-topic")
            if INFO_TYPE not in self.topics.values():
                raise BagError(
                    f"{path}: no CameraInfo topics: record camera_info with the images; `rays-as-pixels estimate` "
                    "takes images without"
                )
            self.info_topic = choose_info_topic(
                path, self.topics, self.image_topic, info_topic, "--camera-info-topic"
            )  # fmt: skip
            self.rectified = conversions.is_rectified(rectified_images, self.image_topic)
            self.image_count = sum(c.msgcount for c in self._connections(self.image_topic))
            if not self.image_count:
                raise BagError(f"{path}: {self.image_topic} holds no image")
            self.transforms = messages.BagTransforms(self.reader.duration * 1e-9)
            self._info_stamps: list[int] = []
            self._infos: list = []
            self._read_small_topics()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the bag."""
        self.reader.close()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _connections(self, *topics: str) -> list:
        return [c for c in self.reader.connections if c.topic in topics]

    def _read_small_topics(self) -> None:
        """Read transforms and cameras; equal cameras are kept once."""
        trees = [topic for topic, kind in self.topics.items() if kind == TF_TYPE]
        cameras: dict[tuple, object] = {}
        found: list[tuple[int, object]] = []
        for connection, _, raw in bag_messages(self.path, self.reader, self._connections(self.info_topic, *trees)):
            message = messages.from_cdr(raw, connection.msgtype)
            if connection.topic != self.info_topic:
                self.transforms.add(message, static=connection.topic.endswith("tf_static"))
                continue
            m, roi = message, message.roi
            key = (m.width, m.height, m.distortion_model, *m.k, *m.p, *m.d, m.binning_x, m.binning_y,
                   roi.x_offset, roi.y_offset, roi.width, roi.height)  # fmt: skip
            found.append((conversions.stamp_ns(message.header.stamp), cameras.setdefault(key, message)))
        if not found:
            raise BagError(f"{self.path}: {self.info_topic} holds no message; record it with the images")
        try:
            for camera in cameras.values():
                conversions.camera_from_info(camera, self.rectified)
        except conversions.ConversionError as error:
            raise BagError(f"{self.path}: {self.info_topic}: {error}") from error
        found.sort(key=lambda pair: pair[0])
        self._info_stamps, self._infos = (list(column) for column in zip(*found, strict=True))

    def _info_at(self, stamp: int):
        """The camera_info of a stamp, or the nearest in time: no image is left out because its partner is missing."""
        after = bisect_left(self._info_stamps, stamp)
        near = [i for i in (after - 1, after) if 0 <= i < len(self._infos)]
        return self._infos[min(near, key=lambda i: abs(self._info_stamps[i] - stamp))]

    def frames(self) -> Iterator[RecordedFrame]:
        """Yield the images in the order in which the bag received them; one that repeats a stamp is left out."""
        last, life = -1, 0
        connections = self._connections(self.image_topic)
        for index, (connection, _, raw) in enumerate(bag_messages(self.path, self.reader, connections)):
            try:
                frame = self.frame(index, connection.msgtype, raw)
            except conversions.ConversionError as error:
                self.refused[str(error)] += 1
                continue
            if frame.stamp == last:
                self.refused["the stamp of the image before"] += 1
                continue
            life += frame.stamp < last
            last = frame.stamp
            yield replace(frame, life=life)

    def frame(self, index: int, kind: str, raw: bytes) -> RecordedFrame:
        """Read the bag's image `index` from its bytes; raises ConversionError."""
        image = messages.from_cdr(raw, kind)
        return RecordedFrame(
            index, conversions.stamp_ns(image.header.stamp), image.header.frame_id.lstrip("/"), image
        )  # fmt: skip

    def decode(
        self, frame: RecordedFrame, size: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, Intrinsics] | None:
        """Return the undistorted image (H, W, 3) uint8 and its pinhole camera; None, counted, if it cannot be used.

        Args:
            size: (width, height) that it is fitted to; None leaves it as large as it is.
        """
        info = self._info_at(frame.stamp)
        try:
            if size is None:
                return conversions.pinhole_frame(frame.image, info, rectified=self.rectified)
            return conversions.fitted_frame(frame.image, info, *size, self.rectified)
        except conversions.ConversionError as error:
            self.refused[str(error)] += 1
            return None

    def mount(self, base: str, optical: str, stamp: int) -> np.ndarray | None:
        """Return T_base_optical (4, 4), or None where the camera itself is the base.

        Raises:
            BagError: TF does not tell.
        """
        if base in ("", optical):
            return None
        try:
            return self.transforms.lookup(base, optical, stamp)
        except ValueError as error:
            raise BagError(
                f"{self.path}: the transform from '{optical}' to base_frame '{base}' is missing in TF ({error}): "
                "record /tf_static, name another --base-frame, or give --base-frame '' to use the optical frame as base"
            ) from error
