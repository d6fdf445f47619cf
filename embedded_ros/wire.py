# SPDX-License-Identifier: Apache-2.0
"""The DDS layer: participant, topics, raw CDR writers and readers, waitsets, on cyclonedds 11.

Writing and taking go through ctypes into the C library: it releases the GIL (cyclonedds-python's own write holds it
while a reliable reader blocks) and copies nothing that need not be copied. There are no listeners (a listener and a
write that holds the GIL can deadlock) and waits are short, because signals are not seen during one.
"""

import ctypes as ct
import weakref
from functools import cache

from cyclonedds._clayer import ddspy_take, ddspy_write
from cyclonedds.core import Qos
from cyclonedds.domain import DomainParticipant
from cyclonedds.idl import make_idl_struct, types
from cyclonedds.internal import DDS, dds_c_t
from cyclonedds.pub import DataWriter
from cyclonedds.qos import Policy
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from rosbags.interfaces import Nodetype

from .definitions import definitions

INFINITE = 2**63 - 1
_ANY_STATE = 3 | 12 | 112
_NOT_READ = 2 | 12 | 112
_lib = DDS._dll_handle
# Not empty when the self-test found that the C calls below do not work: cyclonedds-python's own, slower calls serve.
through_python = []


class WireError(RuntimeError):
    """Cyclone DDS refused a call."""


class _IoVector(ct.Structure):
    _fields_ = [("base", ct.c_void_p), ("length", ct.c_size_t)]


class _Container(ct.Structure):
    """What the sertype of cyclonedds-python takes as a sample: serialised bytes and their number."""

    _fields_ = [("data", ct.c_void_p), ("size", ct.c_size_t)]


def _declare(name, result, *arguments):
    function = getattr(_lib, name)
    function.restype, function.argtypes = result, arguments
    return function


_dds_write = _declare("dds_write", ct.c_int32, ct.c_int32, ct.c_void_p)
_dds_takecdr = _declare("dds_takecdr", ct.c_int32, ct.c_int32, ct.c_void_p, ct.c_uint32, ct.c_void_p, ct.c_uint32)
_size = _declare("ddsi_serdata_size", ct.c_uint32, ct.c_void_p)
_to_ref = _declare("ddsi_serdata_to_ser_ref", ct.c_void_p, ct.c_void_p, ct.c_size_t, ct.c_size_t, ct.POINTER(_IoVector))
_unref_ser = _declare("ddsi_serdata_to_ser_unref", None, ct.c_void_p, ct.POINTER(_IoVector))
_unref = _declare("ddsi_serdata_unref", None, ct.c_void_p)
_delete = _declare("dds_delete", ct.c_int32, ct.c_int32)
_get_guid = _declare("dds_get_guid", ct.c_int32, ct.c_int32, ct.c_void_p)
_get_handle = _declare("dds_get_instance_handle", ct.c_int32, ct.c_int32, ct.POINTER(ct.c_uint64))
_create_condition = _declare("dds_create_readcondition", ct.c_int32, ct.c_int32, ct.c_uint32)
_create_guard = _declare("dds_create_guardcondition", ct.c_int32, ct.c_int32)
_set_guard = _declare("dds_set_guardcondition", ct.c_int32, ct.c_int32, ct.c_bool)
_take_guard = _declare("dds_take_guardcondition", ct.c_int32, ct.c_int32, ct.POINTER(ct.c_bool))
_create_waitset = _declare("dds_create_waitset", ct.c_int32, ct.c_int32)
_attach = _declare("dds_waitset_attach", ct.c_int32, ct.c_int32, ct.c_int32, ct.c_void_p)
_detach = _declare("dds_waitset_detach", ct.c_int32, ct.c_int32, ct.c_int32)
_wait = _declare("dds_waitset_wait", ct.c_int32, ct.c_int32, ct.c_void_p, ct.c_size_t, ct.c_int64)
_error_text = _declare("dds_strretcode", ct.c_char_p, ct.c_int32)


def _check(code, what):
    if code < 0:
        raise WireError(f"{what}: {_error_text(code).decode()}")
    return code


