# SPDX-License-Identifier: Apache-2.0
"""The ROS graph: tells others which node owns which endpoint (ros_discovery_info), and answers about theirs."""

import threading
import time
from enum import IntEnum

from cyclonedds.builtin import BuiltinDataReader, BuiltinTopicDcpsPublication, BuiltinTopicDcpsSubscription
from cyclonedds.qos import Policy

from . import wire
from .messages import deserialize, message_class, serialize, user_data
from .qos import DurabilityPolicy, HistoryPolicy, QoSProfile, from_dds, to_dds

_INFO = "rmw_dds_common/msg/ParticipantEntitiesInfo"
_ALIVE = 16


class NodeNameNonExistentError(RuntimeError):
    """No node of that name is on the network."""


class TopicEndpointTypeEnum(IntEnum):
    """What a TopicEndpointInfo is about."""

    INVALID = 0
    PUBLISHER = 1
    SUBSCRIPTION = 2


class TopicEndpointInfo:
    """One publisher or subscription on the network, as get_publishers_info_by_topic gives it.

    `topic_type_hash` is the text RIHS01_... that the other side states, or "INVALID".
    """

    def __init__(
        self, node_name, node_namespace, topic_type, topic_type_hash, endpoint_type, endpoint_gid, qos_profile
    ):
        self.node_name, self.node_namespace = node_name, node_namespace
        self.topic_type, self.topic_type_hash, self.endpoint_type = topic_type, topic_type_hash, endpoint_type
        self.endpoint_gid, self.qos_profile = endpoint_gid, qos_profile

    def __repr__(self):
        return f"TopicEndpointInfo({self.node_namespace} {self.node_name}, {self.topic_type}, {self.qos_profile})"


