# SPDX-License-Identifier: Apache-2.0
"""How far other engines and precisions are from torch in float32: python -m benchmarks.parity [--preset small].

At full size, on all three tasks: what `rays-as-pixels export --whole-window` compares, and torch in bfloat16. Presets
have random weights, none of them zero, so that every layer counts. Minutes on a CPU for `small`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import torch

from rays_as_pixels_model.checkpoint import load_checkpoint
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.export import LIMITS, ExportError, parity, write_export
from rays_as_pixels_model.joint import RaysAsPixels

from .report import show

PARTS = ("codec", "pose", "joint", "views")


def random_model(name: str) -> RaysAsPixels:
    """Make a model of a preset with random weights."""
    torch.manual_seed(0)
    model = RaysAsPixels(preset(name)).eval()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape))
    return model


def measure(name: str, precision: str) -> dict:
    """Compare one precision with torch in float32; {preset, precision, parity, seconds}.

    Args:
        name: of a preset, or 'shipped'.
        precision: of `export`, or 'bf16': torch with the transformer's weights and arithmetic in bfloat16.

    Raises:
        ExportError: an export that is above its limit.
    """
    model = load_checkpoint() if name == "shipped" else random_model(name)
    start = time.perf_counter()
    if precision == "bf16":
        other = deepcopy(model)
        other.transformer.bfloat16()
        found = parity(model, other, whole_window=True)
    else:
        with tempfile.TemporaryDirectory() as folder:
            about = {"preset": name, "precision": precision}
            found = write_export(model, Path(folder) / "onnx", about, whole_window=True)["parity"]
    return {"preset": name, "precision": precision, "parity": found, "seconds": time.perf_counter() - start}


def table(rows: list[dict]) -> str:
    """Return the rows as Markdown."""
    lines = [f"| model | precision | {' | '.join(PARTS)} | limit |", "|---" * (len(PARTS) + 3) + "|"]
    for row in rows:
        found = " | ".join(f"{row['parity'][part]:.1e}" for part in PARTS)
        limit = LIMITS.get(row["precision"])
        lines.append(f"| {row['preset']} | {row['precision']} | {found} | {'' if limit is None else f'{limit:g}'} |")
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="shipped", help="a preset, or 'shipped': the default checkpoint")
    parser.add_argument("--precision", nargs="+", default=["fp32", "fp16", "bf16"], choices=(*LIMITS, "bf16"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    try:
        rows = [measure(args.preset, precision) for precision in args.precision]
    except ExportError as error:
        print(error)
        return 1
    show(rows, table(rows), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
