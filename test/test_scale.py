# SPDX-License-Identifier: Apache-2.0
"""Metric scale and health: what is said must be true, also when little is known."""

import numpy as np
import pytest

from rays_as_pixels_ros.health import ERROR, OK, WARN, Health
from rays_as_pixels_ros.scale import MetricScale


def test_no_source_is_never_metric():
    scale = MetricScale("none")
    scale.add(1.0, 2.0)
    assert scale.value == 1.0 and not scale.metric


def test_fixed_scale_is_metric():
    scale = MetricScale("fixed", fixed=2.5)
    assert scale.value == 2.5 and scale.metric and scale.spread == 0.0


def test_odometry_scale_is_a_median_that_survives_outliers_and_waits_for_motion():
    scale = MetricScale("odometry", min_motion=0.1)
    scale.add(1.0, 0.01)
    assert scale.value is None and not scale.metric
    rng = np.random.default_rng(0)
    for number in range(30):
        ratio = 50.0 if number % 10 == 9 else 1.7 * (1 + rng.normal(0, 0.02))
        motion = rng.uniform(0.2, 1.0)
        scale.add(motion, ratio * motion)
    assert scale.value == pytest.approx(1.7, rel=0.02) and scale.metric
    assert 0.005 < scale.spread < 0.06
    scale.reset()
    assert scale.value is None


def test_a_checkpoint_in_scene_scale_cannot_be_the_source_of_metres():
    with pytest.raises(ValueError, match="scene scale"):
        MetricScale("model")
    assert MetricScale("model", model=3.0).value == 3.0


@pytest.mark.parametrize(
    "kwargs", [dict(source="guess"), dict(source="fixed", fixed=0.0), dict(source="fixed", fixed=float("nan"))]
)
def test_bad_scales_are_refused(kwargs):
    with pytest.raises(ValueError):
        MetricScale(**kwargs)


def test_health_levels():
    now = [0.0]
    health = Health(max_residual=0.1, silence_s=5.0, clock=lambda: now[0])
    for _ in range(11):
        health.image()
        now[0] += 0.1
    assert health.window(np.array([0.01, 0.02, 0.03]), 0.2)
    level, line, table = health.report()
    assert (level, line) == (OK, "ok") and table["image rate (Hz)"] == "10.0" and table["images"] == "11"
    assert not health.window(np.array([0.5, 0.6, 0.7]), 0.2)
    assert health.report()[0] == ERROR and "0.6" in health.report()[1]
    health.start()
    assert health.report()[0] == OK, "what was lost before does not count"
    health.withhold("no transform from 'camera' to base_frame 'base_link' in TF")
    level, line, table = health.report()
    assert level == WARN and line == "no pose is published: no transform from 'camera' to base_frame 'base_link' in TF"
    assert table["poses not published"] == "1"
    health.pose()
    assert health.report()[0] == OK, "one was published"
    assert health.window(np.array([0.01]), 0.2)
    now[0] += 6.0
    assert health.report()[0] == WARN


def test_health_tells_the_last_closed_loop():
    health = Health()
    assert not any("consistency" in name for name in health.report()[2])
    for figures in ((1.0, 2.0, 3.0), (0.5, 0.0625, 21.0)):
        health.loop(*figures)
    table = health.report()[2]
    assert table["closed loops"] == "2" and table["self-consistency rotation (deg)"] == "0.50"
    assert table["self-consistency translation (scene depths)"] == "0.062"
    assert table["self-consistency PSNR (dB)"] == "21.0"


def test_a_residual_that_is_not_a_number_is_lost():
    assert not Health(max_residual=0.1).window(np.array([np.nan]), 0.1)
