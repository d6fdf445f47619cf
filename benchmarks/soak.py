# SPDX-License-Identifier: Apache-2.0
"""Whether a node's memory stays flat: python -m benchmarks.soak trajectory_node|view_synthesis_node [--count N].

A node process over the shipped checkpoint is fed over DDS as fast as it answers: images for trajectory_node (a rendered
path there and back; not more than _AHEAD images go out before their poses are back), goals of one view for
view_synthesis_node. Its resident memory is read as it runs. The exit status is 1 if that is above the bound, or if it
grew by more than _GROWTH_MIB from the first tenth to the last.

Linux only: reads /proc.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np

BOUND_MIB = {"trajectory_node": 450, "view_synthesis_node": 450}  # with the shipped checkpoint, on a CPU
_GROWTH_MIB = 4.0
_COUNT = {"trajectory_node": 20_000, "view_synthesis_node": 4000}
_WARM = 0.1  # share of a run after which memory must not grow
_AHEAD = 9  # images on their way: fewer than may wait in the node (queue_size), and no less than a window
_PATIENCE_S = 20.0  # without an answer: what is on its way counts as lost
_SAMPLES = 200  # readings of the memory in a run
# Every part of the node runs (covariances, closed loops), the dear ones less often than by default.
_SETTINGS = {
    "trajectory_node": ("base_frame:=''", "image_qos:=reliable", "max_residual:=10.0", "window_hop:=4",
                        "sample_every:=50"),
    "view_synthesis_node": ("image_qos:=reliable", "metres_per_unit:=1.0"),
}  # fmt: skip


def resident_mib(pid: int, key: str = "VmRSS") -> float:
    """Return the resident memory of a process, or its peak (VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1]) / 1024


@contextmanager
def running(name: str, checkpoint: str | None = None, settings: tuple[str, ...] = ()):
    """Run a node process on the CPU; gives the process."""
    words = [*_SETTINGS[name], "device:=cpu", *settings, *([f"checkpoint:='{checkpoint}'"] if checkpoint else [])]
    command = [sys.executable, "-m", "rays_as_pixels_ros.entry_points", name, "--ros-args"]
    node = subprocess.Popen([*command, *(part for word in words for part in ("-p", word))])
    try:
        yield node
    finally:
        node.terminate()
        node.wait(60)


