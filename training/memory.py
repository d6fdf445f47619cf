# SPDX-License-Identifier: Apache-2.0
"""GPU memory of a training run, counted on the meta device: nothing is allocated and no GPU is needed.

    python -m rays_as_pixels_training.memory --preset wan-14b --gpus 8 16 32 64

Per GPU, with everything split by FSDP2: float32 weights, gradients, Adam's two moments and the averaged weights; two
blocks gathered in bfloat16 (one computes while the next arrives) and their gradients on the way; and what autograd
keeps of one window, counted by its own hooks, attention as a fused kernel keeps it (queries, keys, values, result).
Not counted: temporaries of single operations, the allocator's slack, encoding by the codec (0 with latent shards).
"""

from __future__ import annotations

import argparse
from functools import partial

from rays_as_pixels_model.arguments import integer
from rays_as_pixels_model.config import PRESETS, preset

_GIB = 2**30


def count_memory(preset_name: str) -> dict[str, float]:
    """Return parameters (a count) and bytes: codec, block (gathered in bfloat16), activations, recomputed."""
    import warnings

    import torch
    from torch.utils.checkpoint import checkpoint

    from rays_as_pixels_model.joint import RaysAsPixels

    warnings.filterwarnings("ignore", message="Mismatch dtype")  # no fused kernel here: nothing is computed
    shape = preset(preset_name)
    with torch.device("meta"):
        model = RaysAsPixels(shape)
    transformer = model.transformer
    codec = sum(t.numel() * t.element_size() for t in (*model.codec.parameters(), *model.codec.buffers()))
    parameters = sum(p.numel() for p in transformer.parameters())
    block = max(sum(p.numel() for p in b.parameters()) for b in transformer.blocks)
    transformer.to(torch.bfloat16)
    whole = _kept(model)
    for b in transformer.blocks:
        b.forward = partial(checkpoint, b.forward, use_reentrant=False)
    ends_and_inputs = _kept(model)
    one = (whole - ends_and_inputs) / len(transformer.blocks)
    return {
        "parameters": parameters,
        "codec": codec,
        "block": 2.0 * block,
        "activations": whole,
        "recomputed": ends_and_inputs + one,
    }


def _kept(model) -> int:
    """Bytes that autograd keeps of a forward pass of one window, parameters left out."""
    import torch
    import torch.nn.functional as F

    shape = model.config
    shape_z, shape_r = model.latent_shapes(1, shape.groups)
    inputs = [torch.empty(s, device="meta") for s in (shape_z, shape_r)]
    times = [torch.empty(s[:2], device="meta") for s in (shape_z, shape_r)]
    reference = torch.zeros(1, dtype=torch.int64, device="meta")
    own = {p.untyped_storage()._cdata for p in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    class Fused(torch.autograd.Function):
        """What a fused attention kernel saves."""

        @staticmethod
        def forward(ctx, q, k, v):
            out = torch.empty_like(q)
            ctx.save_for_backward(q, k, v, out, torch.empty(q.shape[:-1], device=q.device))
            return out

        @staticmethod
        def backward(ctx, gradient):
            raise NotImplementedError("memory is counted in the forward pass")

    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda q, k, v, *_, **__: Fused.apply(q, k, v)
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.transformer(*inputs, *times, reference, shape.groups)
    finally:
        F.scaled_dot_product_attention = original
    return sum(s.nbytes() for s in kept.values())


def table(preset_name: str, gpus: list[int]) -> str:
    """Return the Markdown table of a preset, one window to a GPU at a time."""
    m = count_memory(preset_name)
    lines = [
        f"{preset_name}: {m['parameters'] / 1e9:.2f}B trained parameters. GiB per GPU, one window at a time:",
        "",
        "| GPUs | weights | gradients | Adam | average | gathered blocks | codec | activations, --recompute | total | "
        "activations without |",
        "|---" * 10 + "|",
    ]
    for count in gpus:
        weights = 4 * m["parameters"] / count
        gathered = 4 * m["block"] if count > 1 else 0.0  # two blocks, and as many gradients
        total = 5 * weights + gathered + m["codec"] + m["recomputed"]
        cells = [weights, weights, 2 * weights, weights, gathered, m["codec"], m["recomputed"], total, m["activations"]]
        lines.append(f"| {count} | " + " | ".join(f"{c / _GIB:.1f}" for c in cells) + " |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="wan-14b", choices=PRESETS)
    parser.add_argument("--gpus", type=integer(1), nargs="+", default=[8, 16, 32, 64])
    args = parser.parse_args(argv)
    print(table(args.preset, args.gpus))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
