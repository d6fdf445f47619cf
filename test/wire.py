# SPDX-License-Identifier: Apache-2.0
"""Node processes, and a peer in the test's own process that plays the camera and listens."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import rclpy
from domains import next_domain
from pixel_pipeline import path, picture
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import TransformBroadcaster

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_ros import conversions as c

HERE = Path(__file__).resolve().parent
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
OPTICAL, WORLD = "camera_optical", "world"
CAMERA = Intrinsics.from_fov(70.0, 72, 48)
WAIT = 30.0
START = 240.0  # seconds for a process to start on a busy machine


@contextmanager
def module_domain():
    """Use one DDS domain for a whole test module."""
    domain, before = next_domain(), os.environ.get("ROS_DOMAIN_ID")
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    yield domain
    if before is None:
        del os.environ["ROS_DOMAIN_ID"]
    else:
        os.environ["ROS_DOMAIN_ID"] = before


class Process:
    """A node process with its log."""

    def __init__(self, folder, node, *ros_args, command=(str(HERE / "pixel_pipeline.py"),), session=False):
        self.log = folder / f"{node}_{time.monotonic_ns()}.log"
        self._killed = False
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        arguments = ["--ros-args", *ros_args] if ros_args else []
        command = [sys.executable, "-u", *command, *node.split(), *arguments]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=session
            )

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Stop the process; without an error it must end well."""
        code = self.stop()
        if kind is None and not self._killed:
            assert code == 0, self.text()
            assert "Traceback" not in self.text(), self.text()

    def text(self):
        return self.log.read_text(errors="replace")

    def alive(self):
        return self._process.poll() is None

    def until_active(self):
        until(lambda: "active: listening" in self.text() or not self.alive(), "the node to be active", START)
        assert self.alive(), f"ended with {self._process.poll()}\n{self.text()}"

    def wait(self):
        """Wait for the process to end by itself; returns its exit code."""
        try:
            return self._process.wait(START)
        finally:
            self.stop()

    @property
    def pid(self):
        return self._process.pid

    def kill(self):
        """End the process as a crash would."""
        self._killed = True
        self._process.kill()
        self._process.wait()

    def stop(self, number=signal.SIGTERM):
        """Ask the process to end by a signal; returns its exit code."""
        if self.alive():
            self._process.send_signal(number)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise


class Peer:
    """A node in this process that plays the camera and listens."""

    def __init__(self, camera=True):
        rclpy.init(args=[])
        self.node = rclpy.create_node("peer")
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._stopping = False
        qos = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
        if camera:
            self.image = self.node.create_publisher(Image, "image_raw", qos)
            self.info = self.node.create_publisher(CameraInfo, "camera_info", qos)
            self.tf = TransformBroadcaster(self.node)
        self.got = {}
        self._thread.start()

    def _spin(self):
        while not self._stopping:
            self._executor.spin_once(timeout_sec=0.05)

    def close(self):
        self._stopping = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        rclpy.try_shutdown()

    def listen(self, kind, topic, qos=10):
        self.got[topic] = []
        self.node.create_subscription(kind, topic, self.got[topic].append, qos)
        return self.got[topic]

    def show(self, index, stamp=None, truth=False, **changes):
        """Publish image `index` of the known path, its camera_info and (truth) its pose in TF; returns its stamp."""
        stamp = self.node.get_clock().now().nanoseconds if stamp is None else stamp
        if truth:
            self.tf.sendTransform(c.transform_message(path()[index], stamp, WORLD, OPTICAL))
        message = changes.get("image") or c.rgb_to_image(picture(index), stamp, OPTICAL)
        message.header = c.header(stamp, OPTICAL)
        info = changes.get("info") or c.camera_info(CAMERA, stamp, OPTICAL)
        info.header = c.header(stamp, OPTICAL)
        self.info.publish(info)
        self.image.publish(message)
        return stamp

    def call(self, kind, name, request):
        client = self.node.create_client(kind, name)
        assert client.wait_for_service(timeout_sec=WAIT)
        future = client.call_async(request)
        until(future.done, f"answer of {name}")
        return future.result()


def until(condition, what, seconds=WAIT):
    """Wait for a condition; fails with `what` when it does not come true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        time.sleep(0.02)
    pytest.fail(f"waited {seconds:g} s for {what}")


def play(peer, numbers, period=0.06, truth=False):
    """Show images of the known path; returns their numbers by stamp."""
    stamps = {}
    for number in numbers:
        stamps[peer.show(number, truth=truth)] = number
        time.sleep(period)
    return stamps


def play_in_step(show, numbers, poses, length=5, hop=2):
    """Show images window by window, waiting for the poses of each, so that a busy machine drops none.

    Args:
        show: publishes the image of a number; returns its stamp.
        poses: what the node's pose topic has sent so far; one more comes for each image.
    Returns:
        numbers by stamp.
    """
    stamps, before = {}, len(poses)
    for count, number in enumerate(numbers, 1):
        stamps[show(number)] = number
        if count >= length and (count - length) % hop == 0:
            until(lambda wanted=before + count: len(poses) >= wanted, f"{count} poses, got {len(poses) - before}")
        time.sleep(0.01)
    return stamps


def show_until_refused(peer, process, changes, reason, **how):
    """Show a bad frame, again and again (best-effort images may be lost), until the log holds the reason."""
    end = time.monotonic() + WAIT
    while reason not in process.text():
        assert time.monotonic() < end, f"waited {WAIT:g} s for '{reason}' in the log:\n{process.text()}"
        peer.show(3, **how, **changes)
        time.sleep(0.2)


def bad_image(**changes):
    message = c.rgb_to_image(picture(3), 0, OPTICAL)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def bad_info(**changes):
    message = c.camera_info(CAMERA, 0, OPTICAL)
    for name, value in changes.items():
        setattr(message, name, value)
    return message


BAD_FRAMES = [
    (dict(image=bad_image(width=0, height=0, step=0, data=b"")), "image is 0x0; it has no pixels"),
    (dict(image=bad_image(step=7)), "image step is 7; 72 pixels of rgb8 need at least 216"),
    (dict(image=bad_image(data=bytes(100))), "image has 100 bytes"),
    (dict(image=bad_image(encoding="hsv9")), "image encoding is 'hsv9'"),
    (dict(info=bad_info(k=[0.0] * 9)), "camera_info is not calibrated: K is all zero"),
    (dict(info=bad_info(width=640, height=480)), "camera_info is for 640x480 images, but the image is 72x48"),
    (dict(info=bad_info(distortion_model="bent")), "'bent'"),
]