def delete(entity):
    """Delete a DDS entity by its handle."""
    _delete(entity)


_IDL_BASES = {
    "bool": bool, "byte": types.byte, "char": types.uint8, "int8": types.int8, "uint8": types.uint8,
    "int16": types.int16, "uint16": types.uint16, "int32": types.int32, "uint32": types.uint32,
    "int64": types.int64, "uint64": types.uint64, "float32": types.float32, "float64": types.float64,
}  # fmt: skip


@cache
def idl_type(full_name):
    """Make the IDL struct of `pkg/kind/Name` with the type name of rmw_cyclonedds, `pkg::kind::dds_::Name_`."""
    package, kind, name = full_name.split("/")
    fields = {field: _idl_field(description) for field, description in definitions().store.fielddefs[full_name][1]}
    return make_idl_struct(name + "_", f"{package}.{kind}.dds_.{name}_", fields)


def idl_service_type(full_name, suffix):
    """Make the struct of a request or response: the 16 header bytes of rmw_cyclonedds, then the message's fields."""
    package, kind, name = full_name.split("/")
    fields = {"client_id_": types.uint64, "sequence_": types.int64}
    entries = definitions().store.fielddefs[full_name + suffix][1]
    fields.update({field: _idl_field(description) for field, description in entries})
    return make_idl_struct(name + suffix + "_", f"{package}.{kind}.dds_.{name}{suffix}_", fields)


def _idl_field(description):
    kind, rest = description
    if kind == Nodetype.NAME:
        return idl_type(rest)
    if kind == Nodetype.BASE:
        base, bound = rest
        if base == "string":
            return types.bounded_str[bound] if bound else str
        return _IDL_BASES[base]
    element = _idl_field(rest[0])
    if kind == Nodetype.ARRAY:
        return types.array[element, rest[1]]
    return types.sequence[element, rest[1]] if rest[1] else types.sequence[element]


class Participant:
    """One DDS participant and the topics made on it."""

    def __init__(self, domain):
        self.entity = DomainParticipant(domain, qos=Qos(Policy.Userdata(b"enclave=/;")))
        self.guid = guid(self.entity._ref)
        self._topics = {}

    def topic(self, name, idl):
        """Return the topic, made once for each name and type."""
        key = (name, idl.__idl_typename__)
        if key not in self._topics:
            self._topics[key] = Topic(self.entity, name, idl)
        return self._topics[key]

    def close(self):
        """Delete everything on the participant; others are told at once."""
        self._topics.clear()
        _delete(self.entity._ref)


def guid(entity):
    """Return the 16-byte GUID of an entity handle."""
    buffer = (ct.c_uint8 * 16)()
    _check(_get_guid(entity, buffer), "dds_get_guid")
    return bytes(buffer)


class RawWriter:
    """Write serialised CDR to a topic."""

    def __init__(self, participant, topic_name, idl, qos):
        self.entity = DataWriter(participant.entity, participant.topic(topic_name, idl), qos=qos)
        self.guid = guid(self.entity._ref)
        handle = ct.c_uint64()
        _check(_get_handle(self.entity._ref, ct.byref(handle)), "dds_get_instance_handle")
        self.instance_handle = handle.value

    def write(self, data):
        """Write `data`: a bytearray of CDR with its header, padded to 4 bytes."""
        if through_python:
            _check(ddspy_write(self.entity._ref, bytes(data)), f"cannot publish on {self.entity.topic.name}")
            return
        container = _Container(ct.addressof((ct.c_char * len(data)).from_buffer(data)), len(data))
        _check(_dds_write(self.entity._ref, ct.byref(container)), f"cannot publish on {self.entity.topic.name}")

    def close(self):
        """Delete the writer."""
        _delete(self.entity._ref)


