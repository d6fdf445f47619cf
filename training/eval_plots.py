# SPDX-License-Identifier: Apache-2.0
"""The pictures of an evaluation: accuracy curves, errors against steps, rendered views, paths of clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rays_as_pixels_model.files import replacing
from rays_as_pixels_model.geometry import direction_angle_deg, rotation_angle_deg

from .eval_pose import Found
from .eval_windows import EvalWindow
from .metrics import last_against_first
from .trajectory_metrics import aligned_to

_COLOURS = {
    "rays_as_pixels": "tab:blue",
    "rays_as_pixels_model_alone": "tab:purple",
    "rays_as_pixels_1_pass": "tab:olive",
    "refined_from_rest": "tab:pink",
    "rays_as_pixels_unknown_focal": "tab:cyan",
    "identity": "0.5",
    "constant_velocity": "tab:orange",
    "opencv_vo": "tab:green",
    "colmap": "tab:red",
    "copy_nearest": "0.5",
    "rotation_warp": "tab:orange",
}


def plot_all(
    folder: Path, report: dict, found: dict[str, Found], windows: Sequence[EvalWindow], cases: dict, trajectories: dict
) -> list[Path]:
    """Write every picture that there is something for; returns their paths."""
    out = []
    if found:
        out.append(plot_accuracy(folder / "pose_accuracy.png", found, windows, report["least_motion"]))
    if any(name.endswith("_steps") for name in (*report["pose"], *report["views"])):
        out.append(plot_steps(folder / "steps.png", report))
    for name, table in cases.items():
        out.append(plot_views(folder / f"views_{name}.png", table))
    if trajectories:
        out.append(plot_trajectories(folder / "trajectories.png", trajectories))
    return out


def plot_accuracy(path: Path, found: dict[str, Found], windows: Sequence[EvalWindow], least_motion: float) -> Path:
    """Draw the share of windows with an error below x, for rotation and for direction."""
    truth = last_against_first(np.stack([w.T_first_camera() for w in windows]))
    figure, (left, right) = _figure(1, 2, (11, 4.2))
    for method, own in found.items():
        if method not in _COLOURS:
            continue
        last, true = last_against_first(own.T_first_camera), truth[own.rows]
        rotation = rotation_angle_deg(np.swapaxes(true[:, :3, :3], 1, 2) @ last[:, :3, :3])
        moved = np.linalg.norm(true[:, :3, 3], axis=1) >= least_motion
        direction = direction_angle_deg(last[moved, :3, 3], true[moved, :3, 3])
        for axes, errors in ((left, rotation), (right, direction)):
            share = np.append(np.arange(len(errors) + 1) / max(1, len(errors)) * 100, 100)
            limits = np.concatenate([[0], np.sort(errors), [180]])
            axes.step(limits, share, where="post", label=f"{method} ({len(own.rows)})", color=_COLOURS[method])
    left.set(xlim=(0, 30), xlabel="rotation error below, degrees", ylabel="percent of windows", ylim=(0, 101))
    right.set(xlim=(0, 90), xlabel="translation direction error below, degrees", ylim=(0, 101))
    right.legend(fontsize="small", loc="lower right")
    return _save(figure, path, (left, right))


def plot_steps(path: Path, report: dict) -> Path:
    """Draw errors and PSNR against the number of steps."""
    figure, (left, middle, right) = _figure(1, 3, (13, 3.8))
    for axes, table, key, title in (
        (left, report["pose"], "rotation_error_deg_median", "rotation error, median deg"),
        (middle, report["pose"], "translation_direction_error_deg_median", "direction error, median deg"),
        (right, report["views"], "psnr", "PSNR dB"),
    ):
        steps = sorted(int(name.split("_")[3]) for name in table if name.endswith("_steps"))
        values = [table[f"rays_as_pixels_{count}_steps"][key] for count in steps]
        axes.plot(steps, values, "o-", label="rays_as_pixels", color=_COLOURS["rays_as_pixels"])
        for method, row in table.items():
            if not method.startswith("rays_as_pixels") and row.get(key) is not None:
                axes.axhline(row[key], color=_COLOURS.get(method), linestyle="--", label=method)
        axes.set(xscale="log", xlabel="steps", ylabel=title, xticks=steps, xticklabels=steps)
        axes.minorticks_off()
        axes.legend(fontsize="x-small")
    return _save(figure, path, (left, middle, right))


def plot_views(path: Path, table: dict[str, np.ndarray], count: int = 6) -> Path:
    """Show some views, evenly spread over the windows: one row a method, the truth on top."""
    shown = {id(pictures): method for method, pictures in reversed(table.items())}  # the default steps only once
    methods = ["truth", *(m for m in table if m != "truth" and m in shown.values())]
    rows = np.linspace(0, len(table["truth"]) - 1, min(count, len(table["truth"]))).round().astype(int)
    height, width = table["truth"].shape[1:3]
    size = (1.6 * len(rows), 1.75 * len(methods) * height / width)
    figure, grid = _figure(len(methods), len(rows), size, squeeze=False)
    for line, method in zip(grid, methods, strict=True):
        for axes, row in zip(line, rows, strict=True):
            axes.imshow(table[method][row])
            axes.set(xticks=[], yticks=[])
        line[0].set_title(method, fontsize="x-small", loc="left", pad=2)
    return _save(figure, path)


def plot_trajectories(path: Path, trajectories: dict) -> Path:
    """Draw each clip's paths from above (right and forward of the first camera), aligned to the truth by Sim(3)."""
    columns = min(2, len(trajectories))
    lines = -(-len(trajectories) // columns)
    figure, grid = _figure(lines, columns, (5.6 * columns, 4.6 * lines), squeeze=False)
    for axes, (clip, methods) in zip(grid.ravel(), trajectories.items(), strict=False):
        truth = next(iter(methods.values()))[1]
        axes.plot(truth[:, 0, 3], truth[:, 2, 3], "-k", linewidth=2, label="truth")
        for method, (estimate, _) in methods.items():
            if method in _COLOURS:
                x, _, z = aligned_to(estimate, truth)[:, :3, 3].T
                axes.plot(x, z, ".-", color=_COLOURS[method], label=method, linewidth=1)
        axes.set(title=clip, xlabel="right", ylabel="forward", aspect="equal", adjustable="datalim")
        axes.legend(fontsize="x-small")
    for axes in grid.ravel()[len(trajectories) :]:
        axes.set_axis_off()
    return _save(figure, path, grid.ravel()[: len(trajectories)])


def _figure(rows: int, columns: int, size: tuple[float, float], **more):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, **more)


def _save(figure, path: Path, grids=()) -> Path:
    for axes in grids:
        axes.grid(alpha=0.3)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return path
