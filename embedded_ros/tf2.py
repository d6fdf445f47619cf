# SPDX-License-Identifier: Apache-2.0
"""tf2_ros: buffer with interpolation, listener, broadcasters."""

import threading
import time as _time

import numpy as np

from .executor import ReentrantCallbackGroup
from .messages import message_class
from .qos import DurabilityPolicy, QoSProfile
from .task import Future
from .tf2_track import (
    IDENTITY,
    ConnectivityException,
    InvalidArgumentException,
    LookupException,
    Track,
    TransformException,
    compose,
    invert,
)
from .time import Duration, Time
from .unsupported import lacks


@lacks(
    "can_transform_core", "can_transform_full", "can_transform_full_core", "get_latest_common_time",
    "lookupVelocityCore", "lookupVelocityFullCore", "lookup_transform_core", "lookup_transform_full_async",
    "lookup_transform_full_core", "time_jump_callback", "transform_full", "wait_for_transform_full_async",
)  # fmt: skip
class Buffer:
    """Transforms over the last `cache_time` (10 s), asked for by frame names and time."""

    def __init__(self, cache_time=None, node=None):
        self._keep = (cache_time or Duration(seconds=10)).nanoseconds
        self._tracks, self._changed, self._waiting = {}, threading.Condition(), []
        self.node = node

    def clear(self):
        """Forget everything that is not static."""
        with self._changed:
            self._tracks = {frame: track for frame, track in self._tracks.items() if track.static}

    def set_transform(self, transform, authority="default"):
        """Add a TransformStamped."""
        self._insert(transform, False)

    def set_transform_static(self, transform, authority="default"):
        """Add a TransformStamped that holds for all times."""
        self._insert(transform, True)

    def _insert(self, message, static):
        parent, child = message.header.frame_id.lstrip("/"), message.child_frame_id.lstrip("/")
        t, r = message.transform.translation, message.transform.rotation
        translation, rotation = np.array([t.x, t.y, t.z]), np.array([r.x, r.y, r.z, r.w])
        norm = np.linalg.norm(rotation)
        if not parent or not child or parent == child:
            return
        if not np.isfinite(translation).all() or not abs(norm - 1.0) < 1e-3:
            return  # tf2 ignores such transforms too
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        with self._changed:
            self._tracks.setdefault(child, Track()).insert(
                parent, stamp, (translation, rotation / norm), static, self._keep
            )
            self._changed.notify_all()
            waiting, self._waiting = self._waiting, []
        for future, arguments in waiting:
            self._try(future, arguments)

    def _known(self, frame):
        return frame in self._tracks or any(track.parent == frame for track in self._tracks.values())

    def _latest_common(self, target, source):
        """Return the latest time at which both frames are known, 0 if all is static."""
        stamps = []
        paths = []
        for frame in (target, source):
            path = [frame]
            while path[-1] in self._tracks and self._tracks[path[-1]].parent not in path:
                path.append(self._tracks[path[-1]].parent)
            paths.append(path)
        shared = set(paths[0]) & set(paths[1])
        for path in paths:
            for frame in path:
                if frame in shared or frame not in self._tracks:
                    break
                if not self._tracks[frame].static:
                    stamps.append(self._tracks[frame].stamps[-1])
        return min(stamps) if stamps else 0

    def _lookup(self, target, source, stamp):
        """Return (transform of source in target, stamp) or raise."""
        target, source = target.lstrip("/"), source.lstrip("/")
        with self._changed:
            for frame in (target, source):
                if not frame:
                    raise InvalidArgumentException("Invalid argument passed to lookupTransform: frame_id is empty")
                if not self._known(frame):
                    raise LookupException(
                        f'"{frame}" passed to lookupTransform argument '
                        f"{'target_frame' if frame == target else 'source_frame'} does not exist."
                    )
            if target == source:
                return IDENTITY, stamp
            stamp = stamp or self._latest_common(target, source)
            above = dict(self._chain_up_to(target, stamp, source))
            for frame, value in self._chain_up_to(source, stamp, target):
                if frame in above:
                    return compose(invert(above[frame]), value), stamp
        raise ConnectivityException(
            f"Could not find a connection between '{target}' and '{source}' because they are not part of the same tree."
        )

    def _chain_up_to(self, frame, stamp, other):
        """The chain of a frame; above the lowest frame shared with `other` times need not be known."""
        shared = set()
        node = other
        while node is not None and node not in shared:
            shared.add(node)
            node = self._tracks[node].parent if node in self._tracks else None
        chain, current = [(frame, IDENTITY)], IDENTITY
        while frame in self._tracks and frame not in shared:
            parent, value = self._tracks[frame].at(stamp, frame)
            current = compose(value, current)
            frame = parent
            if any(frame == seen for seen, _ in chain):
                raise ConnectivityException(f"the frames form a loop at [{frame}]")
            chain.append((frame, current))
        return chain

    def lookup_transform(self, target_frame, source_frame, time, timeout=None):
        """Return the TransformStamped that takes points of `source_frame` to `target_frame` at `time` (0: latest).

        Waits up to `timeout`; another thread must spin the listener.

        Raises: LookupException, ConnectivityException, ExtrapolationException.
        """
        end = _time.monotonic_ns() + (timeout.nanoseconds if timeout else 0)
        stamp = _nanoseconds(time)
        while True:
            try:
                value, found = self._lookup(target_frame, source_frame, stamp)
                return _to_message(value, found, target_frame, source_frame)
            except TransformException:
                left = end - _time.monotonic_ns()
                if left <= 0 or (self.node is not None and not self.node.context.ok()):
                    raise
                with self._changed:
                    self._changed.wait(min(0.1, left * 1e-9))

    def lookup_transform_full(self, target_frame, target_time, source_frame, source_time, fixed_frame, timeout=None):
        """Return the transform between two times by way of a frame that does not move."""
        target = self.lookup_transform(fixed_frame, target_frame, target_time, timeout)
        source = self.lookup_transform(fixed_frame, source_frame, source_time, timeout)
        value = compose(invert(_from_message(target)), _from_message(source))
        return _to_message(value, _nanoseconds(target_time), target_frame, source_frame)

    def can_transform(self, target_frame, source_frame, time, timeout=None, return_debug_tuple=False):
        """Tell whether lookup_transform would succeed."""
        try:
            self.lookup_transform(target_frame, source_frame, time, timeout)
        except TransformException as error:
            return (False, str(error)) if return_debug_tuple else False
        return (True, "") if return_debug_tuple else True

    def wait_for_transform_async(self, target_frame, source_frame, time):
        """Return a future that is done when the transform is there."""
        future = Future()
        self._try(future, (target_frame, source_frame, time))
        return future

    async def lookup_transform_async(self, target_frame, source_frame, time):
        """Await a transform."""
        await self.wait_for_transform_async(target_frame, source_frame, time)
        return self.lookup_transform(target_frame, source_frame, time)

    def _try(self, future, arguments):
        if self.can_transform(*arguments):
            future.set_result(True)
        elif not future.done():
            with self._changed:
                self._waiting.append((future, arguments))

    def all_frames_as_yaml(self):
        """Return the frames as text."""
        with self._changed:
            return "".join(f"{child}: \n  parent: '{track.parent}'\n" for child, track in sorted(self._tracks.items()))

    all_frames_as_string = all_frames_as_yaml

    def transform(self, object_stamped, target_frame, timeout=None):
        """Not supported."""
        raise NotImplementedError("embedded_ros: Buffer.transform (tf2_geometry_msgs) is not supported")


