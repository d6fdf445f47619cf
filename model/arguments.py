# SPDX-License-Identifier: Apache-2.0
"""Types of command-line arguments that every room's commands share; only the standard library is imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def integer(least: int) -> Callable[[str], int]:
    """Make an argument type: a whole number that is at least `least`."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is too small, it must be at least {least}")
        return value

    return parse
