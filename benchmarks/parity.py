# SPDX-License-Identifier: Apache-2.0
"""Parity of ONNX Runtime with torch at a preset's full size: python -m benchmarks.parity [--preset small].

Writes a checkpoint with random weights (none of them zero, so that every layer counts) to a temporary folder and
exports it with `rays-as-pixels export --whole-window`, which compares all three tasks. Minutes on a CPU; Linux only.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .report import show

PARTS = ("codec", "pose", "joint", "views")


def write_random_checkpoint(folder: Path, name: str) -> None:
    """Write a checkpoint of a preset's full size with random weights."""
    import torch

    from rays_as_pixels_model.checkpoint import save_checkpoint
    from rays_as_pixels_model.config import preset
    from rays_as_pixels_model.joint import RaysAsPixels

    torch.manual_seed(0)
    model = RaysAsPixels(preset(name))
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    save_checkpoint(folder, model, "random weights, for a comparison of engines")


def measure(name: str, precisions: list[str]) -> list[dict]:
    """Export in each precision; [{precision, parity, seconds, peak_gib}], the peak being that of the largest so far."""
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint, facts = Path(temporary) / "checkpoint", Path(temporary) / "facts.json"
        write_random_checkpoint(checkpoint, name)
        for precision in precisions:
            command = [sys.executable, "-m", "rays_as_pixels_ros.cli", "export", "--whole-window", "--precision", precision]
            paths = ["--checkpoint", str(checkpoint), "--out", str(Path(temporary) / "onnx"), "--json", str(facts)]
            start = time.perf_counter()
            done = subprocess.run([*command, *paths], check=False)
            row = {"preset": name, "precision": precision, "seconds": time.perf_counter() - start}
            row["peak_gib"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            row["parity"] = json.loads(facts.read_text())["parity"] if done.returncode == 0 else None
            rows.append(row)
            facts.unlink(missing_ok=True)
    return rows


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| model | precision | {' | '.join(PARTS)} | peak GiB | s |", "|---" * (len(PARTS) + 4) + "|"]
    for row in rows:
        found = [f"{row['parity'][part]:.1e}" if row["parity"] else "above its limit" for part in PARTS]
        size = f"{row['peak_gib']:.1f} | {row['seconds']:.0f}"
        lines.append(f"| {row['preset']} | {row['precision']} | {' | '.join(found)} | {size} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="small")
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16"], choices=("fp32", "fp16", "int8"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args.preset, args.precision)
    show(rows, table(rows), args.json)
    return 0 if all(row["parity"] for row in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
