# SPDX-License-Identifier: Apache-2.0
"""Services and clients in rmw_cyclonedds' protocol.

A payload is the CDR header, 16 bytes (uint64 client id, int64 sequence number, little endian), and the body. The
client id is the instance handle of the request writer; the server echoes the 16 bytes and the client filters on both.
"""

import os
import struct
import threading
import time

from . import wire
from .arguments import RCLError
from .endpoints import Entity
from .graph import user_values
from .messages import deserialize, serialize, warm
from .qos import to_dds
from .task import Future
from .unsupported import lacks

_HEADER = struct.Struct("<Qq")


def _unique_id():
    """Return the 16 random bytes that name a client or service in USER_DATA."""
    return ".".join(f"{byte:x}" for byte in os.urandom(16))


def _ids(endpoint, key):
    """Return the value of `key=...;` in the USER_DATA of a discovered endpoint, or None."""
    return user_values(endpoint.qos).get(key) if endpoint is not None else None


def _pair(participant, srv_type, name, qos, own, reads_requests):
    """Make the writer and the reader of a service endpoint."""
    full = srv_type._type_name
    warm(srv_type.Request)
    warm(srv_type.Response)
    request, response = wire.idl_service_type(full, "_Request"), wire.idl_service_type(full, "_Response")
    topics = [(f"rq{name}Request", request), (f"rr{name}Reply", response)]
    (read_topic, read_type), (write_topic, write_type) = topics if reads_requests else reversed(topics)
    reader = wire.RawReader(participant, read_topic, read_type, to_dds(qos, own, writer=False))
    writer = wire.RawWriter(participant, write_topic, write_type, to_dds(qos, own))
    return writer, reader


@lacks("configure_introspection", "handle", "logger_name", "send_response")
class Service(Entity):
    """Answer requests with a function `callback(request, response) -> response`."""

    def __init__(self, node, srv_type, srv_name, callback, qos_profile, callback_group):
        super().__init__(callback_group)
        self._node, self.srv_type, self.srv_name, self.callback = node, srv_type, srv_name, callback
        self.qos_profile = qos_profile
        own = f"serviceid={_unique_id()};"
        self._writer, self._reader = _pair(node.context.participant, srv_type, srv_name, qos_profile, own, True)
        self.condition = self._reader.condition
        self.gids = ((self._reader.guid,), (self._writer.guid,))
        self._known = set()

    @property
    def service_name(self):
        """The full service name."""
        return self.srv_name

    def take(self):
        """Take one request."""
        taken = self._reader.take()
        if taken is None:
            return None
        data, info = taken
        header = bytes(data[4:20])
        request = deserialize(data, self.srv_type.Request, prefix=16)
        return self._answer, (request, header, info.publication_handle)

    async def _answer(self, request, header, publication):
        response = self.callback(request, self.srv_type.Response())
        if hasattr(response, "__await__"):
            response = await response
        if not isinstance(response, self.srv_type.Response):
            raise TypeError(f"service {self.srv_name}: callback returned {type(response)}, not a response")
        self.send(response, header, publication)

    def send(self, response, header, publication):
        """Send the response for a request header, once the client can hear it."""
        if self.destroyed:
            return
        data = serialize(response, prefix=16)
        data[4:20] = header
        self._wait_for_reader(publication)
        self._writer.write(data)

    def _wait_for_reader(self, publication):
        """Wait up to 100 ms until the client's reply reader is matched: the request may overtake its discovery."""
        client = _ids(self._reader.entity.get_matched_publication_data(publication), "clientid")
        if client is None or client in self._known:
            return
        end = time.monotonic() + 0.1
        while True:
            writer = self._writer.entity
            for handle in writer.get_matched_subscriptions():
                if _ids(writer.get_matched_subscription_data(handle), "clientid") == client:
                    self._known.add(client)
                    return
            if time.monotonic() > end:
                return
            time.sleep(0.005)

    def destroy(self):
        """Delete the service."""
        if not self.destroyed:
            self.destroyed = True
            self._node.forget(self)
            self._reader.close()
            self._writer.close()


@lacks("configure_introspection", "get_pending_request", "handle", "logger_name")
class Client(Entity):
    """Send requests to a service."""

    def __init__(self, node, srv_type, srv_name, qos_profile, callback_group):
        super().__init__(callback_group)
        self._node, self.srv_type, self.srv_name = node, srv_type, srv_name
        self.qos_profile = qos_profile
        own = f"clientid={_unique_id()};"
        self._writer, self._reader = _pair(node.context.participant, srv_type, srv_name, qos_profile, own, False)
        self.condition = self._reader.condition
        self.gids = ((self._reader.guid,), (self._writer.guid,))
        self._lock, self._sequence, self._pending = threading.Lock(), 0, {}

    @property
    def service_name(self):
        """The full service name."""
        return self.srv_name

    def call_async(self, request):
        """Send a request; the future gets the response."""
        if not isinstance(request, self.srv_type.Request):
            raise TypeError(f"Expected {self.srv_type.Request}, got {type(request)}")
        if self.destroyed or not self._node.context.ok():
            raise RCLError(f"cannot call {self.srv_name}: the context is invalid")
        future = Future()
        with self._lock:
            self._sequence += 1
            sequence = self._sequence
            self._pending[sequence] = future
        data = serialize(request, prefix=16)
        _HEADER.pack_into(data, 4, self._writer.instance_handle, sequence)
        self._writer.write(data)
        return future

    def call(self, request, timeout_sec=None):
        """Send a request and wait; another thread must spin the node."""
        future = self.call_async(request)
        if not future.wait(timeout_sec):
            self.remove_pending_request(future)
            raise TimeoutError(f"no answer from {self.srv_name} in {timeout_sec} s")
        return future.result()

    def remove_pending_request(self, future):
        """Forget a request."""
        with self._lock:
            for sequence, pending in list(self._pending.items()):
                if pending is future:
                    del self._pending[sequence]

    def take(self):
        """Take one response; those for other clients are dropped."""
        while (taken := self._reader.take()) is not None:
            data = taken[0]
            client, sequence = _HEADER.unpack_from(data, 4)
            if client != self._writer.instance_handle:
                continue
            with self._lock:
                future = self._pending.pop(sequence, None)
            if future is not None:
                return future.set_result, (deserialize(data, self.srv_type.Response, prefix=16),)
        return None

    def service_is_ready(self):
        """Whether a server is matched in both directions."""
        writer, reader = self._writer.entity, self._reader.entity
        requests = {_ids(writer.get_matched_subscription_data(h), "serviceid") for h in writer.matched_sub}
        replies = {_ids(reader.get_matched_publication_data(h), "serviceid") for h in reader.matched_pub}
        return bool(requests & replies)

    def wait_for_service(self, timeout_sec=None):
        """Wait until a server is there; returns whether it is."""
        end = None if timeout_sec is None or timeout_sec < 0 else time.monotonic() + timeout_sec
        while self._node.context.ok() and not self.destroyed:
            if self.service_is_ready():
                return True
            if end is not None and time.monotonic() >= end:
                return False
            time.sleep(0.01)
        return False

    def destroy(self):
        """Delete the client."""
        if not self.destroyed:
            self.destroyed = True
            self._node.forget(self)
            self._reader.close()
            self._writer.close()
