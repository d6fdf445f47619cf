# SPDX-License-Identifier: Apache-2.0
"""Remake the golden outputs: python test/make_golden.py. They pin the arithmetic of a seeded, untrained micro model."""

import json
from pathlib import Path

import numpy as np
import torch

from rays_as_pixels_model.codec import fit_basis
from rays_as_pixels_model.config import preset
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.sampler import Schedule, sample

# Each task is a corner of the schedule: (z_steps, r_steps).
TASKS = {"pose": (0, 2), "views": (2, 0), "joint": (2, 2)}


def golden_outputs(dtype: torch.dtype = torch.float32) -> dict[str, list[float]]:
    """Return a few numbers of each task and of the codec.

    Args:
        dtype: of the transformer's matrix products (autocast); the sampler's state and the codec stay float32.
    """
    torch.manual_seed(0)
    model = RaysAsPixels(preset("micro")).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.transformer.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
        for basis, group, degree in ((model.codec.image_basis, 1, 2), (model.codec.video_basis, 4, 1)):
            blocks = torch.randn(2000, basis.shape[1], generator=generator)
            blocks *= torch.linspace(1, 0.1, basis.shape[1])
            basis.copy_(fit_basis(blocks.double().T @ blocks.double(), 8, group, len(basis), degree))
    frames = torch.rand((1, 5, 64, 96, 3), generator=generator) * 2 - 1
    out = {}
    for task, groups in (("pose", (1, 4)), ("views", (1, 1, 1)), ("joint", (1, 4))):
        schedule = Schedule(*TASKS[task])
        video = frames[:, : sum(groups)]
        shape_z, shape_r = model.latent_shapes(1, groups)
        z, r = torch.randn(shape_z, generator=generator), torch.randn(shape_r, generator=generator)
        clean = torch.ones(1, len(groups), dtype=torch.bool), torch.zeros(1, sum(groups), dtype=torch.bool)
        if task != "pose":
            clean[0][:, 1:] = False
            clean[1][:] = task == "views"
        z = torch.where(clean[0][..., None, None, None], model.encode_frames(video, groups), z)
        velocity = _velocity(model, torch.zeros(1, dtype=torch.int64), groups, dtype)
        z, r = sample(velocity, z, r, schedule, *clean)
        for name, x in (("z", z), ("r", r)):
            out[f"{task}/{name}"] = [round(float(v), 5) for v in (x.abs().mean(), x.std(), *x.flatten()[::997][:6])]
            out[f"{task}/{name}, from the end"] = [round(float(v), 5) for v in x.flatten().flip(0)[::997][:6]]
    decoded = model.decode_frames(model.encode_frames(frames, (1, 4)), (1, 4))
    out["codec"] = np.round(decoded.flatten()[::9973][:8].numpy(), 5).tolist()
    return out


def _velocity(model: RaysAsPixels, reference: torch.Tensor, groups: tuple[int, ...], dtype: torch.dtype):
    def velocity(*state):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return tuple(v.float() for v in model.velocity(*state, reference, groups))

    return velocity


if __name__ == "__main__":
    path = Path(__file__).parent / "golden" / "micro.json"
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(golden_outputs(), indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")
