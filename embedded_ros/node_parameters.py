# SPDX-License-Identifier: Apache-2.0
"""The parameter side of a node: declaring, reading, setting, the parameter services, use_sim_time."""

from .messages import message_class, service_class
from .parameters import (
    Parameter,
    ParameterException,
    ParameterNotDeclaredException,
    _refused,
    parameter_value_to_python,
)
from .qos import QoSProfile, ReliabilityPolicy, qos_profile_parameter_events, qos_profile_parameters


class NodeParameters:
    """Mixed into Node, which sets `_parameters`."""

    def _start_parameters(self, services, declare_overrides):
        if declare_overrides:
            for name, value in self._parameters.overrides.items():
                if name != "use_sim_time":
                    self._parameters.declare(name, value)
        self._parameters.declare("use_sim_time", False)
        self._clock_subscription = None
        self._follow_clock(self.get_parameter("use_sim_time").value)
        event = message_class("rcl_interfaces/msg/ParameterEvent")
        self._parameter_events = self.create_publisher(event, "/parameter_events", qos_profile_parameter_events)
        self._parameters.post_set.append(self._after_set)
        if services:
            self._start_parameter_services()

    def _after_set(self, parameters):
        for parameter in parameters:
            if parameter.name == "use_sim_time":
                self._follow_clock(parameter.value)
        if self.context.ok():
            event = message_class("rcl_interfaces/msg/ParameterEvent")(
                stamp=self._clock.now().to_msg(), node=self.get_fully_qualified_name()
            )
            event.changed_parameters = [parameter.to_parameter_msg() for parameter in parameters]
            self._parameter_events.publish(event)

    def _follow_clock(self, simulated):
        if simulated and self._clock_subscription is None:
            self._clock.simulate(0)
            kind = message_class("rosgraph_msgs/msg/Clock")
            profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            from .executor import ReentrantCallbackGroup

            self._clock_subscription = self.create_subscription(
                kind, "/clock", self._on_clock, profile, callback_group=ReentrantCallbackGroup()
            )
        elif not simulated and self._clock_subscription is not None:
            self._clock_subscription.destroy()
            self._clock_subscription = None
            self._clock.simulate(None)

    def _on_clock(self, message):
        if self._clock_subscription is not None:
            self._clock.simulate(message.clock.sec * 10**9 + message.clock.nanosec)
            self.wake_executor()

    def declare_parameter(self, name, value=None, descriptor=None, ignore_override=False):
        """Declare one parameter and return it."""
        return self._parameters.declare(name, value, descriptor, ignore_override)

    def declare_parameters(self, namespace, parameters, ignore_override=False):
        """Declare several: (name,), (name, value) or (name, value, descriptor) each."""
        prefix = f"{namespace}." if namespace else ""
        return [
            self._parameters.declare(prefix + entry[0], *entry[1:], ignore_override=ignore_override)
            for entry in parameters
        ]

    def undeclare_parameter(self, name):
        """Undeclare one parameter."""
        if name not in self._parameters.values:
            raise ParameterNotDeclaredException(name)
        if self._parameters.descriptors[name].read_only:
            raise ParameterException(f"parameter {name} is read-only")
        del self._parameters.values[name], self._parameters.descriptors[name]

    def has_parameter(self, name):
        """Whether it is declared."""
        return name in self._parameters.values

    def get_parameter(self, name):
        """Return one parameter."""
        return self._parameters.get(name)

    def get_parameters(self, names):
        """Return several parameters."""
        return [self._parameters.get(name) for name in names]

    def get_parameter_or(self, name, alternative_value=None):
        """Return a parameter, or the alternative if it is not declared."""
        if name in self._parameters.values:
            return self._parameters.values[name]
        return alternative_value if alternative_value is not None else Parameter(name, Parameter.Type.NOT_SET)

    def get_parameters_by_prefix(self, prefix):
        """Return {rest of the name: parameter} below a prefix."""
        prefix = f"{prefix}." if prefix else ""
        found = self._parameters.values.items()
        return {name[len(prefix) :]: parameter for name, parameter in found if name.startswith(prefix)}

    def set_parameters(self, parameter_list):
        """Set each parameter on its own; returns a result for each."""
        return [self._parameters.set_together([parameter]) for parameter in parameter_list]

    def set_parameters_atomically(self, parameter_list):
        """Set all or none."""
        return self._parameters.set_together(parameter_list)

    def describe_parameter(self, name):
        """Return the descriptor of a parameter."""
        if name not in self._parameters.descriptors:
            raise ParameterNotDeclaredException(name)
        return self._parameters.descriptors[name]

    def describe_parameters(self, names):
        """Return the descriptors of parameters."""
        return [self.describe_parameter(name) for name in names]

    def set_descriptor(self, name, descriptor, alternative_value=None):
        """Give a parameter another descriptor (and value); returns its value."""
        return self._parameters.describe(name, descriptor, alternative_value)

    def list_parameters(self, prefixes, depth):
        """Return a ListParametersResult: names below `prefixes` (all if empty), `depth` levels (0: all)."""
        return self._parameters.listing(prefixes, depth)

    def get_parameter_type(self, name):
        """Return the type of a parameter."""
        return self._parameters.get(name).type_

    def get_parameter_types(self, names):
        """Return the types of parameters."""
        return [self._parameters.get(name).type_ for name in names]

    def add_on_set_parameters_callback(self, callback):
        """Ask `callback(parameters)` for a SetParametersResult before each change."""
        self._parameters.on_set.insert(0, callback)

    def remove_on_set_parameters_callback(self, callback):
        """Undo add_on_set_parameters_callback."""
        self._parameters.on_set.remove(callback)

    def add_post_set_parameters_callback(self, callback):
        """Call `callback(parameters)` after each change."""
        self._parameters.post_set.insert(0, callback)

    def remove_post_set_parameters_callback(self, callback):
        """Undo add_post_set_parameters_callback."""
        self._parameters.post_set.remove(callback)

    # -- the services that `ros2 param` uses -----------------------------------------------------------------------
    def _start_parameter_services(self):
        for name, callback in (
            ("GetParameters", self._serve_get), ("GetParameterTypes", self._serve_types),
            ("SetParameters", self._serve_set), ("SetParametersAtomically", self._serve_set_together),
            ("ListParameters", self._serve_list), ("DescribeParameters", self._serve_describe),
        ):  # fmt: skip
            snake = "".join("_" + letter.lower() if letter.isupper() else letter for letter in name)[1:]
            kind = service_class(f"rcl_interfaces/srv/{name}")
            self.create_service(kind, f"~/{snake}", callback, qos_profile=qos_profile_parameters)

    def _serve_get(self, request, response):
        known = self._parameters.values
        if all(name in known for name in request.names):
            response.values = [known[name].get_parameter_value() for name in request.names]
        return response

    def _serve_types(self, request, response):
        known = self._parameters.values
        if all(name in known for name in request.names):
            response.types = [int(known[name].type_) for name in request.names]
        return response

    def _serve_set(self, request, response):
        response.results = [self._set_from([message]) for message in request.parameters]
        return response

    def _serve_set_together(self, request, response):
        response.result = self._set_from(request.parameters)
        return response

    def _set_from(self, messages):
        try:
            return self._parameters.set_together(
                [Parameter(m.name, Parameter.Type(m.value.type), parameter_value_to_python(m.value)) for m in messages]
            )
        except (ParameterException, ValueError) as error:
            return _refused(str(error))

    def _serve_list(self, request, response):
        response.result = self._parameters.listing(request.prefixes, request.depth)
        return response

    def _serve_describe(self, request, response):
        blank = message_class("rcl_interfaces/msg/ParameterDescriptor")
        known = self._parameters.descriptors
        response.descriptors = [known.get(name) or blank(name=name) for name in request.names]
        return response
