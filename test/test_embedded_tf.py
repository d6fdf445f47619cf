# SPDX-License-Identifier: Apache-2.0
"""tf2_ros and cv_bridge of embedded_ros."""

import array
import threading
import time

import cv2
import numpy as np
import pytest
from embedded_process import Process, spin_until
from scipy.spatial.transform import Rotation, Slerp

import embedded_ros

if embedded_ros.install() == "rclpy":
    pytest.skip("a real rclpy is sourced: embedded_ros is not in use", allow_module_level=True)

import rclpy
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from tf2_ros import (
    Buffer,
    ConnectivityException,
    ExtrapolationException,
    LookupException,
    TransformException,
    TransformListener,
)

GENERATOR = np.random.default_rng(7)


def _transform(parent, child, seconds, rotation, translation):
    message = TransformStamped()
    message.header.frame_id, message.child_frame_id = parent, child
    message.header.stamp = Time(nanoseconds=int(seconds * 1e9)).to_msg()
    r, t = message.transform.rotation, message.transform.translation
    r.x, r.y, r.z, r.w = (float(v) for v in rotation.as_quat())
    t.x, t.y, t.z = (float(v) for v in translation)
    return message


def _matrix(message):
    r, t = message.transform.rotation, message.transform.translation
    made = np.eye(4)
    made[:3, :3] = Rotation.from_quat([r.x, r.y, r.z, r.w]).as_matrix()
    made[:3, 3] = [t.x, t.y, t.z]
    return made


def _random():
    return Rotation.from_rotvec(GENERATOR.normal(size=3)), GENERATOR.normal(size=3)


def test_chains_equal_products_of_matrices_both_ways():
    buffer, matrices = Buffer(), {}
    for parent, child in (("map", "odom"), ("odom", "base"), ("base", "camera"), ("base", "arm")):
        message = _transform(parent, child, 1.0, *_random())
        (buffer.set_transform_static if child in ("camera", "arm") else buffer.set_transform)(message)
        matrices[child] = _matrix(message)
    expected = matrices["odom"] @ matrices["base"] @ matrices["camera"]
    found = buffer.lookup_transform("map", "camera", Time())
    assert np.allclose(_matrix(found), expected, atol=1e-12)
    assert (found.header.frame_id, found.child_frame_id, found.header.stamp.sec) == ("map", "camera", 1)
    back = buffer.lookup_transform("camera", "map", Time(seconds=1))
    assert np.allclose(_matrix(back), np.linalg.inv(expected), atol=1e-12)
    across = buffer.lookup_transform("camera", "arm", Time(seconds=123456))  # static: holds at all times
    assert np.allclose(_matrix(across), np.linalg.inv(matrices["camera"]) @ matrices["arm"], atol=1e-12)
    assert np.allclose(_matrix(buffer.lookup_transform("arm", "arm", Time())), np.eye(4))


def test_interpolation_agrees_with_scipy_and_edges_raise():
    buffer = Buffer()
    (r0, t0), (r1, t1) = _random(), _random()
    buffer.set_transform(_transform("map", "base", 10.0, r0, t0))
    buffer.set_transform(_transform("map", "base", 12.0, r1, t1))
    slerp = Slerp([10.0, 12.0], Rotation.concatenate([r0, r1]))
    for seconds in (10.0, 10.5, 11.0, 11.75, 12.0):
        found = _matrix(buffer.lookup_transform("map", "base", Time(nanoseconds=int(seconds * 1e9))))
        share = (seconds - 10.0) / 2.0
        assert np.allclose(found[:3, 3], (1 - share) * t0 + share * t1, atol=1e-9)
        assert np.allclose(found[:3, :3], slerp(seconds).as_matrix(), atol=1e-9)
    with pytest.raises(ExtrapolationException, match="future"):
        buffer.lookup_transform("map", "base", Time(seconds=13))
    with pytest.raises(ExtrapolationException, match="past"):
        buffer.lookup_transform("map", "base", Time(seconds=9))
    with pytest.raises(LookupException, match="nowhere"):
        buffer.lookup_transform("map", "nowhere", Time())
    buffer.set_transform(_transform("other", "island", 11.0, r0, t0))
    with pytest.raises(ConnectivityException, match="island"):
        buffer.lookup_transform("map", "island", Time(seconds=11))
    assert not buffer.can_transform("map", "island", Time())


