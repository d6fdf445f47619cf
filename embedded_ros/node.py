# SPDX-License-Identifier: Apache-2.0
"""rclpy.node.Node."""

import threading
import weakref

from .arguments import RosArguments
from .context import NotInitializedException, get_default_context
from .endpoints import GuardCondition, Publisher, Rate, Subscription, Timer
from .executor import MutuallyExclusiveCallbackGroup
from .logging import get_logger
from .names import check_namespace, check_node_name
from .node_graph import NodeGraph
from .node_parameters import NodeParameters
from .parameters import ParameterSet
from .qos import qos_profile_services_default, to_profile
from .rosout import RosoutPublisher
from .services import Client, Service
from .time import ROSClock
from .unsupported import lacks


@lacks(
    "add_pre_set_parameters_callback", "remove_pre_set_parameters_callback", "add_waitable", "remove_waitable",
    "waitables", "guards", "handle", "get_node_names_and_namespaces_with_enclaves",
)  # fmt: skip
class Node(NodeGraph, NodeParameters):
    """A node: a named owner of publishers, subscriptions, timers, services, clients and parameters."""

    def __init__(
        self, node_name, *, context=None, cli_args=None, namespace=None, use_global_arguments=True,
        enable_rosout=True, start_parameter_services=True, parameter_overrides=None,
        allow_undeclared_parameters=False, automatically_declare_parameters_from_overrides=False,
        rosout_qos_profile=None, enable_logger_service=False,
    ):  # fmt: skip
        self._context = context or get_default_context()
        if not self._context.ok():
            raise NotInitializedException("cannot create node")
        if enable_logger_service:
            raise NotImplementedError("embedded_ros: enable_logger_service is not supported")
        own = RosArguments(cli_args or [])
        layers = list(self._context.arguments.layers) if use_global_arguments else []
        self._remaps = own.remaps
        if use_global_arguments:
            self._remaps = self._context.arguments.remaps.with_rules(own.remaps._rules)
        wanted = self._remaps.special(node_name, "__ns")
        self._namespace = check_namespace(wanted or namespace or "/")
        self._name = check_node_name(self._remaps.special(node_name, "__node", "__name") or node_name)
        self._lock = threading.RLock()
        self._entities, self._publishers = [], []
        self._executor = None
        self._destroyed = False
        self.default_callback_group = MutuallyExclusiveCallbackGroup()
        self._clock = ROSClock()
        self._logger = get_logger(self.get_fully_qualified_name()[1:].replace("/", "."))
        arguments = RosArguments()
        arguments.layers = layers + own.layers
        overrides = arguments.parameters(self.get_fully_qualified_name())
        overrides.update({p.name: p.value for p in parameter_overrides or ()})
        self._parameters = ParameterSet(overrides, allow_undeclared_parameters)
        self._context.graph.add_node(self, self._namespace, self._name)
        self._context.nodes.add(self)
        self._start_parameters(start_parameter_services, automatically_declare_parameters_from_overrides)
        if enable_rosout:
            self._start_rosout()

    # -- names -----------------------------------------------------------------------------------------------------
    def get_name(self):
        """Return the node's name."""
        return self._name

    def get_namespace(self):
        """Return the node's namespace."""
        return self._namespace

    def get_fully_qualified_name(self):
        """Return namespace and name."""
        return f"{self._namespace.rstrip('/')}/{self._name}"

    def get_logger(self):
        """Return the node's logger."""
        return self._logger

    def get_clock(self):
        """Return the node's clock."""
        return self._clock

    def resolve_topic_name(self, topic, *, only_expand=False):
        """Return the full, remapped topic name."""
        remaps = type(self._remaps)() if only_expand else self._remaps
        return remaps.resolve(topic, self._name, self._namespace)

    resolve_service_name = resolve_topic_name

    @property
    def context(self):
        """The context of this node."""
        return self._context

    @property
    def executor(self):
        """The executor that this node was added to."""
        return self._executor() if self._executor else None

    @executor.setter
    def executor(self, executor):
        old = self.executor
        self._executor = weakref.ref(executor) if executor is not None else None
        if old is not None and old is not executor and self in old.get_nodes():
            old.remove_node(self)

    # -- making things ---------------------------------------------------------------------------------------------
    def _add(self, entity, executable=True):
        with self._lock:
            (self._entities if executable else self._publishers).append(entity)
        readers, writers = getattr(entity, "gids", ((), ()))
        if readers or writers:
            self._context.graph.add_endpoints(self, readers, writers)
        self.wake_executor()
        return entity

    def forget(self, entity):
        """Drop an entity that is being destroyed."""
        with self._lock:
            for kept in (self._entities, self._publishers):
                if entity in kept:
                    kept.remove(entity)
        readers, writers = getattr(entity, "gids", ((), ()))
        if (readers or writers) and self._context.participant is not None:
            self._context.graph.remove_endpoints(self, readers, writers)
        self.wake_executor()

    def entities(self):
        """Return what an executor has to serve."""
        with self._lock:
            return list(self._entities)

    def wake_executor(self):
        """Have the executor look again."""
        executor = self.executor
        if executor is not None:
            executor.wake()

    def create_publisher(self, msg_type, topic, qos_profile, *, callback_group=None, event_callbacks=None,
                         qos_overriding_options=None, publisher_class=None):  # fmt: skip
        """Make a publisher."""
        _refuse(event_callbacks=event_callbacks, qos_overriding_options=qos_overriding_options)
        _check_message_type(msg_type)
        made = (publisher_class or Publisher)(self, msg_type, self.resolve_topic_name(topic), to_profile(qos_profile))
        return self._add(made, executable=False)

    def create_subscription(self, msg_type, topic, callback, qos_profile, *, callback_group=None,
                            event_callbacks=None, qos_overriding_options=None, raw=False,
                            content_filter_options=None):  # fmt: skip
        """Make a subscription."""
        _refuse(qos_overriding_options=qos_overriding_options, content_filter_options=content_filter_options)
        if event_callbacks is not None:
            event_callbacks.refuse()
        _check_message_type(msg_type)
        group = callback_group or self.default_callback_group
        name = self.resolve_topic_name(topic)
        return self._add(Subscription(self, msg_type, name, callback, to_profile(qos_profile), group, raw))

    def create_service(self, srv_type, srv_name, callback, *, qos_profile=qos_profile_services_default,
                       callback_group=None):  # fmt: skip
        """Make a service."""
        group = callback_group or self.default_callback_group
        return self._add(Service(self, srv_type, self.resolve_service_name(srv_name), callback, qos_profile, group))

    def create_client(self, srv_type, srv_name, *, qos_profile=qos_profile_services_default, callback_group=None):
        """Make a client."""
        group = callback_group or self.default_callback_group
        return self._add(Client(self, srv_type, self.resolve_service_name(srv_name), qos_profile, group))

    def create_timer(self, timer_period_sec, callback, callback_group=None, clock=None, autostart=True):
        """Make a timer."""
        group = callback_group or self.default_callback_group
        period = int(float(timer_period_sec) * 1e9)
        return self._add(Timer(self, callback, group, period, clock or self._clock, autostart))

    def create_guard_condition(self, callback, callback_group=None):
        """Make a guard condition."""
        return self._add(GuardCondition(self, callback, callback_group or self.default_callback_group))

    def create_rate(self, frequency, clock=None):
        """Make a rate."""
        if frequency <= 0:
            raise ValueError("frequency must be > 0")
        return Rate(int(1e9 / frequency), clock or self._clock)

    def add_entity(self, entity):
        """Add an entity of another module (action server or client) to this node."""
        return self._add(entity)

    def destroy_publisher(self, publisher):
        """Destroy a publisher of this node."""
        return self._destroy(publisher)

    def _destroy(self, entity):
        known = entity in self._entities or entity in self._publishers
        if known:
            entity.destroy()
        return known

    destroy_subscription = destroy_service = destroy_client = destroy_publisher
    destroy_timer = destroy_guard_condition = destroy_publisher

    def destroy_rate(self, rate):
        """Destroy a rate."""
        return True

    def destroy_node(self):
        """Destroy the node and all that it owns."""
        if self._destroyed:
            return
        self._destroyed = True
        if self.executor is not None:
            self.executor.remove_node(self)
        self._stop_rosout()
        for entity in [*self._entities, *self._publishers]:
            entity.destroy()
        if self._context.participant is not None:
            self._context.graph.remove_node(self)
        self._context.nodes.discard(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy_node()

    # -- /rosout ---------------------------------------------------------------------------------------------------
    def _start_rosout(self):
        self._rosout = RosoutPublisher(self)

    def _stop_rosout(self):
        rosout = getattr(self, "_rosout", None)
        if rosout is not None:
            rosout.stop()


def _check_message_type(msg_type):
    if not hasattr(msg_type, "_type_name"):
        raise TypeError(f"{msg_type} is not a message type of embedded_ros")


def _refuse(**options):
    for name, value in options.items():
        if value is not None:
            raise NotImplementedError(f"embedded_ros: {name} is not supported")
