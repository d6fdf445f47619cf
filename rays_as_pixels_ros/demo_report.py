# SPDX-License-Identifier: Apache-2.0
"""The demo's pictures: trajectory, views, raxels, and a short video. Everything is drawn from what was on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from rays_as_pixels_model.comparison import psnr
from rays_as_pixels_model.files import write_video
from rays_as_pixels_model.geometry import fit_intrinsics, invert, rotation_angle_deg
from rays_as_pixels_model.raxels import make_raxels

from .demo_figures import Track, View
from .demo_source import DemoSource
from .trajectory_report import align_to

_ESTIMATE, _TRUTH = "tab:blue", "0.55"
_PANEL = (480, 320)


def _figure(width: float, height: float):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _placed(track: Track) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the estimate (Sim(3)-aligned where there is truth) and the truth, both in the first camera's axes."""
    if track.T_world_camera is None:
        return invert(track.T_map_camera[0]) @ track.T_map_camera, None
    origin = invert(track.T_world_camera[0])
    return origin @ align_to(track.T_map_camera, track.T_world_camera), origin @ track.T_world_camera


def draw_trajectory(path: Path, track: Track, window: int, title: str) -> None:
    """Draw the path from above and from the side and, with truth, position and rotation errors over time."""
    estimate, truth = _placed(track)
    figure = _figure(12, 8 if truth is not None else 4.3)
    panels = figure.subplots(2 if truth is not None else 1, 2, squeeze=False)
    above, side = panels[0]
    # From the side that shows more of the path: across the first camera's view, or along it.
    extent = np.ptp((estimate if truth is None else truth)[:, :3, 3], axis=0)
    along = int(extent[2] > extent[0])
    for name, poses, colour in (("truth", truth, _TRUTH), ("estimate", estimate, _ESTIMATE)):
        if poses is None:
            continue
        x, y, z = poses[:, :3, 3].T
        for axes, across, up in ((above, x, z), (side, (x, z)[along], -y)):
            axes.plot(across, up, color=colour, label=name, marker=".", markersize=3)
            axes.plot(across[:1], up[:1], "o", color=colour)
    unit = "m, Sim(3) aligned" if truth is not None else "scene scale of the first window"
    above.set(xlabel="right", ylabel="forward", title=f"from above ({unit})", aspect="equal", adjustable="datalim")
    side.set(
        xlabel=("right", "forward")[along],
        ylabel="up",
        title=f"from the side ({unit})",
        aspect="equal",
        adjustable="datalim",
    )
    if truth is not None:
        position, rotation = panels[1]
        error = np.linalg.norm(estimate[:, :3, 3] - truth[:, :3, 3], axis=1)
        position.plot(track.seconds, error, color=_ESTIMATE)
        position.set(xlabel="seconds", ylabel="m", title="position error", ylim=(0, None))
        span = min(window - 1, len(estimate) - 1)
        found = (invert(track.T_map_camera[:-span]) @ track.T_map_camera[span:])[:, :3, :3]
        true = (invert(track.T_world_camera[:-span]) @ track.T_world_camera[span:])[:, :3, :3]
        after = track.seconds[span:]
        rotation.plot(after, rotation_angle_deg(true), color=_TRUTH, label="standing still (identity)")
        rotation.plot(after, rotation_angle_deg(found.transpose(0, 2, 1) @ true), color=_ESTIMATE, label="estimate")
        rotation.set(xlabel="seconds", ylabel="degrees", title=f"rotation error over {span + 1} frames", ylim=(0, None))
        rotation.legend(fontsize="small")
    above.legend(fontsize="small")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=100)


def draw_views(path: Path, views: list[View], title: str) -> None:
    """Draw a row for each view: truth, rendered, the nearest source copied, the source turned."""
    columns = [("truth", "truth"), ("rendered", "rendered"), ("copy", "nearest source"), ("warp", "rotation warp")]
    if all(view.truth is None for view in views):
        columns = columns[1:]
    figure = _figure(2.3 * len(columns) + 0.8, 1.62 * len(views) + 0.5)
    panels = figure.subplots(len(views), len(columns), squeeze=False)
    for axes, (_, label) in zip(panels[0], columns, strict=True):
        axes.set_title(label, fontsize=9)
    for row, view in zip(panels, views, strict=True):
        for axes, (name, _) in zip(row, columns, strict=True):
            picture = getattr(view, name)
            if picture is not None:
                axes.imshow(picture, interpolation="nearest")
            if view.truth is not None and name != "truth":
                axes.set_xlabel(f"{psnr(picture, view.truth):.1f} dB", fontsize=8, labelpad=1)
            axes.set(xticks=[], yticks=[])
        row[0].set_ylabel(view.caption, fontsize=8)
    figure.suptitle(title, fontsize="medium")
    figure.savefig(path, dpi=90)


