# SPDX-License-Identifier: Apache-2.0
"""The functions of the module rclpy itself."""

import sys
from enum import IntEnum

from .arguments import RCLError, RosArguments
from .context import get_default_context, install_signal_handlers, uninstall_signal_handlers
from .executor import SingleThreadedExecutor
from .messages import deserialize, serialize
from .node import Node

__all__ = [
    "create_node", "get_default_context", "get_global_executor", "get_rmw_implementation_identifier", "init", "ok",
    "shutdown", "spin", "spin_once", "spin_until_future_complete", "try_shutdown",
]  # fmt: skip
_executor = []


class SignalHandlerOptions(IntEnum):
    """Which signals rclpy.init handles."""

    NO = 0
    SIGINT = 1
    SIGTERM = 2
    ALL = 3


def init(args=None, *, context=None, domain_id=None, signal_handler_options=None):
    """Join the ROS graph; `args` defaults to sys.argv."""
    context = context or get_default_context()
    if signal_handler_options is None:
        default = context is get_default_context()
        signal_handler_options = SignalHandlerOptions.ALL if default else SignalHandlerOptions.NO
    context.init(args, domain_id=domain_id)
    if signal_handler_options == SignalHandlerOptions.ALL:
        install_signal_handlers()
    elif signal_handler_options != SignalHandlerOptions.NO:
        raise NotImplementedError("embedded_ros: signal_handler_options is ALL or NO")


def ok(*, context=None):
    """Whether the context is up."""
    return (context or get_default_context()).ok()


def shutdown(*, context=None, uninstall_handlers=None):
    """Leave the ROS graph."""
    _drop_executor()
    context = context or get_default_context()
    if not context.ok():
        raise RCLError("failed to shutdown: rcl_shutdown already called on the given context")
    _close(context, uninstall_handlers)


def try_shutdown(*, context=None, uninstall_handlers=None):
    """Leave the ROS graph if that has not been done."""
    _drop_executor()
    _close(context or get_default_context(), uninstall_handlers)


def _close(context, uninstall_handlers):
    context.try_shutdown()
    if uninstall_handlers or (uninstall_handlers is None and context is get_default_context()):
        uninstall_signal_handlers()


def create_node(node_name, **options):
    """Make a node."""
    return Node(node_name, **options)


def get_global_executor():
    """Return the executor that the functions here use."""
    if not _executor or _executor[0]._is_shutdown or _executor[0].participant is not get_default_context().participant:
        _drop_executor()
        _executor.append(SingleThreadedExecutor())
    return _executor[0]


def _drop_executor():
    while _executor:
        _executor.pop().shutdown()


def _with_node(node, executor, spin_function):
    executor = executor or get_global_executor()
    added = executor.add_node(node)
    try:
        spin_function(executor)
    finally:
        if added:
            executor.remove_node(node)


def spin(node, executor=None):
    """Run callbacks until shutdown."""

    def loop(runner):
        while runner.context.ok():
            runner.spin_once()

    _with_node(node, executor, loop)


def spin_once(node, *, executor=None, timeout_sec=None):
    """Wait for one callback and run it."""
    _with_node(node, executor, lambda runner: runner.spin_once(timeout_sec))


def spin_until_future_complete(node, future, executor=None, timeout_sec=None):
    """Run callbacks until the future is done."""
    _with_node(node, executor, lambda runner: runner.spin_until_future_complete(future, timeout_sec))


def get_rmw_implementation_identifier():
    """Return the name of the middleware."""
    return "embedded_ros (rmw_cyclonedds wire format)"


def remove_ros_args(args=None):
    """Return the arguments that are not ROS's."""
    return RosArguments(sys.argv if args is None else args).rest


def serialize_message(message):
    """Return a message as CDR bytes."""
    return bytes(serialize(message))


def deserialize_message(serialized, message_type):
    """Return the message of CDR bytes."""
    return deserialize(serialized, message_type)
