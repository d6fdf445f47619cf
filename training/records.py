# SPDX-License-Identifier: Apache-2.0
"""What a run writes down: OUT/log.jsonl, one line of numbers a time, and the same for TensorBoard.

A run that was killed writes its repeated steps again: the last line of a step counts.
"""

from __future__ import annotations

import json
from collections import defaultdict, deque
from pathlib import Path

import numpy as np

from .data.source import cut_torn_line
from .learner import Update

_MEMORY = 200  # updates of a task that a mean is taken over


class Records:
    """Collects updates and writes lines; a process that is not the first writes nothing.

    Attributes:
        recent: by name, what the means are taken over.
    """

    def __init__(
        self, out: Path, step: int, write: bool = True, tensorboard: bool = True, recent: dict | None = None
    ) -> None:
        """`recent` is that of the run so far: the means go on as if it had not been stopped."""
        self._path = out / "log.jsonl" if write else None
        self.recent: dict[str, deque] = defaultdict(lambda: deque(maxlen=_MEMORY))
        for name, values in (recent or {}).items():
            self.recent[name].extend(values)
        self._board = None
        self.note = ""
        if self._path is not None:
            cut_torn_line(self._path)
            if tensorboard:
                self._open_board(out / "tensorboard", step)

    def _open_board(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.note = "no tensorboard here (pip install tensorboard): OUT/log.jsonl holds the same numbers"
            return
        self._board = SummaryWriter(str(folder), purge_step=step + 1, flush_secs=30)

    def add(self, update: Update) -> None:
        """Remember an update for the means."""
        task = update.task
        self.recent[f"loss/{task}"].append(update.loss)
        for name, value in update.parts.items():
            if name == "motion":
                self.recent["loss/motion"].append(value)
            elif value != 0:  # nothing of this modality was denoised
                self.recent[f"loss_{name}/{task}"].append(value)
        for name, value in update.norms.items():
            self.recent[f"gradient_{name}/{task}"].append(value)

    def line(self, facts: dict) -> dict:
        """Write the means and `facts`, which has the step; return the line."""
        means = {name: float(f"{np.mean(values):.4g}") for name, values in sorted(self.recent.items())}
        return self.write({**facts, **means})

    def write(self, line: dict) -> dict:
        """Write one line."""
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(json.dumps(line) + "\n")
        if self._board is not None:
            for name, value in line.items():
                if name != "step" and isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(name if "/" in name else f"run/{name}", value, line["step"])
        return line

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Show a picture (H, W, 3) uint8 in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        if self._board is not None:
            self._board.close()
