# SPDX-License-Identifier: Apache-2.0
"""The bench's own arithmetic: turns, operations of a window, slopes. What it measures decides no test."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rays_as_pixels_benchmarks import growth, peak_memory, real_clips, soak, speed, training_curves

from rays_as_pixels_model.config import preset
from rays_as_pixels_model.joint import RaysAsPixels
from rays_as_pixels_model.pipeline import Pipeline


def test_the_best_turn_counts_and_the_first_does_not():
    now, costs = [0.0], {"a": iter([0.0, 5.0, 3.0, 4.0]), "b": iter([9.0, 9.0, 8.0, 7.0])}

    def call(name):
        def run():
            now[0] += next(costs[name])

        return run

    best = speed.in_turns({name: call(name) for name in costs}, lambda: now[0], 3)
    assert best == {"a": 3.0, "b": 7.0}


def test_operations_of_a_window_are_those_of_its_products():
    """Of the blocks: projections of self and cross attention, the gated layers, and attention over all pairs."""
    config = preset("tiny")

    def operations(depth):
        return speed.window_flops(replace(config, transformer=replace(config.transformer, depth=depth)))

    c, tokens = config.transformer, sum(config.tokens)
    linear = tokens * (2 * (3 + 1) * c.width**2 + 3 * c.width * c.ffn_width)
    assert operations(5) - operations(3) == pytest.approx(2 * (2 * linear + 4 * tokens**2 * c.width), rel=1e-6)


def test_slopes_are_those_of_the_upper_half(monkeypatch, tmp_path):
    def measured(calls, clock, repeats):
        return {name: max(8.0, float(name) ** 2) for name in calls}

    monkeypatch.setattr(growth, "in_turns", measured)
    found = growth.measure_growth(Pipeline(RaysAsPixels(preset("micro"))), lambda: 0.0, 1)
    assert set(found) == {"frames", "pixels", "steps", "views"}
    assert found["frames"]["slope"] == pytest.approx(2) and found["frames"]["values"] == [5, 9, 17, 33]
    assert found["steps"]["slope"] == pytest.approx(2)  # of 4 and 8 steps: 16 and 64
    growth.plot_growth(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes()[:4] == b"\x89PNG"


def test_the_peak_of_what_does_not_fit_is_computed():
    weights = {"micro": 0, "tiny": 0}
    for name in weights:
        weights[name] = 4 * sum(x.numel() for x in RaysAsPixels(preset(name)).state_dict().values())
    report = peak_memory.rows(list(weights), limit=0)
    assert [(row["preset"], row["weights"], row["measured"]) for row in report] == [
        (name, size, False) for name, size in weights.items()
    ]
    assert all(row[task] > row["weights"] for row in report for task in peak_memory.TASKS)
    assert report[1]["pose"] - weights["tiny"] > 3 * (report[0]["pose"] - weights["micro"])  # 1,776 tokens, and 78
    assert "| tiny | 74 |" in peak_memory.table(report) and "| computed |" in peak_memory.table(report)


def test_names_of_nested_figures():
    assert speed.flat({"pose": {"a": 1, "b": {50: 2}}, "d": 3}) == [("pose/a", 1), ("pose/b/50", 2), ("d", 3)]


def test_curves_of_a_run_are_those_of_its_log(tmp_path):
    rows = [{"step": 1, "windows": 64, "loss/pose": 0.5}, {"step": 1, "eval/rotation_error_deg": 3.0}]
    rows.append({"step": 2, "windows": 128, "loss/pose": 0.25})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = training_curves.read_log(tmp_path)
    assert training_curves.curve(log, "loss/pose", 0) == ([64, 128], [0.5, 0.25])
    assert training_curves.curve(log, "loss/pose", 100) == ([128], [0.25])
    assert training_curves.curve(log, "eval/rotation_error_deg", 0) == ([64], [3.0])  # at the windows seen by then
    training_curves.plot({"a": log, "b": log}, tmp_path / "curves.png", 0)
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_real_clips_are_estimated_and_put_on_one_sheet(tmp_path, monkeypatch, capsys):
    pictures = []
    for number in range(3):
        (tmp_path / f"clip{number}").mkdir()
        (tmp_path / f"clip{number}" / "cameras.json").write_text("{}")

    def estimate(arguments):
        out = Path(arguments[arguments.index("--out") + 1])
        out.mkdir(parents=True)
        Image.new("RGB", (40, 20), (10 * len(pictures), 0, 0)).save(out / "trajectory.png")
        names = ("rotation_error_deg_median", "rotation_of_truth_deg_median", "direction_error_deg_median")
        errors = dict(zip((*names, "ate_rmse", "path_length"), (1.0, 2.0, 30.0, 0.5, 10.0), strict=True))
        (out / "summary.json").write_text(json.dumps({"errors": errors}))
        pictures.append(arguments)

    monkeypatch.setattr(real_clips, "estimate", estimate)
    monkeypatch.setattr(sys, "argv", ["real_clips", str(tmp_path), "--out", str(tmp_path / "out"), "--strides", "1"])
    assert real_clips.main() == 0 and len(pictures) == 3
    assert "| clip2 | 1 | 1.0 | 2.0 | 30 | 0.5 | 10 |" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "real_clips.png").size == (40, 20)


def test_a_soak_tells_growth_from_a_warm_up_and_a_peak_above_the_bound():
    flat, leak = [100.0] * 20 + [300.0] * 180, [300 + 0.05 * k for k in range(200)]
    assert soak.grown(flat) == 0 and soak.grown(leak) == pytest.approx(0.05 * 160)

    def found(readings, answered=1000, peak=310.0):
        report = {"node": "trajectory_node", "count": 1000, "answered": answered, "peak_mib": peak}
        return soak.problems({**report, "growth_mib": soak.grown(readings)})

    assert found(flat) == []
    assert "memory grew by 8.0 MiB" in found(leak)[0]
    assert "only 500 of 1000" in found(flat, answered=500)[0]
    assert "the peak is 900.0 MiB" in found(flat, peak=900.0)[0]
