# SPDX-License-Identifier: Apache-2.0
"""render_client: ask view_synthesis_node for views along a path and write them as PNG files and a video.

    render_client orbit --degrees 20 --distance 2 --views 8 --out views
    render_client dolly --offset 0 0 0.5 --views 8 --out views
    render_client spline --tum waypoints.txt --views 30 --frame map --out views
    render_client tum --tum path.txt --frame map --out views

Orbit and dolly are relative to the camera as it is now. Lengths are metres (or the unit of the TF tree).
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from pathlib import Path

import numpy as np

from rays_as_pixels_model.files import read_trajectory, write_png, write_text, write_video
from rays_as_pixels_model.media import MediaError

from .paths import dolly, orbit, spline

_PATIENCE = 5.0  # seconds until what is waited for is said
_LAST_S = 0.5  # to take what has come when nothing more is waited for


class ClientError(RuntimeError):
    """The request cannot be made or was refused; one line."""


def make_parser() -> argparse.ArgumentParser:
    """Make the command line; needs no ROS."""
    parser = argparse.ArgumentParser(prog="render_client", description=__doc__.split("\n\n")[0])
    kinds = parser.add_subparsers(dest="path", required=True, metavar="PATH")
    arc = kinds.add_parser("orbit", help="circle round the point ahead of the camera")
    arc.add_argument("--degrees", type=float, default=20.0, help="angle of the last view, positive to the right (20)")
    arc.add_argument("--start-degrees", type=float, default=0.0, help="angle of the first view (0)")
    arc.add_argument("--distance", type=float, default=2.0, help="of the centre ahead of the camera, metres (2)")
    line = kinds.add_parser("dolly", help="straight line, looking the same way")
    line.add_argument("--offset", type=float, nargs=3, default=(0.0, 0.0, 0.5), metavar=("X", "Y", "Z"),
                      help="of the last view: right, down, forward, metres (0 0 0.5)")  # fmt: skip
    curve = kinds.add_parser("spline", help="smooth curve through the poses of a TUM file")
    listed = kinds.add_parser("tum", help="the poses of a TUM file")
    for kind in (curve, listed):
        kind.add_argument("--tum", type=Path, required=True, help="text file: time x y z qx qy qz qw (optical axes)")
    for kind in (arc, line, curve):
        kind.add_argument("--views", type=int, default=8, help="number of views (8)")
    for kind in (arc, line, curve, listed):
        kind.add_argument("--out", type=Path, required=True, help="folder for view_000.png ..., views.mp4, views.json")
        kind.add_argument("--frame", default="", help="TF frame of the poses; empty: the camera's own, as it is now")
        kind.add_argument("--steps", type=int, default=0, help="denoising steps; 0: the node's default")
        kind.add_argument("--seed", type=int, default=0)
        kind.add_argument("--fps", type=float, default=10.0, help="of the video (10)")
        kind.add_argument("--action", default="view_synthesis_node/render_views", help="action name")
        kind.add_argument("--camera-info", default="camera_info", help="topic that tells the camera's frame")
        kind.add_argument("--timeout", type=float, default=120.0, help="seconds for all of it (120)")
    return parser


def make_path(options) -> tuple[np.ndarray, bool]:
    """Return poses (V, 4, 4) and whether they are relative to the current camera."""
    if options.path == "orbit":
        return orbit(options.views, options.degrees, options.distance, options.start_degrees), True
    if options.path == "dolly":
        return dolly(options.views, options.offset), True
    poses = read_trajectory(options.tum)[1]
    # Without a frame the file's poses are meant from the camera as it is now.
    return (spline(poses, options.views) if options.path == "spline" else poses), not options.frame


class _Client:
    """One request, from the camera's frame to the files."""

    def __init__(self, node, executor, options):
        self._node, self._executor, self._options = node, executor, options
        self._deadline = time.monotonic() + options.timeout

    def request(self) -> dict:
        """Ask for the views, write the files, and return what views.json holds."""
        from rclpy.action import ActionClient

        from rays_as_pixels_interfaces.action import RenderViews

        poses, relative = make_path(self._options)
        frame, poses = self._in_frame(poses, relative)
        goal = RenderViews.Goal(steps=self._options.steps, seed=self._options.seed)
        goal.poses = [self._stamped(pose, frame) for pose in poses]
        client = ActionClient(self._node, RenderViews, self._options.action)
        if not client.wait_for_server(timeout_sec=self._left()):
            raise ClientError(f"no action server at '{self._options.action}' within {self._options.timeout:g} s")
        sent = client.send_goal_async(goal, feedback_callback=self._show)
        try:
            handle = self._wait(client, sent, "the goal's acceptance")
            if not handle.accepted:
                raise ClientError("the goal was rejected")
            result = self._wait(client, handle.get_result_async(), "the views").result
        except (KeyboardInterrupt, ClientError):
            self._cancel(sent)
            raise
        print(file=sys.stderr)
        if not result.success:
            raise ClientError(f"refused: {result.message}")
        return self._write(result, poses, frame)

    def _cancel(self, sent) -> None:
        """Cancel the goal, also one whose acceptance has not come yet: nobody is left to take its views."""
        self._executor.spin_until_future_complete(sent, timeout_sec=2.0)
        if sent.done() and sent.result().accepted:
            self._executor.spin_until_future_complete(sent.result().cancel_goal_async(), timeout_sec=2.0)

    def _left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())

    def _wait(self, client, future, what: str):
        while not future.done():
            late, gone = self._left() == 0.0, not client.server_is_ready()
            # Also where it is late or gone: what came before that may be waiting to be taken.
            seconds = _LAST_S if late or gone else min(1.0, self._left())
            self._executor.spin_until_future_complete(future, timeout_sec=seconds)
            if late and not future.done():
                raise ClientError(f"{what} did not come within {self._options.timeout:g} s")
            if gone and not future.done():
                raise ClientError(f"{what} will not come: the action server at '{self._options.action}' is gone")
        return future.result()

    def _in_frame(self, poses: np.ndarray, relative: bool) -> tuple[str, np.ndarray]:
        """Return the frame for the goal and the poses in it."""
        if not relative:
            return self._options.frame, poses
        optical = self._camera_frame()
        if not self._options.frame or self._options.frame == optical:
            return optical, poses
        return self._options.frame, self._camera_pose(self._options.frame, optical) @ poses

    def _camera_frame(self) -> str:
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CameraInfo

        seen = []
        topic = self._options.camera_info
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        subscription = self._node.create_subscription(CameraInfo, topic, seen.append, qos)
        resolved, patience = self._node.resolve_topic_name(topic), time.monotonic() + _PATIENCE
        while not seen:
            if self._left() == 0.0:
                raise ClientError(
                    f"no camera_info on '{resolved}' to tell the camera's frame; name its topic with --camera-info"
                )
            if time.monotonic() > patience:
                print(f"waiting for a camera_info on '{resolved}' (another: --camera-info)", file=sys.stderr)
                patience = float("inf")
            self._executor.spin_once(timeout_sec=0.1)
        self._node.destroy_subscription(subscription)
        return seen[-1].header.frame_id.lstrip("/")

    def _camera_pose(self, frame: str, optical: str) -> np.ndarray:
        from rclpy.time import Time
        from tf2_ros import Buffer, TransformException, TransformListener

        from .conversions import transform_to_matrix

        buffer = Buffer()
        listener = TransformListener(buffer, self._node)
        reason = "nothing came"
        while self._left() > 0.0:
            self._executor.spin_once(timeout_sec=0.1)
            try:
                return transform_to_matrix(buffer.lookup_transform(frame, optical, Time()).transform)
            except TransformException as error:
                reason = error
        del listener
        raise ClientError(f"no transform from '{optical}' to '{frame}': {reason}")

    def _stamped(self, pose: np.ndarray, frame: str):
        from geometry_msgs.msg import PoseStamped

        from .conversions import header, matrix_to_pose

        return PoseStamped(header=header(0, frame), pose=matrix_to_pose(pose))

    def _show(self, message) -> None:
        print(f"\rstep {message.feedback.step} of {message.feedback.total}", end="", file=sys.stderr, flush=True)

    def _write(self, result, poses: np.ndarray, frame: str) -> dict:
        from .conversions import image_to_rgb

        out, views = self._options.out, [image_to_rgb(image) for image in result.images]
        for index, view in enumerate(views):
            write_png(out / f"view_{index:03d}.png", view)
        write_video(out / "views.mp4", views, self._options.fps)
        info = result.camera_infos[0]
        told = {
            "views": len(views), "width": int(info.width), "height": int(info.height),
            "k": [float(value) for value in info.k], "pixel_centre_of_top_left": [0, 0], "frame": frame,
            "T_frame_camera": poses.tolist(), "steps": self._options.steps, "seed": self._options.seed,
            "metres_per_unit": float(result.metres_per_unit),
        }  # fmt: skip
        write_text(out / "views.json", json.dumps(told, indent=1) + "\n")
        return told


