# SPDX-License-Identifier: Apache-2.0
"""What every benchmark ends with: its table on the terminal, its figures in a file."""

from __future__ import annotations

import json
from pathlib import Path

from rays_as_pixels_model.files import write_text


def show(report: dict | list, table: str, path: Path | None) -> None:
    """Print a Markdown table and, where a path is given, write the report as JSON."""
    print(table)
    if path is not None:
        write_text(path, json.dumps(report, indent=1) + "\n")
