# SPDX-License-Identifier: Apache-2.0
"""The closed-loop table of an ablation: mean and spread over the seeds, and whether the order is the paper's."""

from __future__ import annotations

import numpy as np

_PAPER = {"full": "full model", "no_dsca": "without DSCA", "no_cosine": "without the cosine term",
          "pluecker": "Pluecker instead of raxels"}  # fmt: skip
_COLUMNS = {
    "fid": "FID",
    "fvd": "FVD",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "R_err": "R_err rad",
    "T_err": "T_err",
    "rotation_error_deg_median": "pose against truth, deg",
    "translation_direction_error_deg_median": "direction, deg",
    "failed": "not closed",
}


def table(results: dict[str, list[dict]]) -> str:
    """Return Markdown of what each row's seeds gave; the rows are in the paper's order, worst last."""
    found = {k for runs in results.values() for run in runs for k in run}
    columns = [k for k in _COLUMNS if k in found]
    lines = [
        "| closed loop | " + " | ".join(["steps", "GFLOP a step", *(_COLUMNS[k] for k in columns)]) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row, runs in results.items():
        cells = [str(runs[0]["steps"]), f"{runs[0]['gflop_per_step']:.3g}", *(_cell(runs, k) for k in columns)]
        lines.append(f"| {_PAPER[row]} | " + " | ".join(cells) + " |")
    lines += ["", f"Mean ± standard deviation over {len(next(iter(results.values())))} seeds."]
    for key in ("R_err", "T_err"):
        if key in found:
            lines.append(_order(results, key))
    return "\n".join(lines)


def _values(runs: list[dict], key: str) -> np.ndarray:
    return np.array([run[key] for run in runs if run.get(key) is not None], float)


def _cell(runs: list[dict], key: str) -> str:
    values = _values(runs, key)
    if not len(values):
        return "-"
    spread = f" ± {values.std(ddof=1):.2g}" if len(values) > 1 else ""
    return f"{values.mean():.4g}{spread}"


def _order(results: dict[str, list[dict]], key: str) -> str:
    means = {row: _values(runs, key).mean() for row, runs in results.items() if len(_values(runs, key))}
    order = sorted(means, key=means.get)
    verdict = "the paper's order" if order == list(_PAPER) else f"not the paper's ({', '.join(_PAPER)})"
    return f"Order by {key}, best first: {', '.join(order)}: {verdict}."
