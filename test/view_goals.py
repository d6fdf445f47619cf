# SPDX-License-Identifier: Apache-2.0
"""Goals for a view_synthesis_node process, and what comes of them."""

from contextlib import contextmanager

from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from sensor_msgs.msg import CameraInfo, Image
from wire import OPTICAL, WAIT, Process, until

from rays_as_pixels_interfaces.action import RenderViews
from rays_as_pixels_ros import conversions as c


@contextmanager
def serving(peer, folder, *parameters, name="view_synthesis_node", remaps=(), **how):
    """Run a view_synthesis_node with an action client and the peer listening to what it renders."""
    words = [word for parameter in parameters for word in ("-p", parameter)]
    words += [word for remap in remaps for word in ("-r", remap)]
    with Process(folder, "view_synthesis_node", "-r", f"__node:={name}", *words, **how) as process:
        process.until_active()
        process.client = ActionClient(peer.node, RenderViews, f"{name}/render_views")
        assert process.client.wait_for_server(timeout_sec=WAIT)
        peer.listen(Image, f"{name}/rendered/image_raw", 100)
        peer.listen(CameraInfo, f"{name}/rendered/camera_info", 100)
        yield process


def pose_at(x=0.0, y=0.0, z=0.0, frame=OPTICAL, stamp=0, w=1.0):
    message = PoseStamped(header=c.header(stamp, frame))
    message.pose.position.x, message.pose.position.y, message.pose.position.z = x, y, z
    message.pose.orientation.w = w
    return message


def send(views, goal, feedback=None):
    future = views.client.send_goal_async(goal, feedback_callback=feedback)
    until(future.done, "the goal's acceptance")
    assert future.result().accepted
    return future.result()


def result_of(handle):
    future = handle.get_result_async()
    until(future.done, "the result")
    return future.result()


def render(views, goal, feedback=None):
    return result_of(send(views, goal, feedback))


def brightness(message):
    return int(c.image_to_rgb(message)[0, 0, 0])
