# SPDX-License-Identifier: Apache-2.0
"""Curves of training runs: python -m benchmarks.training_curves RUN [RUN ...] --picture curves.png.

RUN is a folder of `rays-as-pixels train --out` (or its log.jsonl). Runs lie over each other, by the windows each has
seen. Losses are the means over recent steps that the log holds; errors are those on the run's own held-out clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from rays_as_pixels_model.files import replacing

PANELS = (
    ("pose loss", "loss/pose"),
    ("motion loss", "loss/motion"),
    ("view loss", "loss/views"),
    ("rotation error, deg", "eval/rotation_error_deg"),
    ("direction error, deg", "eval/direction_error_deg"),
    ("views, PSNR dB", "eval/view_psnr"),
)


def curve(rows: list[dict], key: str, skip: int) -> tuple[list[int], list[float]]:
    """Windows seen and values of one key of a log, from `skip` windows on."""
    found = [row for row in rows if row.get(key) is not None and row["windows"] >= skip]
    return [row["windows"] for row in found], [row[key] for row in found]


def read_log(run: Path) -> list[dict]:
    """Rows of a run's log.

    Raises:
        FileNotFoundError: no log there.
    """
    path = run / "log.jsonl" if run.is_dir() else run
    rows, windows = [], 0
    for line in path.read_text().splitlines():
        row = json.loads(line)
        windows = row.setdefault("windows", windows)  # an evaluation's row names its step only
        rows.append(row)
    return rows


def plot(runs: dict[str, list[dict]], path: Path, skip: int) -> None:
    """Draw every panel that any of the runs has figures for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (title, key) in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for name, rows in runs.items():
            evaluated = key.startswith("eval/")
            windows, values = curve(rows, key, 0 if evaluated else skip)
            if windows:
                marker = "o" if evaluated else None
                axes.plot([w / 1000 for w in windows], values, marker=marker, linewidth=1.2, label=name)
        axes.set(title=title, xlabel="thousand windows")
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend(fontsize="x-small")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=90)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_curves", description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--labels", nargs="+", help="names of the runs (default: their folders')")
    parser.add_argument("--skip", type=int, default=10000, help="windows at the start whose losses are not drawn")
    parser.add_argument("--picture", type=Path, default=Path("out/training_curves.png"))
    args = parser.parse_args()
    labels = args.labels or [run.name for run in args.runs]
    if len(labels) != len(args.runs):
        parser.error(f"{len(labels)} labels for {len(args.runs)} runs")
    try:
        runs = {label: read_log(run) for label, run in zip(labels, args.runs, strict=True)}
    except OSError as error:
        parser.error(str(error))
    plot(runs, args.picture, args.skip)
    print(f"wrote {args.picture}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
