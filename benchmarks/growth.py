# SPDX-License-Identifier: Apache-2.0
"""How time grows with frames, resolution, steps and views: slopes in log-log axes, and their plot.

Slope 1 is proportional; attention alone would have 2 in tokens. Windows larger than the checkpoint's are run with its
weights as they are: this measures time only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import Intrinsics
from rays_as_pixels_model.pipeline import Pipeline

from .speed import in_turns

FRAMES, SCALES, STEPS, VIEWS = (5, 9, 17, 33), (1, 2, 3), (1, 2, 4, 8), (1, 2, 4, 8)


def measure_growth(pipe: Pipeline, clock: Callable[[], float], repeats: int) -> dict:
    """Measure; {axis: {values, seconds, slope}}; the slope is of the upper half, where what is constant has faded."""
    axes = {"steps": STEPS, "views": VIEWS}
    if hasattr(pipe.model, "at"):  # an exported model has one size
        axes = {"frames": FRAMES, "pixels": SCALES, **axes}
    report = {}
    for axis, values in axes.items():
        calls, numbers = {}, []
        for value in values:
            call, number = _call(pipe, axis, value)
            calls[str(value)] = call
            numbers.append(number)
        seconds = list(in_turns(calls, clock, repeats).values())
        half = len(values) // 2
        slope = np.polyfit(np.log(numbers[half:]), np.log(seconds[half:]), 1)[0]
        report[axis] = {"values": numbers, "seconds": seconds, "slope": float(slope)}
    return report


def _call(pipe: Pipeline, axis: str, value: int) -> tuple[Callable, int]:
    """What is timed, and the number on the axis."""
    config, steps = pipe.config, value if axis == "steps" else 1
    if axis == "frames":
        pipe = Pipeline(pipe.model.at(frames=value), pipe.device)
    elif axis == "pixels":
        pipe = Pipeline(pipe.model.at(height=value * config.height, width=value * config.width), pipe.device)
    config = pipe.config
    rng, camera = np.random.default_rng(0), Intrinsics.from_fov(65, config.width, config.height)
    frames = rng.integers(0, 255, (config.frames, config.height, config.width, 3), dtype=np.uint8)
    if axis == "views":
        T = np.tile(np.eye(4), (value, 1, 1))
        return lambda: pipe.render_views(frames[:1], T[:1], camera, T, steps=1), value
    number = {"frames": config.frames, "pixels": config.height * config.width, "steps": value}[axis]
    return lambda: pipe.estimate_trajectory(frames, camera, steps, passes=1), number


def plot_growth(growth: dict, path: str | Path) -> None:
    """Draw seconds against each axis, log-log, with the slope in the title."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from rays_as_pixels_model.files import replacing

    figure, axes = plt.subplots(1, len(growth), figsize=(3 * len(growth), 3), squeeze=False)
    for plot, (name, data) in zip(axes[0], growth.items(), strict=True):
        plot.loglog(data["values"], data["seconds"], "o-")
        plot.set(xlabel=name, ylabel="seconds" if plot is axes[0][0] else "", title=f"slope {data['slope']:.2f}")
        plot.set_xticks(data["values"], [f"{value:,}" for value in data["values"]], rotation=45)
        plot.minorticks_off()
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=80)
    plt.close(figure)