def _nanoseconds(time):
    if isinstance(time, (Time, Duration)):
        return time.nanoseconds
    return time.sec * 10**9 + time.nanosec


def _from_message(message):
    t, r = message.transform.translation, message.transform.rotation
    return np.array([t.x, t.y, t.z]), np.array([r.x, r.y, r.z, r.w])


def _to_message(value, stamp, target, source):
    message = message_class("geometry_msgs/msg/TransformStamped")()
    message.header.stamp = Time(nanoseconds=stamp).to_msg()
    message.header.frame_id, message.child_frame_id = target, source
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = (float(v) for v in value[0])
    r.x, r.y, r.z, r.w = (float(v) for v in value[1])
    return message


_LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TransformListener:
    """Fill a buffer from /tf and /tf_static."""

    def __init__(self, buffer, node, *, spin_thread=False, qos=None, static_qos=None, tf_topic="/tf",
                 tf_static_topic="/tf_static", static_only=False):  # fmt: skip
        if spin_thread:
            raise NotImplementedError("embedded_ros: TransformListener(spin_thread=True) is not supported")
        self.buffer, self.node = buffer, node
        buffer.node = buffer.node or node
        kind, self.group = message_class("tf2_msgs/msg/TFMessage"), ReentrantCallbackGroup()
        self.tf_sub = None
        if not static_only:
            self.tf_sub = node.create_subscription(
                kind, tf_topic, self.callback, qos or QoSProfile(depth=100), callback_group=self.group
            )
        self.tf_static_sub = node.create_subscription(
            kind, tf_static_topic, self.static_callback, static_qos or _LATCHED, callback_group=self.group
        )

    def callback(self, data):
        """Take in a message of /tf."""
        for transform in data.transforms:
            self.buffer.set_transform(transform, "default_authority")

    def static_callback(self, data):
        """Take in a message of /tf_static."""
        for transform in data.transforms:
            self.buffer.set_transform_static(transform, "default_authority")

    def unregister(self):
        """Stop listening."""
        for subscription in (self.tf_sub, self.tf_static_sub):
            if subscription is not None:
                self.node.destroy_subscription(subscription)


class TransformBroadcaster:
    """Send transforms on /tf."""

    def __init__(self, node, qos=None):
        self._type = message_class("tf2_msgs/msg/TFMessage")
        self.pub_tf = node.create_publisher(self._type, "/tf", qos or QoSProfile(depth=100))

    def sendTransform(self, transform):  # noqa: N802  the name is tf2's
        """Send one TransformStamped or a list of them."""
        transforms = list(transform) if isinstance(transform, (list, tuple)) else [transform]
        self.pub_tf.publish(self._type(transforms=transforms))


class StaticTransformBroadcaster:
    """Send transforms that do not change on /tf_static, for late joiners too."""

    def __init__(self, node, qos=None):
        self._type = message_class("tf2_msgs/msg/TFMessage")
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.pub_tf = node.create_publisher(self._type, "/tf_static", qos or latched)
        self._sent = {}

    def sendTransform(self, transform):  # noqa: N802  the name is tf2's
        """Send one TransformStamped or a list of them, together with all sent before."""
        for one in transform if isinstance(transform, (list, tuple)) else [transform]:
            self._sent[one.child_frame_id] = one
        self.pub_tf.publish(self._type(transforms=list(self._sent.values())))
