# SPDX-License-Identifier: Apache-2.0
"""Message, service and action classes that behave as rclpy's, made from the definitions on first use, and their CDR."""

from functools import cache, lru_cache
from threading import RLock

from rosbags.typesys.base import normalize_fieldname
from rosbags.typesys.store import Typestore

from .definitions import definitions
from .fields import Field

_lock = RLock()
# From the type descriptions of Jazzy, where rosbags (which takes char for another type) works out another hash.
_HASHES = {
    "rmw_dds_common/msg/Gid": "RIHS01_ab6f21cfbb0a6dbb837161e1110c2051a2850ed9f9c53944d7115d9bcebedf71",
    "rmw_dds_common/msg/NodeEntitiesInfo": "RIHS01_8ffef65ee2d088c63b1e8fcd31e800ba9fc8dbe0ee15ca60d1676de5218087a7",
    "rmw_dds_common/msg/ParticipantEntitiesInfo": (
        "RIHS01_91a0593bacdcc50ea9bdcf849a938b128412cc1ea821245c663bcd26f83c295e"
    ),
    "service_msgs/msg/ServiceEventInfo": "RIHS01_41bcbbe07a75c9b52bc96bfd5c24d7f0fc0a08c0cb7921b3373c5732345a6f45",
    "std_msgs/msg/Char": "RIHS01_3ad2d04dd29ba19d04b16659afa3ccaedd691914b02a64e82e252f2fa6a586a9",
}
_classes = {}


class _MessageType(type):
    """Metaclass that gives the attributes of rclpy's message metaclasses."""

    def __repr__(cls):
        return f"<class '{cls.__module__}.{cls.__qualname__}'>"


class _Store(Typestore):
    """rosbags' typestore over our classes: numeric arrays and bytes are read through their wire properties."""

    def __init__(self):
        super().__init__()
        self.fielddefs = definitions().store.fielddefs

    def get_msgdef(self, typename):
        if typename not in self.cache:
            with _lock:
                if typename not in self.cache:
                    message_class(typename)
                    definition = self.fielddefs[typename]
                    fields = message_class(typename)._fields
                    # rosbags generates `message.<name>` for each entry; ours are slots or wire properties.
                    self.fielddefs = {
                        **definitions().store.fielddefs,
                        typename: (
                            definition[0],
                            [(f.wire_name, d[1]) for f, d in zip(fields, definition[1], strict=True)],
                        ),
                    }
                    self.types[typename] = _classes[typename]._from_wire
                    made = super().get_msgdef(typename)
                    self.cache[typename] = made
        return self.cache[typename]


@lru_cache(maxsize=1)
def _store():
    return _Store()


def message_class(full_name):
    """Return the class of `pkg/msg/Name` (also `pkg/srv/Name_Request`, `pkg/action/Name_Goal`, ...)."""
    with _lock:
        if full_name not in _classes:
            if full_name not in definitions().store.fielddefs:
                raise NotImplementedError(f"embedded_ros knows no message type {full_name}")
            _classes[full_name] = _make_class(full_name)
        return _classes[full_name]


def _make_class(full_name):
    package, kind, name = full_name.split("/")
    constants, entries = definitions().store.fielddefs[full_name][:2]
    stated = definitions().defaults.get(full_name, {})
    fields = [Field(normalize_fieldname(entry), description, message_class) for entry, description in entries]
    public = [f for f in fields if f.name != "structure_needs_at_least_one_member"]

    def init(self, **values):
        for field in fields:
            if field.name in values:
                setattr(self, field.slot, field.accept(values.pop(field.name)))
            else:
                setattr(self, field.slot, field.default(stated.get(field.name)))
        values.pop("check_fields", None)
        if values:
            raise AssertionError(f"Invalid arguments passed to constructor: {', '.join(sorted(values))}")

    def equals(self, other):
        if not isinstance(other, self.__class__):
            return False
        return all(f.equal(getattr(self, f.slot), getattr(other, f.slot)) for f in public)

    def represent(self):
        def text(field):
            value = getattr(self, field.name)
            return repr(value.tolist()) if field.is_numeric_many and field.is_sequence else repr(value)

        return f"{package}.{kind}.{name}({', '.join(f'{f.name}={text(f)}' for f in public)})"

    namespace = {
        "__slots__": tuple(f.slot for f in fields) + ("__weakref__",),
        "__init__": init,
        "__eq__": equals,
        "__hash__": None,
        "__repr__": represent,
        "__module__": f"{package}.{kind}",
        "__doc__": f"{package}/{kind}/{name}, made from its definition.",
        "_fields": fields,
        "_type_name": full_name,
        "get_fields_and_field_types": classmethod(lambda cls: {f.name: f.type_text() for f in public}),
    }
    namespace.update({f.name: _property(f) for f in fields})
    namespace.update({f.wire_name: _wire_property(f) for f in fields if f.differs_on_wire})
    for constant, base, value in constants:
        namespace[constant] = bytes([value]) if base == "byte" else value
    namespace.update({f"{f.name.upper()}__DEFAULT": f.default(stated[f.name]) for f in public if f.name in stated})
    cls = _MessageType(name, (), namespace)
    cls._from_wire = staticmethod(_wire_constructor(cls, fields))
    return cls


