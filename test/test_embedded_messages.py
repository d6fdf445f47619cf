# SPDX-License-Identifier: Apache-2.0
"""Messages of embedded_ros: as rclpy's in Python, byte for byte as rosbags' on the wire."""

import array
import random

import numpy as np
import pytest
from rosbags.interfaces import Nodetype
from rosbags.typesys import Stores, get_typestore

import embedded_ros
from embedded_ros.definitions import definitions
from embedded_ros.messages import deserialize, message_class, serialize, type_hash

if embedded_ros.install() == "rclpy":
    pytest.skip("a real rclpy is sourced: embedded_ros is not in use", allow_module_level=True)

STORE = get_typestore(Stores.ROS2_JAZZY)
NAMES = sorted(name for name in STORE.fielddefs if not name.startswith("rosbag2"))
_BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}


def _random_base(base, chance):
    if base == "string":
        return "".join(chance.choice("abc é/_9") for _ in range(chance.randrange(12)))
    if base == "bool":
        return chance.random() < 0.5
    if base in ("byte", "char"):
        return chance.randrange(256)
    if base in ("float32", "float64"):
        return float(np.float32(chance.uniform(-1e3, 1e3)))
    bits = _BITS[base]
    return chance.randrange(2**bits) - (0 if base.startswith("u") else 2 ** (bits - 1))


def _random_pair(name, chance):
    """Make the same random message twice: of our class and of rosbags' class."""
    ours, theirs = {}, {}
    cls = message_class(name)
    for field, (_, (kind, rest)) in zip(cls._fields, STORE.fielddefs[name][1], strict=True):
        many = kind in (Nodetype.ARRAY, Nodetype.SEQUENCE)
        (element, inner), size = rest if many else ((kind, rest), 0)
        count = size if kind == Nodetype.ARRAY else min(chance.randrange(4), size or 9)
        made = []
        for _ in range(count if many else 1):
            if element == Nodetype.NAME:
                made.append(_random_pair(inner, chance))
            else:
                value = _random_base(inner[0], chance)
                # rosbags counts a byte from -128 to 127
                made.append((bytes([value]), (value ^ 128) - 128) if inner[0] == "byte" else (value, value))
        mine, other = [pair[0] for pair in made], [pair[1] for pair in made]
        if many and element == Nodetype.BASE and inner[0] != "string":
            other = np.array(other, {"char": "uint8", "byte": "int8"}.get(inner[0], inner[0]))
        ours[field.name] = mine if many else mine[0]
        theirs[field.name] = other if many else other[0]
    return cls(**ours), STORE.types[name](**theirs)


@pytest.mark.parametrize("name", NAMES)
def test_serialisation_equals_rosbags_and_comes_back(name):
    chance = random.Random(name)
    for _ in range(5):
        ours, theirs = _random_pair(name, chance)
        data = serialize(ours)
        reference = bytes(STORE.serialize_cdr(theirs, name))
        assert bytes(data) == reference.ljust((len(reference) + 3) & ~3, b"\0")
        back = deserialize(data, type(ours))
        assert back == ours
        assert repr(back) == repr(ours)
        assert bytes(serialize(back)) == bytes(data)


def test_defaults_and_python_types():
    from diagnostic_msgs.msg import DiagnosticStatus
    from geometry_msgs.msg import Quaternion
    from sensor_msgs.msg import CameraInfo, Image, NavSatStatus

    assert Quaternion().w == 1.0 and Quaternion().x == 0.0
    assert isinstance(Image().data, array.array) and Image().data.typecode == "B"
    assert isinstance(CameraInfo().k, np.ndarray) and CameraInfo().k.shape == (9,)
    assert CameraInfo(d=[1.0, 2.0]).d == array.array("d", [1.0, 2.0])
    assert DiagnosticStatus.ERROR == b"\x02" and DiagnosticStatus(level=DiagnosticStatus.WARN).level == b"\x01"
    assert Image.get_fields_and_field_types()["data"] == "sequence<uint8>"
    assert CameraInfo.get_fields_and_field_types()["k"] == "double[9]"
    received = deserialize(serialize(Image(data=b"abc")), Image)
    assert received.data == array.array("B", b"abc")
    assert repr(CameraInfo(d=[1.0])).endswith("binning_x=0, binning_y=0, roi=" + repr(CameraInfo().roi) + ")")
    assert "d=[1.0], k=array([0., 0., 0., 0., 0., 0., 0., 0., 0.])" in repr(CameraInfo(d=[1.0]))
    assert NavSatStatus().status == NavSatStatus.STATUS__DEFAULT == -2 and Quaternion.W__DEFAULT == 1.0
    received.data.append(7)
    assert bytes(deserialize(serialize(received), Image).data) == b"abc\x07"


