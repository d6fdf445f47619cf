# SPDX-License-Identifier: Apache-2.0
"""What both model nodes share: parameters, the model, the camera subscriptions and diagnostics."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_updater import Updater
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.lifecycle import LifecycleNode, State, TransitionCallbackReturn
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from rays_as_pixels_model import memory
from rays_as_pixels_model.geometry import Intrinsics

from . import connections, conversions, parameters
from .connections import End
from .health import LOST, MISSING, OK, WARN, Health
from .node_process import reason
from .window import StampMatcher

RELIABLE = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BEST_EFFORT = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
REMEDY = "a busy machine, socket buffers or the network: raise net.core.rmem_max, or use image_transport compressed"


@dataclass(frozen=True)
class CameraFrame:
    """An image and its camera_info with the same stamp (ns), checked but not decoded."""

    stamp: int
    frame_id: str
    image: Image | CompressedImage
    info: CameraInfo
    rectified: bool = False

    def decode(self, size: tuple[int, int] | None = None) -> tuple[np.ndarray, Intrinsics]:
        """Return the undistorted image (H, W, 3) uint8 and its camera; see `conversions.pinhole_frame`."""
        return conversions.pinhole_frame(self.image, self.info, size, self.rectified)


def load_default_pipeline(checkpoint: str, device: str) -> Any:
    """Load the model; raises ValueError with one line when it cannot be used."""
    from rays_as_pixels_model.pipeline import Pipeline

    return Pipeline.from_checkpoint(checkpoint or None, device=device)


class CameraNode(LifecycleNode):
    """A lifecycle node over one model and one camera.

    Subclasses set TABLE and override `_configured`, `_activated`, `_deactivated` and `_on_frame`.
    """

    TABLE: tuple[parameters.Parameter, ...] = ()
    PATIENCE_S = 60.0  # that a step of the model has to end in when the node stops

    def __init__(self, name: str, load_pipeline: Callable[[str, str], Any] = load_default_pipeline, **kwargs):
        super().__init__(name, **kwargs)
        self._load_pipeline = load_pipeline
        self._problems = parameters.declare(self, self.TABLE)
        self._free_group = ReentrantCallbackGroup()
        # Images must be taken in their order, so by one thread at a time.
        self._input_group = MutuallyExclusiveCallbackGroup()
        self._inputs: list = []
        self._inputs_lock = threading.Lock()  # none is destroyed while the watch looks at it
        # Each activation has a flag of its own: what outlives its end must not come back to life with the next one.
        self._stopping = threading.Event()
        self._taking = threading.Lock()  # held while a message of the camera is taken
        self._told: set[bytes] = set()
        self._pipeline = None
        self._active, self._watch_timer = False, None
        # Two robots side by side must be told apart by more than the node's own name.
        self.declare_parameter("diagnostic_updater.use_fqn", self.get_namespace() != "/")
        self._updater = Updater(self)
        self._updater.setHardwareID("none")
        self._updater.add("camera", self._diagnose)

    # Transitions

    def on_configure(self, state: State) -> TransitionCallbackReturn:
        """Check parameters and load the model; a bad one fails here, with the reason."""
        return self._attempt("configured", self._configure, undo=self._unload)

    def on_activate(self, state: State) -> TransitionCallbackReturn:
        """Start the subscriptions and what the node offers."""
        done = self._attempt("activated", self._activate, undo=self._stop)
        return super().on_activate(state) if done == TransitionCallbackReturn.SUCCESS else done

    def on_deactivate(self, state: State) -> TransitionCallbackReturn:
        """Stop the subscriptions and what the node offers."""
        done = self._attempt("deactivated", self._stop)
        return super().on_deactivate(state) if done == TransitionCallbackReturn.SUCCESS else done

    def on_cleanup(self, state: State) -> TransitionCallbackReturn:
        """Free the model."""
        return self._attempt("cleaned up", self._unload)

    def on_shutdown(self, state: State) -> TransitionCallbackReturn:
        """Stop whatever runs, and free the model."""
        return self._attempt("shut down", self._end)

    def on_error(self, state: State) -> TransitionCallbackReturn:
        """Stop and free what a failed transition left, so that the node can be configured again."""
        done = self._attempt("made ready to be configured again", self._end)
        if done == TransitionCallbackReturn.SUCCESS:
            self.get_logger().warning("the model was freed after that error; the node can be configured again")
        return done

    def stop(self) -> None:
        """Stop threads and entities before the node is destroyed."""
        self._attempt("stopped", self._stop)

    def _attempt(
        self, what: str, work: Callable[[], None], undo: Callable[[], None] | None = None
    ) -> TransitionCallbackReturn:
        """Do a transition's work, or say why not: rclpy takes what it raises for ERROR, without a word."""
        try:
            work()
            return TransitionCallbackReturn.SUCCESS
        except Exception as error:
            self.get_logger().error(f"cannot be {what}: {reason(error)}")
        # Only here is free what the error's traceback held (a model that was half loaded).
        undone = undo is not None and self._attempt("brought back", undo) == TransitionCallbackReturn.SUCCESS
        return TransitionCallbackReturn.FAILURE if undone else TransitionCallbackReturn.ERROR

    def _configure(self) -> None:
        self._p = parameters.read(self, self.TABLE, self._problems)
        self._pipeline = self._load_pipeline(self._p.checkpoint, self._p.device)
        self._matcher = StampMatcher(limit=10)
        self._health = Health(silence_s=self._p.silence_timeout)
        self._configured()

    def _unload(self) -> None:
        """Free the model; subclasses drop what they made with it."""
        device = getattr(self._pipeline, "device", "cpu")
        self._pipeline = None
        memory.release_memory(device)

    def _end(self) -> None:
        """Stop, and free the model whether or not that went well."""
        try:
            self._stop()
        finally:
            self._unload()

    def _activate(self) -> None:
        reliability = ReliabilityPolicy.RELIABLE if self._p.image_qos == "reliable" else ReliabilityPolicy.BEST_EFFORT
        qos = QoSProfile(depth=5, reliability=reliability)
        compressed = self._p.image_transport == "compressed"
        topic, kind = ("image_raw/compressed", CompressedImage) if compressed else ("image_raw", Image)
        self._image_topic = topic
        self._rectified = conversions.is_rectified(self._p.rectified_images, self.resolve_topic_name(topic))
        self._told.clear()
        self._stopping = threading.Event()
        self._health.start()
        for half in ((0, kind, topic), (1, CameraInfo, "camera_info")):
            self._inputs.append(self._subscribe(*half, qos))
        # Steady time: simulated time may stand still, and a wall clock may be set.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._watch_timer = self.create_timer(1.0, self._watch, callback_group=self._free_group, clock=steady)
        self._activated()
        self._active = True
        self.get_logger().info(
            f"active: listening to {self.resolve_topic_name(topic)}"
            f"{' (rectified: P of camera_info is their camera)' if self._rectified else ''}"
        )

    def _subscribe(self, side: int, kind: Any, topic: str, qos: QoSProfile) -> Any:
        """Listen to one half of the camera, and to its losses where the middleware tells them."""
        stopping = self._stopping

        def take(message):
            with self._taking:
                if not stopping.is_set():  # a callback may still run, or begin, while its subscription is destroyed
                    self._on_half(side, message)

        def listen(**options):
            return self.create_subscription(kind, topic, take, qos, callback_group=self._input_group, **options)

        lost = SubscriptionEventCallbacks(message_lost=lambda event: self._on_lost(side, event.total_count_change))
        try:
            return listen(event_callbacks=lost)
        except UnsupportedEventTypeError:
            return listen()

    def _stop(self) -> None:
        """Undo `_activate`; where that fails in the middle, the next call does it again to the end."""
        if not self._inputs:
            return
        with self._inputs_lock:
            self._active = False
        with self._taking:
            self._stopping.set()
        for subscription in self._inputs:
            self.destroy_subscription(subscription)
        timer, self._watch_timer = self._watch_timer, None
        if timer is not None:
            self.destroy_timer(timer)
        self._matcher.clear()
        self._deactivated()
        self._inputs = []

    # Camera input

    def _on_lost(self, side: int, count: int) -> None:
        """Count what was sent and never arrived."""
        self._health.count(LOST[side], count)
        self.get_logger().warning(
            f"{self._health.counts[LOST[side]]} {LOST[side]} so far ({REMEDY})", throttle_duration_sec=10.0
        )

    def _on_half(self, side: int, message) -> None:
        """Take an image (side 0) or a camera_info (side 1); pairs of equal stamp go on as a CameraFrame."""
        if side == 0:
            self._health.image()
        before = sum(self._matcher.unmatched)
        pair = self._matcher.push(side, conversions.stamp_ns(message.header.stamp), message)
        for half, without in enumerate(self._matcher.unmatched):
            self._health.total(MISSING[1 - half], without)
        if before < sum(self._matcher.unmatched) >= 10:
            images, infos = self._matcher.unmatched
            self.get_logger().warning(
                f"{images} images and {infos} camera_infos had no partner with the same stamp on "
                f"{self.resolve_topic_name(self._image_topic)} and {self.resolve_topic_name('camera_info')}: other "
                f"stamps, or the partner was lost in transit ({REMEDY})",
                throttle_duration_sec=10.0,
            )
        if pair is None:
            return
        image, info = pair
        try:
            if isinstance(image, Image):
                conversions.check_image(image)
            camera, _ = conversions.camera_from_info(info, self._rectified)
            if isinstance(image, Image):
                conversions.check_size(camera, image.width, image.height)
        except conversions.ConversionError as error:
            self._refuse_frame(error)
            return
        stamp, frame_id = conversions.stamp_ns(image.header.stamp), image.header.frame_id.lstrip("/")
        self._on_frame(CameraFrame(stamp, frame_id, image, info, self._rectified))

    def _refuse_frame(self, error: Exception) -> None:
        self._health.count("refused images")
        told = reason(error)
        # Said at once when it is new, then once in 5 s: a broken camera must not flood the log.
        if told != getattr(self, "_last_refusal", None):
            self._last_refusal = told
            self.get_logger().error(f"image refused: {told}")
        else:
            self.get_logger().error(f"image refused: {told}", throttle_duration_sec=5.0)

    # For subclasses

    def _configured(self) -> None:
        """Make what the parameters describe; may raise ValueError."""

    def _activated(self) -> None:
        """Start threads and offer services."""

    def _deactivated(self) -> None:
        """Undo _activated, or the part of it that was done; must bear a second call."""

    def _on_frame(self, frame: CameraFrame) -> None:
        """Take a checked frame; runs in an executor thread and must return at once."""
        raise NotImplementedError

    def _status(self, table: dict[str, str]) -> None:
        """Add the node's own values to its diagnostics."""

    # Diagnostics

    def _diagnose(self, status):
        """Fill the node's status (a task of diagnostic_updater)."""
        if not self._active:
            status.summary(bytes([OK]), "inactive")
            return status
        level, line, table = self._health.report()
        if self._told and level == OK:
            level, line = WARN, "an end of a topic has another type or QoS and gets nothing (see the log)"
        self._status(table)
        status.summary(bytes([level]), line)
        for key, value in table.items():
            status.add(key, value)
        return status

    def _watch(self) -> None:
        """Warn of what keeps images from coming in, or results from getting out."""
        with self._inputs_lock:
            if not self._active:
                return
            if self._health.silent():
                self._warn_of_silence()
            wrong: set[bytes] = set()
            for own in list(self._inputs):
                others = self.get_publishers_info_by_topic(own.topic_name)
                wrong |= self._warn_of_mismatches(own, others, own_publishes=False)
            for own in list(self.publishers):
                others = self.get_subscriptions_info_by_topic(own.topic_name)
                wrong |= self._warn_of_mismatches(own, others, own_publishes=True)
            self._told = wrong  # those that have left are forgotten

    def _warn_of_silence(self) -> None:
        image = self._inputs[0]
        found = self.get_publishers_info_by_topic(image.topic_name)
        others = [f"{connections.owner(info)} offers {connections.describe(info)}" for info in found]
        self.get_logger().warning(
            f"no image on {image.topic_name} for {self._p.silence_timeout:g} s; this node asks for "
            f"{connections.describe(_end(image))}; publishers: {', '.join(others) or 'none'}",
            throttle_duration_sec=10.0,
        )

    def _warn_of_mismatches(self, own, others, own_publishes: bool) -> set[bytes]:
        """Say once of each other end why nothing passes between it and ours; returns the GIDs of those ends."""
        end, wrong = _end(own), set()
        for info in others:
            why = connections.mismatch(end, info) if own_publishes else connections.mismatch(info, end)
            if why is None:
                continue
            gid = bytes(info.endpoint_gid)
            wrong.add(gid)
            if gid in self._told:
                continue
            this, that = ("offers", "asks for") if own_publishes else ("asks for", "offers")
            self.get_logger().warning(
                f"nothing passes on {own.topic_name}: {why}; this node {this} {connections.describe(end)}, "
                f"{connections.owner(info)} {that} {connections.describe(info)}"
            )
        return wrong


def _end(endpoint) -> End:
    return End(connections.type_name(endpoint.msg_type), endpoint.qos_profile)
