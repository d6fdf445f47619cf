# SPDX-License-Identifier: Apache-2.0
"""rclpy.event_handler: what a subscription would like to be told beside its messages. None of it can be told here.

Cyclone DDS has a status of lost samples, but never sets it: with a third of the packets lost it says 0.
"""


class UnsupportedEventTypeError(Exception):
    """The middleware does not tell of such an event."""


class SubscriptionEventCallbacks:
    """Callbacks for the events of a subscription; `create_subscription` refuses those that are asked for."""

    def __init__(self, *, deadline=None, incompatible_qos=None, liveliness=None, message_lost=None,
                 incompatible_type=None, matched=None, use_default_callbacks=True):  # fmt: skip
        self.deadline, self.incompatible_qos, self.liveliness = deadline, incompatible_qos, liveliness
        self.message_lost, self.incompatible_type, self.matched = message_lost, incompatible_type, matched
        self.use_default_callbacks = use_default_callbacks

    def refuse(self):
        """Raise UnsupportedEventTypeError if any is asked for."""
        asked = [name for name, callback in vars(self).items() if callable(callback)]
        if asked:
            raise UnsupportedEventTypeError(f"embedded_ros: the event {asked[0]} is not supported")
