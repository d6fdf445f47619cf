# SPDX-License-Identifier: Apache-2.0
"""The messages and classes of embedded_ros beside those of a real ROS 2, in one process.

docs/interop.md says how to run it.
"""

import importlib

import pytest

import embedded_ros

if embedded_ros.install() != "rclpy":
    pytest.skip("needs a sourced ROS 2 Jazzy (rclpy, tf2_ros)", allow_module_level=True)

from rclpy.serialization import serialize_message

from embedded_ros.definitions import definitions
from embedded_ros.messages import message_class, serialize

pytestmark = pytest.mark.slow


def test_messages_print_and_serialise_as_the_real_ones():
    compared = 0
    for full in definitions().messages:
        package, kind, name = full.split("/")
        try:
            real = getattr(importlib.import_module(f"{package}.{kind}"), name)
        except (ImportError, AttributeError):
            continue
        ours = message_class(full)
        assert repr(ours()) == repr(real()), full
        assert ours.get_fields_and_field_types() == dict(real.get_fields_and_field_types()), full
        constants = {word for word in dir(type(real)) + dir(real) if word[0].isalpha() and word.isupper()}
        for word in constants - {"SLOT_TYPES"}:
            assert getattr(ours, word) == getattr(real, word), (full, word)
        for seed in range(3):
            wire = bytes(serialize_message(filled(real, seed)))
            assert bytes(serialize(filled(ours, seed))).ljust((len(wire) + 3) & ~3, b"\0")[4:] == wire[4:].ljust(
                (len(wire) + 3) // 4 * 4 - 4, b"\0"
            ), full
        compared += 1
    assert compared > 100


def filled(cls, seed):
    """A message whose fields hold values that depend on the type and the seed alone."""
    message = cls()
    for number, (name, kind) in enumerate(cls.get_fields_and_field_types().items()):
        value, key = getattr(message, name), seed * 7 + number
        if isinstance(value, bool):
            setattr(message, name, key % 2 == 0)
        elif isinstance(value, int):
            setattr(message, name, key % 100)
        elif isinstance(value, float):
            setattr(message, name, key * 0.25)
        elif isinstance(value, str):
            setattr(message, name, "x" * (key % 9))
        elif kind in ("sequence<double>", "sequence<uint8>", "sequence<string>"):
            items = {"sequence<double>": [0.5] * key, "sequence<uint8>": [key] * key, "sequence<string>": ["ab"] * key}
            setattr(message, name, items[kind])
        elif hasattr(value, "get_fields_and_field_types"):
            setattr(message, name, filled(type(value), key))
    return message


@pytest.mark.parametrize(
    ("module", "name", "own"),
    [
        ("rclpy.node", "Node", "node"), ("rclpy.publisher", "Publisher", "endpoints"),
        ("rclpy.subscription", "Subscription", "endpoints"), ("rclpy.timer", "Timer", "endpoints"),
        ("rclpy.client", "Client", "services"), ("rclpy.service", "Service", "services"),
        ("rclpy.executors", "MultiThreadedExecutor", "executor"), ("rclpy.lifecycle", "LifecycleNode", "lifecycle"),
        ("rclpy.action", "ActionServer", "action"), ("rclpy.action", "ActionClient", "action_client"),
        ("rclpy.clock", "Clock", "time"), ("rclpy.time", "Time", "time"), ("rclpy.duration", "Duration", "time"),
        ("rclpy.task", "Future", "task"), ("rclpy.context", "Context", "context"), ("tf2_ros", "Buffer", "tf2"),
        ("tf2_ros", "TransformListener", "tf2"), ("tf2_ros", "TransformBroadcaster", "tf2"),
    ],
)  # fmt: skip
def test_every_public_name_is_there_or_named_as_lacking(module, name, own):
    real = getattr(importlib.import_module(module), name)
    ours = getattr(importlib.import_module(f"embedded_ros.{own}"), name)
    set_by_init = {"topic_name", "callback", "clock", "default_callback_group", "CallbackType", "PARAM_REL_TOL"}
    for word in dir(real):
        if not word.startswith("_") and word not in set_by_init:
            try:
                getattr(ours, word)
            except NotImplementedError as error:
                assert f".{word} is not supported" in str(error)
