# SPDX-License-Identifier: Apache-2.0
"""Motion profiles of varied scenes: how people and robots carry cameras. Poses and axes are as in `paths.py`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .paths import CLEARANCE, STYLES, _moves, _poses, _scaled, _start, _turns, _wave
from .scene import Scene

_TRIES = 24
_TURN, _TURN_SPREAD = np.radians(3.6), 0.85  # median and log deviation of the rotation over 4 frames
_MOVE, _MOVE_SPREAD = 0.065, 0.8  # the same for translation / harmonic mean depth


@dataclass(frozen=True)
class _Profile:
    """style: of `paths.py`; share of the clips; turn, move: factors; level: no roll, hardly any pitch, as on wheels;
    tremor: rotation from one frame to the next, degrees; bob: metres up and down at each step; pause: share of clips
    that stop on the way."""

    style: str
    share: float
    turn: float = 1.0
    move: float = 1.0
    level: bool = False
    tremor: float = 0.0
    bob: float = 0.0
    pause: float = 0.15


PROFILES = {
    "handheld": _Profile("handheld", 0.26, tremor=0.25),
    "walking": _Profile("forward", 0.14, 0.9, 1.4, tremor=0.3, bob=0.025, pause=0.05),
    "forward": _Profile("forward", 0.14, 0.5, 1.8, level=True, tremor=0.06),  # drives, looks ahead
    "robot": _Profile("handheld", 0.14, 1.2, 0.7, level=True, tremor=0.06, pause=0.5),  # stop and go
    "yaw": _Profile("yaw", 0.14, 1.5, 1.0, level=True, tremor=0.05, pause=0.25),  # turns on the spot
    "orbit": _Profile("orbit", 0.1, 1.0, 1.3, tremor=0.1),
    "still": _Profile("handheld", 0.08, 0.25, 0.2, tremor=0.15),  # somebody tries to stand still
}


def varied_path(seed: int, scene: Scene, frames: int, difficulty: float, style: str | None = None) -> np.ndarray:
    """Draw a camera path of one of the `PROFILES`, or one of its kind in `paths.STYLES`.

    Args:
        frames: number of poses.
        difficulty: in (0, 1]; how widely the speeds differ, and how much the camera shakes.

    Returns:
        T_world_camera: (frames, 4, 4) float64, camera to world, metres; 0.4 m or more from every surface.

    Raises:
        NoRoomError: a scene without free space.
        ValueError: unknown style, or no frames.
    """
    names = [name for name, p in PROFILES.items() if style in (None, name, p.style)]
    if not names:
        known = dict.fromkeys((*PROFILES, *STYLES))
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(known)} or None")
    if frames < 1:
        raise ValueError(f"frames is {frames}; at least 1 is needed")
    rng = np.random.default_rng([seed, 104])
    shares = np.array([PROFILES[name].share for name in names])
    profile = PROFILES[names[int(rng.choice(len(names), p=shares / shares.sum()))]]
    position, yaw, pitch, roll, depth = _start(rng, scene)
    turn = profile.turn * _TURN * np.exp(difficulty * _TURN_SPREAD * rng.standard_normal())
    move = profile.move * _MOVE * np.exp(difficulty * _MOVE_SPREAD * rng.standard_normal()) * depth
    turns = _turns(rng, frames, min(turn, np.radians(25.0)), profile.style)
    if profile.level:
        pitch, roll = np.clip(pitch, -0.15, 0.1), 0.0
        turns = turns * [[1.0], [0.1], [0.0]]
    gate = _gate(rng, frames) if rng.random() < profile.pause else np.ones(frames - 1)
    angles = np.array([yaw, pitch, roll])[:, None] + _gated(turns, gate)
    shake = difficulty * np.exp(rng.normal(0, 0.5)) * np.radians(profile.tremor)
    angles = angles + _shake(rng, frames, [0.7 * shake, shake, 0.6 * shake])
    bob = difficulty * profile.bob * np.sin(2 * np.pi * np.arange(frames) / rng.uniform(4.5, 8) + rng.uniform(0, 6))
    for attempt in range(_TRIES):
        reach = move if attempt < _TRIES // 2 else move * 0.75 ** (attempt - _TRIES // 2 + 1)
        offset, extra_yaw = _moves(rng, frames, reach, profile.style, yaw, pitch, depth)
        if profile.level:
            offset[:, 2] *= 0.0 if scene.field is None else 1.0
        offset, extra_yaw = _gated(offset.T, gate).T, _gated(extra_yaw[None], gate)[0]
        offset[:, 2] += bob + scene.ground(position + offset) - scene.ground(position)
        if scene.clearance(position + offset).min() >= CLEARANCE:
            break
    else:
        offset, extra_yaw = np.zeros((frames, 3)), np.zeros(frames)
    return _poses(position + offset, angles[0] + extra_yaw, angles[1], angles[2])


def _gate(rng: np.random.Generator, frames: int) -> np.ndarray:
    """Speed (frames - 1,) that falls to zero once and rises again, over a few frames each."""
    start, length = rng.uniform(-4, frames), rng.uniform(3, 10)
    t = np.arange(frames - 1) + 0.5
    return np.clip(np.abs(t - start - length / 2) - length / 2, 0, 3) / 3


def _gated(signal: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """Go along (channels, frames) at a share of its speed."""
    steps = np.diff(signal, axis=1) * gate
    return signal[:, :1] + np.concatenate([np.zeros((len(signal), 1)), np.cumsum(steps, axis=1)], axis=1)


def _shake(rng: np.random.Generator, frames: int, size: list[float]) -> np.ndarray:
    """Quick small waves, (len(size), frames); size: mean change from frame to frame."""
    wave = _wave(rng, frames, len(size), 3.0, 12.0)
    return np.stack([_scaled(w[None], 3.0 * s)[0] if s else 0 * w for w, s in zip(wave, size, strict=True)])
