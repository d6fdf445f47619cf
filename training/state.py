# SPDX-License-Identifier: Apache-2.0
"""The states of a run on disk, so that a kill at any moment loses only the steps since the last save.

OUT/states/00000500/ holds facts.json (step, configuration, history) and the tensors: one safetensors file where one
process trains, PyTorch's distributed checkpoint where several do. Either is read by any number of processes. A state is
written under a temporary name, flushed to the disk and renamed: a folder with a number is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .distributed import Processes

_TENSORS, _FACTS = "tensors.safetensors", "facts.json"


def states(out: Path) -> list[Path]:
    """Return the whole states of a run, oldest first."""
    folder = out / "states"
    return sorted(p for p in folder.iterdir() if p.name.isdigit()) if folder.is_dir() else []


def read_facts(state: Path) -> dict:
    """Return the facts of a state.

    Raises:
        ValueError: they are not readable; says what to do.
    """
    try:
        return json.loads((state / _FACTS).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(_damaged(state, error)) from None


def save_state(
    out: Path,
    step: int,
    modules: dict[str, nn.Module],
    optimizers: list[torch.optim.Optimizer],
    facts: dict,
    processes: Processes,
    keep: int = 1,
) -> Path:
    """Write the state of a step and remove all older ones but `keep`; every process must call it.

    A step whose state is there already is left as it is: the end of a run that had just been saved.

    Raises:
        OSError: the state cannot be written, or not by all processes; the older ones are as they were.
    """
    final = out / "states" / f"{step:08d}"
    if processes.add([float(processes.first and final.exists())])[0]:
        return final
    temporary = final.with_name(f".{final.name}.tmp")
    if processes.first:
        _clean(final.parent)
        temporary.mkdir(parents=True)
    processes.wait()
    if processes.add([float(not temporary.is_dir())])[0]:
        raise OSError(f"{temporary} of the first process is not seen by all: OUT must be a folder that all share")
    tensors = _tensors(modules, optimizers)
    if processes.count == 1:
        try:
            save_file({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, temporary / _TENSORS)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{temporary} cannot be written: {error}") from None
    else:
        dcp.save(tensors, checkpoint_id=temporary)
    processes.wait()
    if processes.first:
        (temporary / _FACTS).write_text(json.dumps(facts) + "\n")
        for path in (*temporary.iterdir(), temporary):
            _flush(path)
        os.replace(temporary, final)
        _flush(final.parent)
        for old in states(out)[: -1 - keep]:
            _remove(old)
    processes.wait()
    return final


def load_state(state: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> dict:
    """Restore what `save_state` wrote, in place, whichever number of processes wrote it; return the facts.

    Raises:
        ValueError: the state is of another model or optimizer, or damaged.
    """
    for optimizer in optimizers:
        _fill(optimizer)
    wanted = _tensors(modules, optimizers)
    if (state / _TENSORS).exists():
        try:
            with safe_open(state / _TENSORS, "pt") as file:
                stored = {k: file.get_slice(k).get_shape() for k in file.keys()}
                _check(state, wanted, stored)
                with torch.no_grad():
                    for name in stored:
                        _put(wanted[name], file.get_tensor(name))
        except SafetensorError as error:
            raise ValueError(_damaged(state, error)) from None
    else:
        meta = dcp.FileSystemReader(state).read_metadata().state_dict_metadata
        stored = {k: list(m.size) for k, m in meta.items()}
        _check(state, wanted, stored)
        alone = not torch.distributed.is_initialized()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that one process reads alone is meant
            dcp.load({k: wanted[k] for k in stored}, checkpoint_id=state, no_dist=alone)
    _forget(modules, optimizers, stored)
    return read_facts(state)


def _damaged(state: Path, error: Exception) -> str:
    older = [other.name for other in states(state.parent.parent) if other.name < state.name]
    way = f"remove it, and the run goes on from {older[-1]}" if older else "copy it again, or begin with another --out"
    return f"{state} is damaged ({error}): {way}"


def _tensors(modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Every tensor of a run by name; what is written through them is the run's own memory."""
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    for (name, key), (entries, _) in _optimizer_entries(modules, optimizers).items():
        tensors[f"optimizer.{name}.{key}"] = entries[key]
    return tensors


def _optimizer_entries(modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> dict:
    names = {id(p): f"{name}.{k}" for name, module in modules.items() for k, p in module.named_parameters()}
    return {
        (names[id(p)], key): (entries, (optimizer, p))
        for optimizer in optimizers
        for p, entries in optimizer.state.items()
        for key in entries
    }


def _fill(optimizer: torch.optim.Optimizer) -> None:
    """Make an optimizer's entries by a step of rate zero, so that there is memory to read into."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _forget(modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer], stored: dict) -> None:
    """Drop entries that the stored run did not have: a parameter without a gradient has none."""
    for (name, key), (_, (optimizer, p)) in _optimizer_entries(modules, optimizers).items():
        if f"optimizer.{name}.{key}" not in stored:
            optimizer.state.pop(p, None)


def _check(state: Path, wanted: dict[str, Tensor], stored: dict[str, list[int]]) -> None:
    problems = [f"it has {k}" for k in stored if k not in wanted]
    problems += [f"it lacks {k}" for k in wanted if k not in stored and not k.startswith("optimizer.")]
    problems += [
        f"{k} is {tuple(stored[k])} instead of {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in stored and list(v.shape) != list(stored[k])
    ]
    if problems:
        raise ValueError(f"{state} is of another model or optimizer ({problems[0]}); name another --out")


def _put(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into one that may be split."""
    if hasattr(target, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    target.copy_(value)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(state: Path) -> None:
    """Remove a state; a kill in the middle leaves nothing that looks whole."""
    doomed = state.with_name(f".{state.name}.old")
    os.replace(state, doomed)
    shutil.rmtree(doomed)


def _clean(folder: Path) -> None:
    """Remove what a kill left behind."""
    for path in folder.glob(".*") if folder.is_dir() else ():
        shutil.rmtree(path, ignore_errors=True)