def split_ros_args(args: list[str]) -> tuple[list[str], list[str]]:
    """Split a command line into our part and the ROS part (`--ros-args ...`)."""
    at = args.index("--ros-args") if "--ros-args" in args else len(args)
    return args[:at], args[at:]


def main(args: list[str] | None = None) -> int:
    """Ask for views and write them; returns 0, or 1 (bad arguments: 2) after one line that says why not."""
    ours, ros = split_ros_args(sys.argv[1:] if args is None else args)
    options = make_parser().parse_args(ours)
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from .node_process import reason, start_ros

    # A signal must not close the connection before the goal is cancelled.
    failed = start_ros(ros, signal_handler_options=SignalHandlerOptions.NO)
    if failed:
        return failed
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    node, executor = None, SingleThreadedExecutor()
    try:
        node = rclpy.create_node("render_client")
        executor.add_node(node)
        told = _Client(node, executor, options).request()
        print(f"{told['views']} views of {told['width']}x{told['height']} written to {options.out}")
        return 0
    except (ClientError, MediaError, ValueError) as error:
        print(f"render_client: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        print("render_client: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if node is not None:
            raise
        print(f"render_client: {reason(error)}", file=sys.stderr)
        return 1
    finally:
        executor.shutdown()
        if node is not None:
            node.destroy_node()
        rclpy.try_shutdown()


if __name__ == "__main__":
    raise SystemExit(main(None))
