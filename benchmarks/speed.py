# SPDX-License-Identifier: Apache-2.0
"""`rays-as-pixels bench`: what the product takes of this machine, as ratios measured in one run.

What is compared runs in turns and the best turn of each counts. `--clock cpu` counts the processor time of this process
in place of the wall's: on a machine that others use it is the steadier measure, and with one thread the same thing.

Axes: T frames of a window. Figures of a run are nested in the file as their names are here, `pose/frames_per_s`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rays_as_pixels_ros.arguments import add_estimate_arguments, add_model_arguments, command_parser, integer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
HOP = 2  # new frames of a window, as the trajectory node has by default with windows of 5


def main(argv: list[str]) -> int:
    """Run the command."""
    parser = command_parser("bench", "Measure speed beside the hardware's: pose, views, engines, and what else one "
                            "would use. Ratios are of this run; figures per second are of this machine.")  # fmt: skip
    add_model_arguments(parser, steps=1)
    add_estimate_arguments(parser)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="wall, or this process's processor time")
    parser.add_argument("--repeats", type=integer(1), default=10, help="turns of what is short; the best counts")
    parser.add_argument("--peers", type=integer(0), default=6, metavar="N",
                        help="held-out windows for OpenCV and COLMAP (0: none)")
    parser.add_argument("--clips", nargs="+", default=[], metavar="PATH",
                        help="posed clips (real video): the peers on N windows of each as well")
    parser.add_argument("--node", type=integer(0), default=25, metavar="N",
                        help="windows that the trajectory node gets over DDS, beside its bare pipeline (0: none)")
    parser.add_argument("--images", action="store_true", help="what a 1920x1080 image costs before it is in a window")
    parser.add_argument("--plot", metavar="FILE", help="draw growth with frames, resolution, steps and views (PNG)")
    parser.add_argument("--json", metavar="FILE", help="write the figures to FILE")
    args = parser.parse_args(argv)
    # Heavy imports only now: --help must answer at once.
    from rays_as_pixels_model.files import write_text
    from rays_as_pixels_model.pipeline import Pipeline

    pipe = Pipeline.from_checkpoint(args.checkpoint, device=args.device)
    passes = args.passes or pipe.config.pose_passes
    bench = Bench(pipe, CLOCKS[args.clock], args.repeats, args.checkpoint)
    report = {"hardware": hardware(args.clock), "preset": pipe.config.preset, "steps": args.steps, "passes": passes}
    report["refined"] = args.refine
    report.update(bench.run(args.steps, passes, args.refine))
    if args.peers:
        from .peers import compare

        report["peers"] = compare(pipe, args.peers, args.steps, passes, args.refine, CLOCKS[args.clock], args.clips)
    if args.images:
        from .images import measure_images

        report["images"] = measure_images(pipe.config.width, pipe.config.height, CLOCKS[args.clock], args.repeats)
    if args.plot:
        from .growth import measure_growth, plot_growth

        report["growth"] = measure_growth(pipe, CLOCKS[args.clock], max(2, args.repeats // 3))
        plot_growth(report["growth"], args.plot)
    if args.node:
        from .latency import WARM, measure

        # Wall time whatever the clock: two processes share the work.
        node = measure(args.node + WARM, args.checkpoint)
        report["pose"] |= {"node_over_pipeline": node["ratio"][50], "node": node}
    for name, value in flat(report):
        print(f"{name:<44} {value:.4g}" if isinstance(value, float) else f"{name:<44} {value}")
    if args.json:
        write_text(args.json, json.dumps(report, indent=1) + "\n")
    return 0


def hardware(clock: str) -> dict:
    """Say what the run ran on."""
    import torch

    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    try:
        onnxruntime = version("onnxruntime")
    except PackageNotFoundError:
        onnxruntime = None
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": model, "cpus": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu, "clock": clock,
        "load": os.getloadavg()[0], "torch": torch.__version__, "onnxruntime": onnxruntime,
    }  # fmt: skip


def in_turns(calls: dict[str, Callable], clock: Callable[[], float], repeats: int) -> dict[str, float]:
    """Best seconds of each call, run in turns after one turn that does not count."""
    best = dict.fromkeys(calls, float("inf"))
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if turn:
                best[name] = min(best[name], clock() - start)
    return best


def flat(report: dict, prefix: str = "") -> list[tuple[str, object]]:
    """Nested figures as (a/b/c, value)."""
    out = []
    for name, value in report.items():
        out += flat(value, f"{prefix}{name}/") if isinstance(value, dict) else [(f"{prefix}{name}", value)]
    return out


def panning(count: int, width: int, height: int):
    """Make pictures (count, height, width, 3) uint8 of a smooth texture that moves on by 10 pixels."""
    import cv2
    import numpy as np

    coarse = np.random.default_rng(0).integers(0, 255, (height // 8, (width + 10 * count) // 8, 3), dtype=np.uint8)
    whole = cv2.resize(coarse, (width + 10 * count, height), interpolation=cv2.INTER_CUBIC)
    return np.stack([whole[:, 10 * i : 10 * i + width] for i in range(count)])


class Bench:
    """The product's own paths on one recording, 640x480."""

    def __init__(self, pipe, clock: Callable[[], float], repeats: int, folder: str | None) -> None:

        from rays_as_pixels_model.geometry import Intrinsics

        self.pipe, self.clock, self.repeats, self._folder = pipe, clock, repeats, folder
        self._temporary = tempfile.TemporaryDirectory()
        self._exported = str(Path(self._temporary.name) / "onnx")
        self.frames = panning(pipe.config.frames, 640, 480)
        self.camera = Intrinsics.from_fov(65, 640, 480)

    def run(self, steps: int, passes: int, refine: bool) -> dict:
        """Measure; {pose, views}."""
        import numpy as np

        from rays_as_pixels_model.geometry import fit_frames
        from rays_as_pixels_model.raxels import read_cameras
        from rays_as_pixels_model.refinement import refine_cameras

        pipe, config = self.pipe, self.pipe.config
        fitted, camera = fit_frames(self.frames, self.camera, config.width, config.height)
        raxels = pipe.estimate_trajectory(fitted, camera, steps).raxels
        large, large_camera = fit_frames(self.frames, self.camera, *config.picture_size)
        sampler = {"steps": steps, "passes": passes, "refine": refine}
        still = np.tile(np.eye(4), (config.frames, 1, 1))
        T, video = np.eye(4)[None], pipe.model.array(fitted[None].astype(np.float32) * np.float32(2 / 255) - 1)
        calls = {
            "gemm": _gemm,
            "window": lambda: pipe.estimate_trajectory(self.frames, self.camera, **sampler),
            "next window": lambda: self._next_window(large, large_camera, sampler),
            "step": lambda: pipe.estimate_trajectory(self.frames, self.camera, steps=1, passes=1, refine=False),
            "refine": lambda: refine_cameras(large, still, large_camera),
            "resize": lambda: fit_frames(self.frames, self.camera, config.width, config.height),
            "encode": lambda: pipe.model.encode_frames(video, config.groups),
            "velocity": velocity_call(pipe.model),
            "read": lambda: read_cameras(raxels, camera, cell=config.codec.cell),
            "view": lambda: pipe.render_views(self.frames[:1], T, self.camera, T, steps=steps),
        }
        other = self._other_engine()
        if other is not None:
            calls["onnx velocity"] = velocity_call(other.model)
            calls["onnx window"] = lambda: other.estimate_trajectory(self.frames, self.camera, **sampler)
        best = in_turns(calls, self.clock, self.repeats)
        peak, flops = _GEMM_FLOPS / best["gemm"], window_flops(config)
        pose = {
            "frames_per_s": HOP / best["window"],
            "window_s": best["window"],
            "one_step_one_pass_window_s": best["step"],
            "refinement_over_window": best["refine"] / best["window"] if refine else 0.0,
            "new_frame_over_window": best["next window"] / HOP / best["window"],
            "share_of_gemm_peak": flops / best["velocity"] / peak,
            "share_of_window": {
                "resize": best["resize"] / best["window"],
                "encode": passes * best["encode"] / best["window"],
                "velocity": passes * steps * best["velocity"] / best["window"],
                "read_cameras": passes * best["read"] / best["window"],
            },
            "start_to_first_pose": first_pose(self._folder),
        }
        if other is not None:
            pose["onnxruntime"] = {
                "start_to_first_pose": first_pose(self._exported),
                "frames_per_s": HOP / best["onnx window"],
                "share_of_gemm_peak": flops / best["onnx velocity"] / peak,
            }
            pose["onnxruntime_over_torch"] = best["velocity"] / best["onnx velocity"]
            pose["onnxruntime_over_torch_window"] = best["window"] / best["onnx window"]
        return {"gemm_peak_gflops": peak / 1e9, "pose": pose, "views": {"seconds_per_view": best["view"]}}

    def _next_window(self, large, camera, sampler: dict) -> None:
        """What a stream does for HOP new frames: the others of the window have been shrunk already."""
        from rays_as_pixels_model.geometry import fit_frames

        fit_frames(self.frames[-HOP:], self.camera, *self.pipe.config.picture_size)
        self.pipe.estimate_trajectory(large, camera, **sampler)

    def _other_engine(self):
        """The same model on ONNX Runtime, where that is installed and the given model is torch's."""
        from rays_as_pixels_model.joint import RaysAsPixels
        from rays_as_pixels_model.pipeline import Pipeline

        if not isinstance(self.pipe.model, RaysAsPixels):
            return None
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError:
            return None
        from rays_as_pixels_model.export import write_export

        model, device = self.pipe.model, self.pipe.device
        write_export(model.on("cpu"), Path(self._exported), {"preset": self.pipe.config.preset, "precision": "fp32"})
        model.on(device)
        return Pipeline.from_checkpoint(self._exported, device="auto" if device.type == "cuda" else "cpu")


