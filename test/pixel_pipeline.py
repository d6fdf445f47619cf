# SPDX-License-Identifier: Apache-2.0
"""Nodes over a pipeline whose answers are known exactly, for tests of what the nodes do around the model.

The camera's position on a known path is painted into its images as brightness, so that a window's poses can be read
off its pixels; each window gets a unit of its own, as the model's do. Run as a script, this is a node process:
`python pixel_pipeline.py NODE --ros-args ...`.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy.spatial.transform import Rotation

from rays_as_pixels_model.calibration import Calibration

LEVELS = 60  # distinguishable brightness levels: frame i of the path has brightness 4 i + 3
STEP_S = 0.03
HEAVY = 200 * 2**20  # bytes


def path():
    """T_world_camera (LEVELS, 4, 4), metres: a smooth curve, optical axes, from the identity."""
    poses = np.tile(np.eye(4), (LEVELS, 1, 1))
    t = np.arange(LEVELS) * 0.1
    poses[:, :3, :3] = Rotation.from_euler("yx", np.stack([np.sin(t), 0.3 * np.sin(2 * t)], axis=1)).as_matrix()
    poses[:, :3, 3] = np.stack([np.sin(t), 0.2 * (np.cos(t) - 1), 0.5 * t], axis=1)
    return poses


def picture(index, height=48, width=72):
    """Image of frame `index`: six stripes about its brightness, so that there is something to see."""
    stripes = np.where(np.arange(width) * 6 // width % 2, 3, -3)
    return np.broadcast_to((4 * index + 3 + stripes)[None, :, None], (height, width, 3)).astype(np.uint8)


def index_of(frame):
    """Frame number of an image."""
    return int(round((float(frame.mean()) - 3) / 4))


class PixelPipeline:
    """The pipeline's interface over painted images."""

    def __init__(self, frames=5, seconds=0.0, lost=None):
        self._seconds = seconds  # that a window takes
        self._lost = lost  # first frame of the one window that no camera explains
        self.config = SimpleNamespace(frames=frames, height=64, width=96, picture_size=(192, 128), pose_passes=1)
        measured = {"max_residual": 0.1, "samples": 8, "windows": 1, "correlation_frames": 5.0}
        refined = Calibration(4.0, 5.0, translation_motion=0.02, rotation_motion=0.01, **measured)
        self.calibration = Calibration(
            3.0, 2.0, translation_motion=0.2, rotation_motion=0.1, refined=refined, **measured
        )  # fmt: skip
        self.device = "cpu"

    def predict_memory(self, sources=None, video=False):
        """A MiB for each image."""
        made = self.config.frames - 1 if video else 1
        return 2**20 * (self.config.frames if sources is None else sources + made)

    def estimate_trajectory(self, frames, intrinsics, steps=2, samples=1, seed=0, reference=0, passes=None,
                            refine=True):  # fmt: skip
        """The cameras of the path; refined or not they are the same, and what is said of their errors differs."""
        if len(frames) != self.config.frames:
            raise ValueError(f"{len(frames)} frames; this model takes {self.config.frames}")
        time.sleep(self._seconds)
        numbers = [index_of(frame) for frame in frames]
        truth = path()[numbers]
        relative = np.linalg.inv(truth[reference]) @ truth
        relative[:, :3, 3] *= 0.7 + 0.1 * (numbers[reference] % 7)  # the unit of this window
        covariance = np.tile(np.eye(6) * 1e-4, (len(frames), 1, 1))
        covariance[reference] = np.eye(6) * 1e-8
        return SimpleNamespace(
            T_reference_camera=relative,
            intrinsics=intrinsics,
            residual=np.full(len(frames), 1.0 if numbers[0] == self._lost else 0.0),
            covariance=covariance,
            raxels=np.zeros((len(frames), 32, 48, 3)),
            turned_by=None,
            refined=SimpleNamespace(step_covariance=np.tile(np.eye(6) * 4e-4, (len(frames), 1, 1))) if refine else None,
        )

    def draw_cameras(self, frames, intrinsics, samples=8, steps=2, seed=0, reference=0, turned_by=None):
        """Draws about the estimate: 1 cm of the unit and 0.01 radians either way along each axis, in turn.

        As many times as far where frames of the path are missing in the window. The frames are printed.
        """
        numbers = [index_of(frame) for frame in frames]
        print(f"drawn {numbers}", flush=True)
        far = 0.01 * np.diff(numbers).max(initial=1)
        found = self.estimate_trajectory(frames, intrinsics, reference=reference).T_reference_camera
        draws = np.tile(found, (samples, 1, 1, 1))
        for number, draw in enumerate(draws):
            offset = np.zeros(3)
            offset[number // 2 % 3] = far * (-1) ** number
            draw[1:, :3, 3] += offset
            draw[1:, :3, :3] = Rotation.from_rotvec(offset).as_matrix() @ draw[1:, :3, :3]
        return draws

    def close_the_loop(self, frames, intrinsics, pose_steps=1, view_steps=2, seed=0, *, estimate=None):
        """Figures that tell which window came: its first frame number in degrees and scene depths."""
        number = index_of(frames[0])
        if number >= 20:
            raise ValueError("no camera made these raxels")
        return SimpleNamespace(rotation_error_deg=float(number), T_err=float(number), psnr=20.0 + view_steps)

    def render_views(self, frames, T_world_source, source_intrinsics, T_world_target, target_intrinsics,
                     metres_per_unit=1.0, steps=4, seed=0, on_step=None, on_view=None):  # fmt: skip
        """View i is painted with the distance of its camera from the first source, in centimetres of the unit.

        Each step is printed, so that a test can count those that were made, not only those that were reported. It takes
        STEP_S, or as many milliseconds as the seed says.
        """
        distance = np.linalg.norm(T_world_target[:, :3, 3] - T_world_source[0, :3, 3], axis=1) / metres_per_unit
        views = np.stack([np.full((64, 96, 3), int(round(100 * d)) % 256, dtype=np.uint8) for d in distance])
        camera = target_intrinsics.resized(96, 64)
        for number, view in enumerate(views):
            for step in range(number * steps, (number + 1) * steps):
                time.sleep(seed / 1000 if seed else STEP_S)
                print("denoised", flush=True)
                if on_step is not None and not on_step(step + 1, steps * len(views), view):
                    raise RuntimeError("cancelled")
            if on_view is not None:
                on_view(number, view, camera)
        return SimpleNamespace(frames=views, intrinsics=camera)

    def imagine(self, source_frames, intrinsics, steps=4, seed=0, on_step=None):
        """Frames of the brightness of the first source; the sources stand where the known path has them."""
        numbers = [index_of(frame) for frame in source_frames]
        count = self.config.frames
        frames = np.stack([picture(numbers[0], 64, 96)] * count)
        for step in range(steps):
            time.sleep(STEP_S)
            if on_step is not None and not on_step(step + 1, steps, frames[-1]):
                raise RuntimeError("cancelled")
        sources = np.linalg.inv(path()[numbers[0]]) @ path()[numbers]
        return SimpleNamespace(
            frames=frames, T_reference_camera=path()[:count], T_reference_source=sources,
            intrinsics=intrinsics.resized(96, 64),
        )  # fmt: skip

    def metres_per_unit(self, frames, intrinsics, T_world_camera):
        if np.ptp(T_world_camera[:, :3, 3], axis=0).max() < 1e-3:
            raise ValueError("the camera hardly moved")
        return 2.0


def load(checkpoint, device):
    """Stand in for Pipeline.from_checkpoint."""
    if checkpoint == "broken":
        raise ValueError("broken: not a checkpoint")
    if checkpoint == "unforeseen":
        raise KeyError("frames")
    if checkpoint == "endless":
        print("loading", flush=True)
        time.sleep(300)
    pipeline = PixelPipeline(
        seconds=0.3 if checkpoint == "slow" else 0.0, lost=4 if checkpoint == "blurred" else None
    )
    if checkpoint == "heavy":
        pipeline.weights = np.ones(HEAVY, np.uint8)
    return pipeline


def main():
    """Run one node over the pixel pipeline."""
    import embedded_ros

    embedded_ros.install()
    from rays_as_pixels_ros.node_process import run_nodes
    from rays_as_pixels_ros.trajectory_node import TrajectoryNode
    from rays_as_pixels_ros.view_synthesis_node import ViewSynthesisNode

    made = {
        "trajectory_node": lambda: [TrajectoryNode(load_pipeline=load)],
        "view_synthesis_node": lambda: [ViewSynthesisNode(load_pipeline=load)],
    }
    return run_nodes(made[sys.argv[1]], sys.argv[2:])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    sys.exit(main())
