# SPDX-License-Identifier: Apache-2.0
"""The ablation: rows at equal compute, one precision for all, its table."""

import json
import os

import pytest
import torch

from rays_as_pixels_training.ablation import ROWS, AblationConfig, _precision
from rays_as_pixels_training.ablation import main as ablation
from rays_as_pixels_training.ablation_table import table
from rays_as_pixels_training.distributed import Processes
from rays_as_pixels_training.fit_codec import fit_codec
from rays_as_pixels_training.loop import Trainer
from rays_as_pixels_training.state import read_facts, save_state, states


def test_the_ablation_table_says_mean_spread_and_order():
    def runs(r, t):
        common = {"T_err": t, "psnr": 20.0, "failed": 0, "steps": 5, "gflop_per_step": 1.0}
        return [{**common, "R_err": r + d} for d in (-1, 1)]

    text = table(dict(zip(ROWS, (runs(2, 1), runs(3, 2), runs(4, 4), runs(5, 3)), strict=True)))
    assert "| 2 ± 1.4 | 1 ± 0 |" in text and "FID" not in text and "2 seeds" in text
    assert "R_err, best first: full, no_dsca, no_cosine, pluecker: the paper's order" in text
    assert "T_err, best first: full, no_dsca, pluecker, no_cosine: not the paper's" in text


def test_an_ablation_decides_its_precision_once(tmp_path, monkeypatch):
    """For all rows, and again when it continues: a timing of each row's own could come out differently."""
    timings = iter([True])
    monkeypatch.setattr("rays_as_pixels_training.learner.bf16_pays", lambda device: next(timings))
    config = AblationConfig(tmp_path)
    assert _precision(config, Processes()) == "bfloat16"
    facts = {"config": {"precision": "bfloat16"}}
    save_state(tmp_path / "full" / "seed_0", 0, {"model": torch.nn.Linear(2, 2)}, [], facts, Processes())
    assert _precision(config, Processes()) == "bfloat16" and not list(timings)


@pytest.mark.slow
def test_an_ablation_trains_each_row_once_at_equal_compute(tmp_path, pool, capsys, monkeypatch):
    monkeypatch.setattr("rays_as_pixels_training.loop.fit_codec", lambda m, source, **_: fit_codec(m, source, 16))
    timings = iter([False])
    monkeypatch.setattr("rays_as_pixels_training.learner.bf16_pays", lambda device: next(timings))
    folder = os.path.dirname(pool.frames.filename)
    arguments = ["--out", str(tmp_path), "--pool", folder, "--steps", "4", "--seeds", "1", "--batch", "2"]
    arguments += ["--windows", "2"]
    assert ablation(arguments) == 0
    first = capsys.readouterr().out
    report = json.loads((tmp_path / "ablation.json").read_text())
    assert list(report) == list(ROWS) and first.count("\n| ") >= 4
    for (row,) in report.values():
        assert row["steps"] * row["gflop_per_step"] == pytest.approx(4 * report["full"][0]["gflop_per_step"], rel=0.15)
    assert len({row["R_err"] for (row,) in report.values()}) == 4, "four different models"
    kept = {read_facts(states(tmp_path / row / "seed_0")[-1])["config"]["precision"] for row in ROWS}
    assert kept == {"float32"} and not list(timings), "timed once, which decides for all rows"
    monkeypatch.setattr(Trainer, "run", lambda *_, **__: pytest.fail("a finished row is trained again"))
    assert ablation(arguments) == 0 and capsys.readouterr().out == first
    assert ablation([*arguments[:-1], "3"]) == 1 and "windows 2 -> 3" in capsys.readouterr().err
