# SPDX-License-Identifier: Apache-2.0
"""Smooth random camera paths through the free space of a scene.

Camera optical axes: x right, y down, z forward; world z up. A path is position(t) and yaw, pitch, roll (t), each a sum
of slow sinusoids with random phases; speeds are drawn log-normally, translation relative to the depth in view.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

from .render import cast_depth
from .scene import Scene

STYLES = ("handheld", "forward", "orbit", "yaw")
_STYLE_WEIGHTS = (0.5, 0.22, 0.12, 0.16)
CLEARANCE = 0.4  # metres between the camera and any surface
_WINDOW = 4  # steps over which the speeds below are meant
_ROTATION, _ROTATION_SPREAD = np.radians(4.1), 0.66  # median and log deviation of the rotation over a window
_TRANSLATION, _TRANSLATION_SPREAD = 0.074, 0.58  # the same for translation / harmonic mean depth
_TRIES = 24


class NoRoomError(ValueError):
    """A scene without free space for a camera: another seed is the way out."""


def random_path(seed: int, scene: Scene, frames: int, style: str | None = None) -> np.ndarray:
    """Draw a camera path that keeps 0.4 m from every surface.

    Over 4 steps the camera turns by about 4 degrees (median; 90 % below 10) and moves by about 0.06 (0.15) of the
    harmonic mean depth in view.

    Args:
        frames: number of poses, at least 1.
        style: 'handheld', 'forward' (or backward), 'orbit', 'yaw' (turns, hardly moves); None draws one.

    Returns:
        T_world_camera: (frames, 4, 4) float64, camera to world, metres.

    Raises:
        NoRoomError: a scene without free space.
        ValueError: unknown style, or no frames.
    """
    if style is not None and style not in STYLES:
        raise ValueError(f"style is {style!r}; it must be one of {', '.join(STYLES)} or None")
    if frames < 1:
        raise ValueError(f"frames is {frames}; at least 1 is needed")
    rng = np.random.default_rng([seed, 23])
    style = style or str(rng.choice(STYLES, p=_STYLE_WEIGHTS))
    position, yaw, pitch, roll, depth = _start(rng, scene)
    turn = _ROTATION * np.exp(_ROTATION_SPREAD * rng.standard_normal())
    move = _TRANSLATION * np.exp(_TRANSLATION_SPREAD * rng.standard_normal()) * depth
    if style == "yaw":
        turn, move = 1.4 * turn, 0.3 * move
    angles = np.array([yaw, pitch, roll])[:, None] + _turns(rng, frames, turn, style)
    for attempt in range(_TRIES):
        reach = move if attempt < _TRIES // 2 else move * 0.75 ** (attempt - _TRIES // 2 + 1)
        offset, extra_yaw = _moves(rng, frames, reach, style, yaw, pitch, depth)
        if scene.clearance(position + offset).min() >= CLEARANCE:
            break
    else:
        offset, extra_yaw = np.zeros((frames, 3)), np.zeros(frames)
    return _poses(position + offset, angles[0] + extra_yaw, angles[1], angles[2])


def _start(rng: np.random.Generator, scene: Scene):
    """Draw a free position and an upright view that sees some depth. Returns position, yaw, pitch, roll, depth."""
    reach = np.minimum(scene.half[0, :2].numpy(), 5.0) - CLEARANCE
    top = min(2.0, 2 * float(scene.half[0, 2]) - 0.5)
    points = rng.uniform([-reach[0], -reach[1], 0.6], [reach[0], reach[1], top], (256, 3))
    points[:, 2] += scene.ground(points)
    clearance = scene.clearance(points)
    free = np.flatnonzero(clearance >= CLEARANCE + 0.15)
    if len(free) == 0:
        raise NoRoomError("the scene has no free space for a camera: every sampled point is within 0.55 m of a surface")
    points = points[free[:12]]
    yaw = rng.uniform(-np.pi, np.pi, len(points))
    pitch = np.radians(np.clip(rng.normal(-5, 9, len(points)), -25, 20))
    roll = np.radians(np.clip(rng.normal(0, 2.5, len(points)), -6, 6))
    view = SimpleNamespace(fx=9.4, fy=9.4, cx=6.0, cy=4.0, width=12, height=8)  # 65 degrees wide
    depth = cast_depth(scene, _poses(points, yaw, pitch, roll), view).reshape(len(points), -1)
    harmonic = 1.0 / (1.0 / depth).mean(axis=1)
    interest = (0.05 + np.log(depth).std(axis=1)) ** 1.5 * np.minimum(harmonic, 4.0)  # near and far in one view
    chosen = int(rng.choice(len(points), p=interest / interest.sum()))
    return points[chosen], yaw[chosen], pitch[chosen], roll[chosen], float(harmonic[chosen])


def _wave(rng: np.random.Generator, frames: int, channels: int, shortest: float, longest: float) -> np.ndarray:
    """Sum of three slow sinusoids in each channel, zero at the first frame. Returns (channels, frames)."""
    period = np.exp(rng.uniform(np.log(shortest), np.log(longest), (channels, 3, 1)))
    phase = rng.uniform(0, 2 * np.pi, (channels, 3, 1))
    amplitude = rng.standard_normal((channels, 3, 1)) * period  # equal speeds
    t = np.arange(frames)
    return (amplitude * (np.sin(2 * np.pi * t / period + phase) - np.sin(phase))).sum(axis=1)


def _scaled(signal: np.ndarray, size: float) -> np.ndarray:
    """Scale (channels, frames) so that its root mean square change over a window is `size`."""
    frames = signal.shape[1]
    step = min(_WINDOW, frames - 1)
    if step == 0:
        return signal
    change = np.linalg.norm(signal[:, step:] - signal[:, :-step], axis=0)
    return signal * (size * step / _WINDOW / (np.sqrt((change**2).mean()) + 1e-12))


def _turns(rng: np.random.Generator, frames: int, size: float, style: str) -> np.ndarray:
    """Yaw, pitch and roll relative to the first frame. Returns (3, frames) radians."""
    weight = np.abs(rng.standard_normal(3)) * [1.0, 0.8, 0.35] + [0.1, 0.1, 0.03]
    if style == "yaw":
        weight = np.array([1.0, 0.15, 0.05])
    wave = np.concatenate([_wave(rng, frames, 1, 24, 160), _wave(rng, frames, 2, 16, 50)])
    wave = wave / (np.abs(np.diff(wave, axis=1)).mean(axis=1, keepdims=True) + 1e-12) if frames > 1 else wave
    turns = _scaled(wave * weight[:, None], size)
    limit = np.radians([[1e6], [35.0], [10.0]])
    return limit * np.tanh(turns / limit)


def _moves(rng: np.random.Generator, frames: int, size: float, style: str, yaw: float, pitch: float, depth: float):
    """Position relative to the first frame, and a yaw that goes with it: (frames, 3) metres, (frames,) radians."""
    forward = np.array([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)])
    if style == "orbit":
        distance = depth * rng.uniform(0.7, 1.3)
        arc = _scaled(_wave(rng, frames, 1, 60, 300), size / distance)[0]
        heading = yaw + arc
        centre = distance * np.array([np.cos(yaw), np.sin(yaw), 0.0])
        offset = centre - distance * np.stack([np.cos(heading), np.sin(heading), 0 * heading], axis=1)
        bob = _scaled(_wave(rng, frames, 1, 20, 60), 0.2 * size)[0]
        return offset + bob[:, None] * [0, 0, 1], arc
    if style == "forward":
        drive = _scaled(_wave(rng, frames, 1, 60, 300), size)[0]
        sway = _scaled(_wave(rng, frames, 3, 14, 50) * [[1], [1], [0.6]], rng.uniform(0.05, 0.35) * size)
        return drive[:, None] * forward + sway.T, np.zeros(frames)
    weight = np.abs(rng.standard_normal(3)) + 0.1
    basis = np.stack([[np.sin(yaw), -np.cos(yaw), 0], [0, 0, 0.9], forward])
    wave = _scaled(_wave(rng, frames, 3, 18, 90) * weight[:, None], size)
    return wave.T @ basis, np.zeros(frames)


def _poses(position: np.ndarray, yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """Camera-to-world poses. position: (F, 3) metres; yaw, pitch (up), roll (about the optical axis): (F,) radians."""
    forward = np.stack([np.cos(pitch) * np.cos(yaw), np.cos(pitch) * np.sin(yaw), np.sin(pitch)], axis=-1)
    right = np.stack([np.sin(yaw), -np.cos(yaw), np.zeros_like(yaw)], axis=-1)
    down = np.cross(forward, right)
    cos, sin = np.cos(roll)[:, None], np.sin(roll)[:, None]
    T = np.tile(np.eye(4), (len(position), 1, 1))
    T[:, :3, 0], T[:, :3, 1] = cos * right + sin * down, cos * down - sin * right
    T[:, :3, 2], T[:, :3, 3] = forward, position
    return T
