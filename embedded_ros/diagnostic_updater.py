# SPDX-License-Identifier: Apache-2.0
"""diagnostic_updater: what a node is doing, once a second on /diagnostics.

It also serves a real ROS 2 that lacks the package.
"""

import threading


def _messages():
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

    return DiagnosticArray, DiagnosticStatus, KeyValue


class DiagnosticStatusWrapper:
    """A status that a task fills: `summary(level, message)` and `add(key, value)`."""

    def __init__(self, name, hardware_id):
        self.name, self.hardware_id = name, hardware_id
        self.level, self.message, self.values = b"\x02", "No message was set", []

    def summary(self, level, message):
        """Set the level (bytes, as in DiagnosticStatus) and the one line."""
        self.level, self.message = level, str(message)

    def add(self, key, value):
        """Add a row to the table."""
        self.values.append((str(key), str(value)))


class Updater:
    """Run the tasks of a node at the period of its clock and publish what they say."""

    def __init__(self, node, period=1.0):
        self.node, self.tasks, self.hwid = node, [], ""
        self._lock = threading.Lock()
        self.publisher = node.create_publisher(_messages()[0], "/diagnostics", 1)
        self.period = node.declare_parameter("diagnostic_updater.period", float(period)).value
        full = "diagnostic_updater.use_fqn"
        known = node.get_parameter(full) if node.has_parameter(full) else node.declare_parameter(full, False)
        self.node_name = f"{node.get_namespace()}/{node.get_name()}" if known.value else node.get_name()
        self.timer = node.create_timer(self.period, self.update)

    def setHardwareID(self, hwid):  # noqa: N802  the name that the ROS package gave it
        """Name the device that the node drives."""
        self.hwid = hwid

    def add(self, name, function):
        """Add a task: `function` fills the status that it is given, and returns it."""
        with self._lock:
            self.tasks.append((name, function))

    def update(self):
        """Run the tasks and publish."""
        array_type, status_type, key_value = _messages()
        array = array_type()
        array.header.stamp = self.node.get_clock().now().to_msg()
        with self._lock:
            for name, function in self.tasks:
                found = function(DiagnosticStatusWrapper(name, self.hwid))
                array.status.append(
                    status_type(
                        level=found.level, name=f"{self.node_name}: {found.name}", message=found.message,
                        hardware_id=found.hardware_id, values=[key_value(key=k, value=v) for k, v in found.values],
                    )
                )  # fmt: skip
        self.publisher.publish(array)

    force_update = update
