# SPDX-License-Identifier: Apache-2.0
"""A copy of a bag with more topics in it: types, definitions and QoS as a recorder would have stored them."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from rays_as_pixels_model.bags import BagError
from rays_as_pixels_model.files import check_writable
from rays_as_pixels_model.media import is_bag

_VERSION = 8  # of the metadata: read by Humble and by all that came later
_STORAGES = {".mcap": StoragePlugin.MCAP, ".db3": StoragePlugin.SQLITE3}
_UNKNOWN_HASH = "RIHS01_" + 64 * "0"  # of a type whose definition is nowhere
_FOREVER = QosTime(9223372036, 854775807)


def check_output(source: Path, out: Path, force: bool) -> None:
    """Check that `out` may be written.

    Raises:
        BagError: it exists and force is off, it is the source or in it, or it is something that is no bag.
        MediaError: its folder cannot be written.
    """
    if out.exists() and source.exists() and (out.samefile(source) or source.resolve().parent == out.resolve()):
        raise BagError(f"{out}: this is the bag that is read; write another one")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise BagError(f"{out}: lies in the bag that is read; write it elsewhere")
    if out.exists() and not force:
        raise BagError(f"{out}: exists; --force writes it anew")
    if out.is_dir() and (out.suffix in _STORAGES or not is_bag(out)):
        raise BagError(f"{out}: is a folder that holds no bag; name another --out")
    if out.is_file() and out.suffix not in _STORAGES:
        raise BagError(f"{out}: is a file that is no bag; --out is a .mcap or .db3 file, or the folder of a bag")
    check_writable(out)


@contextmanager
def replacing_bag(out: Path) -> Iterator[Path]:
    """Give a temporary path for the folder of a bag; it becomes `out` when the block ends well, else it is removed.

    Where `out` is a .mcap or .db3 file, the bag's one file takes its place.

    Raises:
        BagError: it cannot be written.
    """
    folder = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        single = out.suffix in _STORAGES
        bag = folder / (out.stem if single else out.name)
        yield bag
        if single:
            (bag / out.name).replace(out)
            return
        if out.exists():
            out.rename(folder / ".replaced")
        bag.rename(out)
    except (OSError, sqlite3.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise BagError(f"{out}: cannot be written: {reason}") from error
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def writer(folder: Path, out: Path) -> Writer:
    """Make the writer of a bag in `folder`, of the storage that the suffix of `out` asks for (MCAP for a folder)."""
    return Writer(folder, version=_VERSION, storage_plugin=_STORAGES.get(out.suffix, StoragePlugin.MCAP))


def qos_of(profile) -> Qos:
    """Say a node's QoSProfile as a bag does."""
    return Qos(
        QosHistory(int(profile.history)), int(profile.depth), QosReliability(int(profile.reliability)),
        QosDurability(int(profile.durability)), _FOREVER, _FOREVER, QosLiveliness.AUTOMATIC, _FOREVER,
        avoid_ros_namespace_conventions=False,
    )  # fmt: skip


class BagCopy:
    """Writes the messages of an open bag unchanged, and others beside them."""

    def __init__(self, reader: AnyReader, writer: Writer, added: dict[str, tuple[str, Qos]]):
        """
        Args:
            writer: open.
            added: each new topic with its type and QoS; one that the bag has already is shared if its type is the same.
        """
        self._writer = writer
        self._of: dict[int, Connection] = {}
        self._topics: dict[str, Connection] = {}
        self.untyped: list[str] = []  # topics whose message definitions are not known
        known = {}
        for connection in reader.connections:
            key = (connection.topic, connection.msgtype, repr(connection.ext))
            if key not in known:
                known[key] = self._copy(reader, connection)
            self._of[connection.id] = self._topics[connection.topic] = known[key]
        store = get_typestore(Stores.ROS2_JAZZY)
        for topic, (kind, qos) in added.items():
            if topic not in self._topics:
                self._topics[topic] = writer.add_connection(topic, kind, typestore=store, offered_qos_profiles=[qos])

    def _copy(self, reader: AnyReader, connection: Connection) -> Connection:
        defined = connection.msgtype in reader.typestore.fielddefs
        if not defined:
            self.untyped.append(connection.topic)
        text, digest = connection.msgdef.data, connection.digest
        if not text and defined:
            text, _ = reader.typestore.generate_msgdef(connection.msgtype, ros_version=2)
        if not digest:
            digest = reader.typestore.hash_rihs01(connection.msgtype) if defined else _UNKNOWN_HASH
        return self._writer.add_connection(
            connection.topic,
            connection.msgtype,
            msgdef=text,
            rihs01=digest,
            serialization_format=connection.ext.serialization_format,
            offered_qos_profiles=connection.ext.offered_qos_profiles,
        )

    def copy(self, connection: Connection, time: int, raw: bytes) -> None:
        """Write a message of the bag."""
        self._writer.write(self._of[connection.id], time, raw)

    def add(self, topic: str, time: int, raw: bytes) -> None:
        """Write a new message."""
        self._writer.write(self._topics[topic], time, raw)