class RawReader:
    """Take serialised CDR from a topic; `condition` is the handle that a waitset watches."""

    def __init__(self, participant, topic_name, idl, qos):
        self.entity = DataReader(participant.entity, participant.topic(topic_name, idl), qos=qos)
        self.guid = guid(self.entity._ref)
        self.condition = _check(_create_condition(self.entity._ref, _NOT_READ), "dds_create_readcondition")

    def take(self):
        """Take one sample: (memoryview, sample_info), or None. The memory lives as long as something refers to it."""
        while through_python:
            taken = ddspy_take(self.entity._ref, _ANY_STATE, 1)
            if isinstance(taken, int) or not taken:
                return None
            if taken[0][1].valid_data:
                return memoryview(taken[0][0]), taken[0][1]
        while True:
            serdata, info = ct.c_void_p(), dds_c_t.sample_info()
            count = _dds_takecdr(self.entity._ref, ct.byref(serdata), 1, ct.byref(info), _ANY_STATE)
            if count <= 0:
                return None
            if not info.valid_data:
                _unref(serdata)
                continue
            return _borrow(serdata), info

    def close(self):
        """Delete the reader and its condition."""
        _delete(self.condition)
        _delete(self.entity._ref)


def _borrow(serdata):
    size = _size(serdata)
    vector = _IoVector()
    held = _to_ref(serdata, 0, size, ct.byref(vector))
    buffer = (ct.c_ubyte * size).from_address(vector.base)
    release = weakref.finalize(buffer, _release, held, vector, serdata.value)
    release.atexit = False
    return memoryview(buffer).cast("B").toreadonly()


def _release(held, vector, serdata):
    _unref_ser(held, ct.byref(vector))
    _unref(serdata)


class Guard:
    """A condition set by hand, to end a wait from another thread."""

    def __init__(self, participant):
        self.handle = _check(_create_guard(participant.entity._ref), "dds_create_guardcondition")

    def trigger(self):
        """End the wait."""
        _set_guard(self.handle, True)

    def clear(self):
        """Take the trigger back; returns whether it was set."""
        value = ct.c_bool()
        _take_guard(self.handle, ct.byref(value))
        return value.value

    def close(self):
        """Delete the condition."""
        _delete(self.handle)


class WaitSet:
    """Wait for any of a changing set of condition handles."""

    def __init__(self, participant):
        self._handle = _check(_create_waitset(participant.entity._ref), "dds_create_waitset")
        self._attached = set()

    def wait(self, handles, timeout):
        """Wait up to `timeout` seconds for one of `handles`; returns those that are triggered."""
        wanted = set(handles)
        for handle in self._attached - wanted:
            _detach(self._handle, handle)
        for handle in wanted - self._attached:
            if _attach(self._handle, handle, handle) < 0:
                wanted.discard(handle)  # deleted meanwhile
        self._attached = wanted
        found = (ct.c_void_p * max(1, len(wanted)))()
        count = _wait(self._handle, found, len(found), max(0, int(timeout * 1e9)))
        return [found[i] for i in range(min(count, len(found)))] if count > 0 else []

    def close(self):
        """Delete the waitset."""
        _delete(self._handle)


def self_test(participant, user_data):
    """Write and take one known message; falls back to cyclonedds-python's own calls, and says so if both fail.

    The C calls are internals of the library: another build of it could differ. `user_data` is that of a String topic.
    """
    idl = idl_type("std_msgs/msg/String")
    reliable, data = Policy.Reliability.Reliable(INFINITE), Policy.Userdata(user_data.encode())
    qos = Qos(reliable, Policy.History.KeepLast(1), data)
    sent = bytearray(b"\0\1\0\0" + (7).to_bytes(4, "little") + b"abcdef\0\0")
    errors = []
    for fallback in ([], [True]):
        through_python[:] = fallback
        reader = RawReader(participant, "embedded_ros_self_test", idl, qos)
        writer = RawWriter(participant, "embedded_ros_self_test", idl, qos)
        try:
            writer.write(sent)
            taken = reader.take()
            if taken is not None and bytes(taken[0][:15]) == bytes(sent[:15]):
                return not fallback
            errors.append("nothing came back" if taken is None else f"{bytes(taken[0]).hex()} came back")
        except (WireError, OSError, ValueError) as error:
            errors.append(str(error))
        finally:
            writer.close()
            reader.close()
    raise WireError(f"Cyclone DDS does not pass the self-test: {'; then '.join(errors)} (want cyclonedds==11.0.1)")
