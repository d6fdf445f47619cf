# SPDX-License-Identifier: Apache-2.0
"""What a model folder says of itself, read without torch: which model it holds, and for which engine.

A checkpoint has config.json and model.safetensors (`checkpoint.py`). An exported folder has config.json with a section
"onnx" and the graphs that it lists (`export.py`, `onnx_engine.py`). A folder may come from anyone: only plain files in
it are read, but for the shipped one, whose files an installer may have linked.
"""

from __future__ import annotations

import json
import os
import stat
from importlib import resources
from pathlib import Path
from typing import BinaryIO

from .config import ConfigError, ModelConfig

FORMAT = 1
WEIGHTS = "model.safetensors"


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; one line with what is wrong and what would be right."""


def default_checkpoint() -> Path:
    """Return the folder of the checkpoint that ships with the package."""
    return Path(str(resources.files(__package__) / "weights" / "default"))


def read_config(folder: Path | str | None) -> tuple[Path, ModelConfig, dict]:
    """Return (folder, model config, training facts) of a checkpoint without its weights."""
    shipped = folder is None
    folder = default_checkpoint() if folder is None else Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise CheckpointError(f"checkpoint {folder} {what}; give a folder that holds config.json and {WEIGHTS}")
    about = folder / "config.json"
    if not about.is_file():
        raise CheckpointError(
            f"checkpoint {folder} has no config.json; give a folder that holds config.json and {WEIGHTS}"
        )
    try:
        data = json.loads(about.read_bytes() if shipped else own_bytes(folder, "config.json"))
        if data.get("format") != FORMAT:
            raise CheckpointError(f"checkpoint {folder} has format {data.get('format')!r}; this version reads {FORMAT}")
        return folder, ModelConfig.from_dict(data["model"]), data.get("training", {})
    except (json.JSONDecodeError, UnicodeDecodeError, ConfigError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{about} is not a checkpoint config: {error}") from None


def read_exported(folder: Path | str | None) -> dict | None:
    """Return what config.json says of the exported graphs of a folder; None if it holds a checkpoint."""
    folder, _, _ = read_config(folder)
    about = json.loads((folder / "config.json").read_text())
    if "onnx" not in about:
        return None
    if not isinstance(about["onnx"], dict) or not isinstance(about["onnx"].get("files"), dict):
        raise CheckpointError(f"{folder / 'config.json'}: its section onnx must list files with their checksums")
    return about["onnx"]


def own_bytes(folder: Path, name: str) -> bytes:
    """Read a file that lies in the folder itself, see `own_file`."""
    with own_file(folder, name) as file:
        return file.read()


def own_file(folder: Path, name: str) -> BinaryIO:
    """Open a file that lies in the folder itself: no path, no link, no device.

    Raises:
        CheckpointError: it is not such a file; nothing was read then.
    """
    path = folder / name
    if Path(name).name != name or name in ("", ".", ".."):
        raise CheckpointError(f"{folder} names the file {name!r}, which may lie outside of it; it is not read")
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
    except OSError as error:
        why = "is a link, which may lead outside of its folder" if path.is_symlink() else error.strerror
        raise CheckpointError(f"{path} {why}; it is not read") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path} is not a plain file; it is not read")
    return os.fdopen(handle, "rb")
