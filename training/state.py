# SPDX-License-Identifier: Apache-2.0
"""The state of a run on disk, so that a kill at any moment loses only the steps since the last save.

Everything is safetensors and JSON; a save is written under a temporary name and renamed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{prefix}.{index}.{name}": value if torch.is_tensor(value) else torch.tensor(value)
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def save_state(
    path: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer], facts: dict
) -> None:
    """Write modules (model, average, ...), optimizers and `facts` (step, configuration, history) to one file."""
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    for number, optimizer in enumerate(optimizers):
        tensors |= _optimizer_tensors(f"optimizer{number}", optimizer)
    temporary = path.with_suffix(".tmp")
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        temporary,
        metadata={"facts": json.dumps(facts)},
    )
    os.replace(temporary, path)


def load_state(path: Path, modules: dict[str, nn.Module], optimizers: list[torch.optim.Optimizer]) -> dict:
    """Restore what `save_state` wrote, in place; return the facts."""
    with safe_open(path, "pt") as file:
        facts = json.loads(file.metadata()["facts"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {k[len(prefix) + 1 :]: v for k, v in tensors.items() if k.startswith(prefix + ".")}

    for name, module in modules.items():
        module.load_state_dict(part(name))
    for number, optimizer in enumerate(optimizers):
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part(f"optimizer{number}").items():
            index, name = key.split(".", 1)
            state.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return facts
