# SPDX-License-Identifier: Apache-2.0
"""rays_as_pixels: trajectory_node and view_synthesis_node in one process over one loaded model."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

from .camera_node import load_default_pipeline
from .node_process import main_of
from .trajectory_node import TrajectoryNode
from .view_synthesis_node import ViewSynthesisNode


class SharedPipeline:
    """Load each (checkpoint, device) once and give the same model to all who ask."""

    def __init__(self, load: Callable[[str, str], Any] = load_default_pipeline):
        self._load = load
        # Weak: a model that no node uses any more (after cleanup) is freed.
        self._loaded: weakref.WeakValueDictionary = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def __call__(self, checkpoint: str, device: str) -> Any:
        with self._lock:
            pipeline = self._loaded.get((checkpoint, device))
            if pipeline is None:
                pipeline = self._loaded[checkpoint, device] = self._load(checkpoint, device)
            return pipeline


def make_nodes() -> list:
    """Make both nodes over one model."""
    shared = SharedPipeline()
    return [TrajectoryNode(load_pipeline=shared), ViewSynthesisNode(load_pipeline=shared)]


main = main_of(make_nodes)

if __name__ == "__main__":
    raise SystemExit(main(None))
