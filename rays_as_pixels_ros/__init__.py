# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes, command line and trajectory stitching of Rays as Pixels."""