_FIRST_POSE = """
import sys
import numpy as np
from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.pipeline import Pipeline
pipe = Pipeline.from_checkpoint(sys.argv[1] or None)
frames = np.random.default_rng(0).integers(0, 255, (pipe.config.frames, 480, 640, 3), dtype=np.uint8)
pipe.estimate_trajectory(frames, Intrinsics.from_fov(65, 640, 480))
"""


def first_pose(folder: str | None, repeats: int = 3) -> dict[str, float]:
    """Seconds from the start of a process to its first pose, wall and processor time; the best of some processes."""
    wall, cpu = [], []
    for _ in range(repeats):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-c", _FIRST_POSE, folder or ""], check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        wall.append(time.perf_counter() - start)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"wall_s": min(wall), "cpu_s": min(cpu)}


_GEMM_FLOPS = 2 * 1024 * 1024 * 1024


def _gemm() -> None:
    import torch

    global _factor
    if _factor is None:
        _factor = torch.randn(1024, 1024)
    _factor @ _factor


_factor = None


def velocity_call(model, batch: int = 1) -> Callable[[], object]:
    """Return a call that evaluates the velocity of `batch` windows."""
    import numpy as np

    generator, groups = model.generator(0), model.config.groups
    z, r = (model.noise(shape, generator) for shape in model.latent_shapes(batch, groups))
    t_z, t_r = (model.array(np.zeros(x.shape[:2], np.float32)) for x in (z, r))
    index = model.array(np.zeros(batch, np.int64))
    return lambda: model.velocity(z, r, t_z, t_r, index, groups)


def window_flops(config) -> float:
    """Floating-point operations of one evaluation of a window: its matrix products, attention included."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from rays_as_pixels_model.joint import RaysAsPixels

    with torch.device("meta"):
        model = RaysAsPixels(config)
        z, r = (torch.zeros(shape) for shape in model.latent_shapes(1, config.groups))
        times = torch.zeros(z.shape[:2]), torch.zeros(r.shape[:2])
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            model.transformer(z, r, *times, torch.zeros(1, dtype=torch.int64), config.groups)
    return float(counter.get_total_flops())  # attention, too: on the meta device it is two products