class Peer:
    """A node here that is the camera and gets the answers."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from sensor_msgs.msg import CameraInfo, Image

        from rays_as_pixels_model.geometry import Intrinsics
        from rays_as_pixels_ros import conversions

        self._conversions, self._rclpy, self._stopping = conversions, rclpy, False
        rclpy.init(args=[])
        self.node = rclpy.create_node("soak_benchmark")
        self.image = self.node.create_publisher(Image, "image_raw", 20)
        self.info = self.node.create_publisher(CameraInfo, "camera_info", 20)
        self.intrinsics = Intrinsics.from_fov(65, 96, 64)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stopping:
            self._executor.spin_once(timeout_sec=0.1)

    def show(self, rgb: np.ndarray) -> None:
        """Publish an image stamped now, and its camera_info."""
        stamp = time.time_ns()
        self.info.publish(self._conversions.camera_info(self.intrinsics, stamp, "camera"))
        self.image.publish(self._conversions.rgb_to_image(rgb, stamp, "camera"))

    def until_matched(self, node: subprocess.Popen) -> None:
        """Wait until the node has subscribed."""
        while not (self.image.get_subscription_count() and self.info.get_subscription_count()):
            if node.poll() is not None:
                raise RuntimeError(f"the node ended with {node.returncode}")
            time.sleep(0.05)

    def close(self) -> None:
        """Leave the graph."""
        self._stopping = True
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self._rclpy.try_shutdown()


def feed_images(peer: Peer, node: subprocess.Popen, count: int):
    """Show `count` images; yields (shown, poses that came) after each."""
    from geometry_msgs.msg import PoseWithCovarianceStamped

    from .drift import make_paths

    frames = make_paths(1, 60)[0].frames
    there_and_back = np.concatenate([frames, frames[-2:0:-1]])
    came, answered = [0], threading.Condition()

    def on_pose(_) -> None:
        with answered:
            came[0] += 1
            answered.notify_all()

    peer.node.create_subscription(
        PoseWithCovarianceStamped, "trajectory_node/pose", on_pose, 100, raw=True
    )  # fmt: skip
    peer.until_matched(node)
    lost = 0
    for number in range(count):
        peer.show(there_and_back[number % len(there_and_back)])
        shown = number + 1
        with answered:
            if not answered.wait_for(lambda: came[0] + lost > shown - _AHEAD, _PATIENCE_S):  # noqa: B023
                lost = shown - came[0]
        yield shown, came[0]


def feed_goals(peer: Peer, node: subprocess.Popen, count: int):
    """Ask for `count` views, one a goal, a new image before each; yields (asked, served) after each."""
    from geometry_msgs.msg import PoseStamped
    from rclpy.action import ActionClient

    from rays_as_pixels_interfaces.action import RenderViews

    from .drift import make_paths

    frames = make_paths(1, 60)[0].frames
    client = ActionClient(peer.node, RenderViews, "view_synthesis_node/render_views")
    peer.until_matched(node)
    if not client.wait_for_server(timeout_sec=_PATIENCE_S):
        raise RuntimeError("the action server did not come")
    pose = PoseStamped()
    pose.header.frame_id, pose.pose.orientation.w, pose.pose.position.z = "camera", 1.0, 0.1
    served = 0
    for number in range(count):
        peer.show(frames[number % len(frames)])
        result = _answer(client, RenderViews.Goal(poses=[pose], steps=1, seed=number))
        served += result is not None and result.success
        yield number + 1, served


def _answer(client, goal):
    """Send a goal and wait for its result; None where none came."""
    done = threading.Event()
    got = []

    def on_accepted(future) -> None:
        future.result().get_result_async().add_done_callback(lambda f: (got.append(f.result().result), done.set()))

    client.send_goal_async(goal).add_done_callback(on_accepted)
    done.wait(_PATIENCE_S)
    return got[0] if got else None


def measure(name: str, count: int, checkpoint: str | None = None, settings: tuple[str, ...] = (), say=print) -> dict:
    """Feed a node; {node, count, answered, seconds, growth_mib, peak_mib, curve}.

    growth_mib: the medians of the last tenth of the readings and of the first tenth after the warm-up, apart.
    curve: (images or goals so far, resident MiB).
    """
    import embedded_ros

    os.environ.setdefault("CYCLONEDDS_URI", embedded_ros.loopback_uri())
    os.environ["OMP_NUM_THREADS"] = "1"
    embedded_ros.install()
    feed = {"trajectory_node": feed_images, "view_synthesis_node": feed_goals}[name]
    every, curve, answered = max(1, count // _SAMPLES), [], 0
    peer = Peer()
    try:
        with running(name, checkpoint, settings) as node:
            begun = time.monotonic()
            for shown, answered in feed(peer, node, count):
                if shown % every == 0:
                    curve.append((shown, resident_mib(node.pid)))
                    if len(curve) % (_SAMPLES // 20) == 0:
                        say(f"{shown} of {count}, {answered} answered: {curve[-1][1]:.1f} MiB", file=sys.stderr)
            seconds, peak = time.monotonic() - begun, resident_mib(node.pid, "VmHWM")
    finally:
        peer.close()
    growth = grown([mib for _, mib in curve])
    return {
        "node": name, "count": count, "answered": answered, "seconds": seconds,
        "growth_mib": growth, "peak_mib": peak, "curve": curve,
    }  # fmt: skip


def grown(readings: list[float]) -> float:
    """Medians of the last tenth of the readings and of the tenth after the warm-up, apart."""
    tenth, warm = max(1, len(readings) // 10), int(_WARM * len(readings))
    return float(np.median(readings[-tenth:]) - np.median(readings[warm : warm + tenth]))


def problems(report: dict) -> list[str]:
    """What of a report breaks the bound; nothing: it holds."""
    found, name = [], report["node"]
    if report["answered"] < 0.9 * report["count"]:
        found.append(f"only {report['answered']} of {report['count']} were answered")
    if report["growth_mib"] > _GROWTH_MIB:
        found.append(f"memory grew by {report['growth_mib']:.1f} MiB; at most {_GROWTH_MIB:g} are allowed")
    if report["peak_mib"] > BOUND_MIB[name]:
        found.append(f"the peak is {report['peak_mib']:.1f} MiB; the bound of {name} is {BOUND_MIB[name]}")
    return found


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])
    parser.add_argument("node", choices=tuple(BOUND_MIB))
    parser.add_argument("--count", type=int, help="images or goals (default: 20000 images, 4000 goals)")
    parser.add_argument("--checkpoint", help="default: the shipped one")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    from .report import show

    report = measure(args.node, args.count or _COUNT[args.node], args.checkpoint)
    marks = [report["curve"][round(i * (len(report["curve"]) - 1) / 8)] for i in range(9)]
    table = "\n".join([
        "| " + " | ".join([args.node, *(f"{count:,}" for count, _ in marks), "growth", "peak"]) + " |",
        "|---|" + "---|" * (len(marks) + 2),
        "| resident MiB | " + " | ".join([*(f"{mib:.1f}" for _, mib in marks), f"{report['growth_mib']:+.1f}",
                                          f"{report['peak_mib']:.1f}"]) + " |",
    ])  # fmt: skip
    show(report, table, args.json)
    for problem in problems(report):
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if problems(report) else 0


if __name__ == "__main__":
    raise SystemExit(main())
