# SPDX-License-Identifier: Apache-2.0
"""The Rays as Pixels model: cameras as raxel images, one joint diffusion transformer (no ROS, no training)."""
