# SPDX-License-Identifier: Apache-2.0
"""Where the metres of a trajectory come from: metres for one trajectory unit, their source, their spread."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

SOURCES = ("none", "model", "fixed", "odometry")


class MetricScale:
    """Metres for one trajectory unit.

    none: 1 unit is published as 1, and `metric` is False: nobody may take it for metres.
    model: the checkpoint states its own metres for one unit. fixed: the user states it.
    odometry: median ratio of the robot's motion to the camera's over recent windows; unknown until it moved enough.
    """

    def __init__(
        self, source: str, fixed: float = 1.0, model: float | None = None, min_motion: float = 0.05, memory: int = 50
    ):
        """
        Args:
            source: one of SOURCES.
            fixed: metres for one unit, for source fixed.
            model: metres for one unit as the checkpoint states it, or None when its unit is scene scale.
            min_motion: metres that the robot must move in a window before that window counts (odometry).
            memory: newest windows that count (odometry).
        Raises:
            ValueError: unknown source, a scale that is not positive, or a checkpoint that is not metric.
        """
        if source not in SOURCES:
            raise ValueError(f"scale_source is '{source}'; it must be one of {', '.join(SOURCES)}")
        if source == "fixed" and not (np.isfinite(fixed) and fixed > 0):
            raise ValueError(f"metres_per_unit is {fixed}; scale_source fixed needs a positive number")
        if source == "model" and model is None:
            raise ValueError(
                "scale_source is model, but this checkpoint's unit is scene scale (mean depth 1), not metres; "
                "use fixed, odometry or none"
            )
        self.source = source
        self.min_motion = min_motion
        self._value = {"none": 1.0, "fixed": fixed, "model": model, "odometry": None}[source]
        self._ratios: deque = deque(maxlen=memory)

    @property
    def metric(self) -> bool:
        """Whether the published unit is the metre."""
        return self.source != "none" and self._value is not None

    @property
    def value(self) -> float | None:
        """Metres for one unit; None while unknown; 1 for source none."""
        return self._value

    @property
    def spread(self) -> float:
        """Relative spread of the measured ratios (1.4826 MAD / median); 0 for a scale that is stated, not measured."""
        if len(self._ratios) < 2:
            return 0.0
        ratios = np.array(self._ratios)
        return float(1.4826 * np.median(np.abs(ratios - np.median(ratios))) / np.median(ratios))

    def add(self, motion: float, motion_metres: float) -> None:
        """Take one window's motion in trajectory units and the same motion in metres (only source odometry listens)."""
        if self.source != "odometry" or motion_metres < self.min_motion or motion <= 1e-9:
            return
        self._ratios.append(motion_metres / motion)
        self._value = float(np.median(self._ratios))

    def reset(self) -> None:
        """Forget what was measured."""
        self._ratios.clear()
        if self.source == "odometry":
            self._value = None


def distance_between(path: Sequence[tuple[int, np.ndarray]], first: int, last: int) -> float | None:
    """Distance between two stamps on a path of (stamp, position (3,)), interpolated; None where it does not reach."""
    if len(path) < 2 or not path[0][0] <= first < last <= path[-1][0]:
        return None
    stamps, positions = zip(*path, strict=True)
    # Relative to the start: nanoseconds since 1970 are beyond what a float64 holds.
    times = np.array([stamp - stamps[0] for stamp in stamps], dtype=np.float64)
    ends = [first - stamps[0], last - stamps[0]]
    track = np.stack(positions)
    a, b = np.stack([np.interp(ends, times, track[:, axis]) for axis in range(3)], axis=1)
    return float(np.linalg.norm(b - a))
