# SPDX-License-Identifier: Apache-2.0
"""Why two ends of a topic do not go together: types and QoS, in words for the log.

An end is anything with `topic_type` ('pkg/msg/Name') and `qos_profile`, as the graph queries of rclpy give it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class End:
    """An own end of a topic."""

    topic_type: str
    qos_profile: Any


def type_name(message_class: type) -> str:
    """Full ROS name of a message class: 'pkg/msg/Name', of an action's feedback 'pkg/action/Name_FeedbackMessage'."""
    package, kind = message_class.__module__.split(".")[:2]
    return f"{package}/{kind}/{message_class.__name__}"


def describe(end: Any) -> str:
    """Say type and QoS of an end: 'sensor_msgs/msg/Image (best effort, volatile, keep last 5)'."""
    qos = end.qos_profile
    words = [_words(qos.reliability), _words(qos.durability), _words(qos.history)]
    if words[2] == "keep last" and qos.depth:
        words[2] += f" {qos.depth}"
    # DDS does not tell others the history of an end.
    return f"{end.topic_type} ({', '.join(word for word in words if word not in ('unknown', 'system default'))})"


def mismatch(publisher: Any, subscription: Any) -> str | None:
    """Say why nothing gets from a publisher to a subscription; None if they go together."""
    if publisher.topic_type != subscription.topic_type:
        return "the types differ"
    offered, asked = publisher.qos_profile, subscription.qos_profile
    if _words(asked.reliability) == "reliable" and _words(offered.reliability) == "best effort":
        return "best effort is offered, reliable is asked for"
    if _words(asked.durability) == "transient local" and _words(offered.durability) == "volatile":
        return "volatile is offered, transient local is asked for"
    return None


def owner(info: Any) -> str:
    """Full name of the node that an end belongs to."""
    return f"{info.node_namespace.rstrip('/')}/{info.node_name}"


def _words(policy: Any) -> str:
    return policy.name.lower().replace("_", " ")
