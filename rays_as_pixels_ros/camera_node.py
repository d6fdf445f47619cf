# SPDX-License-Identifier: Apache-2.0
"""What both model nodes share: parameters, the model, the camera subscriptions, diagnostics and how they are run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, MultiThreadedExecutor
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rays_as_pixels_model.geometry import Intrinsics

from . import conversions, parameters
from .health import Health
from .window import StampMatcher

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class CameraFrame:
    """An image and its camera_info with the same stamp (ns), checked but not decoded."""

    stamp: int
    frame_id: str
    image: Image | CompressedImage
    info: CameraInfo

    def decode(self) -> tuple[np.ndarray, Intrinsics]:
        """Return the undistorted image (H, W, 3) uint8 and its camera; raises ConversionError."""
        return conversions.pinhole_frame(self.image, self.info)


def load_default_pipeline(checkpoint: str, device: str) -> Any:
    """Load the model; raises ValueError with one line when it cannot be used."""
    from rays_as_pixels_model.pipeline import Pipeline

    return Pipeline.from_checkpoint(checkpoint or None, device=device)


class CameraNode(LifecycleNode):
    """A lifecycle node over one model and one camera.

    Subclasses set TABLE and override `_configured`, `_activated`, `_deactivated` and `_on_frame`.
    """

    TABLE: tuple[parameters.Parameter, ...] = ()

    def __init__(self, name: str, load_pipeline: Callable[[str, str], Any] = load_default_pipeline, **kwargs):
        super().__init__(name, **kwargs)
        self._load_pipeline = load_pipeline
        self._problems = parameters.declare(self, self.TABLE)
        self._free_group = ReentrantCallbackGroup()
        # Images must be taken in their order, so by one thread at a time.
        self._input_group = MutuallyExclusiveCallbackGroup()
        self._inputs: list = []
        self._pipeline = None
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", RELIABLE)
        self._diagnostics_timer = None

    # Transitions

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Check parameters and load the model; a bad one fails here, with the reason."""
        try:
            self._p = parameters.read(self, self.TABLE, self._problems)
            self._pipeline = self._load_pipeline(self._p.checkpoint, self._p.device)
            self._matcher = StampMatcher(limit=10)
            self._health = Health(silence_s=self._p.silence_timeout)
            self._configured()
        except (ValueError, OSError, RuntimeError) as error:
            self._pipeline = None
            self.get_logger().error(f"cannot be configured: {_one_line(error)}")
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        """Start the subscriptions and what the node offers."""
        reliability = ReliabilityPolicy.RELIABLE if self._p.image_qos == "reliable" else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=5, reliability=reliability)
        compressed = self._p.image_transport == "compressed"
        topic, kind = ("image_raw/compressed", CompressedImage) if compressed else ("image_raw", Image)
        self._inputs = [
            self.create_subscription(kind, topic, lambda m: self._on_half(0, m), qos, callback_group=self._input_group),
            self.create_subscription(
                CameraInfo, "camera_info", lambda m: self._on_half(1, m), qos, callback_group=self._input_group
            ),
        ]
        self._image_topic, self._image_qos = topic, self._p.image_qos
        self._diagnostics_timer = self.create_timer(1.0, self._publish_diagnostics, callback_group=self._free_group)
        self._activated()
        self.get_logger().info(f"active: listening to {self.resolve_topic_name(topic)}")
        return super().on_activate(state)

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Stop the subscriptions and what the node offers."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        """Free the model."""
        self._pipeline = None
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        """Stop whatever runs."""
        self._stop()
        self._pipeline = None
        return TransitionCallbackReturn.SUCCESS

    def stop(self) -> None:
        """Stop threads and entities before the node is destroyed."""
        self._stop()

    def _stop(self) -> None:
        if not self._inputs:
            return
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        self._inputs = []
        if self._diagnostics_timer is not None:
            self.destroy_timer(self._diagnostics_timer)
            self._diagnostics_timer = None
        self._deactivated()

    # Camera input

    def _on_half(self, side: int, message) -> None:
        """Take an image (side 0) or a camera_info (side 1); pairs of equal stamp go on as a CameraFrame."""
        if side == 0:
            self._health.image()
        pair = self._matcher.push(side, conversions.stamp_ns(message.header.stamp), message)
        if self._matcher.unmatched:
            self._health.counts["without partner"] = self._matcher.unmatched
            if self._matcher.unmatched % 20 == 10:
                self.get_logger().warning(
                    f"{self._matcher.unmatched} images or camera_infos had no partner with the same stamp on "
                    f"{self.resolve_topic_name(self._image_topic)} and {self.resolve_topic_name('camera_info')}"
                )
        if pair is None:
            return
        image, info = pair
        try:
            if isinstance(image, Image):
                conversions.check_image(image)
                conversions.check_size(info, image.width, image.height)
            conversions.camera_from_info(info)
        except conversions.ConversionError as error:
            self._refuse_frame(error)
            return
        self._on_frame(
            CameraFrame(conversions.stamp_ns(image.header.stamp), image.header.frame_id.lstrip("/"), image, info)
        )

    def _refuse_frame(self, error: Exception) -> None:
        self._health.count("refused images")
        reason = _one_line(error)
        # Said at once when it is new, then once in 5 s: a broken camera must not flood the log.
        if reason != getattr(self, "_last_refusal", None):
            self._last_refusal = reason
            self.get_logger().error(f"image refused: {reason}")
        else:
            self.get_logger().error(f"image refused: {reason}", throttle_duration_sec=5.0)

    # For subclasses

    def _configured(self) -> None:
        """Make what the parameters describe; may raise ValueError."""

    def _activated(self) -> None:
        """Start threads and offer services."""

    def _deactivated(self) -> None:
        """Undo _activated."""

    def _on_frame(self, frame: CameraFrame) -> None:
        """Take a checked frame; runs in an executor thread and must return at once."""
        raise NotImplementedError

    def _status(self, table: dict[str, str]) -> None:
        """Add the node's own values to its diagnostics."""

    # Diagnostics

    def _publish_diagnostics(self) -> None:
        level, line, table = self._health.report()
        if self._health.silent():
            topic = self.resolve_topic_name(self._image_topic)
            offers = [
                f"{info.node_name} offers {info.topic_type} {info.qos_profile.reliability.name}"
                for info in self.get_publishers_info_by_topic(topic)
            ]
            self.get_logger().warning(
                f"no image on {topic} for {self._p.silence_timeout:g} s; this node asks for "
                f"{'CompressedImage' if self._image_topic.endswith('compressed') else 'Image'} "
                f"{self._image_qos.upper()}; publishers: {', '.join(offers) or 'none'}",
                throttle_duration_sec=10.0,
            )
        self._status(table)
        status = DiagnosticStatus(
            level=bytes([level]), name=f"{self.get_fully_qualified_name()}: camera", message=line,
            hardware_id="", values=[KeyValue(key=key, value=value) for key, value in table.items()],
        )  # fmt: skip
        array = DiagnosticArray(status=[status])
        array.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(array)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def autostart(node: CameraNode) -> bool:
    """Walk a node to active if its parameter says so; says whether it is where it should be."""
    if not node.get_parameter("autostart").value:
        return True
    return (
        node.trigger_configure() == TransitionCallbackReturn.SUCCESS
        and node.trigger_activate() == TransitionCallbackReturn.SUCCESS
    )


def run_nodes(make_nodes: Callable[[], list[CameraNode]], args: list[str] | None, threads: int = 8) -> int:
    """Run nodes in one process until SIGINT or SIGTERM; returns the exit code (1: a node could not be configured)."""
    rclpy.init(args=args)
    nodes: list[CameraNode] = []
    executor = MultiThreadedExecutor(num_threads=threads)
    try:
        nodes = make_nodes()
        for node in nodes:
            executor.add_node(node)
        if not all(autostart(node) for node in nodes):
            return 1
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:  # a signal in the middle of a callback makes its next call on ROS fail
        if rclpy.ok():
            raise
    finally:
        for node in nodes:
            node.stop()
        executor.shutdown()
        for node in nodes:
            node.destroy_node()
        rclpy.try_shutdown()
    return 0


def main_of(make_nodes: Callable[[], list[CameraNode]]) -> Callable[[list[str] | None], int]:
    """Make a main() from a function that makes the nodes."""

    def main(args: list[str] | None = None) -> int:
        return run_nodes(make_nodes, sys.argv[1:] if args is None else args)

    return main
