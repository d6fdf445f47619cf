# SPDX-License-Identifier: Apache-2.0
"""The part of rclpy that the nodes use, on Cyclone DDS, for hosts without ROS 2.

`install()` puts it in place of a missing rclpy and does nothing where the real one is; see README.md.
"""

from .install import install, runtime

__all__ = ["install", "loopback_uri", "runtime"]


def loopback_uri():
    """Return a CYCLONEDDS_URI that keeps all traffic on this machine: for demos and tests, set by the caller."""
    return (
        '<General><Interfaces><NetworkInterface name="lo"/></Interfaces>'
        "<AllowMulticast>false</AllowMulticast></General>"
        "<Discovery><ParticipantIndex>auto</ParticipantIndex><MaxAutoParticipantIndex>32</MaxAutoParticipantIndex>"
        '<Peers><Peer address="127.0.0.1"/></Peers></Discovery>'
    )
