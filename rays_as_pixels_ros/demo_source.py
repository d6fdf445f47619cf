# SPDX-License-Identifier: Apache-2.0
"""What the demo's camera looks at, what is known about it, and which views are asked for.

Poses are camera to world, optical axes (x right, y down, z forward). A source is `procedural` (truth of everything),
`posed` (true poses of its images) or `plain` (no truth).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics, invert, make_pose, so3_exp
from rays_as_pixels_model.media import MediaError, Video, open_video

WIDTH, HEIGHT, HORIZONTAL_FOV = 144, 96, 70.0
_RATE = 10.0  # images per second of the procedural camera, and about that of the images used from others
_LONGEST = 150  # images of the procedural path; then it is walked back
_STYLE = "handheld"  # half of the paths in training
_FARTHEST_DEG, _FARTHEST = 10.0, 0.15  # largest requested turn, and move as a share of the scene's depth
_KEPT_BYTES = 1 << 29
_QUEUE_BYTES = 1 << 28


class DemoSource:
    """The camera's images as the demo knows them beforehand."""

    kind = "plain"

    def __init__(self, arguments: dict[str, str | int | float], stride: int, name: str, rate: float, pixels: int):
        """
        Args:
            arguments: parameters for camera_player.
            stride: images from one that the model uses to the next.
            rate: images per second.
            pixels: of an image.
        """
        self.arguments, self.stride, self.name, self.rate, self.pixels = arguments, stride, name, rate, pixels

    @property
    def queue_size(self) -> int:
        """Images that may wait for the model, so that a slow machine is late but skips nothing."""
        return int(np.clip(_QUEUE_BYTES // (3 * self.pixels), 10, 1000))

    @property
    def has_poses(self) -> bool:
        """Whether the true camera poses are known."""
        return self.kind != "plain"

    def reach(self, window: int) -> float:
        """Largest length that views are moved by, in the unit of the goal's poses."""
        return _FARTHEST  # metres_per_unit is set to 1: the unit is the scene's depth

    def render(self, T_world_view: np.ndarray, camera: Intrinsics, T_world_source: np.ndarray) -> np.ndarray | None:
        """Return true pictures (V, H, W, 3) uint8 at poses (V, 4, 4), or None where nobody knows them.

        Args:
            T_world_source: (4, 4), the pose of the image at whose moment they are taken.
        """
        return None

    def depth(self, T_world_camera: np.ndarray) -> float | None:
        """Return the scene scale at a pose (4, 4): metres for one unit of the model; None where nobody knows it."""
        return None


class PosedSource(DemoSource):
    """Images with true poses, but no picture of what lies between them."""

    kind = "posed"

    def __init__(self, arguments, stride, name, rate, pixels, T_world_camera: np.ndarray):
        super().__init__(arguments, stride, name, rate, pixels)
        self._poses = T_world_camera

    def reach(self, window: int) -> float:
        """As far as the camera moves in a window (median)."""
        span = min((window - 1) * self.stride, len(self._poses) - 1)
        moved = (invert(self._poses[:-span]) @ self._poses[span:])[:, :3, 3]
        return float(np.median(np.linalg.norm(moved, axis=1)))


class ProceduralSource(DemoSource):
    """camera_player's procedural scene, made here once more from the same seed: the truth of any view."""

    kind = "procedural"

    def __init__(self, seed: int, seconds: float, scenes: str = "plain", difficulty: float = 1.0):
        """
        Raises:
            ValueError: see `Profile.parse`, or (NoRoomError) a scene without free space for a camera.
        """
        from rays_as_pixels_model.scenes import Profile, TextureBank, shot_of_camera

        frames = int(np.clip(seconds * _RATE, 20, _LONGEST))
        arguments = {
            "source": "procedural", "seed": seed, "frames": frames, "width": WIDTH, "height": HEIGHT,
            "horizontal_fov": HORIZONTAL_FOV, "rate": _RATE, "style": _STYLE, "at_end": "bounce",
            "scenes": scenes, "difficulty": difficulty,
        }  # fmt: skip
        kind = "procedural" if scenes == "plain" else scenes
        super().__init__(arguments, 2, f"{kind} scene {seed}", _RATE, WIDTH * HEIGHT)
        bank, camera = TextureBank.default(split="held_out"), Intrinsics.from_fov(HORIZONTAL_FOV, WIDTH, HEIGHT)
        profile = Profile.parse(scenes, difficulty)
        self._shot, self._camera = shot_of_camera(seed, bank, frames, profile, camera, _STYLE)

    def reach(self, window: int) -> float:
        """A share of the least depth on the path, but no farther than the path keeps from every surface."""
        from rays_as_pixels_model.scenes.paths import CLEARANCE

        path = self._shot.T_world_camera
        least = min(self.depth(pose) for pose in path[:: max(1, len(path) // 6)])
        return min(_FARTHEST * least, CLEARANCE)

    def render(self, T_world_view: np.ndarray, camera: Intrinsics, T_world_source: np.ndarray) -> np.ndarray:
        """Render the scene with the camera's own lens, exposure and tone."""
        return self._shot.view(T_world_view, camera, self._moment(T_world_source))[0]

    def _moment(self, T_world_camera: np.ndarray) -> int:
        """The frame of the path whose pose this is."""
        return int(np.abs(self._shot.T_world_camera - T_world_camera).max(axis=(1, 2)).argmin())

    def depth(self, T_world_camera: np.ndarray) -> float:
        """Harmonic mean depth of the view at a pose, metres."""
        small = self._camera.resized(WIDTH // 4, HEIGHT // 4)
        return float(1.0 / np.mean(1.0 / self._shot.view(T_world_camera[None], small, 0)[1]))


def open_source(
    path: str | None, seed: int, seconds: float, fov: float, window: int, scenes: str = "plain", difficulty: float = 1.0
) -> DemoSource:
    """Look at the input before any process is started.

    Args:
        path: None is the procedural scene; else what camera_player opens (a number is a webcam).
        fov: horizontal field of view in degrees for files that state none.
        window: frames of the model's window.
        scenes, difficulty: of the procedural scene, see `model/scenes/shots.py`.

    Raises:
        NoRoomError: a procedural scene without free space for a camera.
        MediaError: nothing there, not readable, or too short; one line.
    """
    if path is None:
        return ProceduralSource(seed, seconds, scenes, difficulty)
    video = open_video(path)
    stride = max(1, round(video.fps / _RATE))
    count = video.frame_count
    if count is not None and count < (window - 1) * stride + 1:
        if count < window:
            raise MediaError(f"{path}: has {count} images; a window of the model needs {window}")
        stride = 1
    place = Path(path)
    arguments = {
        "source": str(place.resolve()) if place.exists() else f"webcam:{path}", "horizontal_fov": fov,
        "rate": 0.0, "at_end": "bounce" if _can_be_kept(video) else "loop",
    }  # fmt: skip
    known = arguments, stride, video.name, video.fps, video.width * video.height
    return DemoSource(*known) if video.T_world_camera is None else PosedSource(*known, video.T_world_camera)


def _can_be_kept(video: Video) -> bool:
    return bool(video.frame_count) and video.frame_count * video.width * video.height * 3 <= _KEPT_BYTES


@dataclass(frozen=True)
class Request:
    """One call of render_client: its arguments and, for `tum`, the poses (V, 4, 4) in the current camera's axes."""

    arguments: tuple[str, ...]
    T_camera_view: np.ndarray | None = None


def requests(reach: float, views: int, seed: int) -> list[Request]:
    """Plan the demo's requests: two sets of poses around the camera, each from near to far, and an orbit.

    Args:
        reach: length of the largest move.
        views: in each request.
    """
    rng = np.random.default_rng([seed, 5])
    planned = []
    for _ in range(2):
        share = np.linspace(0.3, 1.0, views)[:, None]
        axis = rng.standard_normal((views, 3)) * [0.6, 1.0, 0.2]
        move = rng.standard_normal((views, 3)) * [1.0, 0.6, 0.6]
        turn = np.radians(_FARTHEST_DEG) * share * axis / np.linalg.norm(axis, axis=1, keepdims=True)
        move = reach * share * move / np.linalg.norm(move, axis=1, keepdims=True)
        planned.append(Request(("tum",), make_pose(so3_exp(turn), move)))
    # The chord of the arc is as long as the largest move.
    distance = reach / (2 * np.sin(np.radians(_FARTHEST_DEG) / 2))
    arc = ("orbit", "--degrees", f"{_FARTHEST_DEG:g}", "--start-degrees", f"{_FARTHEST_DEG * 0.3:g}")
    planned.append(Request((*arc, "--distance", f"{distance:.6g}", "--views", str(views))))
    return planned
