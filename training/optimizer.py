# SPDX-License-Identifier: Apache-2.0
"""Muon: momentum whose matrix updates are made orthogonal by Newton-Schulz iterations (Jordan et al. 2024).

torch.optim.Muon iterates in bfloat16, which a CPU without AMX multiplies a hundred times slower than float32 (measured:
docs/training_log.md); this one iterates in float32 and handles all matrices of one shape in one batched product.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from rays_as_pixels_model.joint import RaysAsPixels

from .config import TrainConfig
from .distributed import local

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic of the Muon reference: fast, singular values near 1


def orthogonalise(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Return matrices (n, rows, columns) with their singular values driven towards 1."""
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.transpose(1, 2) if tall else matrices
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters; the update's rms is matched to AdamW's (0.2 sqrt(max side)), so one rate serves both."""

    def __init__(self, parameters, lr: float, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            by_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[tuple(p.shape)].append(p)
            for shape, params in by_shape.items():
                updates = []
                for p in params:
                    buffer = self.state[p].setdefault("momentum", torch.zeros_like(p))
                    buffer.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(p.grad, buffer, group["momentum"]))  # Nesterov
                updates = orthogonalise(torch.stack(updates)) * (0.2 * max(shape) ** 0.5)
                for p, update in zip(params, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


def make_optimizers(model: RaysAsPixels, config: TrainConfig, motion: nn.Module) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a settled config.

    muon: Muon for the matrices of the blocks, AdamW for the rest (docs/training_log.md compares them). adamw: AdamW for
    all, and only matrices decay.
    """
    named = list(model.transformer.blocks.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "modulation" not in n]
    chosen = {id(p) for p in matrices}
    rest = [p for p in model.transformer.parameters() if id(p) not in chosen] + list(motion.parameters())
    common = {"lr": config.lr, "weight_decay": config.weight_decay}
    if config.optimizer == "muon":
        return [Muon(matrices, **common), torch.optim.AdamW(rest, **common, betas=(0.9, 0.98))]
    groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    return [torch.optim.AdamW(groups, **common, betas=(0.9, 0.98))]


def modality(name: str) -> str:
    """Tell which modality a parameter of the transformer serves: z, r or both."""
    words = name.split(".")
    if "z" in words or words[0] in ("embed_image", "embed_video", "head_image", "head_video", "time_z", "modulation_z"):
        return "z"
    if "r" in words or words[0] in ("embed_rays", "head_rays", "time_r", "modulation_r", "reference"):
        return "r"
    return "both"


@torch.no_grad()
def clip_gradients(
    transformer: nn.Module, limit: float, add: Callable[[Sequence[float]], Iterable[float]]
) -> dict[str, float]:
    """Scale gradients down to a norm of at most `limit`; return the norms before: total, z, r and both.

    Args:
        add: sums numbers over the processes that the parameters are split over.
    """
    pieces: dict[str, list[Tensor]] = {"z": [], "r": [], "both": []}
    for name, p in transformer.named_parameters():
        if p.grad is not None:
            pieces[modality(name)].append(local(p.grad))
    squares = []
    for tensors in pieces.values():
        norms = torch._foreach_norm(tensors) if tensors else []
        squares.append(float(torch.stack(norms).double().square().sum()) if tensors else 0.0)
    squares = list(add(squares))
    total = sum(squares) ** 0.5
    if total > limit:
        torch._foreach_mul_([t for tensors in pieces.values() for t in tensors], limit / (total + 1e-6))
    return {"total": total, **{k: v**0.5 for k, v in zip(pieces, squares, strict=True)}}
