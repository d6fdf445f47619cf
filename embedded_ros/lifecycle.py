# SPDX-License-Identifier: Apache-2.0
"""rclpy.lifecycle: nodes with the standard states, walked by services, by `trigger_*`, or by `ros2 lifecycle`."""

import time
import traceback
from enum import IntEnum

from .messages import message_class, service_class
from .node import Node
from .unsupported import lacks

UNCONFIGURED, INACTIVE, ACTIVE, FINALIZED = 1, 2, 3, 4
_NAMES = {
    0: "unknown", 1: "unconfigured", 2: "inactive", 3: "active", 4: "finalized",
    10: "configuring", 11: "cleaningup", 12: "shuttingdown", 13: "activating", 14: "deactivating",
    15: "errorprocessing",
}  # fmt: skip
# label: {start state: (transition id, state meanwhile, state on success, state on failure)}
_TRANSITIONS = {
    "configure": {UNCONFIGURED: (1, 10, INACTIVE, UNCONFIGURED)},
    "cleanup": {INACTIVE: (2, 11, UNCONFIGURED, INACTIVE)},
    "activate": {INACTIVE: (3, 13, ACTIVE, INACTIVE)},
    "deactivate": {ACTIVE: (4, 14, INACTIVE, ACTIVE)},
    "shutdown": {
        UNCONFIGURED: (5, 12, FINALIZED, FINALIZED),
        INACTIVE: (6, 12, FINALIZED, FINALIZED),
        ACTIVE: (7, 12, FINALIZED, FINALIZED),
    },
}


class TransitionCallbackReturn(IntEnum):
    """Answer of a transition callback."""

    SUCCESS = 97
    FAILURE = 98
    ERROR = 99


class LifecycleState:
    """A state: label and id."""

    def __init__(self, label="unknown", state_id=0):
        self.label, self.state_id = label, state_id

    def __repr__(self):
        return f"LifecycleState(label={self.label!r}, state_id={self.state_id})"


State = LifecycleState


class ManagedEntity:
    """Something that follows the transitions of its node."""

    def on_configure(self, state):
        """Prepare."""
        return TransitionCallbackReturn.SUCCESS

    def on_cleanup(self, state):
        """Release."""
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state):
        """Release for good."""
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state):
        """Start."""
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state):
        """Stop."""
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state):
        """Recover; FAILURE or ERROR leads to finalized."""
        return TransitionCallbackReturn.SUCCESS


class SimpleManagedEntity(ManagedEntity):
    """A managed entity that knows whether it is active."""

    def __init__(self):
        super().__init__()
        self._enabled = False

    def on_activate(self, state):
        """Become active."""
        self._enabled = True
        return TransitionCallbackReturn.SUCCESS

    def on_deactivate(self, state):
        """Become inactive."""
        self._enabled = False
        return TransitionCallbackReturn.SUCCESS

    @property
    def is_activated(self):
        """Whether it is active."""
        return self._enabled


@lacks("handle", "logger_name", "when_enabled")
class LifecyclePublisher(SimpleManagedEntity):
    """A publisher that publishes only while its node is active."""

    def __init__(self, publisher):
        super().__init__()
        self._publisher = publisher

    def publish(self, msg):
        """Publish, or do nothing while inactive."""
        if self._enabled:
            self._publisher.publish(msg)

    def __getattr__(self, name):
        return getattr(self._publisher, name)


