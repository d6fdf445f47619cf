# SPDX-License-Identifier: Apache-2.0
"""Names and words of the ends of topics, as the graph of ROS and the log have them."""

from sensor_msgs.msg import Image

from rays_as_pixels_interfaces.action import RenderViews
from rays_as_pixels_ros.connections import type_name


def test_full_names_of_messages_and_of_an_actions_feedback():
    """The graph names feedback by `action`: were it `msg`, each client would be told that its type differs."""
    assert type_name(Image) == "sensor_msgs/msg/Image"
    feedback = RenderViews.Impl.FeedbackMessage
    assert type_name(feedback) == "rays_as_pixels_interfaces/action/RenderViews_FeedbackMessage"
