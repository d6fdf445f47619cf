# SPDX-License-Identifier: Apache-2.0
"""How nodes are run as a process: checked arguments, one executor, signals, and an end that says why."""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import rclpy
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions

if TYPE_CHECKING:
    from .camera_node import CameraNode

# What each kind of remapping rule may put in place, and how to say it.
_WORD = "[A-Za-z_][A-Za-z0-9_]*"
_LETTERS = "letters, digits and _, and do not start with a digit"
_NODE = (_WORD, f"name of a node: these have {_LETTERS}")
_NAMESPACE = (f"/|(/{_WORD})+", f"namespace: these start with /, as /robot1; their parts have {_LETTERS}")
_TOPIC = (f"(~?/)?{_WORD}(/{_WORD})*", f"name of a topic or service: their parts, between single /, have {_LETTERS}")
_KINDS = {"__node": _NODE, "__name": _NODE, "__ns": _NAMESPACE}
_ARGUMENT_ERRORS = ("RCLInvalidROSArgsError", "UnknownROSArgsError")  # of rclpy, in a module that is its own
_NOT_PARSED = "Couldn't parse "  # so rcl begins what is wrong with an argument, in an RCLError


def reason(error: Exception) -> str:
    """Say in one line what went wrong; an error that is not about what the user gave is named."""
    line = " ".join(str(error).split())
    return line if line and isinstance(error, ValueError) else f"{type(error).__name__}: {line}".rstrip(": ")


def wrong_remap(args: Sequence[str]) -> str | None:
    """Say which remapping rule of a command line gives something an impossible name, and what would be right, or None.

    rcl refuses them too, in terms of its lexer ("error not set").
    """
    ros, option = False, ""
    for word in args:
        if ros and option in ("-r", "--remap"):
            source, found, target = word.partition(":=")
            if not (found and source and target):
                return f"'{word}' is no remapping rule: these are FROM:=TO"
            pattern, kind = _KINDS.get(source.rpartition(":")[2], _TOPIC)
            if not re.fullmatch(pattern, target):
                return f"'{target}' (of {word}) is no {kind}"
        ros = word == "--ros-args" or (ros and word != "--")
        option = word
    return None


def start_ros(args: Sequence[str], **options) -> int:
    """Start rclpy with a command line's ROS arguments, or say on stderr why that cannot be.

    Args:
        options: more for rclpy.init.
    Returns:
        0, or the exit code: 2 where an argument is wrong, 1 where something else is (the domain, the network).
    """
    wrong = wrong_remap(args)
    if wrong is not None:
        return _say(f"ROS cannot be started: {wrong}", 2)
    try:
        rclpy.init(args=list(args), **options)
    except Exception as error:
        code = 2 if type(error).__name__ in _ARGUMENT_ERRORS or _NOT_PARSED in str(error) else 1
        return _say(f"ROS cannot be started: {reason(error)}", code)
    return 0


def autostart(node: CameraNode) -> bool:
    """Walk a node to active if its parameter says so; says whether it is where it should be."""
    if not node.get_parameter("autostart").value:
        return True
    return (
        node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        and node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    )


def run_nodes(make_nodes: Callable[[], list[CameraNode]], args: Sequence[str], threads: int = 8) -> int:
    """Run nodes in one process until SIGINT or SIGTERM. An end before that says why on stderr.

    Returns:
        the exit code: 0; 2 where an argument is wrong; 1 where a node could not be made active, or ROS was shut down
        under them; 128 and the number of a signal that came before they were active.
    """
    # rclpy's own handlers close the context at once: a goal in work could neither be answered nor end.
    failed = start_ros(args, signal_handler_options=SignalHandlerOptions.NO)
    if failed:
        return failed
    running, stopping = threading.Event(), threading.Event()

    def on_signal(number, frame):
        first = not stopping.is_set()
        stopping.set()
        if first and not running.is_set():  # loading a large model takes minutes
            raise _StoppedEarly(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    nodes: list[CameraNode] = []
    executor = MultiThreadedExecutor(num_threads=threads)
    try:
        nodes = make_nodes()
        for node in nodes:
            executor.add_node(node)
        for node in nodes:
            if not autostart(node):
                return _say(f"{node.get_name()} could not be made active", 1)
        running.set()
        while rclpy.ok() and not stopping.is_set():
            executor.spin_once(timeout_sec=0.1)
    except _StoppedEarly as stop:
        return _say(f"{signal.Signals(stop.number).name} came before the nodes were active", 128 + stop.number)
    except ExternalShutdownException:
        pass
    except Exception as error:
        if running.is_set() and rclpy.ok():
            raise  # out of a callback
        if rclpy.ok():
            return _say(f"ROS cannot be started: {reason(error)}", 1)
    finally:
        running.set()  # a signal from now on must not cut the end short
        for node in nodes:
            node.stop()
        executor.shutdown()
        for node in nodes:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0 if stopping.is_set() else _say("ROS was shut down", 1)


class _StoppedEarly(BaseException):
    """A signal before the nodes are active; no Exception, which a transition would take for its own."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


def _say(why: str, code: int) -> int:
    print(f"the process ends with exit code {code}: {why}", file=sys.stderr, flush=True)
    return code


def main_of(make_nodes: Callable[[], list[CameraNode]]) -> Callable[[list[str] | None], int]:
    """Make a main() from a function that makes the nodes."""

    def main(args: list[str] | None = None) -> int:
        return run_nodes(make_nodes, sys.argv[1:] if args is None else args)

    return main
