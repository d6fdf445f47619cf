# SPDX-License-Identifier: Apache-2.0
"""The kinds of dataset, and opening one by its path.

To add a kind: a file here with `detect(path) -> bool` (quick: looks at names, at most at the head of a file) and
`open_videos(path, *, option=default, ...) -> list[PosedVideo]`, a line in `KINDS`, and its options in
docs/train_on_your_robot.md.
"""

from __future__ import annotations

import importlib
import inspect
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .posed import PosedVideo

# Kind to what its folder looks like, in the order in which they are tried.
KINDS = {
    "posed_images": "a folder with cameras.json",
    "nerfstudio": "a folder with transforms.json",
    "tum": "a folder with rgb.txt and groundtruth.txt",
    "colmap": "a folder with cameras.txt or cameras.bin, there or in sparse/0, sparse or colmap/sparse/0",
    "rosbag": "a folder with the metadata.yaml of a bag, or a file .mcap, .db3 or .bag",
    "re10k": "a folder of camera text files whose first line is a URL",
    "procedural": "the word 'procedural'",
}
_FILES = (".mcap", ".db3", ".bag")  # files that are datasets
_DEPTH = 3  # how far below the given folder datasets are looked for


def open_dataset(path: str | os.PathLike, kind: str = "auto", **options) -> Sequence[PosedVideo]:
    """Open the videos of a dataset, or of every dataset in the folders below.

    Args:
        path: where; see `KINDS` for what each kind looks like. The word 'procedural' renders scenes.
        kind: one of `KINDS`; 'auto' finds it by the files' names.
        options: of the kind, e.g. image_topic of a rosbag.

    Raises:
        DatasetError: nothing there, an unknown kind or option, or an inconsistent dataset; names the file and what
            would be right.
    """
    from .posed import DatasetError

    path = Path(path)
    if kind not in (*KINDS, "auto"):
        raise DatasetError(f"{path}: kind {kind!r} is not known, use auto or one of {', '.join(KINDS)}")
    if str(path) == "procedural":
        return _open("procedural", path, options)
    if kind == "procedural":
        raise DatasetError(f"{path}: kind procedural takes the word 'procedural' as its path")
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder")
    kinds = [name for name in KINDS if name != "procedural"] if kind == "auto" else [kind]
    found = list(_find(path, kinds, _DEPTH))
    if not found and (path / "pool.json").is_file():
        raise DatasetError(f"{path}: a pool of clips is trained on as it is: rays-as-pixels train --pool {path}")
    if not found:
        wanted = "; ".join(f"{name}: {KINDS[name]}" for name in kinds)
        raise DatasetError(f"{path}: no dataset here or in the folders below. Looked for {wanted}")
    videos = []
    for place, name in found:
        part = _open(name, place, options)
        if place != path:
            below = place.relative_to(path)
            part = [replace(v, name=f"{below}/{v.name}" if v.name != place.name else str(below)) for v in part]
        videos.extend(part)
    return videos


def _find(path: Path, kinds: list[str], depth: int):
    """Yield (path, kind) of the datasets at or below a path; a folder that is a dataset is not looked into."""
    for kind in kinds:
        if _module(kind).detect(path):
            yield path, kind
            return
    if depth and path.is_dir():
        for child in sorted(path.iterdir()):
            if not child.name.startswith(".") and (child.is_dir() or child.suffix in _FILES):
                yield from _find(child, kinds, depth - 1)


def _module(kind: str):
    """Import the file of a kind; procedural.py is the renderer, procedural_videos.py the dataset."""
    return importlib.import_module(f".{'procedural_videos' if kind == 'procedural' else kind}", __package__)


def _open(kind: str, path: Path, options: dict) -> Sequence[PosedVideo]:
    """Open one dataset, with its options checked by name."""
    from .posed import DatasetError

    function = _module(kind).open_videos
    known = {p.name: p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    if unknown := set(options) - known.keys():
        raise DatasetError(
            f"{path}: {kind} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(known)) or 'none'}"
        )
    return function(path, **{name: _of_type(path, name, value, known[name]) for name, value in options.items()})


def _of_type(path: Path, name: str, value, known: inspect.Parameter):
    """Return an option's value as the kind takes it; what looked like a number may have been meant as text."""
    from .posed import DatasetError

    wanted = known.annotation.removesuffix(" | None")
    if wanted == "str":
        return str(value)
    types = {"bool": bool, "int": int, "float": (int, float)}[wanted]
    if not isinstance(value, types) or (isinstance(value, bool) and wanted != "bool"):
        what = {"bool": "true or false", "int": "a whole number", "float": "a number"}[wanted]
        raise DatasetError(f"{path}: option {name} takes {what}, got {value!r}")
    return value


def parse_options(texts: Sequence[str]) -> dict[str, str | int | float | bool]:
    """Read NAME=VALUE from a command line; numbers, true and false become what they look like.

    Raises:
        ValueError: a text without '='.
    """
    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.replace("-", "_").isidentifier():
            raise ValueError(f"option {text!r} is not NAME=VALUE")
        options[name.replace("-", "_")] = _value(value)
    return options


def _value(text: str) -> str | int | float | bool:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for make in (int, float):
        try:
            return make(text)
        except ValueError:
            pass
    return text