class LifecycleNodeMixin(ManagedEntity):
    """The states and services of a lifecycle node; subclasses override on_configure and the like."""

    def _start_lifecycle(self, enable_communication_interface):
        self._state_id = UNCONFIGURED
        self._managed = set()
        self._event = None
        if not enable_communication_interface:
            return
        self._event = Node.create_publisher(
            self, message_class("lifecycle_msgs/msg/TransitionEvent"), "~/transition_event", 10
        )
        for name, label, callback in (
            ("ChangeState", "change_state", self._serve_change),
            ("GetState", "get_state", self._serve_state),
            ("GetAvailableStates", "get_available_states", self._serve_states),
            ("GetAvailableTransitions", "get_available_transitions", self._serve_transitions),
            ("GetAvailableTransitions", "get_transition_graph", self._serve_graph),
        ):
            self.create_service(service_class(f"lifecycle_msgs/srv/{name}"), f"~/{label}", callback)

    def add_managed_entity(self, entity):
        """Have `entity` follow the transitions."""
        self._managed.add(entity)

    def create_lifecycle_publisher(self, *args, **options):
        """Make a publisher that is silent unless the node is active."""
        publisher = LifecyclePublisher(Node.create_publisher(self, *args, **options))
        self._managed.add(publisher)
        return publisher

    def destroy_lifecycle_publisher(self, publisher):
        """Destroy a lifecycle publisher."""
        self._managed.discard(publisher)
        return self.destroy_publisher(publisher._publisher)

    @property
    def _state(self):
        return LifecycleState(_NAMES[self._state_id], self._state_id)

    def trigger_configure(self):
        """Configure; returns a TransitionCallbackReturn."""
        return self._change("configure")

    def trigger_cleanup(self):
        """Clean up."""
        return self._change("cleanup")

    def trigger_activate(self):
        """Activate."""
        return self._change("activate")

    def trigger_deactivate(self):
        """Deactivate."""
        return self._change("deactivate")

    def trigger_shutdown(self):
        """Shut down, from any primary state."""
        return self._change("shutdown")

    # The standard on_* of a node pass the transition on to the managed entities.
    def _pass_on(self, name, state):
        for entity in list(self._managed):
            answer = getattr(entity, name)(state)
            if answer != TransitionCallbackReturn.SUCCESS:
                return answer
        return TransitionCallbackReturn.SUCCESS

    def on_configure(self, state):
        """Configure the managed entities."""
        return self._pass_on("on_configure", state)

    def on_cleanup(self, state):
        """Clean the managed entities up."""
        return self._pass_on("on_cleanup", state)

    def on_shutdown(self, state):
        """Shut the managed entities down."""
        return self._pass_on("on_shutdown", state)

    def on_activate(self, state):
        """Activate the managed entities."""
        return self._pass_on("on_activate", state)

    def on_deactivate(self, state):
        """Deactivate the managed entities."""
        return self._pass_on("on_deactivate", state)

    def on_error(self, state):
        """Have the managed entities recover."""
        return self._pass_on("on_error", state)

    def _change(self, label):
        start = self._state_id
        if start not in _TRANSITIONS[label]:
            raise RuntimeError(f"transition {label} is not possible in state {_NAMES[start]}")
        number, meanwhile, success, failure = _TRANSITIONS[label][start]
        self._move(label, number, meanwhile)
        answer = self._call(f"on_{label}", start)
        if answer == TransitionCallbackReturn.SUCCESS:
            self._move(label, number, success)
        elif answer == TransitionCallbackReturn.FAILURE:
            self._move(label, number, failure)
        else:
            self._move(label, number, 15)
            recovered = self._call("on_error", start) == TransitionCallbackReturn.SUCCESS
            self._move("error", 60 if recovered else 61, UNCONFIGURED if recovered else FINALIZED)
        return answer

    def _call(self, name, start):
        try:
            answer = getattr(self, name)(LifecycleState(_NAMES[start], start))
        except Exception as error:
            self.get_logger().error(f"{name} raised {type(error).__name__}: {error}\n{traceback.format_exc()}")
            return TransitionCallbackReturn.ERROR
        if not isinstance(answer, TransitionCallbackReturn):
            self.get_logger().error(f"{name} returned {answer!r}, not a TransitionCallbackReturn")
            return TransitionCallbackReturn.ERROR
        return answer

    def _move(self, label, number, goal):
        start, self._state_id = self._state_id, goal
        if self._event is not None and self.context.ok():
            event = self._event.msg_type(timestamp=time.time_ns())
            event.transition.id, event.transition.label = number, label
            event.start_state.id, event.start_state.label = start, _NAMES[start]
            event.goal_state.id, event.goal_state.label = goal, _NAMES[goal]
            self._event.publish(event)

    def _serve_change(self, request, response):
        wanted = request.transition
        for label, starts in _TRANSITIONS.items():
            if self._state_id in starts and (label == wanted.label or starts[self._state_id][0] == wanted.id):
                response.success = self._change(label) == TransitionCallbackReturn.SUCCESS
                return response
        self.get_logger().error(
            f"No transition '{wanted.label or wanted.id}' from state {_NAMES[self._state_id]}"
        )  # fmt: skip
        return response

    def _serve_state(self, request, response):
        response.current_state.id, response.current_state.label = self._state_id, _NAMES[self._state_id]
        return response

    def _serve_states(self, request, response):
        kind = message_class("lifecycle_msgs/msg/State")
        response.available_states = [kind(id=number, label=label) for number, label in _NAMES.items()]
        return response

    def _serve_transitions(self, request, response):
        response.available_transitions = [t for t in _descriptions() if t.start_state.id == self._state_id]
        return response

    def _serve_graph(self, request, response):
        response.available_transitions = _descriptions()
        return response


def _descriptions():
    kind = message_class("lifecycle_msgs/msg/TransitionDescription")
    found = []
    for label, starts in _TRANSITIONS.items():
        for start, (number, meanwhile, _, _) in starts.items():
            description = kind()
            description.transition.id, description.transition.label = number, label
            description.start_state.id, description.start_state.label = start, _NAMES[start]
            description.goal_state.id, description.goal_state.label = meanwhile, _NAMES[meanwhile]
            found.append(description)
    return found


class LifecycleNode(LifecycleNodeMixin, Node):
    """A node with a lifecycle."""

    def __init__(self, node_name, *, enable_communication_interface=True, **options):
        Node.__init__(self, node_name, **options)
        self._start_lifecycle(enable_communication_interface)
