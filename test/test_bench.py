# SPDX-License-Identifier: Apache-2.0
"""The bench's own arithmetic: turns, operations of a window, slopes. What it measures decides no test."""

from dataclasses import replace

import pytest
from rays_as_pixels_benchmarks import growth, speed

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


def test_names_of_nested_figures():
    assert speed.flat({"pose": {"a": 1, "b": {"c": 2}}, "d": 3}) == [("pose/a", 1), ("pose/b/c", 2), ("d", 3)]
