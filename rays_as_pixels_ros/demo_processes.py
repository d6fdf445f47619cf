# SPDX-License-Identifier: Apache-2.0
"""The demo's node processes: started with a log each, watched, and all stopped whatever happens."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_STOP_SECONDS = 15.0
_LAST_LINES = 12
_HIGHEST_DOMAIN = 101  # ports of higher domains run into Linux' ephemeral ports


class DemoError(RuntimeError):
    """The demo cannot go on; the text says what failed and shows the end of the log."""


def free_domain() -> int:
    """Return a DDS domain that no participant on this machine uses: one whose unicast ports are all free."""
    start = os.getpid() * 13
    for offset in range(_HIGHEST_DOMAIN):
        domain = 1 + (start + offset) % _HIGHEST_DOMAIN
        if ports_are_free(domain):
            return domain
    raise DemoError("every DDS domain from 1 to 101 is in use on this machine; choose one with --domain")


def ports_are_free(domain: int, participants: int = 10) -> bool:
    """Say whether the unicast ports of the first participants of a domain can be bound (DDSI-RTPS 9.6.1.1)."""
    first = 7400 + 250 * domain + 10
    for port in range(first, first + 2 * participants):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", port))
            except OSError:
                return False
    return True


@contextmanager
def signals_later() -> Iterator[None]:
    """Hold back what SIGINT, SIGTERM and SIGHUP do until the block has ended."""
    arrived = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    held = [number for number, handler in before.items() if callable(handler)]
    for number in held:
        signal.signal(number, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        for number in held:
            signal.signal(number, before[number])
    if arrived:
        before[arrived[0]](arrived[0], None)


class NodeProcess:
    """One node in a process of its own; its output goes to a log file."""

    def __init__(self, name: str, node: str, arguments: list[str], log_folder: Path, environment: dict[str, str]):
        """
        Args:
            name: for messages and the log file.
            node: what entry_points runs.
            arguments: the node's own, then `--ros-args ...`.
        """
        self.name, self.log = name, log_folder / f"{name}.log"
        command = [sys.executable, "-u", "-m", f"{__package__}.entry_points", node, *arguments]
        with self.log.open("wb") as log:
            # A session of its own: Ctrl-C reaches the demo only, which then stops its nodes in order.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                start_new_session=True,
            )  # fmt: skip

    @property
    def status(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def last_lines(self, count: int = _LAST_LINES) -> str:
        """The end of the log, indented."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        return "\n".join(f"    {line}" for line in lines[-count:]) or "    (it wrote nothing)"

    def failed(self) -> DemoError:
        """Make the error that says that this process ended and how."""
        status = self.status
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        return DemoError(f"{self.name} {how}; the end of its log:\n{self.last_lines()}")

    def ask_to_stop(self) -> None:
        """Send SIGTERM if it still runs."""
        if self.status is None:
            self._process.send_signal(signal.SIGTERM)

    def wait_or_kill(self, seconds: float) -> None:
        """Wait for the end; after `seconds` it is killed."""
        try:
            self._process.wait(max(seconds, 0.0))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class NodeProcesses:
    """All processes of the demo. As a context manager it leaves none behind."""

    def __init__(self, log_folder: Path, domain: int, uri: str):
        """
        Args:
            log_folder: for one log a process.
            domain: ROS_DOMAIN_ID of all.
            uri: CYCLONEDDS_URI for those who did not set one.
        """
        self._log_folder = log_folder
        log_folder.mkdir(parents=True, exist_ok=True)
        # Several processes with torch share this machine: one that takes all cores starves the others.
        threads = str(max(1, (os.cpu_count() or 2) // 2))
        os.environ["ROS_DOMAIN_ID"] = str(domain)
        os.environ.setdefault("CYCLONEDDS_URI", uri)
        os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        self._environment = {"OMP_NUM_THREADS": threads, **os.environ}
        self._running: list[NodeProcess] = []

    def __enter__(self) -> NodeProcesses:
        return self

    def __exit__(self, *error) -> None:
        # A second Ctrl-C must not interrupt the stopping.
        with signals_later():
            self.stop()

    def start(self, name: str, node: str, arguments: list[str]) -> NodeProcess:
        """Start a process that is to run until the end."""
        # A signal between the start of a process and its entry here would leave it behind.
        with signals_later():
            process = NodeProcess(name, node, arguments, self._log_folder, self._environment)
            self._running.append(process)
        return process

    def check(self, may_end: NodeProcess | None = None) -> None:
        """Raise DemoError if a process has ended, other than `may_end`."""
        for process in self._running:
            if process is not may_end and process.status is not None:
                raise process.failed()

    def tails(self) -> str:
        """The last log lines of each process."""
        return "\n".join(f"  {process.name}:\n{process.last_lines(3)}" for process in self._running)

    def forget(self, process: NodeProcess) -> None:
        """Watch a process that has ended no longer."""
        if process.status is not None:
            self._running.remove(process)

    def stop(self) -> None:
        """Stop all; who does not end by itself is killed."""
        end = time.monotonic() + _STOP_SECONDS
        for process in self._running:
            process.ask_to_stop()
        for process in self._running:
            process.wait_or_kill(end - time.monotonic())
        self._running = []