class Graph:
    """Graph of one participant. All calls may come from any thread."""

    def __init__(self, participant):
        self._participant = participant
        self._lock = threading.RLock()
        self._nodes = {}  # key: (namespace, name, reader gids, writer gids)
        self._others = {}  # participant gid: {endpoint gid: (namespace, name)}
        self._node_names = {}  # participant gid: [(namespace, name)]
        self._endpoints = {True: {}, False: {}}  # writers?: {gid: DcpsEndpoint}
        idl = wire.idl_type(_INFO)
        keep_one = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        keep_all = QoSProfile(
            history=HistoryPolicy.KEEP_ALL, depth=0, durability=DurabilityPolicy.TRANSIENT_LOCAL
        )  # fmt: skip
        self._info_type = message_class(_INFO)
        data = user_data(_INFO)
        self._writer = wire.RawWriter(participant, "ros_discovery_info", idl, to_dds(keep_one, data))
        self._reader = wire.RawReader(participant, "ros_discovery_info", idl, to_dds(keep_all, data, writer=False))
        self._builtin = {
            True: BuiltinDataReader(participant.entity, BuiltinTopicDcpsPublication),
            False: BuiltinDataReader(participant.entity, BuiltinTopicDcpsSubscription),
        }

    def add_node(self, key, namespace, name):
        """Announce a node."""
        with self._lock:
            self._nodes[key] = (namespace, name, [], [])
            self._publish()

    def remove_node(self, key):
        """Withdraw a node."""
        with self._lock:
            if self._nodes.pop(key, None):
                self._publish()

    def add_endpoints(self, key, readers=(), writers=()):
        """Announce endpoints (16-byte GUIDs) of a node."""
        with self._lock:
            if key in self._nodes:
                self._nodes[key][2].extend(readers)
                self._nodes[key][3].extend(writers)
                self._publish()

    def remove_endpoints(self, key, readers=(), writers=()):
        """Withdraw endpoints of a node."""
        with self._lock:
            if key in self._nodes:
                for known, gone in ((self._nodes[key][2], readers), (self._nodes[key][3], writers)):
                    for gid in gone:
                        if gid in known:
                            known.remove(gid)
                self._publish()

    def _publish(self):
        gid_type = message_class("rmw_dds_common/msg/Gid")
        entities = message_class("rmw_dds_common/msg/NodeEntitiesInfo")
        info = self._info_type(gid=gid_type(data=self._participant.guid))
        for namespace, name, readers, writers in self._nodes.values():
            info.node_entities_info_seq.append(
                entities(
                    node_namespace=namespace,
                    node_name=name,
                    reader_gid_seq=[gid_type(data=gid) for gid in readers],
                    writer_gid_seq=[gid_type(data=gid) for gid in writers],
                )
            )
        self._writer.write(serialize(info))
        self._update()  # keeps the history of the keep-all reader short

    def _update(self):
        while (taken := self._reader.take()) is not None:
            info = deserialize(taken[0], self._info_type)
            names = {}
            for node in info.node_entities_info_seq:
                for gid in [*node.reader_gid_seq, *node.writer_gid_seq]:
                    names[bytes(gid.data)] = (node.node_namespace, node.node_name)
            key = bytes(info.gid.data)
            self._others[key] = names
            self._node_names[key] = [(n.node_namespace, n.node_name) for n in info.node_entities_info_seq]
        for is_writer, reader in self._builtin.items():
            for sample in reader.take(N=1000):
                key = getattr(sample, "key", None)
                if sample.sample_info.instance_state == _ALIVE and sample.sample_info.valid_data:
                    self._endpoints[is_writer][key.bytes] = sample
                elif key is not None:
                    self._endpoints[is_writer].pop(key.bytes, None)
        alive = {e.participant_key.bytes for found in self._endpoints.values() for e in found.values()}
        for key in set(self._others) - alive:
            self._others.pop(key)
            self._node_names.pop(key, None)

    def endpoints(self, dds_topic, writers):
        """List TopicEndpointInfo of the publishers or subscriptions of a DDS topic name."""
        with self._lock:
            self._update()
            found = []
            for gid, endpoint in self._endpoints[writers].items():
                if endpoint.topic_name == dds_topic:
                    known = self._others.get(endpoint.participant_key.bytes, {})
                    namespace, name = known.get(gid, ("_NODE_NAMESPACE_UNKNOWN_", "_NODE_NAME_UNKNOWN_"))
                    kind = TopicEndpointTypeEnum.PUBLISHER if writers else TopicEndpointTypeEnum.SUBSCRIPTION
                    type_name, stated = ros_type(endpoint.type_name), user_values(endpoint.qos)
                    found.append(
                        TopicEndpointInfo(
                            name, namespace, type_name, stated.get("typehash", "INVALID"), kind, list(gid),
                            from_dds(endpoint.qos),
                        )
                    )  # fmt: skip
            return found

    def topics(self, prefix="rt/", node=None, writers=(True, False)):
        """Return {ROS topic name: sorted type names} of the endpoints whose DDS topic starts with `prefix`.

        Args:
            node: (name, namespace) of the node that must own them; None for all nodes.
            writers: (True,) only writers, (False,) only readers.

        Raises:
            NodeNameNonExistentError: no such node on the network.
        """
        with self._lock:
            self._update()
            found = {}
            wanted = None if node is None else (node[1], node[0])
            if wanted is not None and not any(wanted in nodes for nodes in self._node_names.values()):
                raise NodeNameNonExistentError(
                    f"Cannot get the endpoints of node '{node[0]}' in '{node[1]}': not found"
                )
            for is_writer in writers:
                for gid, endpoint in self._endpoints[is_writer].items():
                    owner = self._others.get(endpoint.participant_key.bytes, {}).get(gid)
                    if endpoint.topic_name.startswith(prefix) and wanted in (None, owner):
                        name = endpoint.topic_name[len(prefix) - 1 :]
                        found.setdefault(name, set()).add(ros_type(endpoint.type_name))
            return {name: sorted(types) for name, types in sorted(found.items())}

    def nodes(self):
        """List (name, namespace) of all nodes known on the network."""
        with self._lock:
            self._update()
            return [(name, namespace) for nodes in self._node_names.values() for namespace, name in nodes]

    def wait_for_nodes(self, full_name, timeout):
        """Wait up to `timeout` seconds until a node of this full name is there."""
        end = time.monotonic() + timeout
        while True:
            if any(f"{namespace.rstrip('/')}/{name}" == full_name for name, namespace in self.nodes()):
                return True
            if time.monotonic() > end:
                return False
            time.sleep(0.05)

    def close(self):
        """Delete the endpoints of the graph."""
        self._writer.close()
        self._reader.close()


def user_values(qos):
    """Return {key: value} of the `key=value;` texts in the USER_DATA of a discovered endpoint's QoS."""
    policy = qos[Policy.Userdata] if qos is not None else None
    text = policy.data.decode(errors="replace") if policy else ""
    return dict(part.split("=", 1) for part in text.split(";") if "=" in part)


def ros_type(dds_type):
    """Turn 'pkg::msg::dds_::Name_' into 'pkg/msg/Name'; other names stay as they are."""
    if "::dds_::" not in dds_type:
        return dds_type
    return dds_type.replace("::dds_::", "/").replace("::", "/").removesuffix("_")
