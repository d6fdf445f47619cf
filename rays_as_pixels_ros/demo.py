# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels demo`: the whole chain on this machine, as separate processes over DDS on loopback.

A camera plays (a procedural scene with known truth, or the user's own images), trajectory_node follows it,
view_synthesis_node renders what render_client asks for, and a recorder here takes everything down from the wire.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .arguments import command_parser, device, integer, number

_ALL = 285.0  # seconds for all of it
_TRIES = 6  # of a request: the camera may stand too still to tell the scale at one moment
_VIEWS = 4  # in a request
# Of the first scenes, the one whose camera keeps all along to the speeds and the depth that training has most of.
_SEED = 2
_RESERVE = 0.15  # share of the time that is kept for the report
_HURRY = 0.4  # share of the time that must be left for one more request
_CAMERA_FRAME = "camera_truth_optical"
_FILES = ("trajectory.png", "views.png", "raxels.png", "demo.mp4", "trajectory.txt", "summary.json")


def build_parser():
    """Make the argument parser."""
    parser = command_parser(
        "demo",
        "Start a camera, both model nodes and a client as separate processes on this machine, and write what came out: "
        "summary.json, trajectory.png, views.png, raxels.png, demo.mp4, trajectory.txt and the nodes' logs. Takes less "
        "than five minutes.",
    )
    parser.add_argument(
        "--input", metavar="PATH", help="video file, image folder, posed images or webcam number; without it, a "
        "procedural scene with known truth"
    )  # fmt: skip
    parser.add_argument("--out", default="out/demo", metavar="DIR", help="folder for the results")
    parser.add_argument(
        "--seconds", type=number(0, 181), default=15.0, help="how much of the camera's time is followed"
    )
    parser.add_argument("--seed", type=integer(0), default=_SEED,
                        help="of the procedural scene, its path and the views")  # fmt: skip
    parser.add_argument("--scenes", default="plain",
                        help="the procedural scene: plain, varied, or of geometry, lights, sensor, motion, lens joined "
                        "by '+' (docs/scenes.md)")  # fmt: skip
    parser.add_argument("--difficulty", type=number(0, 1, inclusive=True), default=1.0, help="of --scenes; 0 is plain")
    parser.add_argument("--fov", type=number(10, 160), default=70.0, metavar="DEG",
                        help="horizontal field of view of an input that states none")  # fmt: skip
    parser.add_argument("--checkpoint", metavar="DIR", help="checkpoint folder; without it, the one that is shipped")
    parser.add_argument("--device", type=device, default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--steps", type=integer(1), default=1, help="denoising steps of a view")
    parser.add_argument("--timeout", type=number(0, 86401), default=_ALL, help="seconds for all of it, then it fails")
    parser.add_argument("--domain", type=integer(0), help="ROS_DOMAIN_ID; without it, one that nobody uses here")
    return parser


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.input is not None and args.scenes != "plain":
        parser.error("--scenes is for the procedural scene, not for --input")
    started = time.monotonic()
    # Heavy imports only now: --help must answer at once.
    import embedded_ros
    from rays_as_pixels_model.checkpoint import read_config
    from rays_as_pixels_model.files import check_writable
    from rays_as_pixels_model.scenes import Profile

    from .demo_processes import DemoError, NodeProcesses, free_domain
    from .demo_source import open_source
    from .interrupts import interrupted_by_signals

    try:
        Profile.parse(args.scenes)
    except ValueError as error:
        parser.error(str(error))
    config = read_config(args.checkpoint)[1]
    out = Path(args.out)
    check_writable(out / "summary.json")
    source = open_source(
        args.input, args.seed, args.seconds, args.fov, config.frames, args.scenes, args.difficulty
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    domain = free_domain() if args.domain is None else args.domain
    runtime = embedded_ros.install()
    with interrupted_by_signals(), tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        work = Path(folder)
        try:
            with NodeProcesses(work / "logs", domain, embedded_ros.loopback_uri()) as nodes:
                _say(f"{source.name}, {runtime} runtime, ROS_DOMAIN_ID {domain}")
                run = _Run(args, source, config, nodes, work, started + args.timeout)
                run.record_everything()
        except DemoError as error:
            print(f"rays-as-pixels: error: {error}", file=sys.stderr)
            return 1
        summary = run.write(work, runtime)
        _move(work, out)
    _show(summary, source, run, out, time.monotonic() - started)
    return 0


def _say(text: str) -> None:
    print(f"demo: {text}", file=sys.stderr, flush=True)


class _Run:
    """One run: the processes, what is recorded, and the report."""

    def __init__(self, args, source, config, nodes, work: Path, end: float):
        self._args, self._source, self._config, self._nodes, self._work = args, source, config, nodes, work
        self._end = end
        self.answers: list = []
        self.refused: list[str] = []
        self.record = None

    def record_everything(self) -> None:
        """Start the nodes, follow the camera, ask for views."""
        from .demo_recorder_node import Recorder
        from .demo_source import requests

        self._start_nodes()
        size = (2 * self._config.width, 2 * self._config.height)
        with Recorder(size, _CAMERA_FRAME) as recorder:
            self._recorder, self.record = recorder, recorder.record
            planned = requests(self._source.reach(self._config.frames), _VIEWS, self._args.seed)
            self._wait(lambda: self.record.images, "starting the nodes", "the first image")
            self._wait(lambda: self.record.poses, "waiting for the first pose", "the first pose")
            for number, request in enumerate(planned):
                if self.answers and self._hurry():
                    _say(f"time runs short: {len(planned) - number} of {len(planned)} requests are left out")
                    break
                self._ask(number, len(planned), request)
            seconds = self._args.seconds
            self._wait(self._followed_enough, "following the camera", "the trajectory", seconds, done=self._followed)

    def _hurry(self) -> bool:
        """Whether one more request could take the time that the rest needs."""
        return time.monotonic() > self._end - _HURRY * self._args.timeout

    def _followed(self) -> float:
        """Seconds of the camera's time between the first and the newest pose."""
        stamps = list(self.record.poses)
        return (max(stamps) - min(stamps)) * 1e-9

    def _followed_enough(self) -> bool:
        """Whether all is followed, or time runs short and there are some windows at least."""
        late = time.monotonic() > self._end - _RESERVE * self._args.timeout
        return self._followed() >= self._args.seconds or (late and len(self.record.poses) >= 2 * self._config.frames)

    def _start_nodes(self) -> None:
        args, source = self._args, self._source
        model = {"checkpoint": str(Path(args.checkpoint).resolve()) if args.checkpoint else "", "device": args.device}
        fixed = {} if source.has_poses else {"metres_per_unit": 1.0}
        parameters = {
            # No robot is under this camera: its optical frame is the base, and its TF is the truth's.
            "trajectory_node": {
                **model, "base_frame": "", "publish_map_to_odom_tf": False, "publish_odom_to_base_tf": False,
                "window_stride": source.stride, "publish_raxels": True, "queue_size": source.queue_size,
                "image_qos": "reliable",
            },
            "view_synthesis_node": {
                **model, "fixed_frame": "world", "buffer_stride": source.stride, "steps": args.steps,
                "buffer_size": max(24, 2 * self._config.frames * source.stride), "image_qos": "reliable", **fixed,
            },
            "camera_player": {
                **source.arguments, "frame_id": _CAMERA_FRAME, "world_frame": "world", "publish_truth_tf": True,
                "wait_for_subscribers": 3,
            },
        }  # fmt: skip
        for name, values in parameters.items():
            given = [part for key, value in values.items() for part in ("-p", f"{key}:={_yaml(value)}")]
            self._nodes.start(name, name, ["--ros-args", *given])

    def _wait(self, condition, doing: str, what: str, expected: float | None = None, done=None, client=None):
        """Wait for a condition while every process lives; with `expected`, done() of it is shown as a bar."""
        from .demo_processes import DemoError
        from .progress import progress

        begun = time.monotonic()
        with progress(doing, None if expected is None else max(1, round(expected))) as move:
            while not condition():
                self._nodes.check(may_end=client)
                self._recorder.check()
                now = time.monotonic()
                if now >= self._end:
                    raise DemoError(
                        f"{self._args.timeout:g} s are over (--timeout) while {doing}; the ends of the logs:\n"
                        f"{self._nodes.tails()}"
                    )
                if expected is not None:
                    move(round(min(done(), expected)), max(1, round(expected)))
                time.sleep(0.05)
        if what:
            _say(f"{what}, {time.monotonic() - begun:.1f} s")

    def _ask(self, number: int, of: int, request) -> None:
        """Let render_client ask for the views of a request; again if they are refused at that moment."""
        from rays_as_pixels_model.files import write_trajectory

        from .demo_processes import DemoError

        arguments = list(request.arguments)
        if request.T_camera_view is not None:
            poses = self._work / f"request_{number}.txt"
            write_trajectory(poses, range(len(request.T_camera_view)), request.T_camera_view)
            arguments += ["--tum", str(poses)]
        begun = time.monotonic()
        for attempt in range(_TRIES):
            name, out = f"render_client_{number}_{attempt}", self._work / f"request_{number}"
            before = len(self.record.views)
            rest = ["--out", str(out), "--seed", str(self._args.seed), "--timeout", f"{self._args.timeout:g}"]
            client = self._nodes.start(name, "render_client", [*arguments, *rest])
            doing = f"asking for views, request {number + 1} of {of}"
            self._wait(lambda c=client: c.status is not None, doing, "", client=client)
            self._nodes.forget(client)
            if client.status == 0:
                told = json.loads((out / "views.json").read_text(encoding="utf-8"))
                count = told["views"]
                self._wait(lambda n=before + count: len(self.record.views) >= n, "recording the views", "")
                _say(f"views of request {number + 1} of {of}, {time.monotonic() - begun:.1f} s")
                self.answers.append((told, self.record.views[before : before + count]))
                return
            if client.status != 1 or "refused:" not in client.last_lines():
                raise client.failed()
            self.refused.append(client.last_lines().strip().splitlines()[-1].partition("refused:")[2].strip())
            _say(f"request {number + 1} refused: {self.refused[-1]}")
            if self.answers and self._hurry():
                return
            time.sleep(0.5)
        if not self.answers:
            raise DemoError(f"view_synthesis_node refused request {number + 1} {_TRIES} times: {self.refused[-1]}")

    def write(self, folder: Path, runtime: str) -> dict:
        """Write the report into a folder; returns what summary.json holds."""
        import numpy as np

        from rays_as_pixels_model.files import write_text, write_trajectory

        from . import demo_figures, demo_report
        from .progress import progress

        source, record, window = self._source, self.record, self._config.frames
        with progress("writing the report", 5) as move:
            track = demo_figures.make_track(record, self._args.seconds)
            views = demo_figures.make_views(record, self.answers, source)
            summary = demo_figures.summarise(runtime, track, views, window, record.pose_times, record.goal_times)
            move()
            title = f"{source.name}: {len(track.stamps)} poses over {track.seconds[-1]:.0f} s, heard on the wire"
            demo_report.draw_trajectory(folder / "trajectory.png", track, window, title)
            move()
            demo_report.draw_views(folder / "views.png", views, f"{source.name}: views on request")
            metres = float(np.median([view.metres_per_unit for view in views]))
            demo_report.draw_raxels(folder / "raxels.png", record, track, source, metres, window)
            move()
            demo_report.write_film(folder / "demo.mp4", record, track)
            note = "optical camera to map (REP 103), up to scale; stamps are those of the images"
            write_trajectory(folder / "trajectory.txt", track.stamps * 1e-9, track.T_map_camera, note)
            write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
        return summary


def _yaml(value) -> str:
    """Write a parameter's value as YAML, text always in quotes."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return json.dumps(value)


def _move(work: Path, out: Path) -> None:
    """Move the report's files to where they belong, each whole; summary.json, which says that all is there, is last."""
    (out / "logs").mkdir(parents=True, exist_ok=True)
    for log in (work / "logs").iterdir():
        os.replace(log, out / "logs" / log.name)
    for folder in sorted(work.glob("request_*/")):
        if folder.is_dir():
            shutil.rmtree(out / folder.name, ignore_errors=True)
            os.replace(folder, out / folder.name)
    for name in _FILES:
        os.replace(work / name, out / name)


def _show(summary: dict, source, run: _Run, out: Path, seconds: float) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    pose, views, timing = summary["pose"], summary["views"], summary["timing"]

    def cell(value, form: str) -> str:
        return "unknown" if value is None else format(value, form)

    table = Table(title=f"{source.name} ({summary['runtime']})", title_justify="left")
    for column in ("figure", "model", "nothing done", "rotation warp"):
        table.add_column(column, justify="left" if column == "figure" else "right")
    table.add_row("poses", str(pose["frames"]), "", "")
    table.add_row(
        "rotation error over a window, median deg", cell(pose["rotation_error_deg_median"], ".2f"),
        cell(pose["rotation_error_deg_identity"], ".2f"), "",
    )  # fmt: skip
    table.add_row(
        "direction error over a window, median deg", cell(pose["translation_direction_error_deg_median"], ".1f"), "", ""
    )
    table.add_row("views", str(views["count"]), "", "")
    table.add_row(
        "PSNR of views, dB", cell(views["psnr"], ".2f"), cell(views["psnr_copy_nearest"], ".2f"),
        cell(views["psnr_rotation_warp"], ".2f"),
    )  # fmt: skip
    offered = source.rate / source.stride
    table.add_row(f"poses per second (images used: {offered:.1f})", cell(timing["pose_frames_per_s"], ".1f"), "", "")
    table.add_row("seconds per view", cell(timing["seconds_per_view"], ".2f"), "", "")
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    if pose["rotation_error_deg_median"] is None:
        print("No true poses come with this input, so pose errors are unknown.")
    if views["psnr"] is None:
        print("No true pictures are known at the requested poses, so the PSNR of the views is unknown.")
    if run.refused:
        print(f"{len(run.refused)} requests for views were refused, the last because: {run.refused[-1]}")
    print(f"wrote {', '.join(_FILES)} to {out} in {seconds:.0f} s")