def _property(field):
    slot, accept = field.slot, field.accept
    return property(field.getter(), lambda self, value: setattr(self, slot, accept(value)))


def _wire_property(field):
    slot, to_wire = field.slot, field.to_wire
    return property(lambda self: to_wire(getattr(self, slot)))


def _wire_constructor(cls, fields):
    """Generate the function that makes a message from the values of rosbags' deserialiser, without checks."""
    arguments = ", ".join(f"v{i}" for i in range(len(fields)))
    lines = [f"def make({arguments}):", "  message = new(cls)"]
    scope = {"cls": cls, "new": object.__new__}
    for i, field in enumerate(fields):
        value = f"v{i}"
        if field.differs_on_wire:
            scope[f"f{i}"] = field.from_wire
            value = f"f{i}(v{i})"
        lines.append(f"  message.{field.slot} = {value}")
    lines.append("  return message")
    exec("\n".join(lines), scope)
    return scope["make"]


@cache
def service_class(full_name):
    """Return the service class with Request and Response."""
    package, _, name = full_name.split("/")
    request, response = message_class(full_name + "_Request"), message_class(full_name + "_Response")
    return type(name, (), {"Request": request, "Response": response, "_type_name": full_name,
                           "__module__": f"{package}.srv"})  # fmt: skip


@cache
def action_class(full_name):
    """Return the action class with Goal, Result, Feedback and the wire types in Impl."""
    package, _, name = full_name.split("/")

    def wire_service(suffix):
        return type(name + suffix, (), {"Request": message_class(f"{full_name}{suffix}_Request"),
                                        "Response": message_class(f"{full_name}{suffix}_Response"),
                                        "_type_name": full_name + suffix})  # fmt: skip

    implementation = type("Impl", (), {
        "SendGoalService": wire_service("_SendGoal"),
        "GetResultService": wire_service("_GetResult"),
        "FeedbackMessage": message_class(full_name + "_FeedbackMessage"),
        "CancelGoalService": service_class("action_msgs/srv/CancelGoal"),
        "GoalStatusMessage": message_class("action_msgs/msg/GoalStatusArray"),
    })  # fmt: skip
    parts = {part: message_class(f"{full_name}_{part}") for part in ("Goal", "Result", "Feedback")}
    return type(name, (), {**parts, "Impl": implementation, "_type_name": full_name, "__module__": f"{package}.action"})


def warm(cls):
    """Generate the CDR code of `cls` now (up to 130 ms) rather than in the first callback."""
    _store().get_msgdef(cls._type_name)


def serialize(message, prefix=0):
    """Serialise to CDR: bytearray with the header 00 01 00 00, `prefix` free bytes behind it, padded to 4 bytes."""
    store = _store()
    definition = store.get_msgdef(message._type_name)
    size = 4 + prefix + definition.getsize_cdr(0, message, store)
    data = bytearray((size + 3) & ~3)
    data[1] = 1
    try:
        # Service headers are 16 bytes, so the alignment of the body is that of a message of its own.
        definition.serialize_cdr_le(memoryview(data)[4 + prefix : size], 0, message, store)
    except Exception as error:
        raise TypeError(f"cannot serialise {message._type_name}: {error}") from error
    return data


def deserialize(data, cls, prefix=0):
    """Make a message of `cls` from CDR; large arrays keep referring to the memory of `data`."""
    data = memoryview(data)
    if len(data) < 4 + prefix or data[0] != 0 or data[1] not in (0, 1):
        raise ValueError(f"not a CDR message: {bytes(data[:4]).hex()}")
    store = _store()
    definition = store.get_msgdef(cls._type_name)
    function = definition.deserialize_cdr_le if data[1] else definition.deserialize_cdr_be
    return function(data[4 + prefix :], 0, definition.cls, store)[0]


def type_hash(full_name):
    """Return RIHS01_... of a message type, as a real ROS 2 states it."""
    if full_name in _HASHES:
        return _HASHES[full_name]
    return definitions().store.hash_rihs01(full_name)


def user_data(full_name):
    """Return the USER_DATA text of a topic's endpoint: the hash of its type."""
    return f"typehash={type_hash(full_name)};"
