# SPDX-License-Identifier: Apache-2.0
"""Several processes under torchrun: who this one is, and a model whose parameters are split over all (FSDP2).

Without torchrun there is one process and nothing here changes anything. Weights, gradients, averages and optimizer
states are split; codec and normaliser (buffers) are whole on each process.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rays_as_pixels_model.config import ModelConfig, WanTransformerConfig
from rays_as_pixels_model.joint import RaysAsPixels

from .motion import MotionHead


@dataclass(frozen=True)
class Processes:
    """This process among all: rank 0 writes what is written once."""

    rank: int = 0
    count: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        return self.rank == 0

    def mine(self, parts: int) -> list[int]:
        """Return the numbers of the parts of a batch that this process computes."""
        return list(range(self.rank, parts, self.count))

    def add(self, values: Sequence[float]) -> list[float]:
        """Sum numbers over all processes.

        Raises:
            ConnectionError: another process has ended.
        """
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        try:
            dist.all_reduce(total)
        except RuntimeError as error:
            raise ConnectionError(f"another process has ended, see what it said ({error})") from None
        return total.tolist()

    def agree(self, values: dict[str, object]) -> None:
        """Compare values by name among the processes, which a launcher may have started with different ones.

        Raises:
            ValueError: in every process, names those that differ.
        """
        own = [float(zlib.crc32(repr(value).encode())) for value in values.values()]
        pairs = zip(values, own, self.add(own), strict=True)
        if different := [name for name, mine, total in pairs if total != mine * self.count]:
            raise ValueError(
                f"{', '.join(different)} differ among the {self.count} processes (here {values[different[0]]}): start "
                "all with the same settings, on the same data, with one OUT that all see"
            )

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            self.add([0.0])


def join(device: str) -> Processes:
    """Join the processes that torchrun started; alone without it.

    Raises:
        ValueError: no such device here.
    """
    count = int(os.environ.get("WORLD_SIZE", 1))
    rank, local = int(os.environ.get("RANK", 0)), int(os.environ.get("LOCAL_RANK", 0))
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None
    if chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu, cuda or cuda:N, got {device!r}")
    if chosen.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device {device!r} is not here; use cpu")
        chosen = torch.device("cuda", local if count > 1 else chosen.index or 0)
        torch.cuda.set_device(chosen)
    if count > 1 and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo")
    return Processes(rank, count, chosen)


def leave() -> None:
    """Leave the processes at the end."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def local(tensor: Tensor) -> Tensor:
    """Return this process's piece of a tensor that may be split."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def motion_head(config: ModelConfig) -> nn.Module:
    """Make the auxiliary head of a model; one whose transformer gives no features (Wan) has an empty one."""
    if isinstance(config.transformer, WanTransformerConfig):
        return nn.Identity()
    return MotionHead(config.transformer.width, config.transformer.patch, config.frames)


def split_model(
    config: ModelConfig, weights: RaysAsPixels | None, motion: nn.Module | None, processes: Processes, bf16: bool
) -> tuple[RaysAsPixels, RaysAsPixels, nn.Module]:
    """Return (model, average, motion head) with parameters split over the processes and the first one's values.

    Args:
        weights, motion: the whole ones on the first process, None elsewhere.
        bf16: gather the model's parameters in bfloat16.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.count,))
    plain = MixedPrecisionPolicy(cast_forward_inputs=False)  # what runs outside autocast: average and motion head
    mixed = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else plain
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)

    def place(module: nn.Module, whole: nn.Module | None, policy: MixedPrecisionPolicy) -> nn.Module:
        for block in getattr(getattr(module, "transformer", None), "blocks", []):
            fully_shard(block, mesh=mesh, mp_policy=policy)
        if any(True for _ in module.parameters()):
            fully_shard(getattr(module, "transformer", module), mesh=mesh, mp_policy=policy)
        module.to_empty(device=processes.device)
        set_model_state_dict(module, whole.state_dict() if processes.first else {}, options=options)
        kept = module.state_dict().keys()
        for name, buffer in module.named_buffers():
            if name not in kept:  # not part of a state: made when a module is built
                value = whole.get_buffer(name).to(buffer.device) if processes.first else buffer
                dist.broadcast(value, 0)
                buffer.copy_(value)
        return module

    with torch.device("meta"):
        modules = RaysAsPixels(config), RaysAsPixels(config), motion_head(config)
    parts = zip(modules, (weights, weights, motion), (mixed, plain, plain), strict=True)
    model, average, head = (place(*part) for part in parts)
    return model, average.eval().requires_grad_(False), head
