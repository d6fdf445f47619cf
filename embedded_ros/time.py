# SPDX-License-Identifier: Apache-2.0
"""rclpy.time, rclpy.duration and rclpy.clock: times in nanoseconds; ROS time follows /clock when asked to."""

import threading
import time as _time
from enum import IntEnum

from .messages import message_class
from .unsupported import lacks

_SECOND = 1_000_000_000


class ClockType(IntEnum):
    """Kinds of clocks."""

    UNINITIALIZED = 0
    ROS_TIME = 1
    SYSTEM_TIME = 2
    STEADY_TIME = 3


@lacks("get_c_duration")
class Duration:
    """A span of time."""

    def __init__(self, *, seconds=0, nanoseconds=0):
        self._nanoseconds = int(seconds * _SECOND) + int(nanoseconds)

    @property
    def nanoseconds(self):
        """The span in nanoseconds."""
        return self._nanoseconds

    def to_msg(self):
        """Return a builtin_interfaces Duration."""
        seconds, rest = divmod(self._nanoseconds, _SECOND)
        return message_class("builtin_interfaces/msg/Duration")(sec=seconds, nanosec=rest)

    @classmethod
    def from_msg(cls, msg):
        """Make one from a builtin_interfaces Duration."""
        return cls(seconds=msg.sec, nanoseconds=msg.nanosec)

    def __repr__(self):
        return f"Duration(nanoseconds={self._nanoseconds})"

    def __hash__(self):
        return hash(self._nanoseconds)

    def __eq__(self, other):
        return self._nanoseconds == other.nanoseconds if isinstance(other, Duration) else NotImplemented

    def __lt__(self, other):
        return self._nanoseconds < other.nanoseconds if isinstance(other, Duration) else NotImplemented

    def __le__(self, other):
        return self._nanoseconds <= other.nanoseconds if isinstance(other, Duration) else NotImplemented

    def __gt__(self, other):
        return self._nanoseconds > other.nanoseconds if isinstance(other, Duration) else NotImplemented

    def __ge__(self, other):
        return self._nanoseconds >= other.nanoseconds if isinstance(other, Duration) else NotImplemented


class Time:
    """A point in time of one kind of clock."""

    def __init__(self, *, seconds=0, nanoseconds=0, clock_type=ClockType.SYSTEM_TIME):
        if seconds < 0 or nanoseconds < 0:
            raise ValueError("Seconds and nanoseconds values must not be negative")
        self._nanoseconds = int(seconds * _SECOND) + int(nanoseconds)
        self._clock_type = ClockType(clock_type)

    @property
    def nanoseconds(self):
        """Nanoseconds since the epoch."""
        return self._nanoseconds

    @property
    def clock_type(self):
        """The kind of clock."""
        return self._clock_type

    def seconds_nanoseconds(self):
        """Return (seconds, nanoseconds)."""
        return divmod(self._nanoseconds, _SECOND)

    def to_msg(self):
        """Return a builtin_interfaces Time."""
        seconds, rest = divmod(self._nanoseconds, _SECOND)
        return message_class("builtin_interfaces/msg/Time")(sec=seconds, nanosec=rest)

    @classmethod
    def from_msg(cls, msg, clock_type=ClockType.ROS_TIME):
        """Make one from a builtin_interfaces Time."""
        return cls(seconds=msg.sec, nanoseconds=msg.nanosec, clock_type=clock_type)

    def __repr__(self):
        return f"Time(nanoseconds={self._nanoseconds}, clock_type={self._clock_type.name})"

    def __hash__(self):
        return hash((self._nanoseconds, self._clock_type))

    def __add__(self, other):
        if not isinstance(other, Duration):
            return NotImplemented
        return Time(nanoseconds=self._nanoseconds + other.nanoseconds, clock_type=self._clock_type)

    __radd__ = __add__

    def __sub__(self, other):
        if isinstance(other, Time):
            self._comparable(other)
            return Duration(nanoseconds=self._nanoseconds - other.nanoseconds)
        if isinstance(other, Duration):
            return Time(nanoseconds=self._nanoseconds - other.nanoseconds, clock_type=self._clock_type)
        return NotImplemented

    def _comparable(self, other):
        if self._clock_type != other.clock_type:
            raise TypeError("Can't compare times with different clock types")
        return True

    def __eq__(self, other):
        return self._comparable(other) and self._nanoseconds == other.nanoseconds if isinstance(other, Time) else False

    def __lt__(self, other):
        if not isinstance(other, Time):
            return NotImplemented
        return self._comparable(other) and self._nanoseconds < other.nanoseconds

    def __le__(self, other):
        if not isinstance(other, Time):
            return NotImplemented
        return self._comparable(other) and self._nanoseconds <= other.nanoseconds

    def __gt__(self, other):
        if not isinstance(other, Time):
            return NotImplemented
        return self._comparable(other) and self._nanoseconds > other.nanoseconds

    def __ge__(self, other):
        if not isinstance(other, Time):
            return NotImplemented
        return self._comparable(other) and self._nanoseconds >= other.nanoseconds


@lacks("create_jump_callback", "handle", "set_ros_time_override")
class Clock:
    """A clock; the one of a node is a ROS clock, which follows /clock under use_sim_time."""

    def __init__(self, *, clock_type=ClockType.SYSTEM_TIME):
        self._clock_type = ClockType(clock_type)
        self._simulated = None
        self._changed = threading.Condition()

    @property
    def clock_type(self):
        """The kind of clock."""
        return self._clock_type

    @property
    def ros_time_is_active(self):
        """Whether the clock follows /clock."""
        return self._simulated is not None

    def now(self):
        """Return the time now."""
        return Time(nanoseconds=self._now(), clock_type=self._clock_type)

    def _now(self):
        if self._simulated is not None:
            return self._simulated
        return _time.monotonic_ns() if self._clock_type == ClockType.STEADY_TIME else _time.time_ns()

    def _timer_now(self):
        """Nanoseconds that timers count in: simulated, or steady so that a set system clock stops no timer."""
        return self._simulated if self._simulated is not None else _time.monotonic_ns()

    def simulate(self, nanoseconds):
        """Set simulated time in nanoseconds; None goes back to the system's."""
        with self._changed:
            self._simulated = nanoseconds
            self._changed.notify_all()

    def sleep_for(self, duration):
        """Sleep on this clock; returns False if the time jumped to another source."""
        return self.sleep_until(self.now() + duration)

    def sleep_until(self, until):
        """Sleep until `until` on this clock in slices, so that signals are seen."""
        simulated = self.ros_time_is_active
        while (left := until.nanoseconds - self._now()) > 0:
            if self.ros_time_is_active != simulated:
                return False
            with self._changed:
                self._changed.wait(0.1 if simulated else min(0.1, left / _SECOND))
        return True


class ROSClock(Clock):
    """A clock of ROS time."""

    def __init__(self):
        super().__init__(clock_type=ClockType.ROS_TIME)
