# SPDX-License-Identifier: Apache-2.0
"""Health of a node as plain numbers: rates, latency, counts, whether the model is lost."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import Counter, deque

import numpy as np

OK, WARN, ERROR = 0, 1, 2


class Health:
    """Collect what a node does and report it in one level, one line and a table."""

    def __init__(self, max_residual: float = np.inf, silence_s: float = 5.0, clock=time.monotonic):
        """
        Args:
            max_residual: a window whose median residual is above this is lost.
            silence_s: seconds without an image before that is a warning.
            clock: seconds, monotonic.
        """
        self.max_residual, self.silence_s = max_residual, silence_s
        self.counts: Counter = Counter()
        self.lost = False
        self._clock = clock
        self._images: deque = deque(maxlen=100)
        self._latencies: deque = deque(maxlen=100)
        self._residual = float("nan")
        self._started = clock()
        self._lock = threading.Lock()

    def image(self) -> None:
        """Note one image that arrived."""
        with self._lock:
            self.counts["images"] += 1
            self._images.append(self._clock())

    def count(self, name: str, by: int = 1) -> None:
        """Note that something (a refused image, a goal) happened."""
        with self._lock:
            self.counts[name] += by

    def window(self, residual: np.ndarray, latency_s: float) -> bool:
        """Note one window's residuals (T,) and its latency in seconds; says whether the window can be trusted."""
        with self._lock:
            self.counts["windows"] += 1
            self._residual = float(np.median(residual))
            self._latencies.append(latency_s)
            self.lost = not (np.isfinite(self._residual) and self._residual <= self.max_residual)
            self.counts["lost windows"] += int(self.lost)
            return not self.lost

    def silent(self) -> bool:
        """Say whether no image came for silence_s."""
        last = self._images[-1] if self._images else self._started
        return self._clock() - last > self.silence_s

    def report(self) -> tuple[int, str, dict[str, str]]:
        """Return level (OK, WARN, ERROR), one line, and the table of values."""
        with self._lock:
            times = list(self._images)
            rate = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0
            table = {name: str(value) for name, value in sorted(self.counts.items())}
            table["image rate (Hz)"] = f"{rate:.1f}"
            if self._latencies:
                p50, p95 = np.percentile(self._latencies, [50, 95])
                table["latency p50 (s)"], table["latency p95 (s)"] = f"{p50:.3f}", f"{p95:.3f}"
                table["residual of the last window"] = f"{self._residual:.4f}"
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            table["peak memory (MiB)"] = str(peak // (1024 * 1024 if sys.platform == "darwin" else 1024))
        if self.lost:
            return ERROR, f"lost: residual {self._residual:.4f} is over {self.max_residual:.4f}", table
        if self.silent():
            return WARN, f"no image for more than {self.silence_s:.0f} s", table
        return OK, "ok", table
