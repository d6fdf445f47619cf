# SPDX-License-Identifier: Apache-2.0
"""Solvers of the flow: from noise to data along a callable velocity, each modality in its own number of steps.

One asymmetric schedule holds the three tasks as corners:

| task  | z_steps | r_steps | what is clean besides                     |
|-------|---------|---------|-------------------------------------------|
| pose  | 0       | n       | the reference's own rays, when known      |
| views | n       | 0       | the source images                         |
| joint | n       | m       | the first image and its rays              |

Axes: B batch, L latent frames, T frames. Times: 0 is noise, 1 is data.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .engine import Array, namespace
from .schedule import time_grid

SOLVERS = ("euler", "heun", "midpoint")

Velocity = Callable[[Array, Array, Array, Array], tuple[Array, Array]]
"""(z, r, t_z (B, L), t_r (B, T)) to the velocities of z and r."""

OnStep = Callable[[int, int, Array, Array], bool]


class Cancelled(Exception):
    """The caller's `on_step` asked to stop."""


@dataclass(frozen=True)
class Schedule:
    """How many steps each modality takes from noise to data, by which solver.

    The two times walk one staircase of max(z_steps, r_steps) steps. The modality with fewer steps moves at the
    beginning of each of its shares and waits in between, so it is ahead of the other: with z_steps = 20 and r_steps = 2
    the rays move in the first and the eleventh step, and the last nine denoise video for finished rays.

    Attributes:
        z_steps, r_steps: 0 means clean from the start: the modality has time 1 and never moves.
        solver: 'euler'; 'heun' (second order: mean of the velocities at both ends; the step that reaches the data is
            Euler's, since the velocity is not defined there: Karras et al. 2022, algorithm 1); 'midpoint' (second
            order, never evaluated at time 1). Second order costs two evaluations a step.
        shift: above 1 more steps lie near the noise; see `schedule.time_grid`.

    Raises:
        ValueError: counts below 0 or both 0, an unknown solver, or a shift that is not positive.
    """

    z_steps: int
    r_steps: int
    solver: str = "euler"
    shift: float = 1.0

    def __post_init__(self) -> None:
        if min(self.z_steps, self.r_steps) < 0 or self.steps < 1:
            raise ValueError(f"steps must be at least 1 for one modality and never negative, got {self.z_steps} of z "
                             f"and {self.r_steps} of r")
        if self.solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {self.solver!r}")
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"shift must be positive and finite, got {self.shift}")

    @property
    def steps(self) -> int:
        """Steps of the whole staircase."""
        return max(self.z_steps, self.r_steps)

    def times(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the times of z and of r before the first step and after each one, (steps + 1,) each."""
        return self._times(self.z_steps), self._times(self.r_steps)

    def _times(self, own: int) -> np.ndarray:
        if own == 0:
            return np.ones(self.steps + 1)
        reached = [-(-step * own // self.steps) for step in range(self.steps + 1)]         # rounded up: moves early
        return time_grid(own, self.shift)[reached]


def sample(velocity: Velocity, z: Array, r: Array, schedule: Schedule, clean_z: Array | None = None,
           clean_r: Array | None = None, on_step: OnStep | None = None) -> tuple[Array, Array]:
    """Integrate both modalities from noise to data along a schedule.

    k posterior samples are k rows of the batch: the same clean data, noise of their own.

    Args:
        velocity: see `Velocity`.
        z: (B, L, ...) and r: (B, T, ...): clean data where `clean_*` is true or the schedule has 0 steps, noise
            elsewhere.
        schedule: steps of each modality, solver and shift.
        clean_z: (B, L) bool; clean_r: (B, T) bool; frames that have time 1 and never move. None: none.
        on_step: called after each step with (step, steps, z, r), where z and r are the data as far as it can be told
            from here (x_t + (1 - t) v); False stops.

    Raises:
        Cancelled: on_step returned False.
    """
    times_z, times_r = (t.tolist() for t in schedule.times())
    z_side, r_side = _Side(z, clean_z, schedule.z_steps), _Side(r, clean_r, schedule.r_steps)
    for step in range(schedule.steps):
        now, after = (times_z[step], times_r[step]), (times_z[step + 1], times_r[step + 1])

        def at(t: tuple[float, float], v: tuple[Array, Array], now=now, z=z, r=r):
            """State at the times t, along the velocities v from here."""
            return z_side.moved(z, t[0] - now[0], v[0]), r_side.moved(r, t[1] - now[1], v[1])

        def evaluate(z: Array, r: Array, t: tuple[float, float]):
            return velocity(z, r, z_side.time(t[0]), r_side.time(t[1]))

        v = evaluate(z, r, now)
        if schedule.solver == "midpoint":
            middle = (now[0] + after[0]) / 2, (now[1] + after[1]) / 2
            v = evaluate(*at(middle, v), middle)
        elif schedule.solver == "heun" and any(a < 1 for a in after):
            end = evaluate(*at(after, v), after)
            v = tuple((first + last) / 2 if t < 1 else first for first, last, t in zip(v, end, after, strict=True))
        if on_step is not None:
            data = at((1.0, 1.0), v)
        z, r = at(after, v)
        if on_step is not None and not on_step(step + 1, schedule.steps, *data):
            raise Cancelled(f"cancelled at step {step + 1} of {schedule.steps}")
    return z, r


class _Side:
    """What is clean in one modality."""

    def __init__(self, x: Array, clean: Array | None, steps: int) -> None:
        xp, frames = namespace(x), x.reshape(*x.shape[:2], -1)[..., 0]
        self._where, self._one = xp.where, xp.ones_like(frames, dtype=xp.float32)
        self.clean = xp.zeros_like(frames, dtype=bool) if clean is None else clean
        if steps == 0:
            self.clean = xp.ones_like(frames, dtype=bool)
        self._moves = xp.asarray(~self.clean, dtype=x.dtype).reshape(*self.clean.shape, *[1] * (x.ndim - 2))

    def time(self, t: float) -> Array:
        return self._where(self.clean, self._one, self._one * t)

    def moved(self, x: Array, dt: float, v: Array) -> Array:
        return x + dt * self._moves * v


def guided(velocity: Velocity, source_z: Array, noise: Array, weight: float) -> Velocity:
    """Guide on the source images as classifier-free guidance does: v_dropped + weight (v - v_dropped).

    The unconditional branch is the same layout with the source images dropped: their latents are noise and their time
    is 0, which in this model says that nothing is known of them; their rays stay. It costs a second evaluation.

    Args:
        source_z: (B, L) bool, the latent frames that are sources.
        noise: (B, L, ...) like z; used where `source_z` is true.
        weight: 1 is no guidance (and no second evaluation), above 1 follows the sources more.

    Raises:
        ValueError: a weight that is not finite.

    Note: the shipped weights never saw dropped sources in training (training/tasks.py keeps every source clean), so for
    them the second branch is an extrapolation, and every weight above 1 makes views worse (docs/benchmarks.md).
    """
    if not -float("inf") < weight < float("inf"):
        raise ValueError(f"guidance must be a finite weight, got {weight}")
    if weight == 1.0:
        return velocity
    mask = source_z.reshape(*source_z.shape, *[1] * (noise.ndim - 2))

    def both(z: Array, r: Array, t_z: Array, t_r: Array) -> tuple[Array, Array]:
        where = namespace(z).where
        v = velocity(z, r, t_z, t_r)
        dropped = velocity(where(mask, noise, z), r, where(source_z, 0 * t_z, t_z), t_r)
        return tuple(b + weight * (a - b) for a, b in zip(v, dropped, strict=True))

    return both
