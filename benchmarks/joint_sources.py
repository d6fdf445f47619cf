# SPDX-License-Identifier: Apache-2.0
"""Joint generation from several pictures: python -m benchmarks.joint_sources.

A video is drawn from the first frame of each held-out window and from others of its frames as further sources, whose
cameras the model is not told. Where it says that they were taken is compared with the truth, beside the identity guess
and beside the pose task, which sees the whole window. The path of the video itself has no truth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from rays_as_pixels_model.geometry import direction_angle_deg, rotation_angle_deg
from rays_as_pixels_model.pipeline import Pipeline
from rays_as_pixels_training.held_out import held_out_windows

from .report import show

OTHERS = ((2,), (4,), (2, 4))


def measure(checkpoint: str | None, windows: int, steps: int) -> list[dict]:
    """Return one row for each choice of further sources."""
    pipe = Pipeline.from_checkpoint(checkpoint, "cpu")
    given = held_out_windows(windows, pipe.config.frames, (pipe.config.width, pipe.config.height))
    truth = np.stack([w.T_first_camera() for w in given])
    pose = np.stack([pipe.estimate_trajectory(w.frames, w.intrinsics).T_reference_camera for w in given])
    rows = []
    for others in OTHERS:
        index = [0, *others]
        out = [pipe.imagine(w.frames[index], w.intrinsics, steps=steps, seed=n) for n, w in enumerate(given)]
        asked, found = truth[:, index[1:]], np.stack([x.T_reference_source[1:] for x in out])
        row = {"sources": index, "identity_rotation_deg": _turn(asked, np.broadcast_to(np.eye(4), asked.shape))}
        for name, T in (("joint", found), ("pose", pose[:, index[1:]])):
            row[f"{name}_rotation_deg"] = _turn(asked, T)
            row[f"{name}_direction_deg"] = float(np.median(direction_angle_deg(asked[..., :3, 3], T[..., :3, 3])))
        rows.append(row)
        print(row, flush=True)
    return rows


def _turn(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.median(rotation_angle_deg(np.swapaxes(a[..., :3, :3], -1, -2) @ b[..., :3, :3])))


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| sources (frames of the window) | rotation error, median deg (pose task, identity guess) "
        "| direction error, median deg (pose task) |",
        "|---|---|---|",
    ]
    for row in rows:
        turn = "{joint_rotation_deg:.2f} ({pose_rotation_deg:.2f}, {identity_rotation_deg:.2f})".format(**row)
        shift = "{joint_direction_deg:.0f} ({pose_direction_deg:.0f})".format(**row)
        lines.append(f"| {', '.join(map(str, row['sources']))} | {turn} | {shift} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.joint_sources", description=__doc__)
    parser.add_argument("--checkpoint", help="folder (default: the shipped one)")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args.checkpoint, args.windows, args.steps)
    show(rows, table(rows), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
