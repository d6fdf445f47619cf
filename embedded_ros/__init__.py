# SPDX-License-Identifier: Apache-2.0
"""The part of rclpy that the nodes use, on Cyclone DDS, for hosts without ROS 2."""
