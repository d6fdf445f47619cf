# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels bag IN --out OUT`: a recorded camera to its trajectory, offline, beside all that the bag held before.

Options carry the names of trajectory_node's parameters. Poses are those of `rays-as-pixels estimate` on the same
frames, each refined by all windows that saw it; a live node publishes each with the first of them.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

from .arguments import add_estimate_arguments, add_model_arguments, command_parser, integer, number, offset


def build_parser() -> argparse.ArgumentParser:
    """Make the argument parser."""
    parser = command_parser(
        "bag",
        "Run the trajectory node over every frame of a ROS 2 bag (MCAP or sqlite3) and write a bag with the original "
        "topics, unchanged, and pose, odometry, path, frusta and TF beside them; with --views, rendered views too.",
    )
    parser.add_argument("bag", metavar="IN", type=Path, help="folder with metadata.yaml, .mcap or .db3 file")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="OUT", help="new bag: a .mcap or .db3 file, or a folder (MCAP)"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")
    group = parser.add_argument_group("camera")
    group.add_argument("--image-topic", default="", metavar="T", help="needed if the bag has several cameras")
    group.add_argument("--camera-info-topic", default="", metavar="T", help="default: camera_info beside the images")
    group.add_argument("--rectified-images", choices=("auto", "always", "never"), default="auto",
                       help="whether the images' camera is P, not K and D; auto: topics image_rect*")  # fmt: skip
    group = parser.add_argument_group("trajectory")
    group.add_argument("--window-hop", type=integer(1), default=2, help="new frames in each window")
    group.add_argument("--window-stride", type=integer(1), default=1, help="use every n-th image")
    group.add_argument("--samples", type=integer(2), default=8, help="posterior samples that the covariance comes from")
    group.add_argument("--sample-every", type=integer(1), default=4, help="windows from one set of samples to the next")
    group.add_argument("--max-residual", type=number(0, math.inf, inclusive=True), default=0.0,
                       help="a window above it is lost; 0: as measured with the checkpoint; 10: never")  # fmt: skip
    group.add_argument("--carry-scale", action=argparse.BooleanOptionalAction, default=True,
                       help="measure each window's scale on the frames it shares with the one before")  # fmt: skip
    group.add_argument("--max-scale-step", type=number(1, math.inf, inclusive=True), default=2.0,
                       help="largest factor between the scales of neighbouring windows")  # fmt: skip
    group.add_argument("--scale-source", choices=("none", "fixed"), default="none", help="where metres come from")
    group.add_argument("--metres-per-unit", type=number(0, math.inf), default=1.0, metavar="M",
                       help="metres for one unit of the trajectory (--scale-source fixed)")  # fmt: skip
    group = parser.add_argument_group("frames and topics")
    group.add_argument("--map-frame", default="map", help="frame of the corrected trajectory")
    group.add_argument("--odom-frame", default="odom", help="frame of the continuous trajectory")
    group.add_argument("--base-frame", default="base_link", help="robot frame, known from TF; '': the optical frame")
    for name, text in (("map-to-odom", "map to odom"), ("odom-to-base", "odom to base")):
        group.add_argument(
            f"--publish-{name}-tf", action=argparse.BooleanOptionalAction, default=True, help=f"write {text} to /tf"
        )
    group.add_argument("--node-name", default="trajectory_node", help="first part of the new topics' names")
    group.add_argument("--path-max-size", type=integer(2), default=1024, help="newest poses in a path")
    group.add_argument("--frustum-size", type=number(0, math.inf, inclusive=True), default=0.1,
                       help="of a drawn camera; 0: none")  # fmt: skip
    group.add_argument("--frusta-max-count", type=integer(1), default=50, help="drawn cameras")
    group = parser.add_argument_group("views")
    group.add_argument("--views", type=offset, metavar="X,Y,Z",
                       help="render the view from so far to the right, down and forward of the camera, in the "
                       "trajectory's unit; write --views=-0.1,0,0")  # fmt: skip
    group.add_argument("--view-every", type=integer(1), default=1, metavar="N", help="a view for every n-th pose")
    group.add_argument("--view-node-name", default="view_synthesis_node", help="first part of the views' topics")
    group.add_argument("--view-steps", type=integer(1), default=1, help="denoising steps of a view")
    add_model_arguments(parser, steps=1)
    add_estimate_arguments(parser)
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.metres_per_unit != 1.0 and args.scale_source != "fixed":
        parser.error("--metres-per-unit needs --scale-source fixed")
    # Heavy imports only now: --help must answer at once.
    from .bag_writer import check_output
    from .entry_points import provide_rclpy
    from .interrupts import interrupted_by_signals

    check_output(args.bag, args.out, args.force)
    provide_rclpy()
    from .bag_recording import Recording

    with (
        interrupted_by_signals(),
        Recording(args.bag, args.image_topic, args.camera_info_topic, args.rectified_images) as recording,
    ):
        return _run(recording, args)


