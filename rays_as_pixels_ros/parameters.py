# SPDX-License-Identifier: Apache-2.0
"""Every parameter of every node, declared once: name, default, meaning and range."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

from .scale import SOURCES


@dataclass(frozen=True)
class Parameter:
    """One parameter; low and high bound a number, choices a text."""

    name: str
    default: bool | int | float | str
    description: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """Make the descriptor that `ros2 param describe` shows."""
        descriptor = ParameterDescriptor(name=self.name, description=self.description)
        if self.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(self.choices)
        if self.low is not None and isinstance(self.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
            ]
        elif self.low is not None:
            descriptor.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)]
        return descriptor

    def problem(self, value) -> str | None:
        """Say why value cannot be used, or None."""
        if self.choices and value not in self.choices:
            return f"parameter {self.name} is '{value}'; it must be one of {', '.join(self.choices)}"
        if self.low is not None and not self.low <= value <= self.high:
            return f"parameter {self.name} is {value}; it must be between {self.low:g} and {self.high:g}"
        return None


_CAMERA = (
    Parameter("autostart", True, "Configure and activate at start; false: wait for lifecycle transitions."),
    Parameter("checkpoint", "", "Model: a folder (also an exported one) or safetensors file; empty: the shipped one."),
    Parameter("device", "auto", "Where the model runs: auto (a GPU if there is one), cpu, cuda, cuda:1."),
    Parameter(
        "image_transport", "raw", "raw: image_raw; compressed: image_raw/compressed.", choices=("raw", "compressed")
    ),
    Parameter(
        "image_qos",
        "best_effort",
        "Reliability of the image and camera_info subscriptions.",
        choices=("best_effort", "reliable"),
    ),
    Parameter(
        "rectified_images",
        "auto",
        "Whether images are rectified already, so that P of camera_info is their camera, not K and D; auto: where "
        "their topic is named so (image_rect, image_rect_color).",
        choices=("auto", "always", "never"),
    ),
    Parameter("silence_timeout", 5.0, "Seconds without an image before a warning.", 0.5, 3600.0),
    Parameter("seed", 0, "Seed of the sampler.", 0, 2**31 - 1),
)

TRAJECTORY = (
    *_CAMERA,
    Parameter("window_hop", 2, "New frames in each window; the rest overlaps with the window before.", 1, 64),
    Parameter("window_stride", 1, "Use every n-th image.", 1, 100),
    Parameter("queue_size", 10, "Images that may wait for the model; then the oldest are dropped.", 2, 1000),
    Parameter("steps", 1, "Denoising steps for the camera poses of a window, in each pass.", 1, 200),
    Parameter(
        "passes",
        0,
        "Times a window is estimated, each from frames turned back by the rotations found before; 0: as the checkpoint "
        "was trained for.",
        0,
        10,
    ),
    Parameter(
        "refine",
        True,
        "Adjust each window's cameras to points tracked in its images (bundle adjustment); false: the model alone.",
    ),
    Parameter("samples", 8, "Samples of the posterior that the covariance comes from where refine is false.", 2, 64),
    Parameter("sample_every", 4, "Windows from one set of samples to the next; 1: each has its own.", 1, 1000),
    Parameter(
        "max_residual",
        0.0,
        "A window whose median raxel residual is above this is lost; 0: as measured with the checkpoint. 10: never.",
        0.0,
        10.0,
    ),
    Parameter(
        "loop_every",
        30.0,
        "Seconds from one closed loop (a window rendered along its own trajectory and estimated again) to the next; "
        "0: none.",
        0.0,
        86400.0,
    ),
    Parameter("carry_scale", True, "Measure each window's scale on the frames it shares with the one before."),
    Parameter("max_scale_step", 2.0, "Largest factor between the scales of neighbouring windows.", 1.0, 100.0),
    Parameter("map_frame", "map", "Frame of the corrected trajectory."),
    Parameter("odom_frame", "odom", "Frame of the continuous trajectory."),
    Parameter(
        "base_frame",
        "base_link",
        "Robot frame; its transform to the optical frame comes from TF. Empty: the optical frame itself is the base.",
    ),
    Parameter("publish_map_to_odom_tf", True, "Broadcast map to odom."),
    Parameter("publish_odom_to_base_tf", True, "Broadcast odom to base (or to the optical frame)."),
    Parameter("scale_source", "none", "Where metres come from.", choices=SOURCES),
    Parameter("metres_per_unit", 1.0, "Metres for one unit of the trajectory (scale_source fixed).", 1e-6, 1e6),
    Parameter("path_max_size", 1024, "Poses in ~/path; older ones are left out.", 2, 100000),
    Parameter("frustum_size", 0.1, "Depth of a camera drawn in ~/frusta, unit of the trajectory; 0: none.", 0.0, 1e6),
    Parameter("frusta_max_count", 50, "Cameras drawn in ~/frusta, spread over ~/path; the newest is one.", 1, 1000),
    Parameter("publish_raxels", False, "Publish the decoded raxel image of the newest frame."),
)

VIEW_SYNTHESIS = (
    *_CAMERA,
    Parameter("fixed_frame", "map", "TF frame in which the world stands still; poses of images are compared in it."),
    Parameter(
        "metres_per_unit",
        0.0,
        "Metres of TF for one unit of the model; 0: estimated for each goal from the motion of the live camera.",
        0.0,
        1e6,
    ),
    Parameter(
        "source_frames",
        6,
        "Live images that views are made from: the newest and some spread over buffer_size, where TF places them.",
        1,
        64,
    ),
    Parameter("max_source_images", 8, "An Imagine goal with more source images is refused.", 1, 64),
    Parameter("buffer_size", 24, "Newest images kept.", 2, 1000),
    Parameter("buffer_stride", 1, "Images between two that are used together.", 1, 100),
    Parameter("steps", 1, "Denoising steps of a view when the goal says 0.", 1, 200),
    Parameter("imagine_steps", 20, "Denoising steps of an imagined video when the goal says 0.", 1, 200),
    Parameter("max_steps", 200, "A goal that asks for more is refused.", 1, 1000),
    Parameter("max_views", 64, "A goal with more poses is refused.", 1, 10000),
    Parameter(
        "max_image_pixels", 16_000_000, "A goal with a larger source image or view is refused.", 1, 1_000_000_000
    ),
    Parameter("max_total_pixels", 64_000_000, "A goal whose images together are larger is refused.", 1, 10_000_000_000),
    Parameter("queue_size", 2, "Goals that may wait while one runs; the rest are refused.", 0, 64),
    Parameter(
        "max_memory_mib",
        0,
        "MiB that a goal may take beside the weights, as predicted before it runs; 0: what the device has free.",
        0,
        10_000_000,
    ),
    Parameter("tf_timeout", 0.5, "Seconds to wait for a transform.", 0.0, 60.0),
)

CAMERA_PLAYER = (
    Parameter("source", "procedural", "procedural, a video file, an image folder, a posed-images folder, or webcam:N."),
    Parameter("rate", 0.0, "Images per second; 0: the source's own (procedural: 10).", 0.0, 1000.0),
    Parameter(
        "at_end",
        "loop",
        "After the last image: stop the process, begin again, play backwards, or hold the last.",
        choices=("stop", "loop", "bounce", "hold"),
    ),
    Parameter("wait_for_subscribers", 0, "Start once image_raw has this many subscriptions.", 0, 100),
    Parameter("frame_id", "camera_optical_frame", "frame_id of the images (optical axes)."),
    Parameter("world_frame", "world", "Frame of the ground truth."),
    Parameter("publish_truth_tf", False, "Broadcast the true pose, world_frame to frame_id, where it is known."),
    Parameter(
        "image_qos", "reliable", "Reliability of image_raw and camera_info.", choices=("best_effort", "reliable")
    ),
    Parameter(
        "horizontal_fov",
        70.0,
        "Degrees; camera of procedural scenes (but of those with lens) and of files that state none.",
        10.0,
        160.0,
    ),
    Parameter("width", 192, "Pixels (procedural).", 16, 4096),
    Parameter("height", 128, "Pixels (procedural).", 16, 4096),
    Parameter("seed", 0, "Scene and path (procedural).", 0, 2**31 - 1),
    Parameter("frames", 60, "Images of the path (procedural).", 2, 100000),
    Parameter(
        "style",
        "",
        "How the camera moves; empty: any; walking, robot, still: of scenes with motion alone (procedural).",
        choices=("", "handheld", "forward", "orbit", "yaw", "walking", "robot", "still"),
    ),
    Parameter(
        "scenes",
        "plain",
        "plain, varied (all groups), or some of geometry, lights, sensor, motion, lens joined by '+' (procedural; "
        "docs/scenes.md).",
    ),
    Parameter("difficulty", 1.0, "How strong the groups of scenes are; 0 is plain (procedural).", 0.0, 1.0),
    Parameter("textures", "", "Folder with more textures (procedural)."),
    Parameter(
        "texture_split",
        "held_out",
        "Textures never trained on, or those of training (procedural).",
        choices=("held_out", "train"),
    ),
)


def declare(node, table: tuple[Parameter, ...]) -> dict[str, str]:
    """Declare a table on a node; returns the problems (parameter to reason) of values given at start.

    A bad value does not stop the node from starting: its transition `configure` fails with the reason, and can be
    tried again after the value was set.
    """
    problems = {}
    for parameter in table:
        try:
            node.declare_parameter(parameter.name, parameter.default, parameter.descriptor())
        except (InvalidParameterValueException, InvalidParameterTypeException) as error:
            problems[parameter.name] = f"parameter {parameter.name}: {error}"
            if not node.has_parameter(parameter.name):
                node.declare_parameter(parameter.name, parameter.default, parameter.descriptor(), ignore_override=True)
    return problems


def read(node, table: tuple[Parameter, ...], problems: dict[str, str] | None = None) -> SimpleNamespace:
    """Read a table's values now.

    Args:
        problems: what declare() returned.
    Raises:
        ValueError: a value cannot be used; the message names the parameter, the value and what would be right.
    """
    values = {parameter.name: node.get_parameter(parameter.name).value for parameter in table}
    found = dict(problems or {})
    for parameter in table:
        # A value that was set since then clears the problem it had at start.
        if parameter.name in found and values[parameter.name] != parameter.default:
            del found[parameter.name]
        reason = parameter.problem(values[parameter.name])
        if reason:
            found[parameter.name] = reason
    if found:
        raise ValueError("; ".join(found.values()))
    return SimpleNamespace(**values)
