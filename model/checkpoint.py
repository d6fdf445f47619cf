# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: a folder with config.json, model.safetensors and a model card, README.md.

Nothing is ever unpickled. A folder is written under a temporary name and renamed when whole.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode

from .checkpoint_folder import FORMAT, WEIGHTS, CheckpointError, default_checkpoint, own_file, read_config
from .files import check_writable
from .joint import RaysAsPixels

__all__ = ["CheckpointError", "default_checkpoint", "load_checkpoint", "read_config", "save_checkpoint"]

_FILES = {"config.json", WEIGHTS, "README.md"}


def torch_device(name: str) -> str:
    """Resolve 'auto' (a GPU if there is one), 'cpu', 'cuda' or 'cuda:1'; raises ValueError if it is not here."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(name).type
    except RuntimeError:
        raise ValueError(f"device must be 'auto', 'cpu' or 'cuda', got {name!r}") from None
    if kind not in ("cpu", "cuda") or (kind == "cuda" and not torch.cuda.is_available()):
        raise ValueError(f"device {name!r} is not here; use 'cpu' or 'auto'")
    return name


def check_place(folder: Path | str) -> None:
    """Check before long work that a checkpoint can be written to a folder.

    Raises:
        CheckpointError: it holds other files, or is a file; MediaError: it cannot be made.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder} is a file and is not replaced; name a new folder")
    strangers = {path.name for path in folder.iterdir()} - _FILES if folder.is_dir() else set()
    if strangers:
        raise CheckpointError(f"{folder} holds other files ({min(strangers)}) and is not replaced; name a new folder")
    check_writable(folder)


def save_checkpoint(folder: Path | str, model: RaysAsPixels, card: str, training: dict | None = None) -> Path:
    """Write a checkpoint folder; an existing one is replaced only when the new one is whole.

    Raises:
        CheckpointError, MediaError: see `check_place`.
    """
    folder = Path(folder)
    check_place(folder)
    temporary = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    try:
        save_file(state, temporary / WEIGHTS)
    except SafetensorError as error:  # a full disk, for one
        raise CheckpointError(f"{folder} cannot be written: {error}") from None
    (temporary / WEIGHTS).chmod(0o644)  # safetensors makes it readable by its owner only
    about = {"format": FORMAT, "model": model.config.to_dict(), "training": training or {}}
    (temporary / "config.json").write_text(json.dumps(about, indent=1) + "\n")
    (temporary / "README.md").write_text(card)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(temporary, folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(
    folder: Path | str | None = None, preset: str | None = None, device: str | torch.device = "cpu"
) -> RaysAsPixels:
    """Load a checkpoint (None: the shipped default) on a device, in evaluation mode, in the dtypes of its file.

    Args:
        preset: if given, the preset that the checkpoint must be of.

    Raises:
        CheckpointError: missing, truncated, of another preset, a pickle, or with tensors that do not fit.
    """
    shipped = folder is None
    folder, config, _ = read_config(folder)
    if preset is not None and config.preset != preset:
        raise CheckpointError(f"checkpoint {folder} is of preset {config.preset!r}, but {preset!r} was asked for")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"checkpoint {folder} has no {WEIGHTS} (pickled .pt and .bin files are never read)")
    if not shipped:
        own_file(folder, WEIGHTS).close()
    try:
        state = load_file(weights)
    except (SafetensorError, OSError) as error:
        if weights.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
            raise CheckpointError(
                f"{weights} is a pickle, which can run code and is never read; save it as safetensors"
            ) from None
        raise CheckpointError(f"{weights} is truncated or no safetensors file ({error}); copy it again") from None
    with _EmptyOnMeta():  # the file's tensors become the model's: nothing is made twice
        model = RaysAsPixels(config)
    expected = model.state_dict()
    wrong = [
        f"{k} {tuple(state[k].shape)} instead of {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if wrong or missing or unknown:
        detail = (wrong + [f"missing {k}" for k in missing] + [f"unknown {k}" for k in unknown])[0]
        raise CheckpointError(
            f"{weights} does not fit preset {config.preset!r} of its config.json: "
            f"{len(wrong) + len(missing) + len(unknown)} tensors differ, the first: {detail}"
        )
    whole = [k for k, v in state.items() if not v.is_floating_point()]
    if whole:
        found = f"{weights} holds {whole[0]} as {state[whole[0]].dtype}"
        raise CheckpointError(f"{found}; weights are floating point numbers")
    bad = [k for k, v in state.items() if not torch.isfinite(v).all()]
    if bad:
        raise CheckpointError(f"{weights} holds values that are not finite, first in {bad[0]}; copy it again")
    # A copy each, as the file is only mapped and may change under the model.
    model.load_state_dict({k: v.to(device, copy=True) for k, v in state.items()}, assign=True)
    return model.eval()


class _EmptyOnMeta(TorchFunctionMode):
    """Give the parameters of layers no memory, and so no random numbers.

    Note: `torch.device("meta")` has more of torch without memory, for which torch imports its compiler: two fifths of
        the time from the start of a process to a loaded checkpoint.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)