def _run(recording, args: argparse.Namespace) -> int:
    from rays_as_pixels_model.bags import BagError
    from rays_as_pixels_model.pipeline import Pipeline

    from .bag_results import Names, Results, tf_conflicts
    from .offline_track import OfflineTracker
    from .progress import progress
    from .scale import MetricScale

    node, views = ("/" + name.strip("/") for name in (args.node_name, args.view_node_name))
    names = Names(args.map_frame, args.odom_frame, args.base_frame, node, views)
    _check_topics(recording, names, args)
    first = next(recording.frames(), None)
    if first is None:
        raise BagError(f"{args.bag}: no image of {recording.image_topic} can be used: {_reasons(recording)}")
    recording.mount(names.base, first.frame_id, first.stamp)  # fails now rather than after minutes of work
    recording.refused.clear()
    with_tf = args.publish_map_to_odom_tf, args.publish_odom_to_base_tf
    taken = tf_conflicts(recording, names, first.frame_id) if any(with_tf) else []
    if taken:
        with_tf = False, False
        print(
            f"no TF is written: the bag's own TF places {' and '.join(taken)} already, and a frame has one parent "
            "(pose, odometry, path and frusta are; another --odom-frame or --base-frame gives TF a place of its own)"
        )
    pipeline = Pipeline.from_checkpoint(args.checkpoint, device=args.device)
    scale = MetricScale(args.scale_source, fixed=args.metres_per_unit)
    tracker = OfflineTracker(
        pipeline, args.window_hop, steps=args.steps, passes=args.passes, refine=args.refine, samples=args.samples,
        sample_every=args.sample_every, seed=args.seed, max_residual=args.max_residual, carry_scale=args.carry_scale,
        max_scale_step=args.max_scale_step,
    )  # fmt: skip
    started = time.perf_counter()
    expected = -(-recording.image_count // args.window_stride)
    with progress("estimating", expected) as advance:
        placed = tracker.place(_decoded(recording, args.window_stride, pipeline.config.picture_size), advance)
    if not placed:
        tally = tracker.tally
        why = f"every window was lost: {tally.reason}" if tally.windows else _too_few(recording, pipeline, expected)
        raise BagError(f"{args.bag}: no pose: {why}")
    seconds, refused = time.perf_counter() - started, dict(recording.refused)
    results = Results(
        recording, {frame.stitched.frame: frame for frame in placed}, names, scale,
        args.path_max_size, args.frustum_size, args.frusta_max_count, with_tf,
    )  # fmt: skip
    views, untyped = _write(recording, results, pipeline, args)
    _print(recording, results, tracker.tally, refused, views, untyped, seconds, args)
    return 0


def _check_topics(recording, names, args: argparse.Namespace) -> None:
    """Refuse a bag that holds what would be written, before minutes of work."""
    from rays_as_pixels_model.bags import BagError

    for node, option in ((names.node, "--node-name"), (names.views if args.views else None, "--view-node-name")):
        taken = [topic for topic in recording.topics if node and topic.startswith(node + "/")]
        if taken:
            raise BagError(f"{args.bag}: holds {', '.join(taken)} already; choose another {option}")


def _decoded(recording, stride: int, size: tuple[int, int]):
    """Yield every stride-th frame of each life, decoded and fitted to the model's (width, height)."""
    from .offline_track import DecodedFrame

    count, life = 0, 0
    for frame in recording.frames():
        count, life = (count, life) if frame.life == life else (0, frame.life)
        count += 1
        if (count - 1) % stride == 0:
            decoded = recording.decode(frame, size)
            if decoded is not None:
                yield DecodedFrame(frame.index, *decoded, frame.life, frame.stamp)


def _write(recording, results, pipeline, args: argparse.Namespace) -> tuple[int, list[str]]:
    """Write the new bag; return the number of views and the topics without a definition."""
    from rays_as_pixels_model.bags import bag_messages

    from . import bag_writer
    from .bag_messages import to_cdr
    from .progress import progress

    topics = results.topics(views=args.views is not None)
    views = 0
    reader = recording.reader
    with bag_writer.replacing_bag(args.out) as folder:
        writer = bag_writer.writer(folder, args.out)
        with writer, progress("writing", len(results.placed)) as advance:
            copy = bag_writer.BagCopy(reader, writer, topics)
            index = -1
            for connection, received, raw in bag_messages(args.bag, reader, reader.connections):
                copy.copy(connection, received, raw)
                index += connection.topic == recording.image_topic
                if connection.topic != recording.image_topic or index not in results.placed:
                    continue
                frame = recording.frame(index, connection.msgtype, raw)
                made = list(results.of(frame))
                if args.views is not None and (results.poses - 1) % args.view_every == 0:
                    seen = list(results.view(pipeline, frame, args.views, args.view_steps, args.seed))
                    made, views = made + seen, views + bool(seen)
                for topic, message in made:
                    copy.add(topic, received, to_cdr(message))
                advance()
    return views, copy.untyped


def _reasons(recording) -> str:
    return "; ".join(f"{count} times: {reason}" for reason, count in recording.refused.most_common(3)) or "unknown"


def _too_few(recording, pipeline, expected: int) -> str:
    text = f"{expected} frames are used, and one window needs {pipeline.config.frames}"
    return f"{text} (refused: {_reasons(recording)})" if recording.refused else text


def _print(recording, results, tally, refused: dict, views: int, untyped: list[str], seconds: float, args) -> None:
    scale = results.scale
    unit = "metres" if scale.metric else "scene scale, not metres (--scale-source fixed)"
    print(f"{recording.image_count} images of {recording.image_topic} with {recording.info_topic}: ", end="")
    print(f"{results.poses} poses in {seconds:.1f} s, {tally.windows} windows, unit: {unit}")
    if tally.lost:
        print(f"{tally.lost} windows lost (the last: {tally.reason}), {tally.breaks} breaks in the trajectory")
    for reason, count in refused.items():
        print(f"{count} images refused: {reason}")
    if untyped:
        print(f"copied without message definitions, as the bag has none: {', '.join(untyped)}")
    beside = f"; {views} views" if views else ""
    print(f"wrote {args.out}: the {len(recording.topics)} topics of the bag and {results.names.node}/*{beside}")
