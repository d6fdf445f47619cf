# SPDX-License-Identifier: Apache-2.0
"""Contexts: init and shutdown, the DDS domain and its configuration, signals."""

import atexit
import os
import signal
import sys
import threading
import weakref

from cyclonedds.domain import Domain

from . import wire
from .arguments import RosArguments
from .graph import Graph
from .logging import get_logger
from .messages import user_data
from .unsupported import lacks

_logger = get_logger("embedded_ros")
# rmw_cyclonedds' own limits break images into 1.3 kB datagrams; a lost one loses the image. A user's URI comes later
# in the list, so it wins.
_LARGE_MESSAGES = (
    "<General><MaxMessageSize>65500B</MaxMessageSize><FragmentSize>64000B</FragmentSize></General>"
    '<Internal><SocketReceiveBufferSize max="4MiB"/></Internal>'
)
_WANTED_BUFFER = 2 * 1024 * 1024
_domains = {}
_contexts = weakref.WeakSet()
_checked_buffers = []
_tested = set()


class NotInitializedException(Exception):
    """rclpy.init() has not been called, or the context was shut down."""

    def __init__(self, *parts):
        super().__init__("rclpy.init() has not been called", *parts)


class ROSInterruptException(Exception):
    """A sleep was interrupted by shutdown."""


@lacks("destroy", "handle")
class Context:
    """One life of ROS in this process: a participant, its graph, and the nodes on it."""

    def __init__(self):
        self._lock = threading.RLock()
        self._ok = False
        self.participant = None
        self.graph = None
        self.arguments = RosArguments()
        self._guards, self._workers = weakref.WeakSet(), weakref.WeakSet()
        self._callbacks = []
        self.nodes = weakref.WeakSet()

    def init(self, args=None, *, domain_id=None, initialize_logging=True):
        """Start: parse ROS arguments, join the domain (ROS_DOMAIN_ID)."""
        with self._lock:
            if self._ok:
                raise RuntimeError("Context.init() must only be called once")
            self._close()
            self.arguments = RosArguments(sys.argv if args is None else args)
            domain = (os.environ.get("ROS_DOMAIN_ID") or 0) if domain_id is None else domain_id
            if not str(domain).isdecimal() or int(domain) > 232:
                raise ValueError(f"ROS_DOMAIN_ID is {domain}; it must be a whole number in 0..232")
            domain = int(domain)
            _warn_small_buffers()
            _join(domain)
            self.domain_id = domain
            self.participant = wire.Participant(domain)
            if domain not in _tested and not wire.self_test(self.participant, user_data("std_msgs/msg/String")):
                _logger.warning("this build of Cyclone DDS needs the slow calls: large images will be slow")
            _tested.add(domain)
            self.graph = Graph(self.participant)
            self._ok = True
            _contexts.add(self)

    def get_domain_id(self):
        """Return the domain id."""
        return self.domain_id

    def ok(self):
        """Whether the context is initialised and not shut down."""
        return self._ok

    def add_guard(self, guard):
        """Have `guard` triggered at shutdown."""
        self._guards.add(guard)

    def add_workers(self, workers):
        """Have the tasks that `workers` run end before the interpreter does."""
        self._workers.add(workers)

    def on_shutdown(self, callback):
        """Call `callback` at shutdown."""
        self._callbacks.append(callback)

    def interrupt(self):
        """Mark the context shut down and end all waits: all that a signal handler may do."""
        self._ok = False
        for guard in list(self._guards):
            guard.trigger()

    def shutdown(self):
        """Shut down: destroy the nodes and leave the domain, so that others see us go."""
        if self.participant is None:
            raise RuntimeError("Context is not initialized")
        self.try_shutdown()

    def try_shutdown(self):
        """Shut down if that has not been done."""
        self.interrupt()
        with self._lock:
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        self._close()

    def _close(self):
        """Destroy what is left; called before the next init and at exit."""
        with self._lock:
            if self.participant is None:
                return
            for node in list(self.nodes):
                node.destroy_node()
            self.graph.close()
            self.participant.close()
            self.participant = None


def _join(domain):
    """Create the domain with our defaults in front of the user's CYCLONEDDS_URI."""
    if domain not in _domains:
        user = os.environ.get("CYCLONEDDS_URI", "").strip()
        _domains[domain] = Domain(domain, _LARGE_MESSAGES + ("," + user if user else ""))


def _warn_small_buffers():
    if _checked_buffers:
        return
    _checked_buffers.append(True)
    try:
        with open("/proc/sys/net/core/rmem_max", encoding="ascii") as file:
            size = int(file.read())
    except OSError:
        return
    if size < _WANTED_BUFFER:
        _logger.warning(
            f"net.core.rmem_max is {size} B: best-effort images will be lost; "
            "fix: sudo sysctl -w net.core.rmem_max=4194304"
        )


_default = Context()
_previous = {}


def get_default_context(*, shutting_down=False):
    """Return the context that calls without one use."""
    return _default


def install_signal_handlers():
    """Let SIGINT and SIGTERM shut all contexts down; SIGINT goes on to the previous handler (KeyboardInterrupt)."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        current = signal.getsignal(number)
        if current is not _on_signal:
            _previous[number] = current
            signal.signal(number, _on_signal)


def uninstall_signal_handlers():
    """Put the previous handlers back."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in list(_previous.items()):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        del _previous[number]


def _on_signal(number, frame):
    live = [context for context in list(_contexts) if context.ok()]
    for context in live:
        context.interrupt()
    previous = _previous.get(number)
    if callable(previous):
        previous(number, frame)
    elif not live:
        # A second signal, after the shutdown has begun: do what the process would have done without us.
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


@atexit.register
def _at_exit():
    """Leave the domain properly: without it others keep ghosts of our nodes until their lease ends."""
    for context in list(_contexts):
        context.interrupt()
        for workers in list(context._workers):
            workers.shutdown()
        context._close()
