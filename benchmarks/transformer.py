# SPDX-License-Identifier: Apache-2.0
"""Time and memory of the transformer against tokens, DSCA beside joint attention: python -m benchmarks.transformer.

Each row runs the same weights' shapes at another window size. The two attentions and a matrix product of the size that
`training_step.gemm_peak` takes are timed in turns within a row and the best of each is kept, so that what else the
machine does meets all of them alike. The peak is the best product of the whole run.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from rays_as_pixels_model.config import ATTENTIONS, ConfigError, preset
from rays_as_pixels_model.joint import RaysAsPixels

from .report import show
from .training_step import gemm_peak

SIZES = ((5, 32, 48), (9, 64, 96), (17, 64, 96), (17, 96, 128), (17, 128, 192))


def measure(name: str, sizes: tuple[tuple[int, int, int], ...], repeats: int, device: str) -> dict:
    """Measure every size; returns {hardware, rows}."""
    models = {a: RaysAsPixels(preset(name).switched(attention=a)).to(device) for a in ATTENTIONS}
    rows, peaks = [], []
    for frames, height, width in sizes:
        row = {"frames": frames, "height": height, "width": width}
        try:
            runs = {a: _Run(m.at(frames=frames, height=height, width=width), device) for a, m in models.items()}
        except ConfigError as error:
            raise SystemExit(f"{frames}x{height}x{width}: {error}") from None
        row["tokens"] = runs["dsca"].tokens
        seconds = {(a, part): [] for a in runs for part in ("forward", "step")}
        for run in runs.values():
            run.step()
        for _ in range(repeats):
            peaks.append(gemm_peak() if device == "cpu" else _cuda_peak())
            for a, run in runs.items():
                for part, call in (("forward", run.forward), ("step", run.step)):
                    seconds[a, part].append(_timed(call, device))
        for a, run in runs.items():
            forward, step = (min(seconds[a, part]) for part in ("forward", "step"))
            row[a] = {
                "forward_s": forward,
                "backward_s": step - forward,
                "kept_mb": run.kept_bytes() / 1e6,
                "gflop": run.flops() / 1e9,
            }
        rows.append(row)
    for row in rows:
        for a in ATTENTIONS:
            rate = row[a]["gflop"] * 1e9 / (row[a]["forward_s"] + row[a]["backward_s"])
            row[a]["share_of_gemm_peak"] = rate / max(peaks)
    hardware = torch.cuda.get_device_name() if device == "cuda" else platform.machine()
    return {
        "hardware": f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "preset": name,
        "gemm_peak_gflops": max(peaks) / 1e9,
        "rows": rows,
    }


class _Run:
    """One model at one size with one window of noise."""

    def __init__(self, model: RaysAsPixels, device: str) -> None:
        groups = model.config.groups
        self.model, self.tokens = model, sum(model.config.tokens)
        z, r = (torch.randn(s, device=device) for s in model.latent_shapes(1, groups))
        t_z, t_r = (torch.rand(x.shape[:2], device=device) for x in (z, r))
        self.args = z, r, t_z, t_r, torch.zeros(1, dtype=torch.int64, device=device), groups

    def forward(self) -> None:
        with torch.no_grad():
            self.model(*self.args)

    def step(self) -> None:
        """Forward and backward."""
        sum(v.square().mean() for v in self.model(*self.args)).backward()
        self.model.zero_grad(set_to_none=True)

    def flops(self) -> int:
        """Floating-point operations of `step`: products counted, attention 4 N^2 D a block and 10 N^2 D backward.

        Both kinds of attention look at all pairs of tokens once a block. Backward, the scores are made a second time.
        """
        counter = FlopCounterMode(display=False)
        with counter:
            self.step()
        products = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "attention" not in str(op))
        c = self.model.config.transformer
        return products + 14 * c.depth * self.tokens**2 * c.width

    def kept_bytes(self) -> int:
        """Bytes that the forward pass keeps for the backward pass, parameters left out."""
        own = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = self.model(*self.args)
        total = sum(storage.nbytes() for storage in kept.values())
        del out
        return total


def _timed(call, device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _cuda_peak() -> float:
    a = torch.randn(8192, 8192, device="cuda")
    a @ a
    return 2 * 8192**3 / min(_timed(lambda: a @ a, "cuda") for _ in range(5))


def table(report: dict) -> str:
    """Return the report as Markdown."""
    lines = [
        f"`{report['preset']}`, one window, float32; {report['hardware']}; matrix product "
        f"{report['gemm_peak_gflops']:.0f} GFLOP/s.",
        "",
        "| tokens (window) | attention | forward s | backward s | kept for backward MB | GFLOP | of GEMM peak "
        "| time of joint / DSCA |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        ratio = sum(row["joint"][k] for k in ("forward_s", "backward_s")) / sum(
            row["dsca"][k] for k in ("forward_s", "backward_s")
        )
        for a in ATTENTIONS:
            e = row[a]
            window = f"{row['tokens']:,} ({row['frames']}x{row['height']}x{row['width']})" if a == "dsca" else ""
            lines.append(
                f"| {window} | {a} | {e['forward_s']:.3f} | {e['backward_s']:.3f} | {e['kept_mb']:.0f} | "
                f"{e['gflop']:.1f} | {e['share_of_gemm_peak']:.2f} | {ratio:.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transformer", description=__doc__)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--largest", type=int, default=len(SIZES), help="how many of the window sizes, smallest first")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args.preset, SIZES[: args.largest], args.repeats, args.device)
    show(report, table(report), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