def test_latest_common_time_and_cache_length():
    buffer = Buffer(cache_time=Duration(seconds=5))
    for seconds in range(20):
        buffer.set_transform(_transform("map", "odom", seconds, *_random()))
        buffer.set_transform(_transform("odom", "base", seconds - 0.5 + 1, *_random()))
    assert buffer.lookup_transform("map", "base", Time()).header.stamp.sec == 19
    with pytest.raises(ExtrapolationException):
        buffer.lookup_transform("map", "base", Time(seconds=10))
    assert len(buffer._tracks["odom"].stamps) <= 6


BROADCASTER = """
from geometry_msgs.msg import TransformStamped
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster
rclpy.init()
node = Node('moving')
fixed, moving = StaticTransformBroadcaster(node), TransformBroadcaster(node)
for child in ('camera', 'lidar'):
    message = TransformStamped()
    message.header.frame_id, message.child_frame_id = 'base', child
    message.transform.translation.z = 2.0
    fixed.sendTransform(message)
def send():
    message = TransformStamped()
    message.header.stamp = node.get_clock().now().to_msg()
    message.header.frame_id, message.child_frame_id = 'map', 'base'
    message.transform.translation.x = 1e-9 * node.get_clock().now().nanoseconds % 1000.0
    moving.sendTransform(message)
node.create_timer(0.05, send)
say('ready')
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
"""


def test_lookup_over_the_wire_with_waiting(ros_domain):
    with Process(BROADCASTER) as process:
        process.line("ready")
        rclpy.init(args=[])
        node = Node("looking")
        buffer = Buffer()
        TransformListener(buffer, node)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        thread = threading.Thread(target=_spin, args=(executor,))
        thread.start()
        try:
            found = buffer.lookup_transform("map", "lidar", Time(), timeout=Duration(seconds=30))
            assert found.transform.translation.z == 2.0
            now = node.get_clock().now()
            at_now = buffer.lookup_transform("map", "camera", now, timeout=Duration(seconds=30))
            assert abs(at_now.transform.translation.x - now.nanoseconds * 1e-9 % 1000.0) < 0.02
            start = time.monotonic()
            with pytest.raises(TransformException):
                buffer.lookup_transform("map", "nowhere", Time(), timeout=Duration(seconds=0.3))
            assert time.monotonic() - start > 0.25
        finally:
            executor.shutdown()
            thread.join(30)
            rclpy.try_shutdown()
        assert not thread.is_alive()
        assert process.stop() == 0


def _spin(executor):
    try:
        executor.spin()
    except rclpy.executors.ExternalShutdownException:
        pass


def test_await_inside_a_callback(ros_domain):
    """A coroutine callback awaits a service that the same single-threaded executor serves."""
    from std_srvs.srv import Trigger

    rclpy.init(args=[])
    node = Node("both")
    try:
        from rclpy.callback_groups import ReentrantCallbackGroup

        answers = []
        group = ReentrantCallbackGroup()
        client = node.create_client(Trigger, "go", callback_group=group)
        node.create_service(
            Trigger, "go", lambda q, r: Trigger.Response(success=True, message="done"), callback_group=group
        )
        assert client.wait_for_service(30.0)

        async def once():
            timer.cancel()
            answers.append((await client.call_async(Trigger.Request())).message)

        timer = node.create_timer(0.01, once)
        assert spin_until(node, lambda: answers == ["done"])
    finally:
        rclpy.shutdown()


