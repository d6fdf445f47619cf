# SPDX-License-Identifier: Apache-2.0
"""A shot: a scene, a camera path, a lens and a sensor drawn from one seed, plain or varied.

`plain` scenes are what `random_scene`, `random_path` and `render` give. Each group of variety can be switched on by
itself and draws from a generator of its own, so that the others stay as they are:

    geometry   places of `places.py`
    lights     coloured lights, shadows, surfaces whose texture rolls (`lights.py`)
    sensor     exposure, white balance, blur, noise, compression (`sensor.py`)
    motion     hand-held and robot motion profiles (`motion.py`)
    lens       telephoto to wide angle, off-centre, with distortion left over
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from ..geometry import Intrinsics
from .lights import lit
from .motion import varied_path
from .paths import random_path
from .places import random_place
from .render import render, render_tensors
from .scene import FIELD, Scene, random_scene
from .sensor import Sensor, expose, random_sensor
from .shapes import turned
from .textures import TextureBank

GROUPS = ("geometry", "lights", "sensor", "motion", "lens")
_ROLLING = 0.25  # share of the scenes with a surface whose texture moves
_LEAST_DISTORTION = 1e-4


@dataclass(frozen=True)
class Profile:
    """groups: of `GROUPS`; difficulty in (0, 1]: how strong they are. Nothing in groups is plain."""

    groups: frozenset[str] = frozenset()
    difficulty: float = 1.0

    @classmethod
    def parse(cls, scenes: str, difficulty: float = 1.0) -> Profile:
        """Read 'plain', 'varied' or groups joined by '+', e.g. 'geometry+lights'. Difficulty 0 is plain.

        Raises:
            ValueError: unknown name, or a difficulty outside [0, 1].
        """
        if not 0 <= difficulty <= 1:
            raise ValueError(f"difficulty must be in [0, 1], got {difficulty}")
        names = {"plain": (), "varied": GROUPS}.get(scenes, tuple(scenes.split("+")))
        if unknown := [name for name in names if name not in GROUPS]:
            raise ValueError(
                f"scenes must be plain, varied or of {', '.join(GROUPS)} joined by '+', got {unknown[0] or scenes!r}"
            )
        return cls(frozenset(names) if difficulty else frozenset(), difficulty)


@dataclass(frozen=True)
class Shot:
    """T_world_camera: (T, 4, 4); distortion: of the lens, as in `render`; sensor: None leaves frames as rendered."""

    scene: Scene
    T_world_camera: np.ndarray
    distortion: float = 0.0
    sensor: Sensor | None = None

    def render(
        self, intrinsics: Intrinsics, index: np.ndarray | None = None, device: str | torch.device = "cpu"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render the frames of `index` (None: all): (T, H, W, 3) uint8 and depth (T, H, W) float32 metres."""
        index = np.arange(len(self.T_world_camera)) if index is None else np.asarray(index)
        poses = self.T_world_camera[index]
        frames, depth = render_tensors(
            self.scene, poses, intrinsics, device, distortion=self.distortion, times=index
        )  # fmt: skip
        if self.sensor is not None:
            flow = None
            if self.sensor.shutter and len(self.T_world_camera) > 1:
                after = np.minimum(index + 1, len(self.T_world_camera) - 1)
                before = np.maximum(after - 1, 0)
                T_next_now = np.linalg.inv(self.T_world_camera[after]) @ self.T_world_camera[before]
                flow = image_motion(depth, T_next_now, intrinsics)
            frames = expose(self.sensor, frames, flow, index)
        return frames.cpu().numpy(), depth.cpu().numpy()

    def view(self, T_world_view: np.ndarray, intrinsics: Intrinsics, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Render views (V, 4, 4) as the camera would show them at the moment of frame `index`; returns as `render`.

        Lens, exposure, tone and focus are those of that frame; motion blur and noise, which no one can know, are none.
        """
        moment = np.full(len(T_world_view), index)
        frames, depth = render_tensors(self.scene, T_world_view, intrinsics, distortion=self.distortion, times=moment)
        if self.sensor is not None:
            frames = expose(replace(self.sensor, noise=(0.0, 0.0)), frames, None, moment)
        return frames.cpu().numpy(), depth.cpu().numpy()


def image_motion(depth: torch.Tensor, T_next_now: np.ndarray, intrinsics: Intrinsics) -> torch.Tensor:
    """How far each pixel goes to where its point is seen in the next frame. depth: (T, H, W); returns (T, 2, H, W)."""
    height, width = depth.shape[1:]
    T = torch.as_tensor(T_next_now, dtype=torch.float32, device=depth.device)
    u = torch.arange(width, device=depth.device) + 0.5
    v = (torch.arange(height, device=depth.device) + 0.5)[:, None]
    x, y = (u - intrinsics.cx) / intrinsics.fx * depth, (v - intrinsics.cy) / intrinsics.fy * depth
    rows = [[T[:, k, j, None, None] for j in range(4)] for k in range(3)]
    moved = [a * x + b * y + c * depth + d for a, b, c, d in rows]
    ahead = moved[2].clamp(min=0.05)
    return torch.stack(
        [moved[0] / ahead * intrinsics.fx + intrinsics.cx - u, moved[1] / ahead * intrinsics.fy + intrinsics.cy - v], 1
    )


def random_shot(
    seed: int, bank: TextureBank, frames: int, profile: Profile | None = None, style: str | None = None
) -> Shot:
    """Draw the shot of a seed. The same seed, bank and profile give the same shot.

    Args:
        frames: poses of the path.
        style: of the motion; None draws one.

    Raises:
        NoRoomError: a scene without free space for a camera.
        ValueError: unknown style.
    """
    profile = profile or Profile()
    groups, difficulty = profile.groups, profile.difficulty
    rng = np.random.default_rng([seed, 100])
    easy = rng.random(2) >= difficulty  # below full difficulty, plain places and paths are among them
    varied_places = "geometry" in groups and not easy[0]
    scene = random_place(seed, bank, difficulty) if varied_places else random_scene(seed, bank)
    distortion = _distortion(seed, difficulty) if "lens" in groups else 0.0
    if scene.rotation is None and ("lights" in groups or distortion):
        scene = replace(scene, rotation=turned(scene.yaw.numpy()))
    if "lights" in groups:
        light_rng = np.random.default_rng([seed, 102])
        scene = _rolling(light_rng, lit(light_rng, scene, difficulty), difficulty)
    if "motion" in groups and not easy[1]:
        poses = varied_path(seed, scene, frames, difficulty, style)
    else:
        poses = random_path(seed, scene, frames, style)
    if "lights" in groups:
        scene = replace(scene, exposure=scene.exposure * _metered(scene, poses[len(poses) // 2]))
    sensor = random_sensor(seed, frames, difficulty) if "sensor" in groups else None
    return Shot(scene, poses, distortion, sensor)


def _metered(scene: Scene, T_world_camera: np.ndarray) -> float:
    """Factor of the exposure that brings a view most of the way to middle brightness, as a camera's meter does."""
    focal = 9.4  # 65 degrees wide
    frames, _ = render(scene, T_world_camera[None], SimpleNamespace(fx=focal, fy=focal, cx=6, cy=4, width=12, height=8))
    return float(np.clip(110.0 / max(frames.mean(), 1.0), 0.3, 4.0) ** 0.85)


def shot_of_camera(
    seed: int, bank: TextureBank, frames: int, profile: Profile, camera: Intrinsics, style: str | None = None
) -> tuple[Shot, Intrinsics]:
    """Draw the shot of a seed as `random_shot` does, and say which camera films it.

    Args:
        camera: films it, but with the group `lens`: then one of its size is drawn, the more like it the less difficult.
    """
    if "lens" in profile.groups:
        fov = camera.horizontal_fov_deg()
        camera = varied_lens(seed, profile.difficulty, (fov, fov), camera.width, camera.height)
    return random_shot(seed, bank, frames, profile, style), camera


def varied_lens(seed: int, difficulty: float, fov_deg: tuple[float, float], width: int, height: int) -> Intrinsics:
    """Draw a camera of a size: 28 to 115 degrees wide at full difficulty, off-centre, pixels not quite square.

    Args:
        fov_deg: least and greatest horizontal field of view of the easiest cameras.
    """
    rng = np.random.default_rng([seed, 105])
    narrow = fov_deg[0] + difficulty * min(28.0 - fov_deg[0], 0.0)
    wide = fov_deg[1] + difficulty * max(115.0 - fov_deg[1], 0.0)
    slopes = np.log(np.tan(np.radians([narrow, wide]) / 2))
    focal = Intrinsics.from_fov(2 * np.degrees(np.arctan(np.exp(rng.uniform(*slopes)))), width, height).fx
    aspect = 1 + difficulty * rng.uniform(-0.04, 0.04)
    centre = np.array([width, height]) * (0.5 + (0.02 + 0.03 * difficulty) * rng.uniform(-1, 1, 2))
    return Intrinsics(focal, focal * aspect, *centre, width, height)


def _distortion(seed: int, difficulty: float) -> float:
    """What a calibration leaves over, in two clips of three."""
    rng = np.random.default_rng([seed, 106])
    k = 0.012 * difficulty * float(np.clip(rng.standard_normal(), -2, 2)) if rng.random() < 0.67 else 0.0
    return k if abs(k) > _LEAST_DISTORTION else 0.0


def _rolling(rng: np.random.Generator, scene: Scene, difficulty: float) -> Scene:
    """Let the texture of one or two objects roll on: a screen, a banner, water. The surfaces themselves stand still."""
    if rng.random() >= _ROLLING * difficulty:
        return scene
    primitives = np.flatnonzero((scene.kind.numpy() > 0) & (scene.kind.numpy() != FIELD))
    roll = torch.zeros(6 * len(scene.kind), 2)
    for p in rng.choice(primitives, size=min(len(primitives), int(rng.integers(1, 3))), replace=False):
        roll[6 * p : 6 * p + 6] = torch.tensor(rng.uniform(-0.08, 0.08, 2), dtype=torch.float32)
    return replace(scene, roll=roll)
