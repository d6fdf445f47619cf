# SPDX-License-Identifier: Apache-2.0
"""Latency of the trajectory node against its bare pipeline: python -m benchmarks.latency [--windows 60].

A node process over the checkpoint gets images of 640x480 over DDS. Once the pose of a window's newest image has come
back, the same window goes through the bare pipeline here, one after the other in one run, so that what else the machine
does meets both. Latency is from the stamp of the image to its pose as this process receives it. The bare pipeline is
`Pipeline.estimate_trajectory` on the camera's images; the samples for the covariance come after the poses, here too.

The camera waits for the node, so no image waits for another: what a queue adds is the camera's doing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np

SIZE = (640, 480)
HOP = 2  # the node's default
_QUANTILES = (10, 50, 90)
WARM = 5  # windows that do not count
_NODE = (sys.executable, "-m", "rays_as_pixels_ros.entry_points", "trajectory_node")
_WAIT_S, _REST_S = 60.0, 0.5  # for a pose; until the node has sampled and shown the path


class Camera:
    """Images to the node, and the time at which each one's pose comes back."""

    def __init__(self, intrinsics):
        import rclpy
        from geometry_msgs.msg import PoseWithCovarianceStamped
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo, Image

        from rays_as_pixels_ros import conversions

        self._conversions, self._intrinsics, self._rclpy = conversions, intrinsics, rclpy
        rclpy.init(args=[])
        self._node = rclpy.create_node("latency_benchmark")
        self.image = self._node.create_publisher(Image, "image_raw", 10)
        self.info = self._node.create_publisher(CameraInfo, "camera_info", 10)
        self._came, self._arrived = threading.Condition(), {}
        self._node.create_subscription(PoseWithCovarianceStamped, "trajectory_node/pose", self._on_pose, 10)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        threading.Thread(target=self._executor.spin, daemon=True).start()

    def _on_pose(self, pose) -> None:
        with self._came:
            self._arrived[self._conversions.stamp_ns(pose.header.stamp)] = time.time_ns()
            self._came.notify_all()

    def show(self, rgb: np.ndarray) -> int:
        """Publish an image that is stamped now; returns the stamp."""
        image = self._conversions.rgb_to_image(rgb, 0, "camera")
        stamp = time.time_ns()
        image.header = self._conversions.header(stamp, "camera")
        info = self._conversions.camera_info(self._intrinsics, stamp, "camera")
        self.info.publish(info)
        self.image.publish(image)
        return stamp

    def latency(self, stamp: int) -> float:
        """Seconds from a stamp to the arrival of its pose."""
        with self._came:
            if not self._came.wait_for(lambda: stamp in self._arrived, _WAIT_S):
                raise RuntimeError(f"no pose came within {_WAIT_S:g} s; was an image lost? (rays-as-pixels doctor)")
            return (self._arrived[stamp] - stamp) * 1e-9

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._rclpy.try_shutdown()


def images(count: int) -> tuple[list[np.ndarray], object]:
    """Images (480, 640, 3) of a held-out path, enlarged from what the model sees, and their camera."""
    from .drift import make_paths

    path = make_paths(1, count)[0]
    return [cv2.resize(frame, SIZE, interpolation=cv2.INTER_CUBIC) for frame in path.frames], path.intrinsics


def measure(count: int, checkpoint: str | None = None) -> dict:
    """Show windows to the node and to the bare pipeline in turn.

    Returns:
        seconds of the node and of the pipeline, and the ratio of the two on the same window, at each of _QUANTILES,
        percent of the windows. The ratio is of neighbours in time, so that a load that comes and goes cancels out.
    """
    import embedded_ros

    os.environ.setdefault("CYCLONEDDS_URI", embedded_ros.loopback_uri())
    embedded_ros.install()
    from rays_as_pixels_model.pipeline import Pipeline

    pipe = Pipeline.from_checkpoint(checkpoint, device="cpu")
    length = pipe.config.frames
    shown, intrinsics = images(length + HOP * (count - 1))
    intrinsics = intrinsics.resized(*SIZE)
    camera = Camera(intrinsics)
    given = ["-p", "base_frame:=''", "-p", "image_qos:=reliable", "-p", "max_residual:=10.0", "-p", "device:=cpu"]
    given += ["-p", f"checkpoint:='{checkpoint}'"] if checkpoint else []
    node = subprocess.Popen([*_NODE, "--ros-args", *given])
    rows = []
    try:
        while not (camera.image.get_subscription_count() and camera.info.get_subscription_count()):
            if node.poll() is not None:
                raise RuntimeError(f"the node ended with {node.returncode}")
            time.sleep(0.05)
        for number in range(count):
            start = HOP * number
            for frame in shown[0 if number == 0 else start + length - HOP : start + length]:
                stamp = camera.show(frame)
                time.sleep(0.03)
            seconds = camera.latency(stamp)
            time.sleep(_REST_S)
            window = np.stack(shown[start : start + length])
            begun = time.perf_counter()
            pipe.estimate_trajectory(window, intrinsics)
            rows.append((seconds, time.perf_counter() - begun))
    finally:
        node.terminate()
        node.wait(30)
        camera.close()
    node_s, pipeline_s = np.array(rows[WARM:]).T
    return {
        "windows": len(node_s),
        "node": {q: float(np.percentile(node_s, q)) for q in _QUANTILES},
        "pipeline": {q: float(np.percentile(pipeline_s, q)) for q in _QUANTILES},
        "ratio": {q: float(np.percentile(node_s / pipeline_s, q)) for q in _QUANTILES},
    }


def table(report: dict) -> str:
    """Return the report as Markdown: times as multiples of the bare pipeline's median."""
    unit = report["pipeline"][50]
    lines = ["| | " + " | ".join(f"{q} %" for q in _QUANTILES) + " |", "|---|" + "---|" * len(_QUANTILES)]
    for name in ("pipeline", "node"):
        lines.append(f"| {name} | " + " | ".join(f"{report[name][q] / unit:.2f}" for q in _QUANTILES) + " |")
    ratios = " | ".join(f"{report['ratio'][q]:.3f}" for q in _QUANTILES)
    lines.append(f"| node / pipeline, of the same window | {ratios} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__.splitlines()[0])
    parser.add_argument("--windows", type=int, default=60)
    parser.add_argument("--checkpoint", help="default: the shipped one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    report = measure(args.windows, args.checkpoint)
    print(table(report))
    if args.json:
        from rays_as_pixels_model.files import write_text

        write_text(args.json, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
