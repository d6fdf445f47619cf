# SPDX-License-Identifier: Apache-2.0
"""An evaluation's report as Markdown tables and as JSON."""

from __future__ import annotations

import json
import math

_VIEW_FIGURES = (("psnr", "PSNR dB", ".2f"), ("ssim", "SSIM", ".3f"), ("lpips", "LPIPS", ".3f"), ("fid", "FID", ".2f"),
                 ("fvd", "FVD", ".1f"), ("R_err", "R_err", ".4f"), ("T_err", "T_err", ".4f"))  # fmt: skip
_LOOP_FIGURES = (
    ("rotation_error_deg_median", "rotation of the last frame, median deg", ".2f"),
    ("first_rotation_deg_median", "standing still would be", ".2f"),
    ("translation_error_median", "translation of the last frame, median", ".4f"),
    ("psnr_of_repeating_the_first_frame", "PSNR of repeating the first frame, dB", ".2f"),
)


def to_json(report: dict) -> str:
    """Return the report as strict JSON: a figure that does not exist is null."""
    return json.dumps(_finite(report), indent=1, allow_nan=False) + "\n"


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def markdown(report: dict) -> str:
    """Return the tables of a report."""
    parts = [_pose(report["pose"], "pose"), _paths(report["pose"])]
    parts.append(_views(report["views"]))
    if report.get("closed_loop"):
        parts.append(_loop(report["closed_loop"]))
    for clip, part in report.get("clips", {}).items():
        parts.append(_pose(part["pose"], f"{clip} ({part['windows']} windows)"))
        if part.get("trajectory"):
            parts.append(_trajectory(part["trajectory"], clip))
    return "\n\n".join(part for part in parts if part)


def _pose(table: dict, title: str) -> str:
    rows = [
        [
            method,
            _spread(e, "rotation_error_deg", ".2f"),
            _spread(e, "translation_direction_error_deg", ".1f"),
            *(" / ".join(_text(e[f"{name}@{x}"], ".0f") or "-" for x in (5, 15, 30)) for name in ("RRA", "RTA", "AUC")),
            _text(e["mRRA@30"], ".1f"),
            f"{e['windows']} ({e['moving']})",
            _text(e["failed"], ".0f"),
        ]
        for method, e in table.items()
    ]
    head = [title, "rotation error, median (p90) deg", "direction error, median (p90) deg", "RRA@5/15/30",
            "RTA@5/15/30", "AUC@5/15/30", "mRRA@30", "windows (moving)", "failed %"]  # fmt: skip
    return _table(head, rows)


def _spread(row: dict, name: str, form: str) -> str:
    if not math.isfinite(row[f"{name}_median"]):
        return ""
    return f"{row[f'{name}_median']:{form}} ({row[f'{name}_p90']:{form}})"


def _paths(table: dict) -> str:
    names = ("ATE_sim3", "ATE_se3", "RPE_translation", "RPE_rotation_deg")
    rows = [
        [method, *(_text(e[name], ".4f") for name in names[:3]), _text(e[names[3]], ".2f")]
        for method, e in table.items()
        if names[0] in e
    ]
    head = ["path of a window, medians, model units", "ATE after Sim(3)", "ATE after SE(3)", "RPE translation",
            "RPE rotation, deg"]  # fmt: skip
    return _table(head, rows) if rows else ""


def _views(table: dict) -> str:
    shown = [f for f in _VIEW_FIGURES if any(f[0] in row for row in table.values())]
    cases = list(dict.fromkeys(k for row in table.values() for k, v in row.items() if isinstance(v, dict)))
    counts = {case: next(row[case]["views"] for row in table.values() if case in row) for case in cases}
    head = ["views", *(title for _, title, _ in shown)]
    head += [f"PSNR, {case.replace('_', ' ')} ({counts[case]})" for case in cases]
    rows = [
        [method, *(_text(row.get(key), form) for key, _, form in shown)]
        + [_text(row.get(case, {}).get("psnr"), ".2f") for case in cases]
        for method, row in table.items()
    ]
    return _table(head, rows) if rows else ""


def _loop(loop: dict) -> str:
    figures = [f for f in (*_VIEW_FIGURES, *_LOOP_FIGURES) if f[0] in loop]
    return _table(["closed loop", ""], [[title, _text(loop[key], form)] for key, title, form in figures])


def _trajectory(table: dict, clip: str) -> str:
    length = next(iter(table.values()))["path_length"]
    head = [f"{clip}: windows end to end, path {length:.3g} long", "ATE after Sim(3)", "RPE translation",
            "RPE rotation, deg"]  # fmt: skip
    return _table(
        head,
        [
            [m, _text(e["ATE_sim3"], ".3f"), _text(e["RPE_translation"], ".4f"), _text(e["RPE_rotation_deg"], ".2f")]
            for m, e in table.items()
        ],
    )


def _text(value: float | None, form: str) -> str:
    return "" if value is None or not math.isfinite(value) else format(value, form)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])
