# SPDX-License-Identifier: Apache-2.0
"""Where the time of one velocity goes, by kind of operation: python -m benchmarks.velocity [--checkpoint DIR].

Torch's own profile of a window of a checkpoint, processor time of each operation without those it calls. Shares count:
the profiler itself makes small operations look longer than they are.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from rays_as_pixels_model.checkpoint import load_checkpoint

from .report import show
from .speed import in_turns, velocity_call

# Names of torch's operations (aten), without what marks them as in place.
KINDS = {
    "matrix products": "mm addmm bmm linear matmul",
    "attention": "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu",
    "norms": "layer_norm native_layer_norm rms_norm _fused_rms_norm rsqrt mean pow",
    "copies and joins": "copy cat clone contiguous _to_copy to stack where",
    "elementwise": "add mul sub rsub div silu neg cos sin exp clamp eq",
}
BATCH = 8
_REST = "views, allocation and the rest"


def measure(folder: str | None, repeats: int) -> dict:
    """Return {'shares': {kind: of the time of a velocity}, 'batch': seconds of BATCH windows at once over one}."""
    model = load_checkpoint(folder)
    call = velocity_call(model)
    best = in_turns({"one": call, "batch": velocity_call(model, BATCH)}, time.process_time, repeats)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(repeats):
            call()
    events = found.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = dict.fromkeys((*KINDS, _REST), 0.0)
    for event in events:
        name = event.key.removeprefix("aten::").rstrip("_")
        kind = next((kind for kind, names in KINDS.items() if name in names.split()), _REST)
        shares[kind] += event.self_cpu_time_total / total
    return {"shares": shares, "batch": best["batch"] / best["one"]}


def table(report: dict) -> str:
    """Return the report as Markdown."""
    rows = [f"| {kind} | {share:.2f} |" for kind, share in report["shares"].items()]
    lines = ["| operations | share of time |", "|---|---|", *rows, ""]
    return "\n".join([*lines, f"{BATCH} windows at once take {report['batch']:.1f} times one."])


def main() -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.velocity", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", metavar="DIR", help="without it, the one that is shipped")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = measure(args.checkpoint, args.repeats)
    show(report, table(report), args.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
