# SPDX-License-Identifier: Apache-2.0
"""Publishers, subscriptions, timers and guard conditions."""

import inspect
import threading
import time

from . import wire
from .arguments import RCLError
from .messages import deserialize, serialize, user_data, warm
from .qos import to_dds
from .unsupported import lacks


class TimerInfo:
    """Times of a timer call."""

    def __init__(self, expected_call_time, actual_call_time):
        self.expected_call_time, self.actual_call_time = expected_call_time, actual_call_time


class Entity:
    """Base of all that an executor serves; see executor.py."""

    condition = None

    def __init__(self, callback_group):
        self.callback_group = callback_group
        self.destroyed = False

    def due_in(self, now):
        """Nanoseconds until the entity is due, None for never (timers only)."""
        return None

    def take(self):
        """Return (function, arguments) to run, or None."""
        return None


@lacks("assert_liveliness", "handle", "logger_name")
class Publisher:
    """Publish messages on a topic."""

    def __init__(self, node, msg_type, topic_name, qos_profile):
        self._node, self.msg_type, self.topic_name, self.qos_profile = node, msg_type, topic_name, qos_profile
        warm(msg_type)
        name = msg_type._type_name
        self._writer = wire.RawWriter(
            node.context.participant, "rt" + topic_name, wire.idl_type(name), to_dds(qos_profile, user_data(name))
        )
        self.gids = ((), (self._writer.guid,))
        self.destroyed = False

    @property
    def topic(self):
        """The full topic name."""
        return self.topic_name

    def publish(self, msg):
        """Publish a message (or bytes that are already CDR)."""
        if self.destroyed or not self._node.context.ok():
            raise RCLError(f"Failed to publish on {self.topic_name}: publisher's context is invalid")
        if isinstance(msg, bytes):
            data = bytearray(msg.ljust((len(msg) + 3) & ~3, b"\0"))
        elif isinstance(msg, self.msg_type):
            data = serialize(msg)
        else:
            raise TypeError(f"Expected {self.msg_type}, got {type(msg)}")
        self._writer.write(data)

    def get_subscription_count(self):
        """Return the number of matched subscriptions."""
        return len(self._writer.entity.get_matched_subscriptions())

    def wait_for_all_acked(self, timeout=None):
        """Wait until all reliable subscriptions have got everything; `timeout` is a Duration."""
        end = None if timeout is None or timeout.nanoseconds < 0 else time.monotonic_ns() + timeout.nanoseconds
        while True:
            if self._writer.entity.wait_for_acks(50_000_000):
                return True
            if end is not None and time.monotonic_ns() >= end:
                return False

    def incompatible_peers(self):
        """Number of subscriptions that asked for a QoS which this publisher does not offer."""
        return self._writer.entity.get_offered_incompatible_qos_status().total_count

    def destroy(self):
        """Delete the publisher."""
        if not self.destroyed:
            self.destroyed = True
            self._node.forget(self)
            self._writer.close()


class MessageInfo(dict):
    """What a two-argument subscription callback gets beside the message."""


@lacks("handle", "logger_name")
class Subscription(Entity):
    """Call a function with each message of a topic."""

    def __init__(self, node, msg_type, topic_name, callback, qos_profile, callback_group, raw):
        super().__init__(callback_group)
        self._node, self.msg_type, self.topic_name, self.qos_profile = node, msg_type, topic_name, qos_profile
        self.callback, self.raw = callback, raw
        try:
            inspect.signature(callback).bind(None)
            self._with_info = False
        except TypeError:
            inspect.signature(callback).bind(None, None)
            self._with_info = True
        except ValueError:  # builtins have no signature
            self._with_info = False
        warm(msg_type)
        name = msg_type._type_name
        self._reader = wire.RawReader(
            node.context.participant, "rt" + topic_name, wire.idl_type(name),
            to_dds(qos_profile, user_data(name), writer=False),
        )  # fmt: skip
        self.condition = self._reader.condition
        self.gids = ((self._reader.guid,), ())

    def take(self):
        """Take one message."""
        taken = self._reader.take()
        if taken is None:
            return None
        data, info = taken
        message = bytes(data) if self.raw else deserialize(data, self.msg_type)
        if not self._with_info:
            return self.callback, (message,)
        stamps = MessageInfo(source_timestamp=info.source_timestamp, received_timestamp=time.time_ns())
        return self.callback, (message, stamps)

    def get_publisher_count(self):
        """Return the number of matched publishers."""
        return len(self._reader.entity.get_matched_publications())

    def incompatible_peers(self):
        """Number of publishers whose QoS this subscription cannot accept."""
        return self._reader.entity.get_requested_incompatible_qos_status().total_count

    def destroy(self):
        """Delete the subscription."""
        if not self.destroyed:
            self.destroyed = True
            self._node.forget(self)
            self._reader.close()


