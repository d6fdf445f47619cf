# SPDX-License-Identifier: Apache-2.0
"""Bundle adjustment of a window: the model's cameras made to agree with points tracked through its pictures.

The model sees small pictures and says where the camera went to a few degrees; where there is texture, tracked points
tell it to a fraction of one, but only from near the answer. So the frames are turned back by the model's rotations
(`turning.py`), points are tracked in them (`tracks.py`), and the cameras and the points' depths are adjusted together
by Levenberg and Marquardt's method on the reprojection errors. The model's cameras, as sure as such cameras are, stand
in the sum as well: what the points leave open (blank walls, no parallax, the unit of length) stays as the model said.

A few wrong directions of the translation explain the points nearly as well as the right one (Maybank 1993), and a
descent ends in them. The adjustment is therefore begun from several directions at once, and the best end counts.

Axes: S starts, k frames other than the reference, n points. Cameras are camera to reference, in model units; an error
of a camera is (shift, left rotation vector) in the reference's axes, as in `TrajectoryEstimate.covariance`.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .geometry import Intrinsics, rotation_angle_deg, so3_exp, so3_log
from .tracks import grid_points, track_points
from .turning import turn_back, turn_on

COLUMNS = 16  # of the grid of points
_NOISE = 0.3  # pixels: of a tracked point along each axis, at the least
# Standard deviations of the model's cameras along each axis: of no motion, and for each degree and unit of it.
_ROTATION_DEG, _SHIFT = (1.5, 0.15), (0.03, 0.3)
_DEPTH = 1.0  # standard deviation of inverse depths about 1, their mean in the model's unit
_EXACT = 1e-4  # standard deviation of the reference, which is exact, but filters divide by covariances
_NEAREST = 0.1  # model units along the optical axis
_STARTS = np.concatenate([np.eye(3), -np.eye(3)])  # directions of the translation, beside the model's own
_LEAST_SHIFT = 0.1  # model units: of the farthest frame of such a start
_SEARCH = ((7, 4), (3, 4))  # starts that are left, the best so far, and iterations with them
_FINISH = 10  # iterations with those, once the noise is known
_CLOSE = 10.0  # ends count against each other as exp(-difference of costs / 2 / this); 1 if errors were independent
_MEDIAN = 1.18  # of the length of an error whose axes have standard deviation 1 (Rayleigh)
_ROBUST = (20.0, 10.0, 5.0, 3.0, 2.0)  # width of Cauchy's loss in standard deviations, iteration by iteration


@dataclass(frozen=True)
class Refined:
    """Cameras of a window after bundle adjustment.

    Attributes:
        T_reference_camera: (T, 4, 4).
        covariance: (T, 6, 6) of the cameras, and step_covariance: (T, 6, 6) of the motion from each frame to the next,
            in the axes of the former (zero for the first frame): what points and model leave open.
        points: how many points were seen in another frame; agreeing: the share of their sightings within 3 sigma.
    """

    T_reference_camera: np.ndarray
    covariance: np.ndarray
    step_covariance: np.ndarray
    points: int
    agreeing: float


def refine_cameras(pictures: np.ndarray, T: np.ndarray, camera: Intrinsics, reference: int = 0) -> Refined:
    """Adjust the cameras of a window.

    Args:
        pictures: (T, H, W, 3) uint8, larger than the model's where there are such (`ModelConfig.picture_size`).
        T: (T, 4, 4), the model's cameras; that of the reference is the identity.
        camera: of the pictures.
    """
    rotation = T[:, :3, :3]
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    seen_as = turn_back(np.stack(grey), rotation, camera)
    points = grid_points(camera.width, camera.height, COLUMNS)
    places, seen = track_points(seen_as, reference, points)
    others = np.flatnonzero(np.arange(len(T)) != reference)
    used = seen[others].any(axis=0)
    focal, centre = np.array([camera.fx, camera.fy]), np.array([camera.cx, camera.cy])
    slopes = (places - centre) / focal
    problem = _Problem(
        slopes[reference, used], slopes[others][:, used], seen[others][:, used], focal,
        T[others, :3, 3], rotation_angle_deg(rotation[others]),
    )  # fmt: skip
    R, o, covariance, agreeing = problem.solve()
    turned = np.tile(np.eye(4), (len(T), 1, 1))
    turned[others, :3, :3], turned[others, :3, 3] = R, o
    whole = np.zeros((len(T), 6, len(T), 6))
    whole[np.ix_(others, range(6), others, range(6))] = covariance
    whole[reference, :, reference] = _EXACT**2 * np.eye(6)
    every = np.arange(len(T))
    found = turn_on(turned, rotation)
    return Refined(found, whole[every, :, every], _of_steps(found, whole), int(used.sum()), agreeing)


def _of_steps(T: np.ndarray, covariance: np.ndarray) -> np.ndarray:
    """Covariances (T, 6, 6) of the motions between cameras (T, 4, 4) whose errors have covariance (T, 6, T, 6)."""
    out = np.zeros((len(T), 6, 6))
    for t in range(1, len(T)):
        turn = np.kron(np.eye(2), T[t - 1, :3, :3].T)
        before = np.eye(6)
        before[:3, 3:] = -_cross(T[t, :3, 3] - T[t - 1, :3, 3])  # the earlier camera's turn swings the later one
        jacobian = np.concatenate([-turn @ before, turn], axis=1)                               # (6, 12)
        both = covariance[t - 1 : t + 1, :, t - 1 : t + 1].reshape(12, 12)
        out[t] = jacobian @ both @ jacobian.T
    return out


def _cross(v: np.ndarray) -> np.ndarray:
    """Matrices (..., 3, 3) of the cross product with vectors (..., 3)."""
    out = np.zeros((*v.shape, 3))
    for (i, j), k in {(0, 1): 2, (1, 2): 0, (2, 0): 1}.items():
        out[..., i, j], out[..., j, i] = -v[..., k], v[..., k]
    return out


@dataclass(frozen=True)
class _Equations:
    """Of the cameras hessian (S, 6 k, 6 k) and slope (S, 6 k); across (S, 6 k, n), which couples them with the depths;
    depths (S, n), the hessian's diagonal of these, and slope_rho (S, n); cost (S,)."""

    hessian: np.ndarray
    slope: np.ndarray
    across: np.ndarray
    depths: np.ndarray
    slope_rho: np.ndarray
    cost: np.ndarray


