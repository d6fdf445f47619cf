# SPDX-License-Identifier: Apache-2.0
"""Contact sheets during training: what goes in, what comes out, and what is true.

One column block per held-out window: its frames, the raxels as estimated and as they are, then source, rendered view
and truth of a view.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from .validation import Estimates

_HEIGHT, _LABEL, _GAP = 96, 92, 4  # pixels
_ROWS = ("frames", "raxels est.", "raxels true", "views")


def contact_sheet(found: Estimates, windows: int = 3, frames: int = 5) -> np.ndarray:
    """Draw the first windows, at most `frames` frames of each: (H, W, 3) uint8."""
    true = found.pose.raxels()
    count = found.pose.frames.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(frames, count)).astype(int))
    blocks = []
    for i in range(min(windows, len(true))):
        rows = [_strip(images[i][shown]) for images in (found.pose.frames, found.raxels, true)]
        views = [_strip(x[i][None]) for x in (found.views.frames[:, 0], found.targets, found.views.frames[:, 1])]
        for picture, name in zip(views, ("source", "rendered", "truth"), strict=True):
            _write(picture, name)
        rows.append(_beside(views))
        widest = max(row.shape[1] for row in rows)
        rows = [np.pad(r, ((0, _GAP), (0, widest - r.shape[1] + 3 * _GAP), (0, 0)), constant_values=24) for r in rows]
        blocks.append(np.concatenate(rows))
    sheet = np.concatenate(blocks, axis=1)
    labels = np.full((len(sheet), _LABEL, 3), 24, np.uint8)
    for number, text in enumerate(_ROWS):
        _write(labels[number * (_HEIGHT + _GAP) :], text, _HEIGHT // 2)
    return np.ascontiguousarray(np.concatenate([labels, sheet], axis=1))


def _strip(images: Tensor) -> np.ndarray:
    """(n, H, W, 3) in about [-1, 1] side by side at the sheet's height; raxels as red, green and blue."""
    pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().byte().numpy()
    width = round(pixels.shape[2] * _HEIGHT / pixels.shape[1])
    return _beside([cv2.resize(p, (width, _HEIGHT), interpolation=cv2.INTER_NEAREST) for p in pixels])


def _beside(images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.pad(x, ((0, 0), (0, _GAP), (0, 0)), constant_values=24) for x in images], axis=1)


def _write(image: np.ndarray, text: str, y: int = 14) -> None:
    cv2.putText(image, text, (5, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 3, cv2.LINE_AA)
    cv2.putText(image, text, (5, y), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1, cv2.LINE_AA)
