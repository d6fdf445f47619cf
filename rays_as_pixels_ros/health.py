# SPDX-License-Identifier: Apache-2.0
"""Health of a node as plain numbers: rates, latency, counts, memory, whether the model is lost."""

from __future__ import annotations

import resource
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path

import numpy as np

OK, WARN, ERROR = 0, 1, 2
# What of each half of the camera was sent and did not come: told by the middleware, where it does so; and shown by the
# other half, which came alone (or had another stamp).
LOST = "images lost in transit", "camera_infos lost in transit"
MISSING = "images missing for a camera_info", "camera_infos missing for an image"


_LEAST_CONTRAST = 2.0  # grey levels; a covered lens or a dark room is below


def blank(frames: np.ndarray) -> str | None:
    """Say why a window of frames (T, H, W, 3) uint8 shows nothing, or None; the model would give cameras for it."""
    spread = float(frames.std(axis=(1, 2)).max(axis=-1).min())  # of the flattest frame, over its liveliest colour
    return None if spread >= _LEAST_CONTRAST else f"an image shows nothing: its grey levels spread by {spread:.1f}"


def mistrusted(residual: np.ndarray, max_residual: float) -> str | None:
    """Say why a window with residuals (T,) is lost, or None."""
    median = float(np.median(residual))
    return None if median <= max_residual else f"residual {median:.4f} is over {max_residual:.4f}"


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
        self.lost: str | None = None  # why
        self.withheld: str | None = None  # why the poses of good windows are not published
        self._clock = clock
        self._images: deque = deque(maxlen=100)
        self._poses: deque = deque(maxlen=100)
        self._latencies: deque = deque(maxlen=100)
        self._residual = float("nan")
        self._loop: tuple[float, float, float] | None = None
        self._counts_before: Counter = Counter()
        self._started = clock()
        self._lock = threading.Lock()

    def start(self) -> None:
        """Count silence from now on: the node begins to listen, and is not lost yet."""
        with self._lock:
            self._images.clear()
            self._poses.clear()
            self.lost = self.withheld = None
            self._started = self._clock()

    def image(self) -> None:
        """Note one image that arrived."""
        with self._lock:
            self.counts["images"] += 1
            self._images.append(self._clock())

    def pose(self) -> None:
        """Note one pose that was published."""
        with self._lock:
            self.counts["poses"] += 1
            self._poses.append(self._clock())
            self.withheld = None

    def withhold(self, reason: str) -> None:
        """Note that a placed frame has no pose that could be published, and why."""
        with self._lock:
            self.counts["poses not published"] += 1
            self.withheld = reason

    def count(self, name: str, by: int = 1) -> None:
        """Note that something (a refused image, a goal) happened."""
        with self._lock:
            self.counts[name] += by

    def total(self, name: str, count: int) -> None:
        """Note how often something has happened so far, where that is counted elsewhere."""
        with self._lock:
            self.counts[name] = count

    def window(self, residual: np.ndarray, latency_s: float) -> bool:
        """Note one window's residuals (T,) and its latency in seconds; says whether the window can be trusted."""
        with self._lock:
            self.counts["windows"] += 1
            self._residual = float(np.median(residual))
            self._latencies.append(latency_s)
            self.lost = None
        reason = mistrusted(residual, self.max_residual)
        if reason is not None:
            self.lose(reason)
        return reason is None

    def lose(self, reason: str) -> None:
        """Note a window without cameras: the node is lost until the next good one."""
        with self._lock:
            self.counts["lost windows"] += 1
            self.lost = reason

    def loop(self, rotation_deg: float, translation: float, psnr: float) -> None:
        """Note how far the model agrees with itself: a closed loop's errors (degrees, scene depths) and its PSNR."""
        with self._lock:
            self.counts["closed loops"] += 1
            self._loop = rotation_deg, translation, psnr

    def silent(self) -> bool:
        """Say whether no image came for silence_s."""
        with self._lock:
            last = self._images[-1] if self._images else self._started
        return self._clock() - last > self.silence_s

    def report(self) -> tuple[int, str, dict[str, str]]:
        """Return level (OK, WARN, ERROR), one line, and the table of values."""
        with self._lock:
            table = {name: str(value) for name, value in sorted(self.counts.items())}
            table["image rate (Hz)"] = f"{_rate(self._images):.1f}"
            if self._latencies:
                table["pose rate (Hz)"] = f"{_rate(self._poses):.1f}"
                p50, p95 = np.percentile(self._latencies, [50, 95])
                table["latency p50 (s)"], table["latency p95 (s)"] = f"{p50:.3f}", f"{p95:.3f}"
                table["residual of the last window"] = f"{self._residual:.4f}"
            if self._loop:
                turn, shift, psnr = self._loop
                table["self-consistency rotation (deg)"] = f"{turn:.2f}"
                table["self-consistency translation (scene depths)"] = f"{shift:.3f}"
                table["self-consistency PSNR (dB)"] = f"{psnr:.1f}"
            table.update(memory())
            new, self._counts_before = self.counts - self._counts_before, Counter(self.counts)
        if self.lost:
            return ERROR, f"lost: {self.lost}", table
        if self.silent():
            return WARN, f"no image for more than {self.silence_s:.0f} s", table
        if self.withheld:
            return WARN, f"no pose is published: {self.withheld}", table
        if new["dropped images"]:
            return WARN, f"the model is slower than the camera: {self.counts['dropped images']} images dropped", table
        for name in (*LOST, *MISSING):
            if new[name]:
                return WARN, f"{self.counts[name]} {name}", table
        return OK, "ok", table


def _rate(times: deque) -> float:
    return (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 and times[-1] > times[0] else 0.0


def memory() -> dict[str, str]:
    """Memory of this process in MiB: peak, resident where the system tells (Linux), and the GPU's if torch uses one."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = {"peak memory (MiB)": str(peak // (1024 * 1024 if sys.platform == "darwin" else 1024))}
    pages = Path("/proc/self/statm")
    if pages.exists():
        table["memory (MiB)"] = str(int(pages.read_text().split()[1]) * resource.getpagesize() >> 20)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        table["GPU memory (MiB)"] = str(torch.cuda.memory_allocated() >> 20)
        table["GPU peak memory (MiB)"] = str(torch.cuda.max_memory_allocated() >> 20)
    return table
