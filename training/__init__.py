# SPDX-License-Identifier: Apache-2.0
"""Training and evaluation of the Rays as Pixels model (no ROS)."""