@pytest.mark.parametrize("encoding", ["mono8", "bgr8", "rgb8", "bgra8", "rgba8", "16UC1", "32FC1", "mono16", "8UC3"])
def test_images_come_back_equal(encoding):
    bridge = CvBridge()
    from embedded_ros.cv_bridge import encoding_type

    dtype, channels = encoding_type(encoding)
    shape = (5, 7) if channels == 1 else (5, 7, channels)
    image = GENERATOR.integers(0, 200, shape).astype(dtype)
    message = bridge.cv2_to_imgmsg(image, encoding)
    assert (message.width, message.height, message.encoding) == (7, 5, encoding)
    assert message.step == 7 * channels * np.dtype(dtype).itemsize
    assert np.array_equal(bridge.imgmsg_to_cv2(message), image)


def test_conversions_padding_and_byte_order():
    bridge = CvBridge()
    bgr = np.zeros((4, 6, 3), np.uint8)
    bgr[...] = (10, 20, 30)
    message = bridge.cv2_to_imgmsg(bgr, "bgr8")
    assert tuple(bridge.imgmsg_to_cv2(message, "rgb8")[0, 0]) == (30, 20, 10)
    assert tuple(bridge.imgmsg_to_cv2(message, "rgba8")[0, 0]) == (30, 20, 10, 255)
    assert bridge.imgmsg_to_cv2(message, "mono8")[0, 0] == cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[0, 0]
    padded = Image(height=2, width=2, encoding="mono8", step=4, data=bytes([1, 2, 9, 9, 3, 4, 9, 9]))
    assert bridge.imgmsg_to_cv2(padded).tolist() == [[1, 2], [3, 4]]
    big = Image(height=1, width=2, encoding="16UC1", step=4, is_bigendian=1, data=bytes([1, 0, 0, 2]))
    assert bridge.imgmsg_to_cv2(big).tolist() == [[256, 2]]
    with pytest.raises(CvBridgeError, match="do not fit"):
        bridge.imgmsg_to_cv2(Image(height=3, width=2, encoding="mono8", step=2, data=bytes(4)))
    with pytest.raises(CvBridgeError, match="nonsense8"):
        bridge.imgmsg_to_cv2(Image(height=1, width=1, encoding="nonsense8", step=1, data=bytes(1)))


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_red_stays_red(pattern):
    raw = np.zeros((8, 8), np.uint8)
    row, column = divmod(pattern.index("r"), 2)
    raw[row::2, column::2] = 200
    message = CvBridge().cv2_to_imgmsg(raw, f"bayer_{pattern}8")
    red, green, blue = CvBridge().imgmsg_to_cv2(message, "rgb8")[4, 4]
    assert red > 150 and green < 20 and blue < 20


def test_yuv422_grey_and_compressed_images():
    bridge = CvBridge()
    grey = Image(height=1, width=2, encoding="yuv422", step=4, data=bytes([128, 100, 128, 100]))
    assert np.abs(bridge.imgmsg_to_cv2(grey, "rgb8").astype(int) - 98).max() < 3
    image = cv2.GaussianBlur(GENERATOR.integers(0, 256, (48, 64, 3), np.uint8), (0, 0), 5)
    for form, tolerance in (("png", 0), ("jpg", 12)):
        message = bridge.cv2_to_compressed_imgmsg(image, form)
        assert message.format == {"png": "png", "jpg": "jpeg"}[form] and isinstance(message.data, array.array)
        assert np.abs(bridge.compressed_imgmsg_to_cv2(message, "bgr8").astype(int) - image).max() <= tolerance
        swapped = bridge.compressed_imgmsg_to_cv2(message, "rgb8")
        assert np.abs(swapped[..., ::-1].astype(int) - image).max() <= tolerance
    with pytest.raises(CvBridgeError, match="does not decode"):
        bridge.compressed_imgmsg_to_cv2(CompressedImage(format="jpeg", data=b"not an image"))


def test_what_is_not_supported_says_so(ros_domain):
    with pytest.raises(NotImplementedError, match="rclpy.nonsense"):
        _ = rclpy.nonsense
    rclpy.init(args=[])
    try:
        node = Node("limited")
        with pytest.raises(NotImplementedError, match="event_callbacks"):
            node.create_publisher(Image, "x", 1, event_callbacks=object())
        with pytest.raises(NotImplementedError, match="spin_thread"):
            TransformListener(Buffer(), node, spin_thread=True)
    finally:
        rclpy.shutdown()
