# SPDX-License-Identifier: Apache-2.0
"""Transforms of one frame over time, and the errors of tf2.

A transform is (translation (3,), quaternion xyzw (4,)) of a child frame in its parent's.
"""

from bisect import bisect_left, insort

import numpy as np

IDENTITY = (np.zeros(3), np.array([0.0, 0.0, 0.0, 1.0]))


class TransformException(Exception):
    """Base of the tf2 errors."""


class LookupException(TransformException):
    """A frame is not known."""


class ConnectivityException(TransformException):
    """Two frames are in different trees."""


class ExtrapolationException(TransformException):
    """The time asked for lies outside what is known."""


class InvalidArgumentException(TransformException):
    """A frame name or quaternion is not valid."""


class TimeoutException(TransformException):
    """A wait ended without a transform."""


def _multiply(a, b):
    """Return the product of two quaternions xyzw."""
    vector = a[3] * b[:3] + b[3] * a[:3] + np.cross(a[:3], b[:3])
    return np.append(vector, a[3] * b[3] - a[:3] @ b[:3])


def _rotate(q, v):
    """Rotate a vector (3,) by a quaternion xyzw."""
    return v + 2.0 * np.cross(q[:3], np.cross(q[:3], v) + q[3] * v)


def compose(a, b):
    """Return a * b for (translation, quaternion) pairs."""
    return a[0] + _rotate(a[1], b[0]), _multiply(a[1], b[1])


def invert(a):
    inverse = a[1] * np.array([-1.0, -1.0, -1.0, 1.0])
    return -_rotate(inverse, a[0]), inverse


def _interpolate(a, b, share):
    """Interpolate linearly in translation and on the sphere in rotation, as tf2 does."""
    cosine = float(a[1] @ b[1])
    target = b[1] if cosine >= 0.0 else -b[1]
    angle = np.arccos(min(1.0, abs(cosine)))
    if angle < 1e-6:
        rotation = a[1] + share * (target - a[1])
    else:
        rotation = (np.sin((1 - share) * angle) * a[1] + np.sin(share * angle) * target) / np.sin(angle)
    return a[0] + share * (b[0] - a[0]), rotation / np.linalg.norm(rotation)


class Track:
    """The transforms of one child frame over time, or one static transform."""

    def __init__(self):
        self.static, self.parent = False, None
        self.stamps, self.values = [], {}

    def insert(self, parent, stamp, value, static, keep):
        """Add one; old ones beyond `keep` nanoseconds are dropped."""
        if static:
            self.static, self.parent, self.stamps, self.values = True, parent, [0], {0: (parent, value)}
            return True
        if self.static:
            self.static, self.stamps, self.values = False, [], {}
        if self.stamps and stamp < self.stamps[-1] - keep:
            return False
        if stamp not in self.values:
            insort(self.stamps, stamp)
        self.values[stamp] = (parent, value)
        self.parent = self.values[self.stamps[-1]][0]
        while self.stamps[0] < self.stamps[-1] - keep:
            del self.values[self.stamps.pop(0)]
        return True

    def at(self, stamp, child):
        """Return (parent, transform) at a time; 0 is the latest."""
        if self.static:
            return self.values[0]
        if stamp == 0:
            return self.values[self.stamps[-1]]
        if stamp in self.values:
            return self.values[stamp]
        place = bisect_left(self.stamps, stamp)
        if place in (0, len(self.stamps)):
            side, edge = ("past", self.stamps[0]) if place == 0 else ("future", self.stamps[-1])
            raise ExtrapolationException(
                f"Lookup would require extrapolation into the {side}. Requested time {stamp * 1e-9:.9f} but the "
                f"{'earliest' if place == 0 else 'latest'} data is at time {edge * 1e-9:.9f}, when looking up "
                f"frame [{child}]"
            )
        before, after = self.stamps[place - 1], self.stamps[place]
        (parent, first), (later_parent, second) = self.values[before], self.values[after]
        if parent != later_parent:
            return parent, first
        return parent, _interpolate(first, second, (stamp - before) / (after - before))