class _Problem:
    """Cameras R (S, k, 3, 3) and o (S, k, 3), which see points of inverse depth rho (S, n) along rays of the reference.

    Its frames are turned back already, so the model's own rotations are the identity.
    """

    def __init__(self, points: np.ndarray, places: np.ndarray, seen: np.ndarray, focal: np.ndarray, shift: np.ndarray,
                 turned_deg: np.ndarray) -> None:  # fmt: skip
        """
        Args:
            points: (n, 2), slopes in the reference; places: (k, n, 2), slopes in the others; seen: (k, n) bool.
            focal: (2,) pixels; shift: (k, 3), the model's; turned_deg: (k,), how far the frames were turned back.
        """
        self.rays = np.concatenate([points, np.ones((len(points), 1))], axis=1)                 # (n, 3)
        self.places, self.seen, self.focal, self.shift = places, seen.astype(float), focal, shift
        turn = np.radians(_ROTATION_DEG[0] + _ROTATION_DEG[1] * turned_deg)
        moved = _SHIFT[0] + _SHIFT[1] * np.linalg.norm(shift, axis=1)
        self.weights = np.repeat(np.stack([moved, turn], axis=1), 3, axis=1) ** -2              # (k, 6)
        self.noise = _NOISE

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Return R (k, 3, 3), o (k, 3), the covariance (k, 6, k, 6) of their errors, and the share that agrees."""
        frames, points = self.seen.shape
        reach = np.linalg.norm(self.shift, axis=1)
        size = reach * max(1.0, _LEAST_SHIFT / max(reach.max(initial=0.0), 1e-9))
        o = np.concatenate([self.shift[None], _STARTS[:, None] * size[:, None]])                # (S, k, 3)
        state = np.tile(np.eye(3), (len(o), frames, 1, 1)), o, np.ones((len(o), points))
        cost, done = np.arange(len(o)), 0
        for count, iterations in _SEARCH:
            best = np.argsort(cost, kind="stable")[:count]
            state, cost = self._descend(tuple(part[best] for part in state), iterations, done)
            done += iterations
        off = np.linalg.norm(self._errors(*state)[2][np.argmin(cost)], axis=-1)[self.seen > 0]  # standard deviations
        if len(off):
            self.noise *= max(1.0, float(np.median(off)) / _MEDIAN)
        (R, o, rho), cost = self._descend(state, _FINISH, done)
        best = np.argmin(cost)
        apart = np.concatenate([o - o[best], so3_log(R @ np.swapaxes(R[best], -1, -2))], axis=-1).reshape(len(o), -1)
        share = np.exp(-(cost - cost[best]) / (2 * _CLOSE))
        state = R[best, None], o[best, None], rho[best, None]
        equations = self._normal_equations(*state, _ROBUST[-1])
        across, depths = equations.across[0], equations.depths[0]
        covariance = np.linalg.inv(equations.hessian[0] - (across / depths) @ across.T)
        covariance = covariance + np.einsum("s,si,sj->ij", share / share.sum(), apart, apart)  # of ends as good
        off = np.linalg.norm(self._errors(*state)[2][0], axis=-1)
        agreeing = float(((off < 3.0) * self.seen).sum() / max(self.seen.sum(), 1.0))
        return R[best], o[best], covariance.reshape(frames, 6, frames, 6), agreeing

    def _descend(self, state: tuple, iterations: int, first: int) -> tuple[tuple, np.ndarray]:
        """Levenberg and Marquardt's steps first, first + 1, ... of every start; returns the states and their costs."""
        R, o, rho = state
        starts, frames = R.shape[:2]
        damping = np.full(starts, 1e-3)
        for iteration in range(iterations):
            width = _ROBUST[min(first + iteration, len(_ROBUST) - 1)]
            now = self._normal_equations(R, o, rho, width)
            depths = now.depths * (1 + damping[:, None])
            diagonal = np.einsum("sii->si", now.hessian)
            reduced = now.hessian - (now.across / depths[:, None]) @ np.swapaxes(now.across, 1, 2)
            reduced = reduced + (damping[:, None] * diagonal)[:, :, None] * np.eye(6 * frames)
            right = now.slope - ((now.across / depths[:, None]) @ now.slope_rho[..., None])[..., 0]
            step = -np.linalg.solve(reduced, right[..., None])[..., 0]                          # (S, 6 k)
            step_rho = -(now.slope_rho + (np.swapaxes(now.across, 1, 2) @ step[..., None])[..., 0]) / depths
            step = step.reshape(starts, frames, 6)
            new = so3_exp(step[..., 3:]) @ R, o + step[..., :3], np.clip(rho + step_rho, 0.0, 1 / _NEAREST)
            better = self._cost(*new, width) < now.cost
            R, o, rho = (
                np.where(better.reshape(-1, *[1] * (a.ndim - 1)), a, b) for a, b in zip(new, (R, o, rho), strict=True)
            )
            damping = np.clip(np.where(better, damping / 5, damping * 10), 1e-7, 1e7)
        return (R, o, rho), self._cost(R, o, rho, _ROBUST[-1])

    def _errors(self, R: np.ndarray, o: np.ndarray, rho: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points times inverse depth as cameras see them, in the reference's axes and in their own (S, k, n, 3); how
        far off they are seen (S, k, n, 2), in standard deviations."""
        away = self.rays - rho[:, None, :, None] * o[:, :, None]
        own = away @ R
        error = own[..., :2] / np.maximum(own[..., 2:], _NEAREST) - self.places
        return away, own, error * (self.focal / self.noise)

    def _cost(self, R: np.ndarray, o: np.ndarray, rho: np.ndarray, width: float) -> np.ndarray:
        """Twice the negative log posterior (S,), with Cauchy's loss of a width."""
        off = np.concatenate([o - self.shift, so3_log(R)], axis=-1)
        return self._cost_of(self._errors(R, o, rho)[2], off, rho, width)

    def _cost_of(self, error: np.ndarray, off: np.ndarray, rho: np.ndarray, width: float) -> np.ndarray:
        """`_cost` where the errors of the points and of the cameras (S, k, 6) are known."""
        squared = np.einsum("skna,skna->skn", error, error)
        seen = width**2 * (np.log1p(squared / width**2) * self.seen).sum(axis=(1, 2))
        return seen + (self.weights * off**2).sum(axis=(1, 2)) + ((rho - 1.0) ** 2).sum(axis=1) / _DEPTH**2

    def _normal_equations(self, R: np.ndarray, o: np.ndarray, rho: np.ndarray, width: float) -> _Equations:
        """Expand half the cost about states, each error with the weight that Cauchy's loss of a width gives it."""
        away, own, error = self._errors(R, o, rho)
        weight = self.seen / (1 + np.einsum("skna,skna->skn", error, error) / width**2)         # (S, k, n)
        depth = np.maximum(own[..., 2:], _NEAREST)
        back = np.swapaxes(R, -1, -2)[:, :, None]                                               # (S, k, 1, 3, 3)
        # Rows of the projection's derivative (2, 3) times R^T, in standard deviations.
        onto = back[..., :2, :] - (own[..., :2] / depth)[..., None] * back[..., 2:, :]
        onto = onto * (self.focal / self.noise)[:, None] / depth[..., None]                     # (S, k, n, 2, 3)
        of_cameras = np.concatenate([-rho[:, None, :, None, None] * onto, onto @ _cross(away)], axis=-1)
        of_depths = -np.einsum("sknab,skb->skna", onto, o)                                      # (S, k, n, 2)
        starts, frames, points = weight.shape
        weighted = (of_cameras * weight[..., None, None]).reshape(starts, frames, 2 * points, 6)
        flat = of_cameras.reshape(starts, frames, 2 * points, 6)
        own_blocks = np.swapaxes(weighted, -1, -2) @ flat                                       # (S, k, 6, 6)
        hessian = np.zeros((starts, frames, 6, frames, 6))
        every = np.arange(frames)
        hessian[:, every, :, every] = np.swapaxes(own_blocks, 0, 1)
        hessian = hessian.reshape(starts, 6 * frames, 6 * frames) + np.diag(self.weights.ravel())
        off = np.concatenate([o - self.shift, so3_log(R)], axis=-1)
        slope = (np.swapaxes(weighted, -1, -2) @ error.reshape(starts, frames, 2 * points, 1))[..., 0]
        slope = (slope + self.weights * off).reshape(starts, -1)
        across = np.einsum("sknai,skna,skn->skin", of_cameras, of_depths, weight)
        depths = np.einsum("skna,skna,skn->sn", of_depths, of_depths, weight) + 1 / _DEPTH**2
        slope_rho = np.einsum("skna,skna,skn->sn", of_depths, error, weight) + (rho - 1.0) / _DEPTH**2
        across = across.reshape(starts, 6 * frames, points)
        return _Equations(hessian, slope, across, depths, slope_rho, self._cost_of(error, off, rho, width))
