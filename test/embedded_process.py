# SPDX-License-Identifier: Apache-2.0
"""Run a piece of a ROS program in a process of its own, and talk with it by lines of text.

Time limits only end a test that has failed; they are generous, because a busy machine makes a process ten times slower.
"""

import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time

PRELUDE = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start its background jobs with SIGINT ignored
import embedded_ros
embedded_ros.install()
import rclpy
from rclpy.node import Node
from rclpy.executors import ExternalShutdownException
def say(*words):
    print(*words, flush=True)
"""

# Appended to CYCLONEDDS_URI: a process that loses three of ten packets that it sends (a switch of Cyclone for tests).
LOSSY = (
    ",<Internal><Test><XmitLossiness>300</XmitLossiness></Test></Internal>"
    "<Discovery><SPDPInterval>500ms</SPDPInterval></Discovery>"
)


class Process:
    """A Python process that runs `code` after PRELUDE; its output lines are read with `line`."""

    def __init__(self, code, *arguments, environment=None):
        self._process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._lines, self._errors = queue.Queue(), []
        self._threads = [threading.Thread(target=self._read_output), threading.Thread(target=self._read_errors)]
        for thread in self._threads:
            thread.start()

    def _read_output(self):
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def _read_errors(self):
        self._errors.extend(self._process.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(10)
        for thread in self._threads:
            thread.join(10)
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.stderr.close()

    @property
    def errors(self):
        """What the process wrote to standard error so far."""
        return "".join(self._errors)

    def line(self, starts="", timeout=60.0):
        """Return the next line that starts with `starts`, without it."""
        end = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line '{starts}...' in {timeout} s; errors:\n{self.errors}") from None
            assert line is not None, f"the process ended without a line '{starts}...'; errors:\n{self.errors}"
            if line.startswith(starts):
                return line[len(starts) :].strip()

    def tell(self, line):
        """Write a line to the standard input of the process."""
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def alive(self):
        """Whether the process runs."""
        return self._process.poll() is None

    def stop(self, number=signal.SIGINT, timeout=60.0):
        """Send a signal and return the exit code."""
        self._process.send_signal(number)
        return self.wait(timeout)

    def wait(self, timeout=60.0):
        """Wait for the end and return the exit code."""
        return self._process.wait(timeout)


def spin_until(node, condition, timeout=30.0):
    """Spin `node` here until `condition()`; returns whether it came true."""
    import rclpy

    end = time.monotonic() + timeout
    while not condition() and time.monotonic() < end:
        rclpy.spin_once(node, timeout_sec=0.05)
    return bool(condition())
