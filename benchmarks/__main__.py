# SPDX-License-Identifier: Apache-2.0
"""Run the benchmarks: python -m benchmarks [training_step] (./dev bench)."""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--preset", default="micro")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from .report import show
    from .training_step import measure, table

    report = measure(args.preset, args.batch, args.compile)
    show(report, table(report), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