@pytest.mark.parametrize(
    ("package", "name", "field", "value"),
    [
        ("geometry_msgs", "Point", "x", 1),
        ("sensor_msgs", "Image", "height", 2.0),
        ("sensor_msgs", "Image", "height", -1),
        ("sensor_msgs", "Image", "encoding", b"rgb8"),
        ("sensor_msgs", "Image", "data", np.zeros(3, np.uint8)),
        ("sensor_msgs", "CameraInfo", "k", [1.0] * 8),
        ("nav_msgs", "Path", "poses", [1]),
        ("diagnostic_msgs", "DiagnosticStatus", "level", 1),
        ("std_msgs", "Header", "stamp", 0.0),
    ],
)
def test_values_that_rclpy_refuses_are_refused(package, name, field, value):
    message = message_class(f"{package}/msg/{name}")()
    with pytest.raises(AssertionError, match=field):
        setattr(message, field, value)
    with pytest.raises(AssertionError, match=field):
        type(message)(**{field: value})


def test_unknown_names_are_refused():
    import sensor_msgs.msg

    with pytest.raises(AssertionError, match="nonsense"):
        message_class("std_msgs/msg/String")(nonsense=1)
    with pytest.raises(AttributeError):
        message_class("std_msgs/msg/String")().nonsense = 1
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = sensor_msgs.msg.Nonsense


def test_known_type_hashes():
    # As `ros2 topic info -v` shows them on Jazzy.
    assert type_hash("std_msgs/msg/String") == (
        "RIHS01_df668c740482bbd48fb39d76a70dfd4bd59db1288021743503259e948f6b1a18"
    )
    assert type_hash("sensor_msgs/msg/Image") == (
        "RIHS01_d31d41a9a4c4bc8eae9be757b0beed306564f7526c88ea6a4588fb9582527d47"
    )


def test_own_interfaces_are_found_and_split():
    known = definitions()
    assert "rays_as_pixels_interfaces/action/RenderViews" in known.actions
    from rays_as_pixels_interfaces.action import RenderViews

    goal = RenderViews.Goal()
    request = RenderViews.Impl.SendGoalService.Request(goal=goal)
    assert deserialize(serialize(request), type(request)).goal == goal
    with pytest.raises(ValueError, match="3 parts"):
        known.add_action("rays_as_pixels_interfaces/action/Broken", "int32 a\n---\nint32 b\n")


@pytest.mark.parametrize("broken", [False, True])
def test_wire_self_test_passes_and_falls_back(ros_domain, monkeypatch, broken):
    from embedded_ros import wire

    monkeypatch.setattr(wire, "through_python", [])
    if broken:
        monkeypatch.setattr(wire, "_dds_takecdr", lambda *_: 0)
    participant = wire.Participant(ros_domain)
    try:
        assert wire.self_test(participant, "") is not broken
        assert bool(wire.through_python) is broken
    finally:
        participant.close()


def test_checking_an_image_does_not_copy_its_bytes():
    """What came over the wire stays DDS's memory until `data` is read."""
    from sensor_msgs.msg import Image

    from rays_as_pixels_ros import conversions

    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    sent = serialize(conversions.rgb_to_image(rgb, 0, "camera"))
    message = deserialize(sent, Image)
    conversions.check_image(message)
    assert np.shares_memory(conversions.image_to_rgb(message), np.frombuffer(sent, np.uint8))
