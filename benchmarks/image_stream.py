# SPDX-License-Identifier: Apache-2.0
"""A camera of 1920x1080 at 30 Hz into a node over DDS: python -m benchmarks.image_stream [--kinds rgb8 jpeg].

The trajectory node and the camera are processes of their own, on loopback. Counted: images sent, received, matched with
their camera_info, prepared for a window (decoded, resized), dropped by the node because the model did not keep up.
Measured in the node: processor milliseconds of an image in the executor's callbacks and in the worker that decodes, and
how old an image is when its callback begins, early and late in the run: a callback that falls behind meets ever older
images. Copies made of an image: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WIDTH, HEIGHT = 1920, 1080
_KINDS = ("rgb8", "jpeg")
_START_S = 300.0  # for a node to be active on a busy machine


def run_node(kind: str, qos: str) -> int:
    """Be the node process: the trajectory node with a clock about its callbacks; prints what they took as JSON."""
    from rays_as_pixels_ros import conversions
    from rays_as_pixels_ros.node_process import run_nodes
    from rays_as_pixels_ros.trajectory_node import TrajectoryNode

    class Timed(TrajectoryNode):
        """Its callbacks as they are, between two looks at the clock."""

        def __init__(self):
            super().__init__()
            self.ages, self.callback_s, self.prepare_s, self.matched, self.prepared = [], 0.0, 0.0, 0, 0

        def _on_half(self, side, message):
            if side == 0:
                self.ages.append(time.time_ns() - conversions.stamp_ns(message.header.stamp))
            begun = time.thread_time()
            super()._on_half(side, message)
            self.callback_s += time.thread_time() - begun

        def _on_frame(self, frame):
            self.matched += 1
            super()._on_frame(frame)

        def _prepare(self, frame):
            begun = time.thread_time()
            prepared = super()._prepare(frame)
            self.prepare_s += time.thread_time() - begun
            self.prepared += prepared is not None
            return prepared

    made = []

    def make() -> list[TrajectoryNode]:
        made.append(Timed())
        return made

    transport = "raw" if kind == "rgb8" else "compressed"
    given = ["base_frame:=''", "max_residual:=10.0", "device:=cpu"]
    given += [f"image_transport:={transport}", f"image_qos:={qos}"]
    code = run_nodes(make, ["--ros-args", *(word for one in given for word in ("-p", one))])
    (node,) = made
    ages, tenth = np.array(node.ages) * 1e-6, max(1, len(node.ages) // 10)
    print(json.dumps({
        "received": len(ages), "matched": node.matched, "prepared": node.prepared,
        "dropped": node._windows.dropped, "windows": node._health.counts["windows"],
        "callback_ms": 1e3 * node.callback_s / max(1, len(ages)),
        "prepare_ms": 1e3 * node.prepare_s / max(1, node.prepared),
        "age_ms": {"first tenth": float(np.median(ages[:tenth])), "last tenth": float(np.median(ages[-tenth:]))},
    }))  # fmt: skip
    return code


def run_camera(kind: str, seconds: float, rate: float) -> int:
    """Be the camera process; prints how many images it sent, in which time and for how many processor milliseconds."""
    import cv2
    import rclpy
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image

    from rays_as_pixels_model.geometry import Intrinsics
    from rays_as_pixels_ros import conversions

    # With the detail of a real picture (JPEG's cost depends on it), that moves sideways.
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 4, 3), dtype=np.uint8)
    wide = cv2.resize(noise, (2 * WIDTH, HEIGHT))
    shown = [np.ascontiguousarray(wide[:, at : at + WIDTH]) for at in range(0, 160, 20)]
    if kind == "rgb8":
        topic, type_, images = "image_raw", Image, [conversions.rgb_to_image(rgb, 0, "camera") for rgb in shown]
    else:
        topic, type_ = "image_raw/compressed", CompressedImage
        encoded = [cv2.imencode(".jpg", rgb[..., ::-1])[1].tobytes() for rgb in shown]
        images = [CompressedImage(format="jpeg", data=data) for data in encoded]
    rclpy.init(args=[])
    node = rclpy.create_node("image_stream_camera")
    image_topic = node.create_publisher(type_, topic, QoSProfile(depth=5))
    info_topic = node.create_publisher(CameraInfo, "camera_info", QoSProfile(depth=5))
    while not (image_topic.get_subscription_count() and info_topic.get_subscription_count()):
        time.sleep(0.05)
    time.sleep(1.0)
    info = conversions.camera_info(Intrinsics.from_fov(80, WIDTH, HEIGHT), 0, "camera")
    begun, used, count = time.monotonic(), time.process_time(), round(seconds * rate)
    for number in range(count):
        time.sleep(max(0.0, begun + number / rate - time.monotonic()))
        image = images[number % len(images)]
        image.header = info.header = conversions.header(time.time_ns(), "camera")
        info_topic.publish(info)
        image_topic.publish(image)
    took, used = time.monotonic() - begun, time.process_time() - used
    time.sleep(2.0)
    print(json.dumps({"sent": count, "hz": count / took, "publish_ms": 1e3 * used / count}))
    node.destroy_node()
    rclpy.try_shutdown()
    return 0


def measure(kind: str, seconds: float, rate: float, qos: str) -> dict:
    """Run both processes; returns what both printed."""
    here = [sys.executable, "-m", "benchmarks.image_stream", "--kinds", kind, "--qos", qos]
    here += ["--seconds", str(seconds), "--rate", str(rate)]
    node = subprocess.Popen([*here, "--as", "node"], stdout=subprocess.PIPE, text=True)
    try:
        camera = subprocess.run(
            [*here, "--as", "camera"], stdout=subprocess.PIPE, text=True, timeout=_START_S + 3 * seconds, check=True
        )
    finally:
        node.send_signal(signal.SIGINT)
        told = node.communicate(timeout=_START_S)[0]
    return {"kind": kind, "qos": qos, **json.loads(camera.stdout), **json.loads(told.splitlines()[-1])}


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    heads = ("image, QoS", "sent (Hz)", "received", "matched", "in a window", "dropped by the node", "callback ms",
             "decode and resize ms", "age at the callback ms, early, late", "publish ms")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for r in rows:
        early, late = r["age_ms"].values()
        cells = (
            f"{r['kind']}, {r['qos']}", f"{r['sent']} ({r['hz']:.1f})", r["received"], r["matched"], r["prepared"],
            r["dropped"], f"{r['callback_ms']:.2f}", f"{r['prepare_ms']:.1f}", f"{early:.0f}, {late:.0f}",
            f"{r['publish_ms']:.1f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_stream", description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--qos", choices=("best_effort", "reliable"), default="best_effort", help="of the subscription")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--as", dest="role", choices=("node", "camera"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    import embedded_ros

    os.environ.setdefault("CYCLONEDDS_URI", embedded_ros.loopback_uri())
    os.environ["OMP_NUM_THREADS"] = "1"
    if args.role:
        embedded_ros.install()
        if args.role == "node":
            return run_node(args.kinds[0], args.qos)
        return run_camera(args.kinds[0], args.seconds, args.rate)
    from .report import show

    rows = [measure(kind, args.seconds, args.rate, args.qos) for kind in args.kinds]
    show(rows, table(rows), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
