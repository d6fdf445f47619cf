# SPDX-License-Identifier: Apache-2.0
"""The graph side of a node: which nodes, topics, services and endpoints are on the network."""

from .endpoints import Publisher, Subscription, Timer
from .services import Client, Service


class NodeGraph:
    """Mixed into Node; asks the graph of the node's context."""

    def _owned(self, kind):
        return (entity for entity in [*self.entities(), *list(self._publishers)] if isinstance(entity, kind))

    @property
    def publishers(self):
        """The publishers of this node."""
        return self._owned(Publisher)

    @property
    def subscriptions(self):
        """The subscriptions of this node."""
        return self._owned(Subscription)

    @property
    def services(self):
        """The services of this node."""
        return self._owned(Service)

    @property
    def clients(self):
        """The clients of this node."""
        return self._owned(Client)

    @property
    def timers(self):
        """The timers of this node."""
        return self._owned(Timer)

    def count_publishers(self, topic_name):
        """Return the number of publishers of a topic on the network."""
        return len(self.get_publishers_info_by_topic(topic_name))

    def count_subscribers(self, topic_name):
        """Return the number of subscriptions of a topic on the network."""
        return len(self.get_subscriptions_info_by_topic(topic_name))

    def count_services(self, service_name):
        """Return the number of servers of a service on the network."""
        return len(self._context.graph.endpoints(f"rq{self.resolve_service_name(service_name)}Request", False))

    def count_clients(self, service_name):
        """Return the number of clients of a service on the network."""
        return len(self._context.graph.endpoints(f"rq{self.resolve_service_name(service_name)}Request", True))

    def get_publishers_info_by_topic(self, topic_name, no_mangle=False):
        """List the publishers of a topic with node, type, type hash and QoS."""
        return self._context.graph.endpoints(self._dds_name(topic_name, no_mangle), True)

    def get_subscriptions_info_by_topic(self, topic_name, no_mangle=False):
        """List the subscriptions of a topic with node, type, type hash and QoS."""
        return self._context.graph.endpoints(self._dds_name(topic_name, no_mangle), False)

    def _dds_name(self, topic_name, no_mangle):
        return topic_name if no_mangle else "rt" + self.resolve_topic_name(topic_name)

    def get_topic_names_and_types(self, no_demangle=False):
        """List (topic, types) of all topics."""
        _mangled_only(no_demangle)
        return list(self._context.graph.topics().items())

    def get_service_names_and_types(self):
        """List (service, types) of all services."""
        return _services(self._context.graph.topics("rq/"))

    def get_publisher_names_and_types_by_node(self, node_name, node_namespace, no_demangle=False):
        """List (topic, types) that a node publishes; NodeNameNonExistentError if there is no such node."""
        _mangled_only(no_demangle)
        return list(self._context.graph.topics("rt/", (node_name, node_namespace), (True,)).items())

    def get_subscriber_names_and_types_by_node(self, node_name, node_namespace, no_demangle=False):
        """List (topic, types) that a node subscribes to; NodeNameNonExistentError if there is no such node."""
        _mangled_only(no_demangle)
        return list(self._context.graph.topics("rt/", (node_name, node_namespace), (False,)).items())

    def get_service_names_and_types_by_node(self, node_name, node_namespace):
        """List (service, types) that a node serves; NodeNameNonExistentError if there is no such node."""
        return _services(self._context.graph.topics("rq/", (node_name, node_namespace), (False,)))

    def get_client_names_and_types_by_node(self, node_name, node_namespace):
        """List (service, types) that a node calls; NodeNameNonExistentError if there is no such node."""
        return _services(self._context.graph.topics("rq/", (node_name, node_namespace), (True,)))

    def get_node_names(self):
        """List the names of all nodes."""
        return [name for name, _ in self._context.graph.nodes()]

    def get_fully_qualified_node_names(self):
        """List the names of all nodes with their namespaces."""
        return [f"{namespace.rstrip('/')}/{name}" for name, namespace in self._context.graph.nodes()]

    def get_node_names_and_namespaces(self):
        """List (name, namespace) of all nodes."""
        return self._context.graph.nodes()

    def wait_for_node(self, fully_qualified_node_name, timeout):
        """Wait up to `timeout` seconds for a node."""
        return self._context.graph.wait_for_nodes(fully_qualified_node_name, timeout)


def _services(found):
    return [
        (name.removesuffix("Request"), [t.removesuffix("_Request") for t in types]) for name, types in found.items()
    ]


def _mangled_only(no_demangle):
    if no_demangle:
        raise NotImplementedError("embedded_ros: no_demangle=True is not supported")