@lacks("handle", "time_since_last_call")
class Timer(Entity):
    """Call a function at a fixed period of a clock."""

    def __init__(self, node, callback, callback_group, period_ns, clock, autostart=True):
        super().__init__(callback_group)
        if period_ns < 0:
            raise ValueError("timer period must be non-negative")
        self._node, self.callback, self.clock = node, callback, clock
        self._period, self._lock = int(period_ns), threading.Lock()
        self._cancelled = not autostart
        self._waits_for_time = False
        self._next = clock._timer_now() + self._period

    @property
    def timer_period_ns(self):
        """The period in nanoseconds."""
        return self._period

    @timer_period_ns.setter
    def timer_period_ns(self, value):
        self._period = int(value)

    def due_in(self, now):
        """Nanoseconds until due."""
        if self._cancelled:
            return None
        now = self.clock._timer_now()
        if not now:
            self._waits_for_time = True  # simulated time that has not begun
            return None
        if self._waits_for_time or self._next - now > self._period:
            self._waits_for_time = False
            self._next = now + self._period  # simulated time began or went back
        left = self._next - now
        # Simulated time may pass at any speed: look often.
        return min(left, 10_000_000) if left > 0 and self.clock.ros_time_is_active else left

    def take(self):
        """Return the callback if due, and set the next time; calls that were missed are dropped."""
        with self._lock:
            now = self.clock._timer_now()
            if self._cancelled or now < self._next:
                return None
            self._next += self._period
            if self._next < now:
                self._next = now + self._period - (now - self._next) % max(1, self._period) if self._period else now
        return self.callback, ()

    def cancel(self):
        """Stop until reset."""
        self._cancelled = True

    def is_canceled(self):
        """Whether it was cancelled."""
        return self._cancelled

    def is_ready(self):
        """Whether it is due."""
        left = self.due_in(0)
        return left is not None and left <= 0

    def reset(self):
        """Start a new period now."""
        self._next = self.clock._timer_now() + self._period
        self._cancelled = False
        self._node.wake_executor()

    def time_until_next_call(self):
        """Nanoseconds until the next call; None if cancelled."""
        return None if self._cancelled else self._next - self.clock._timer_now()

    def destroy(self):
        """Delete the timer."""
        if not self.destroyed:
            self.destroyed = True
            self._cancelled = True
            self._node.forget(self)


@lacks("handle")
class GuardCondition(Entity):
    """Call a function in the executor when triggered from anywhere."""

    def __init__(self, node, callback, callback_group):
        super().__init__(callback_group)
        self._node, self.callback = node, callback
        self._guard = wire.Guard(node.context.participant)
        self.condition = self._guard.handle

    def trigger(self):
        """Have the callback called."""
        self._guard.trigger()

    def take(self):
        """Return the callback if triggered."""
        return (self.callback, ()) if self._guard.clear() else None

    def destroy(self):
        """Delete the guard condition."""
        if not self.destroyed:
            self.destroyed = True
            self._node.forget(self)
            self._guard.close()


class Rate:
    """Sleep at a fixed rate; only outside the executor's thread, as in rclpy."""

    def __init__(self, period_ns, clock):
        self._period, self._clock = period_ns, clock
        self._next = clock._timer_now() + period_ns

    def sleep(self):
        """Sleep until the next period begins."""
        while (left := self._next - self._clock._timer_now()) > 0:
            time.sleep(min(0.1, left * 1e-9) if not self._clock.ros_time_is_active else 0.005)
        self._next = max(self._next + self._period, self._clock._timer_now())

    def destroy(self):
        """Nothing to release."""
