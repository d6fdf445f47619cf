# SPDX-License-Identifier: Apache-2.0
"""What a node's logger prints also goes to /rosout, for rqt_console and `ros2 topic echo /rosout`."""

from .logging import add_sink, remove_sink
from .messages import message_class
from .qos import DurabilityPolicy, QoSProfile
from .time import Duration, Time


class RosoutPublisher:
    """Publish the log lines of one node."""

    def __init__(self, node):
        self._node = node
        self._type = message_class("rcl_interfaces/msg/Log")
        profile = QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL, lifespan=Duration(seconds=10))
        self._publisher = node.create_publisher(self._type, "/rosout", profile)
        self._name = node.get_logger().name
        add_sink(self._publish)

    def _publish(self, name, severity, text, nanoseconds):
        if name != self._name and not name.startswith(self._name + "."):
            return
        if self._publisher.destroyed or not self._node.context.ok():
            return
        stamp = Time(nanoseconds=nanoseconds).to_msg()
        self._publisher.publish(self._type(stamp=stamp, level=int(severity), name=name, msg=text))

    def stop(self):
        """Stop publishing."""
        remove_sink(self._publish)