def draw_raxels(path: Path, record, track: Track, source: DemoSource, metres: float | None, window: int, rows: int = 5):
    """Draw the decoded raxel image of the newest frame of some windows beside the true one.

    A raxel image holds ray direction plus camera centre of each pixel as red, green and blue.

    Args:
        metres: for one unit of the model, where the source does not know the depth; None: unknown.
    """
    index = {int(stamp): place for place, stamp in enumerate(track.stamps)}
    ends = [stamp for stamp in sorted(record.raxels) if index.get(stamp, 0) >= window - 1 and stamp in record.images]
    ends = [ends[place] for place in np.unique(np.linspace(0, len(ends) - 1, rows).round().astype(int))] if ends else []
    known = track.T_world_camera is not None
    names = ["first image", "last image", "decoded raxels"]
    names += ["true raxels", "8 x |decoded - true|", "8 x |still - true|"] * known
    figure = _figure(2.1 * len(names), 1.55 * max(len(ends), 1) + 0.6)
    panels = figure.subplots(max(len(ends), 1), len(names), squeeze=False)
    for row, stamp in zip(panels, ends, strict=False):
        first = int(track.stamps[index[stamp] - window + 1])
        decoded = record.raxels[stamp]
        height, width = decoded.shape[:2]
        image, camera = record.images[stamp]
        pictures = [record.images.get(first, (image,))[0], image, decoded]
        if known:
            T = invert(record.truth[first]) @ record.truth[stamp]
            T[:3, 3] /= source.depth(record.truth[first]) or metres or 1.0
            camera = fit_intrinsics(camera, 2 * width, 2 * height)
            true, still = (_raxel_picture(make_raxels(pose, camera, height, width)) for pose in (T, np.eye(4)))
            pictures += [true, _difference(decoded, true), _difference(still, true)]
        for axes, picture in zip(row, pictures, strict=True):
            axes.imshow(picture, interpolation="nearest")
    for axes, name in zip(panels[0], names, strict=True):
        axes.set_title(name, fontsize=9)
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
    figure.suptitle("raxels of the last frame of a window, seen from its first frame", fontsize="medium")
    figure.savefig(path, dpi=90)


def _raxel_picture(raxels: np.ndarray) -> np.ndarray:
    return np.clip((raxels + 1.0) * 127.5, 0, 255).astype(np.uint8)  # as the node shows them


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.clip(8 * np.abs(a.astype(np.int16) - b.astype(np.int16)), 0, 255).astype(np.uint8)


def write_film(path: Path, record, track: Track) -> None:
    """Write an MP4: the camera's images on the left, the trajectory as it grows on the right."""
    step = np.median(np.diff(track.stamps)) * 1e-9 if len(track.stamps) > 1 else 0.1
    write_video(path, _film(record, track), fps=float(np.clip(1.0 / max(step, 1e-3), 2.0, 30.0)))


def _film(record, track: Track) -> Iterator[np.ndarray]:
    estimate, truth = _placed(track)
    both = (estimate if truth is None else np.concatenate([estimate, truth]))[:, :3, 3]
    # From above, or from behind the first camera if the path climbs more than it goes forward.
    climbs = np.ptp(both[:, 1]) > np.ptp(both[:, 2])
    axis, seen = (1, "from behind") if climbs else (2, "from above")
    turn = [1, 1] if climbs else [1, -1]
    low, high = both[:, [0, axis]].min(axis=0), both[:, [0, axis]].max(axis=0)
    scale = min((size - 80) / max(extent, 1e-6) for size, extent in zip(_PANEL, high - low, strict=True))

    def pixels(positions: np.ndarray) -> np.ndarray:
        flat = (positions[:, [0, axis]] - (low + high) / 2) * scale * turn + np.array(_PANEL) / 2
        return flat.round().astype(np.int32)

    blue, grey = (31, 119, 180), (150, 150, 150)
    arrow = 25 / scale
    for place, stamp in enumerate(track.stamps):
        panel = np.full((_PANEL[1], _PANEL[0], 3), 255, np.uint8)
        if truth is not None:
            cv2.polylines(panel, [pixels(truth[:, :3, 3])], False, grey, 1, cv2.LINE_AA)
            cv2.putText(panel, "truth", (12, 44), cv2.FONT_HERSHEY_SIMPLEX, 0.45, grey, 1, cv2.LINE_AA)
        cv2.polylines(panel, [pixels(estimate[: place + 1, :3, 3])], False, blue, 2, cv2.LINE_AA)
        centre = estimate[place, :3, 3]
        tip = centre + arrow * estimate[place, :3, 2]
        start, end = (tuple(int(value) for value in point) for point in pixels(np.stack([centre, tip])))
        cv2.arrowedLine(panel, start, end, (214, 39, 40), 2, cv2.LINE_AA, tipLength=0.3)
        cv2.putText(panel, f"estimate, {seen}", (12, 22), cv2.FONT_HERSHEY_SIMPLEX, 0.45, blue, 1, cv2.LINE_AA)
        if stamp in record.images:
            image = record.images[int(stamp)][0]
            yield np.concatenate([cv2.resize(image, _PANEL, interpolation=cv2.INTER_CUBIC), panel], axis=1)
