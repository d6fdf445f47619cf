# SPDX-License-Identifier: Apache-2.0
"""Bags, read without ROS: how one is opened and which of its topics is the camera. Times of a bag are ns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.typesys import Stores, get_typestore

from .media import BAG_SUFFIXES, is_bag

IMAGE_TYPES = ("sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage")
INFO_TYPE = "sensor_msgs/msg/CameraInfo"


class BagError(ValueError):
    """A bag that cannot be used; the message is one line, names the bag and says what would be right."""


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{text} (if it was cut short, `mcap recover` or `ros2 bag reindex` may mend it)"


def _listed() -> str:
    return ", ".join(BAG_SUFFIXES[:-1]) + f" or {BAG_SUFFIXES[-1]}"


@cache
def _humble():
    return get_typestore(Stores.ROS2_HUMBLE)


def open_bag(path: Path) -> AnyReader:
    """Open a bag of ROS 2 (sqlite3 or MCAP) or ROS 1; sqlite3 bags without message definitions read as Humble's.

    Raises:
        BagError: no bag, one that is damaged, or one of an unknown storage.
    """
    if path.is_file() and path.suffix not in BAG_SUFFIXES:
        raise BagError(f"{path}: not a readable bag: a bag is a folder with metadata.yaml, or a file {_listed()}")
    if (path / "metadata.yaml").is_file() and not is_bag(path):
        raise BagError(f"{path}: not a readable bag: metadata.yaml is not that of a bag, which tells its files")
    try:
        reader = AnyReader([path], default_typestore=_humble())
        reader.open()
    except FileNotFoundError as error:
        what = "the folder has no metadata.yaml (`ros2 bag reindex` makes one)" if path.is_dir() else "no such file"
        raise BagError(f"{path}: not a readable bag: {what}") from error
    except Exception as error:  # a damaged file shows as an error of whatever reads it: sqlite3, struct, the codecs
        raise BagError(f"{path}: not a readable bag: {_reason(error)}") from error
    return reader


def bag_messages(
    path: Path, reader: AnyReader, connections: Sequence[Connection], start: int | None = None, stop: int | None = None
) -> Iterator[tuple[Connection, int, bytes]]:
    """Yield (connection, time of reception in ns, message) in the order of time; no connections give no message.

    Args:
        start, stop: only messages received in [start, stop).

    Raises:
        BagError: the bag is damaged.
    """
    messages = reader.messages(connections, start, stop) if connections else iter(())
    count = 0
    while True:
        try:
            connection, time, raw = next(messages)
        except StopIteration:
            return
        except Exception as error:  # as in open_bag
            raise BagError(f"{path}: damaged after {count} messages: {_reason(error)}") from error
        count += 1
        yield connection, time, raw


def choose_topic(path: Path, topics: dict[str, str], types: tuple[str, ...], wanted: str, option: str) -> str:
    """Return the wanted topic, or the only one of a type.

    Args:
        topics: each topic of the bag with its type.
        option: what the user calls the choice.
    Raises:
        BagError: there is no such topic, or several; lists them.
    """
    known = sorted(topic for topic, kind in topics.items() if kind in types)
    if wanted in known or (not wanted and len(known) == 1):
        return wanted or known[0]
    kinds = " or ".join(kind.rpartition("/")[2] for kind in types)
    asked = f"no {kinds} topic {wanted!r}" if wanted else ("several" if known else "no") + f" {kinds} topics"
    raise BagError(f"{path}: {asked}; name {option}, one of: {', '.join(known) or '(the bag has none)'}")


def choose_info_topic(path: Path, topics: dict[str, str], image_topic: str, wanted: str, option: str) -> str:
    """Find the camera_info of an image topic: /camera/image_raw[/compressed] goes with /camera/camera_info.

    Raises:
        BagError: as `choose_topic`.
    """
    base = image_topic.removesuffix("/compressed")
    beside = f"{base.rpartition('/')[0]}/camera_info"
    if not wanted and topics.get(beside) == INFO_TYPE:
        return beside
    return choose_topic(path, topics, (INFO_TYPE,), wanted, option)
